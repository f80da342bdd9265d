"""Resources of workers in a Ray cluster: what each worker reserves, and how many workers fit.

A cluster is described by its resources as Ray counts them: {"CPU": 16.0, "GPU": 2.0, ...}.
"""

from collections.abc import Mapping
from math import ceil

Resources = Mapping[str, float]


def worker_resources(
    workers: int, device: str, cluster: Resources, cpus: int = 1
) -> tuple[dict[str, float], str]:
    """Return the resources that each worker reserves, and the torch.distributed backend.

    A worker without a GPU reserves `cpus` CPUs, so that Ray places it where they are. NCCL requires a GPU per
    worker; workers that share a GPU use gloo.
    """
    if device != "cuda":
        return {"CPU": cpus}, "gloo"
    sharing = ceil(workers / int(cluster["GPU"]))
    return {"CPU": 1, "GPU": 1 / sharing}, "nccl" if sharing == 1 else "gloo"


def check_capacity(workers: int, device: str, cluster: Resources, cpus: int = 1) -> None:
    """Raise a ValueError if the cluster can't hold the workers even when it is idle."""
    found = int(cluster.get("CPU", 0))
    if workers * cpus > found:
        needed = "one CPU" if cpus == 1 else f"{cpus} CPUs"
        raise ValueError(
            f"{workers} workers need {needed} each, but the Ray cluster has {found}: use fewer workers, or"
            " set --min-workers"
        )
    if device == "cuda" and cluster.get("GPU", 0) < 1:
        raise ValueError("the Ray cluster has no GPU: train on the CPU, or use a cluster that has one")


def worker_capacity(device: str, resources: Resources, cpus: int = 1) -> int:
    """Return the number of workers that fit into the resources, each with its own GPU on "cuda"."""
    each = {"CPU": cpus, "GPU": 1}
    return int(min(resources.get(name, 0) // each[name] for name in resource_names(device)))


def resource_names(device: str) -> list[str]:
    return ["CPU", "GPU"] if device == "cuda" else ["CPU"]


def available_workers(
    minimum: int, maximum: int, device: str, cluster: Resources, free: Resources, cpus: int = 1
) -> int:
    """Return the number of workers, up to `maximum`, that fit into the `free` resources.

    Raises:
        ValueError: fewer than `minimum` fit.
    """
    fitting = worker_capacity(device, free, cpus)
    if fitting < minimum:
        busy = [
            f"{cluster[name] - free.get(name, 0):g} of {cluster[name]:g} {name}s"
            for name in resource_names(device)
        ]
        raise ValueError(
            f"there is no room for {minimum} workers: {' and '.join(busy)} of the Ray cluster are in use;"
            " wait until they are free, or use fewer workers"
        )
    return min(fitting, maximum)


def describe_cluster(cluster: Resources, address: str | None, nodes: int) -> str:
    """Describe the Ray runtime in one line; `address` is None for a runtime that was started for the run."""
    found = " and ".join(format_count(cluster[name], name) for name in ("CPU", "GPU") if cluster.get(name))
    if address is None:
        return f"Ray: started on this machine, with {found}"
    return f"Ray: connected to the cluster at {address}, with {found} on {format_count(nodes, 'node')}"


def format_count(number: float, noun: str) -> str:
    return f"{number:g} {noun}" if number == 1 else f"{number:g} {noun}s"
