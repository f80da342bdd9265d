"""Deferred signals, so that a run can finish its step and write a checkpoint before it stops."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def hold_signals(on_first: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Defer the first SIGINT or SIGTERM; yield a function that returns whether one was received.

    The original handler runs at the end of the block. A second signal goes to its handler at once. When the
    first signal arrives, `on_first` is called in a thread, since a handler must not write to a stream that is
    in use. Ignored signals stay ignored. Outside the main thread, which alone can set handlers, nothing is
    deferred.
    """
    here = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in SIGNALS} if here else {}
    held = {number: each for number, each in handlers.items() if each not in (None, signal.SIG_IGN)}
    received: list[int] = []
    threads: list[threading.Thread] = []

    def restore_handlers() -> None:
        for number, handler in held.items():
            signal.signal(number, handler)

    def hold(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore_handlers()
        threads.append(threading.Thread(target=on_first, name="interrupt"))
        threads[-1].start()

    for number in held:
        signal.signal(number, hold)
    try:
        yield lambda: bool(received)
    finally:
        restore_handlers()
        for thread in threads:
            thread.join()
    if received:
        signal.raise_signal(received[0])
