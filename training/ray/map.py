"""Maps a function over items on the nodes of a Ray cluster."""

import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from functools import lru_cache
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

RETRIES = 3  # of an item whose process or node was lost
CANCEL_ATTEMPTS, CANCEL_SECONDS = 5, 2.0  # and the interval between them
TASKS_PER_CPU = 2  # one running and one waiting

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_on_nodes(
    function: Callable[[Item], Result], items: Iterable[Item], *, gpu: bool | None = False
) -> Generator[Result]:
    """Yield `function(item)` for every item in order, each computed on one CPU of the joined cluster.

    With `gpu`, each also occupies a GPU; None means: if the cluster has GPUs.

    Few results are held at any time. If the generator is closed early, running tasks are cancelled.

    Raises:
        Exception: the function's own error, with its traceback as a note.
        RuntimeError: an item's process was lost repeatedly.
    """
    cluster = ray.cluster_resources()
    gpu = "GPU" in cluster if gpu is None else gpu
    max_tasks = TASKS_PER_CPU * max(1, int(cluster.get("GPU" if gpu else "CPU", 1)))
    task = ray.remote(call_function).options(
        num_cpus=1, num_gpus=int(gpu), max_retries=RETRIES, scheduling_strategy="SPREAD"
    )
    sent = [ray.put(function)]  # in a list, otherwise Ray would unpickle it for every item
    running: deque[tuple[Item, Any, Future[Result]]] = deque()
    try:
        for item in items:
            reference = task.remote(sent, item)
            running.append((item, reference, reference.future()))
            if len(running) > max_tasks:
                yield pop_result(running)
        while running:
            yield pop_result(running)
    finally:
        cancel_tasks([reference for _, reference, _ in running])


def cancel_tasks(references: list[Any]) -> None:
    """Cancel tasks repeatedly, since a task that is about to start may miss a cancel."""
    for _ in range(CANCEL_ATTEMPTS):
        for reference in references:
            ray.cancel(reference, force=True)
        if references:
            _, references = ray.wait(references, num_returns=len(references), timeout=CANCEL_SECONDS)


def pop_result(running: deque[tuple[Item, Any, Future[Result]]]) -> Result:
    """Wait for the first task's result; until then it stays in `running`, so that it can be cancelled."""
    result = wait_for_result(*running[0])
    running.popleft()
    return result


def wait_for_result(item: Item, reference: Any, future: "Future[Result]") -> Result:
    """Wait in Python, where exceptions of signal handlers propagate; Ray would replace them."""
    try:
        return future.result()
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RuntimeError(
            f"the process for {item} died {1 + RETRIES} times on the cluster: {line}"
        ) from error


# on the nodes


def call_function(sent: list[Any], item: Any) -> Any:
    try:
        return load_function(sent[0])(item)
    except Exception as error:
        error.add_note(f"on the node {ray.util.get_node_ip_address()}:\n{traceback.format_exc()}")
        raise


@lru_cache(maxsize=1)
def load_function(reference: Any) -> Callable[[Any], Any]:
    """Unpickle the function, once per process."""
    return ray.get(reference)
