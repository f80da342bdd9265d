"""Runs the training loop on Ray Train workers.

The loop's own checkpoints provide fault tolerance: when a worker dies, the group is restarted, and every
worker resumes from the newest checkpoint.

Most of the time to the first step is spent starting processes that import ray and torch
(benchmarks/overhead.py). So as few processes as possible are started, and only the workers import torch.
"""

import logging
import os
import tempfile
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import replace
from datetime import timedelta
from functools import partial

import psutil
import ray
import torch
import torch.distributed as dist
from ray.train import RunConfig, get_context
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2._internal import callbacks
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import FailureConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from lexloom.training.checkpoint_files import Checkpoints
from lexloom.training.job import Job
from lexloom.training.loop import train
from lexloom.training.progress import PROGRESS, Progress
from lexloom.training.ray.failures import (
    describe_loss,
    find_runtime_error,
    find_training_error,
    is_startup_timeout,
)
from lexloom.training.ray.progress_file import relay_progress, write_progress
from lexloom.training.ray.resources import check_capacity, worker_capacity, worker_resources
from lexloom.training.ray.runtime import ray_runtime, wait_for_room

GROUP_TIMEOUT_SECONDS = 120
MAX_ATTEMPTS = 4  # without a new checkpoint in between
MAX_STARTUP_TIMEOUTS = 3
RESIZE_SECONDS = 30  # interval at which elastic runs check for new nodes
LEASE = "training"  # a file next to the checkpoints; workers train while it exists
LAST_CHECKPOINT_SECONDS = 20  # time limit after an interrupt; Prefect kills a run 30 s after a cancel

logger = logging.getLogger("lexloom.ray")


def train_on_ray(
    job: Job,
    *,
    workers: int | tuple[int, int],
    cpus: int = 1,
    address: str | None = None,
    verbose: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] = logger.info,
) -> None:
    """Run `lexloom.training.loop.train` on Ray Train workers; return when the last checkpoint is written.

    Args:
        workers: their number, or (min, max): as many as the cluster has room for, and more or fewer from the
            newest checkpoint on when nodes join or leave. If a lost node leaves too few CPUs or GPUs for the
            minimum, the run waits `NODE_SECONDS` for another node.
        cpus: the number of CPUs that each worker on the CPU reserves.
        address: of a Ray cluster to join; None starts a runtime on this machine for the call.
        on_note: receives messages about the Ray runtime and lost workers.

    A job on "cuda" gives each worker its own GPU, or a share of one if there are fewer GPUs than workers. An
    exception that a signal handler raises here (Ctrl-C, a cancel) propagates once the workers have written a
    checkpoint.

    Raises:
        ValueError: the cluster has too few CPUs or GPUs, or all are busy.
        Exception: a worker's own error, with the worker's traceback as a note.
        RuntimeError: workers were lost repeatedly, or could not be started.
    """
    minimum, maximum = (workers, workers) if isinstance(workers, int) else workers
    if not 1 <= minimum <= maximum:
        raise ValueError(f"workers is {workers}: the minimum must be at least 1, and at most the maximum")
    with ray_runtime(minimum, address, verbose, on_note):
        check_capacity(minimum, job.device, ray.cluster_resources(), cpus)
        with relay_progress(job.checkpoints.parent / PROGRESS, on_progress):
            checkpoints = Checkpoints(job.checkpoints, job.fingerprint)
            attempts, last_error, limit = 0, None, maximum
            while True:
                before = set(job.checkpoints.glob("step-*"))
                try:
                    fit(job, minimum, limit, on_note, cpus)
                    return
                except (WorkerGroupError, ControllerError) as failure:
                    if (error := find_training_error(failure)) is not None:
                        raise error from None  # its notes have the worker's traceback
                    stuck = before == set(job.checkpoints.glob("step-*"))
                    repeated = find_runtime_error(failure)
                    if stuck and repeated is not None and str(repeated) == last_error:
                        raise repeated from None
                    last_error = None if repeated is None else str(repeated)
                    attempts = attempts + 1 if stuck else 1
                    if attempts == MAX_ATTEMPTS:
                        raise RuntimeError(
                            f"{describe_loss(failure)}, {MAX_ATTEMPTS} times in a row without a new"
                            f" checkpoint; {checkpoints.describe_resume()}"
                        ) from failure
                    if not is_startup_timeout(failure):
                        limit = maximum
                        step = checkpoints.newest_step()
                        again = (
                            "starting from the beginning" if step is None else f"resuming from step {step:,}"
                        )
                        on_note(f"{describe_loss(failure)}; {again}")
                        continue
                    fitting = wait_for_room(minimum, maximum, job.device, on_note, cpus)
                    if fitting < min(maximum, worker_capacity(job.device, ray.cluster_resources(), cpus)):
                        limit = fitting  # Ray Train does not know about other jobs
                        on_note(f"the Ray cluster is busy: continuing with at most {limit} workers")


