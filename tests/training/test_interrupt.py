"""A first signal waits for the end of a block, a second one does not."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from training.interrupt import hold_signals


class Cancel(BaseException):
    pass


@pytest.fixture(autouse=True)
def cancelling() -> Iterator[None]:
    def cancel(number: int, frame: object) -> None:
        raise Cancel

    before = signal.signal(signal.SIGTERM, cancel)
    yield
    signal.signal(signal.SIGTERM, before)


def interrupted_step(told: list[str], *numbers: signal.Signals) -> None:
    with hold_signals(lambda: told.append("told")) as came:
        assert not came()
        for number in numbers:
            os.kill(os.getpid(), number)
            told.append(f"goes on: {came()}")


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Cancel)])
def test_the_first_signal_reaches_its_handler_at_the_end_of_the_block(
    number: signal.Signals, error: type[BaseException]
) -> None:
    told: list[str] = []
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(error):
        interrupted_step(told, number)
    assert sorted(told) == ["goes on: True", "told"]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.parametrize(("second", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Cancel)])
def test_a_second_signal_is_not_held_back(second: signal.Signals, error: type[BaseException]) -> None:
    told: list[str] = []
    with pytest.raises(error):
        interrupted_step(told, signal.SIGINT, second)
    assert sorted(told) == ["goes on: True", "told"]


def fail_when_interrupted() -> None:
    with hold_signals(lambda: None):
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("disk")


def test_an_error_in_the_block_is_raised_and_not_the_signal() -> None:
    with pytest.raises(ValueError, match="disk"):
        fail_when_interrupted()


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with hold_signals(lambda: None) as came:
            os.kill(os.getpid(), signal.SIGINT)
            assert not came()
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_holds_nothing_back() -> None:
    def run() -> None:
        with hold_signals(lambda: None) as came:
            seen.append((came(), signal.getsignal(signal.SIGINT)))

    seen: list[object] = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(False, signal.default_int_handler)]
