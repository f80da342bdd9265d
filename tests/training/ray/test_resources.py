"""Resources that workers reserve, and errors of clusters that are too small or too busy."""

import pytest

from lexloom.training.ray.resources import (
    available_workers,
    check_capacity,
    describe_cluster,
    worker_capacity,
    worker_resources,
)


def test_cpu_worker_reserves_one_cpu_and_uses_gloo() -> None:
    assert worker_resources(3, "cpu", {"CPU": 4.0, "GPU": 2.0}) == ({"CPU": 1}, "gloo")


@pytest.mark.parametrize(
    ("workers", "gpus", "share", "backend"),
    [(1, 1, 1, "nccl"), (2, 4, 1, "nccl"), (4, 4, 1, "nccl"), (2, 1, 1 / 2, "gloo"), (5, 2, 1 / 3, "gloo")],
)
def test_nccl_with_a_gpu_per_worker_and_gloo_with_shared_gpus(
    workers: int, gpus: int, share: float, backend: str
) -> None:
    assert worker_resources(workers, "cuda", {"CPU": 8.0, "GPU": float(gpus)}) == (
        {"CPU": 1, "GPU": share},
        backend,
    )
    assert gpus * int(1 / share) >= workers  # so many shares there are


def test_too_small_cluster_is_rejected() -> None:
    check_capacity(4, "cpu", {"CPU": 4.0})
    with pytest.raises(ValueError, match=r"^5 workers need one CPU each, but the Ray cluster has 4"):
        check_capacity(5, "cpu", {"CPU": 4.0})
    check_capacity(4, "cuda", {"CPU": 4.0, "GPU": 1.0})
    with pytest.raises(ValueError, match=r"^the Ray cluster has no GPU: train on the CPU, or use"):
        check_capacity(1, "cuda", {"CPU": 4.0})


def test_capacity_is_limited_by_cpus_and_gpus() -> None:
    assert worker_capacity("cpu", {"CPU": 3.0, "GPU": 1.0}) == 3
    assert worker_capacity("cuda", {"CPU": 3.0, "GPU": 1.0}) == 1
    assert worker_capacity("cuda", {"CPU": 3.0}) == 0


def test_busy_cluster_fits_fewer_workers_or_raises() -> None:
    cluster = {"CPU": 8.0, "GPU": 4.0}
    assert available_workers(1, 8, "cpu", cluster, {"CPU": 3.0}) == 3
    assert available_workers(1, 8, "cuda", cluster, {"CPU": 3.0, "GPU": 2.0}) == 2
    with pytest.raises(ValueError, match=r"no room for 4 workers: 5 of 8 CPUs of the Ray"):
        available_workers(4, 8, "cpu", cluster, {"CPU": 3.0})
    with pytest.raises(ValueError, match=r"8 of 8 CPUs and 3 of 4 GPUs of the Ray cluster are in use; wait"):
        available_workers(2, 2, "cuda", cluster, {"GPU": 1.0})
    assert available_workers(3, 3, "cpu", cluster, {"CPU": 8.0}) == 3  # it has become free since


def test_description_of_the_runtime() -> None:
    assert describe_cluster({"CPU": 2.0}, None, 1) == "Ray: started on this machine, with 2 CPUs"
    joined = describe_cluster({"CPU": 16.0, "GPU": 1.0, "memory": 1e9}, "10.0.0.1:6379", 3)
    assert joined == "Ray: connected to the cluster at 10.0.0.1:6379, with 16 CPUs and 1 GPU on 3 nodes"