class Trainer(DataParallelTrainer):
    """Ray Train without two of its processes, which serve Ray Data and clean up after a dead controller.

    The end of this process has the same effect as the cleanup.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        unused = (callbacks.DatasetsCallback, PlacementGroupCleanerCallback)
        return [each for each in super()._create_default_callbacks() if not isinstance(each, unused)]


def fit(job: Job, minimum: int, maximum: int, on_note: Callable[[str], None], cpus: int = 1) -> None:
    """Train with one group of workers, from the newest checkpoint to the end.

    Ray Train runs in a thread, where it does not install its SIGINT handler, which would end this process
    with status 0. So Ctrl-C and a cancel are raised here, while waiting. Active workers are then asked for a
    last checkpoint, and the runtime is shut down on exit. Ray keeps its records next to the checkpoints, in a
    folder that all nodes share.
    """
    lease = job.checkpoints.parent / LEASE
    lease.unlink(missing_ok=True)  # left by an older run
    resources, backend = worker_resources(minimum, job.device, ray.cluster_resources(), cpus)
    elastic = minimum < maximum
    with tempfile.TemporaryDirectory(
        dir=job.checkpoints.parent, prefix="ray-", ignore_cleanup_errors=True
    ) as storage:
        trainer = Trainer(
            partial(run_worker, job, backend),
            scaling_config=ScalingConfig(
                num_workers=(minimum, maximum) if elastic else minimum,
                elastic_resize_monitor_interval_s=RESIZE_SECONDS,
                use_gpu="GPU" in resources,
                resources_per_worker=resources,
            ),
            run_config=RunConfig(
                name=job.fingerprint,
                storage_path=storage,
                failure_config=FailureConfig(
                    controller_failure_limit=0 if elastic else MAX_STARTUP_TIMEOUTS - 1
                ),
            ),
        )
        done: Future[None] = Future()

        def run() -> None:
            try:
                trainer.fit()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        threading.Thread(target=run, name="ray-train", daemon=True).start()
        try:
            done.result()
        except BaseException:
            if not done.done() and lease.exists():
                on_note("stopping after this step; interrupt again to stop without a checkpoint")
                lease.unlink()
                wait([done], LAST_CHECKPOINT_SECONDS)
            raise


# on the workers


def run_worker(job: Job, backend: str) -> None:
    """The function that each Ray Train worker runs."""
    context = get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    progress_file, lease = job.checkpoints.parent / PROGRESS, job.checkpoints.parent / LEASE
    try:
        if job.device == "cuda":
            job = replace(job, device=select_gpu())
        if world_size > context.get_local_world_size():
            # by default gloo listens on the address of the host's name, which is 127.0.1.1 on Debian
            os.environ.setdefault("GLOO_SOCKET_IFNAME", find_interface(ray.util.get_node_ip_address()))
        if world_size > 1:
            join_group(rank, world_size, backend)
        if rank == 0:
            lease.touch()
        train(
            job,
            rank=rank,
            world_size=world_size,
            on_progress=lambda point: write_progress(progress_file, point),
            interrupted=lambda: not lease.exists(),
        )
        if world_size > 1:
            dist.destroy_process_group()
    except Exception as error:
        error.add_note(f"on training worker {rank}:\n{traceback.format_exc()}")
        raise


def select_gpu() -> str:
    """Make the GPU that Ray assigned to this worker the current device, as Triton requires, and return it."""
    from ray.train.torch import get_device  # only imported for runs on GPUs

    torch.cuda.set_device(get_device())
    return str(get_device())


def join_group(rank: int, world_size: int, backend: str) -> None:
    """Initialize the process group; Ray's `TorchConfig` would have the controller import torch."""
    timeout = timedelta(seconds=GROUP_TIMEOUT_SECONDS)
    store = None
    if rank == 0:
        address = ray.util.get_node_ip_address()
        store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=timeout)
    host, port = broadcast_from_rank_zero(store and (store.host, store.port))
    store = store or dist.TCPStore(host, port, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def find_interface(address: str) -> str:
    """Find the network interface of this host that has the address."""
    interfaces = psutil.net_if_addrs().items()
    return next(name for name, entries in interfaces if address in [entry.address for entry in entries])
