"""A stage's pieces: worked out in threads of this process, or on the nodes of a Ray cluster.

A piece is read where it is worked on, from the store that all nodes share, and outcomes are handed out in
the order of the pieces. So what a stage makes of them depends neither on where that was nor on who was first.
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
from lexloom.tasks.store.shards import in_order

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

_cluster: ContextVar[str] = ContextVar("cluster", default="")


@contextmanager
def stages_on(address: str) -> Iterator[None]:
    """The stages that run inside use the Ray cluster at `address`; none where it is empty."""
    token = _cluster.set(address)
    try:
        yield
    finally:
        _cluster.reset(token)


@contextmanager
def fan_out(
    function: Callable[[Item], Outcome],
    pieces: Iterable[Item],
    *,
    side_by_side: bool = True,
    gpu: bool = False,
) -> Iterator[Iterator[Outcome]]:
    """`function` of every piece, in order; an error has a note that names the piece.

    The function and the pieces are pickled if they go to a cluster, where each keeps a CPU busy, or a `gpu`.
    Here pieces are worked on side by side, unless one keeps the whole machine busy. When the block ends,
    however it ends, nothing is under way any more.
    """
    address = _cluster.get()
    named = partial(name_in_errors, function)
    if not address:
        with closing(in_order(named, pieces) if side_by_side else one_by_one(named, pieces)) as outcomes:
            yield outcomes
        return
    verbose, note = bool(os.environ.get("LEXLOOM_VERBOSE")), partial(console.note, "cluster")
    with (
        module("lexloom.training.ray.runtime").ray_runtime(1, address, verbose, note),
        closing(module("lexloom.training.ray.map").map_on_nodes(named, pieces, gpu=gpu)) as outcomes,
    ):
        yield outcomes


def one_by_one(function: Callable[[Item], Outcome], pieces: Iterable[Item]) -> Generator[Outcome]:
    for piece in pieces:
        yield function(piece)


def name_in_errors(function: Callable[[Item], Outcome], piece: Item) -> Outcome:
    try:
        return function(piece)
    except Exception as error:
        error.add_note(f"in {piece}")
        raise


def module(name: str) -> Any:
    """A module that imports Ray, imported when it is needed, since that takes seconds; and by another thread.

    A cancel is an exception that a signal raises in the main thread. Within an import it may fall into a
    library's `except:` and be lost (one in 16 did); here it finds the main thread waiting.
    """
    return ThreadPoolExecutor(1, "import").submit(import_module, name).result()
