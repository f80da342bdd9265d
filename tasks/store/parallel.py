"""Parallel processing of a stage's pieces, in threads of this process or on the nodes of a Ray cluster.

Each piece is read by the process that works on it, from the store that all nodes share. Results come in the
order of the pieces, so a stage's output does not depend on where or in which order they were computed.
"""

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from contextvars import ContextVar
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

from lexloom.tasks.display import console
from lexloom.tasks.store.shards import map_in_order

Item = TypeVar("Item")
Result = TypeVar("Result")

_cluster: ContextVar[str] = ContextVar("cluster", default="")


@contextmanager
def use_cluster(address: str) -> Iterator[None]:
    """Make the stages that run inside use the Ray cluster at `address`; an empty address means threads."""
    token = _cluster.set(address)
    try:
        yield
    finally:
        _cluster.reset(token)


@contextmanager
def fan_out(
    function: Callable[[Item], Result],
    pieces: Iterable[Item],
    *,
    concurrent: bool = True,
    gpu: bool | None = False,
) -> Iterator[Iterator[Result]]:
    """Yield an iterator over `function(piece)`, in order; errors get a note that names the piece.

    On a cluster, the function and the pieces are pickled, and each piece occupies one CPU, or one GPU with
    `gpu` (None: if the cluster has GPUs). In this process, pieces run in several threads; set
    `concurrent=False` if a single piece already uses the whole machine. At the end of the block, also after
    an error, no piece is running.
    """
    address = _cluster.get()
    named = partial(call_with_note, function)
    if not address:
        with closing(
            map_in_order(named, pieces) if concurrent else map_sequentially(named, pieces)
        ) as results:
            yield results
        return
    verbose, note = bool(os.environ.get("LEXLOOM_VERBOSE")), partial(console.note, "cluster")
    with (
        import_in_thread("lexloom.training.ray.runtime").ray_runtime(1, address, verbose, note),
        closing(import_in_thread("lexloom.training.ray.map").map_on_nodes(named, pieces, gpu=gpu)) as results,
    ):
        yield results


def map_sequentially(function: Callable[[Item], Result], pieces: Iterable[Item]) -> Generator[Result]:
    for piece in pieces:
        yield function(piece)


def call_with_note(function: Callable[[Item], Result], piece: Item) -> Result:
    try:
        return function(piece)
    except Exception as error:
        error.add_note(f"in {piece}")
        raise


def import_in_thread(name: str) -> Any:
    """Import a module that imports Ray, only when it is needed (it takes seconds), in another thread.

    Prefect cancels a run by an exception that a signal handler raises in the main thread. During an import,
    a library's `except:` may swallow it (1 in 16 were lost); here the main thread only waits.
    """
    return ThreadPoolExecutor(1, "import").submit(import_module, name).result()
