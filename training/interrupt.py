"""A signal that waits until a step is over, so that a checkpoint can be written before the run stops."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held_signals(on_first: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Holds back the first SIGINT or SIGTERM; yields a function that says whether it has come.

    Its own handler gets it at the end of the block. A second signal goes to its handler at once. `on_first`
    is called when the first one comes, in a thread, since a handler may not write to a stream that is being
    written to. Signals that are ignored stay so. Outside the main thread, where Python has no handlers,
    nothing is held back.
    """
    here = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in SIGNALS} if here else {}
    held = {number: each for number, each in handlers.items() if each not in (None, signal.SIG_IGN)}
    came: list[int] = []
    telling: list[threading.Thread] = []

    def give_back() -> None:
        for number, handler in held.items():
            signal.signal(number, handler)

    def hold(number: int, frame: FrameType | None) -> None:
        came.append(number)
        give_back()
        telling.append(threading.Thread(target=on_first, name="interrupt"))
        telling[-1].start()

    for number in held:
        signal.signal(number, hold)
    try:
        yield lambda: bool(came)
    finally:
        give_back()
        for thread in telling:
            thread.join()
    if came:
        signal.raise_signal(came[0])
