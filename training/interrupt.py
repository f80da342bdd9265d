"""Deferred signals, so that a run can finish its step and write a checkpoint before it stops."""

import contextvars
import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")
STOP_SECONDS = 5.0  # time limit for `work` to stop after a second signal
# A signal that arrives just before the main thread blocks does not wake it (CPython checks for signals before
# it waits for a lock), so the main thread wakes up this often to run the signal's handler.
POLL_SECONDS = 0.1


class Stopped(BaseException):
    """Raised in the work by a second signal."""


def run_interruptibly(work: Callable[[Callable[[], bool]], T], on_first: Callable[[], None]) -> T:
    """Call `work`, and defer what the handler of a first signal raises until `work` returns.

    `work` receives a function that returns whether a signal was received; it must then return soon. What it
    raises takes precedence over the signal. `on_first` is called when the first signal arrives. A second
    signal stops `work` at its next Python instruction.

    `work` runs in a thread, and signals are raised in the main thread, which only waits. No handler is
    replaced: Prefect accepts a cancel only while its own handler of SIGTERM is installed, and records a run
    that SIGTERM ends without an accepted cancel as crashed. Outside the main thread, which alone receives
    signals, `work` is called directly.
    """
    if threading.current_thread() is not threading.main_thread():
        return work(lambda: False)
    waiting, received = threading.Event(), threading.Event()
    done: Future[T] = Future()

    def run() -> None:
        waiting.wait()
        try:
            result = work(received.is_set)
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(result)

    in_this_context = contextvars.copy_context().run  # so that `work` belongs to the caller's Prefect run
    thread = threading.Thread(target=in_this_context, args=(run,), name="interruptible", daemon=True)
    thread.start()  # a signal that arrives here is raised before `work` begins
    try:
        waiting.set()
        while not wait([done], POLL_SECONDS).done:
            pass
        return done.result()
    except BaseException:
        if done.done():  # raised by `work`
            raise
        try:
            received.set()
            on_first()
            while not wait([done], POLL_SECONDS).done:
                pass
        except BaseException:
            stop(thread)
            wait([done], STOP_SECONDS)
            raise
        done.result()
        raise


def stop(thread: threading.Thread) -> None:
    """Raise `Stopped` in a thread at its next Python instruction."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Stopped))
