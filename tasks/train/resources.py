"""The resources of a training run: its runner, device, workers and threads.

Each of these parameters is "auto" by default. `choose_resources` replaces it by measuring this machine or the
Ray cluster:

- On one machine, a single worker with all CPUs (or the GPU) trains in this process; with several GPUs, Ray
  runs a worker on each.
- On a Ray cluster, and with the runner `ray`, there are as many workers as GPUs, or else as CPUs. If the
  model can't use so many, the CPUs are divided among the workers as threads.

A parameter that has no effect in combination with the others is ignored, and reported.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, NamedTuple, Protocol

from pydantic import Discriminator, Field, GetJsonSchemaHandler, Tag
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from lexloom.models.cpus import available_cpus
from lexloom.models.device import count_gpus
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.store.parallel import import_in_thread

MAX_THREADS = 256
AUTO: Final = "auto"
REQUESTS = ("runner", "device", "workers", "threads")


def tag_number(value: Any) -> str:
    return AUTO if value == AUTO else "number"


class Choice:
    """The JSON schema of a number or "auto": Prefect's form shows a choice between a field and a list."""

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        number, _ = schema.pop("oneOf")
        auto = {"type": "string", "enum": [AUTO]}
        return {**schema, "anyOf": [{**number, "title": "Number"}, {**auto, "title": "Automatic"}]}


# a wrong value has one error, where a plain union has one for each member
NumberOrAuto = Discriminator(tag_number)
Auto = Annotated[Literal["auto"], Tag(AUTO)]
Threads = Annotated[Annotated[int, Tag("number"), Field(ge=1, le=MAX_THREADS)] | Auto, NumberOrAuto, Choice()]
Device = Literal["auto", "cpu", "cuda"]
Runner = Literal["auto", "local", "ray"]


class Request(Protocol):
    """The parameters from which resources are chosen (`TrainConfig`)."""

    @property
    def runner(self) -> Runner: ...
    @property
    def device(self) -> Device: ...
    @property
    def workers(self) -> int | Literal["auto"]: ...
    @property
    def min_workers(self) -> int | None: ...
    @property
    def threads(self) -> int | Literal["auto"]: ...
    @property
    def cluster(self) -> str: ...


class Node(NamedTuple):
    """The CPUs and GPUs of a machine that training may use."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class Resources:
    """What a training run uses.

    Attributes:
        workers, min_workers: the number of workers, and how many are enough while the cluster has no room.
        threads: CPU threads per worker; without effect on a GPU.
        cpus: CPUs that a Ray worker reserves.
        cluster: the address of the Ray cluster; empty on this machine.
        nodes: the nodes of the cluster, or this machine.
        automatic: whether a parameter was "auto".
        unused: a sentence for each parameter that has no effect.
    """

    runner: Literal["local", "ray"]
    device: Literal["cpu", "cuda"]
    workers: int
    min_workers: int
    threads: int
    cpus: int = 1
    cluster: str = ""
    nodes: Sequence[Node] = ()
    automatic: bool = False
    unused: Sequence[str] = ()

    def describe(self) -> str:
        """Return one line: what was chosen, and from what."""
        gpus = sum(node.gpus for node in self.nodes)
        each = " each" if self.workers > 1 else ""
        if self.device == "cpu":
            used = counted(self.threads, "threads") + each
        else:
            used = f"one GPU{each}" if self.workers <= gpus else "sharing GPUs"
        number = counted(self.workers, "workers")
        if self.min_workers < self.workers:
            number = f"{self.min_workers} to {number}"
        place = f"the Ray cluster at {self.cluster}" if self.cluster else "this machine"
        if self.runner == "ray" and not self.cluster:
            place += ", with Ray"
        found = [counted(sum(node.cpus for node in self.nodes), "CPUs")]
        found += [counted(gpus, "GPUs")] if gpus else []
        found += [counted(len(self.nodes), "nodes")] if len(self.nodes) > 1 else []
        reason = f" (auto: {', '.join(found)})" if self.automatic else ""
        return "; ".join([f"{number}, {used} on {place}{reason}", *self.unused])


def choose_resources(
    request: Request,
    most_workers: int,
    *,
    most_threads: Callable[[int], int] = lambda workers: MAX_THREADS,
    measure_machine: Callable[[], Node] | None = None,
    measure_cluster: Callable[[str], list[Node]] | None = None,
) -> Resources:
    """Choose the resources of a run.

    Args:
        most_workers: the number of workers that the model can use.
        most_threads: the number of threads that a worker can use, as a function of the number of workers.

    Raises:
        ConnectionError: the Ray cluster does not respond.
    """
    if request.cluster:
        nodes = (measure_cluster or measure_ray_cluster)(request.cluster)
    else:
        nodes = [(measure_machine or measure_this_machine)()]
    gpus = sum(node.gpus for node in nodes)
    device = request.device if request.device != AUTO else "cuda" if gpus else "cpu"
    given_workers = request.workers if isinstance(request.workers, int) else None
    given_threads = request.threads if isinstance(request.threads, int) else None
    minimum = min(request.min_workers or 1, most_workers)
    unused = []

    runner = request.runner
    if runner == AUTO:
        several = max(minimum, gpus if device == "cuda" else 1) if given_workers is None else given_workers
        runner = "ray" if request.cluster or min(several, most_workers) > 1 else "local"
    if runner == "local":
        workers = minimum = 1
        if given_workers is not None and given_workers > 1:
            unused.append(f"workers is {given_workers}, but the local runner has one")
    elif given_workers is None:
        room = gpus if device == "cuda" else count_slots(nodes, given_threads or 1)
        workers = max(minimum, min(room, most_workers))
        minimum = minimum if request.cluster else workers
    else:
        workers = min(given_workers, most_workers)
        minimum = min(request.min_workers or workers, workers)

    share = largest_share(nodes, workers)
    threads = given_threads or min(share, most_threads(workers))
    if device == "cuda":
        threads = 1
        if given_threads is not None:
            unused.append("threads has no effect on a GPU")
    return Resources(
        runner,
        device,
        workers,
        minimum,
        threads,
        cpus=min(share, threads),
        cluster=request.cluster,
        nodes=nodes,
        automatic=any(getattr(request, name) == AUTO for name in REQUESTS),
        unused=unused,
    )


def count_slots(nodes: Sequence[Node], cpus: int) -> int:
    """Count the workers of `cpus` CPUs each that the nodes have room for."""
    return sum(node.cpus // cpus for node in nodes)


def largest_share(nodes: Sequence[Node], workers: int) -> int:
    """Return the largest number of CPUs that each of `workers` can have; at least 1."""
    shares = range(max((node.cpus for node in nodes), default=1), 1, -1)
    return min(next((share for share in shares if count_slots(nodes, share) >= workers), 1), MAX_THREADS)


def measure_this_machine() -> Node:
    return Node(available_cpus(), count_gpus())


def measure_ray_cluster(address: str) -> list[Node]:
    """Connect to a Ray cluster for a moment, and return its nodes that have CPUs."""
    verbose = bool(os.environ.get("LEXLOOM_VERBOSE"))
    found = import_in_thread("lexloom.training.ray.runtime").measure_nodes(address, verbose)
    nodes = [Node(int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in found]
    return [node for node in nodes if node.cpus]
