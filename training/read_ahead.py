"""Computes the items of an iterator ahead, in a thread."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

READ_AHEAD_ITEMS = 4
STOP_POLL_SECONDS = 0.2

Item = TypeVar("Item")


def read_ahead(items: Iterator[Item]) -> Generator[Item]:
    """Yield the items, which a thread takes from the iterator ahead; its errors are raised here.

    When the generator is closed, the thread ends after its current item.
    """
    ready: queue.Queue[tuple[Item] | BaseException | None] = queue.Queue(READ_AHEAD_ITEMS)
    stopped = threading.Event()

    def put(item: tuple[Item] | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=STOP_POLL_SECONDS)
                return
            except queue.Full:
                continue

    def fill() -> None:
        try:
            for item in items:
                put((item,))
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    reader = threading.Thread(target=fill, name="read-ahead", daemon=True)
    reader.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        stopped.set()
        reader.join()
