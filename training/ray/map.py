"""Maps a function over pieces of work on the nodes of a Ray cluster."""

import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from functools import lru_cache
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

RETRIES = 3  # of a piece whose process or node was lost
CANCELS, CANCEL_SECONDS = 5, 2.0  # of work that is taken back, and between two of them
AHEAD = 2  # pieces for each CPU: one that is worked on, and one that waits

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def map_on_nodes(
    function: Callable[[Item], Outcome], items: Iterable[Item], *, gpu: bool = False
) -> Generator[Outcome]:
    """`function` of every item, each worked out on one CPU (and one GPU) of the cluster that is joined.

    Handed out in order; few outcomes wait at any time. Left early, it takes back what is under way.

    Raises:
        Exception: the function's own error, with its traceback as a note.
        RuntimeError: an item's process was lost again and again.
    """
    cluster = ray.cluster_resources()
    most = AHEAD * max(1, int(cluster.get("GPU" if gpu else "CPU", 1)))
    task = ray.remote(work).options(
        num_cpus=1, num_gpus=int(gpu), max_retries=RETRIES, scheduling_strategy="SPREAD"
    )
    sent = [ray.put(function)]  # in a list, or Ray would unpickle it anew for every item
    running: deque[tuple[Item, Any, Future[Outcome]]] = deque()
    try:
        for item in items:
            reference = task.remote(sent, item)
            running.append((item, reference, reference.future()))
            if len(running) > most:
                yield taken(running)
        while running:
            yield taken(running)
    finally:
        take_back([reference for _, reference, _ in running])


def take_back(references: list[Any]) -> None:
    """Cancels tasks, again and again: one that is about to begin may not hear of it."""
    for _ in range(CANCELS):
        for reference in references:
            ray.cancel(reference, force=True)
        if references:
            _, references = ray.wait(references, num_returns=len(references), timeout=CANCEL_SECONDS)


def taken(running: deque[tuple[Item, Any, Future[Outcome]]]) -> Outcome:
    """The first one's outcome; while it is awaited it stays among those that run."""
    outcome = outcome_of(*running[0])
    running.popleft()
    return outcome


def outcome_of(item: Item, reference: Any, future: "Future[Outcome]") -> Outcome:
    """Waits in Python, where a signal's exception passes, and not in Ray, which would make it another."""
    try:
        return future.result()
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RuntimeError(
            f"{item} was lost with its process {1 + RETRIES} times on the cluster: {line}"
        ) from error


# on the nodes


def work(sent: list[Any], item: Any) -> Any:
    try:
        return unpickled(sent[0])(item)
    except Exception as error:
        error.add_note(f"on the node {ray.util.get_node_ip_address()}:\n{traceback.format_exc()}")
        raise


@lru_cache(maxsize=1)
def unpickled(reference: Any) -> Callable[[Any], Any]:
    """The function, once in each process."""
    return ray.get(reference)
