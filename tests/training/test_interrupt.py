"""A first signal is deferred until the work returns; a second signal stops the work."""

import contextvars
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from lexloom.training.interrupt import Stopped, run_interruptibly


class Cancel(BaseException):
    pass


def cancel(number: int, frame: object) -> None:
    raise Cancel


def ignore() -> None:
    """For a first signal of which nothing is reported."""


@pytest.fixture(autouse=True)
def cancelling() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, cancel)
    yield
    signal.signal(signal.SIGTERM, before)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


SIGNALS_AND_ERRORS = pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Cancel)]
)


@SIGNALS_AND_ERRORS
def test_the_first_signal_is_raised_when_the_work_has_returned(
    number: signal.Signals, error: type[BaseException]
) -> None:
    def step(interrupted: Callable[[], bool]) -> None:
        assert not interrupted()
        os.kill(os.getpid(), number)
        until(interrupted)
        until(lambda: "first" in events)
        events.append("finished")

    events: list[str] = []
    with pytest.raises(error):
        run_interruptibly(step, lambda: events.append("first"))
    assert events == ["first", "finished"]


@SIGNALS_AND_ERRORS
def test_a_second_signal_stops_the_work(number: signal.Signals, error: type[BaseException]) -> None:
    def step(interrupted: Callable[[], bool]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: bool(events))
        os.kill(os.getpid(), number)
        try:
            until(lambda: False)
        except Stopped:
            events.append("stopped")
            raise

    events: list[str] = []
    with pytest.raises(error):
        run_interruptibly(step, lambda: events.append("first"))
    assert events == ["first", "stopped"]


def test_no_handler_is_replaced_before_or_after_a_signal() -> None:
    """Prefect refuses a cancel while another handler than its own is installed."""

    def step(interrupted: Callable[[], bool]) -> None:
        seen.append(signal.getsignal(signal.SIGTERM))
        os.kill(os.getpid(), signal.SIGTERM)
        until(interrupted)
        seen.append(signal.getsignal(signal.SIGTERM))

    seen: list[object] = []
    with pytest.raises(Cancel):
        run_interruptibly(step, ignore)
    assert [*seen, signal.getsignal(signal.SIGTERM)] == [cancel] * 3


def test_an_error_of_the_work_is_raised_and_not_the_signal() -> None:
    def step(interrupted: Callable[[], bool]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        until(interrupted)
        raise ValueError("disk")

    with pytest.raises(ValueError, match="disk"):
        run_interruptibly(step, ignore)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_without_a_signal_is_no_signal(error: type[BaseException]) -> None:
    def step(interrupted: Callable[[], bool]) -> None:
        raise error

    with pytest.raises(error):
        run_interruptibly(step, lambda: pytest.fail("no signal was sent"))


def test_the_result_is_returned_and_the_context_is_the_callers() -> None:
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(7)
    assert run_interruptibly(lambda interrupted: variable.get(), ignore) == 7


def test_an_ignored_signal_stays_ignored() -> None:
    def step(interrupted: Callable[[], bool]) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        return interrupted()

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert not run_interruptibly(step, ignore)
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_the_work_is_called_directly() -> None:
    seen: list[tuple[threading.Thread, bool]] = []

    def step(interrupted: Callable[[], bool]) -> None:
        seen.append((threading.current_thread(), interrupted()))

    thread = threading.Thread(target=run_interruptibly, args=(step, ignore))
    thread.start()
    thread.join()
    assert seen == [(thread, False)]
