"""Where workers go in a cluster: what each reserves, how they talk, and whether there is room for them.

A cluster is known by its resources, as Ray counts them: {"CPU": 16.0, "GPU": 2.0, ...}.
"""

from collections.abc import Mapping
from math import ceil

Resources = Mapping[str, float]


def reserved(workers: int, device: str, cluster: Resources) -> tuple[dict[str, float], str]:
    """What a worker reserves, and the torch.distributed backend between so many workers.

    NCCL wants a GPU for each worker; where several share one they talk by gloo.
    """
    if device != "cuda":
        return {"CPU": 1}, "gloo"
    sharing = ceil(workers / int(cluster["GPU"]))
    return {"CPU": 1, "GPU": 1 / sharing}, "nccl" if sharing == 1 else "gloo"


def require(workers: int, device: str, cluster: Resources) -> None:
    """ValueError where the cluster can't hold so many workers, even if nobody else used it."""
    cpus = int(cluster.get("CPU", 0))
    if workers > cpus:
        raise ValueError(
            f"{workers} workers need as many CPUs, and the Ray cluster has {cpus}: ask for fewer, or let"
            " fewer do (--min-workers)"
        )
    if device == "cuda" and cluster.get("GPU", 0) < 1:
        raise ValueError("the Ray cluster has no GPU: train on the CPU, or join a cluster that has one")


def capacity(device: str, resources: Resources) -> int:
    """How many workers there is room for, each with a GPU of its own on "cuda"."""
    return int(min(resources.get(name, 0) for name in wanted(device)))


def wanted(device: str) -> list[str]:
    return ["CPU", "GPU"] if device == "cuda" else ["CPU"]


def room(least: int, most: int, device: str, cluster: Resources, free: Resources) -> int:
    """How many workers, up to `most`, fit into what other work leaves `free`; ValueError for too few."""
    fitting = capacity(device, free)
    if fitting < least:
        busy = [
            f"{cluster[name] - free.get(name, 0):g} of {cluster[name]:g} {name}s" for name in wanted(device)
        ]
        raise ValueError(
            f"there is no room for {least} workers: other work keeps {' and '.join(busy)} of the Ray cluster"
            " busy; wait until it is done, or ask for fewer workers"
        )
    return min(fitting, most)


def described(cluster: Resources, address: str | None, nodes: int) -> str:
    """Which Ray a run is on, in one line; None is the address of one that was started for it."""
    found = " and ".join(counted(cluster[name], name) for name in ("CPU", "GPU") if cluster.get(name))
    if address is None:
        return f"Ray: started on this machine, with {found}"
    return f"Ray: joined the cluster at {address}, with {found} on {counted(nodes, 'node')}"


def counted(number: float, noun: str) -> str:
    return f"{number:g} {noun}" if number == 1 else f"{number:g} {noun}s"
