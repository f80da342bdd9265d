"""Runs the training loop on Ray Train workers.

The only module that imports ray. The loop's own checkpoints carry a run through failures: when a worker dies
the group is started again, and every worker takes up the newest checkpoint. Progress reaches the driver
through a small file beside the checkpoints, since `ray.train.report` is a barrier and is drained slowly.

Seconds to the first step are spent in starting processes, each of which imports ray and most of which import
torch (benchmarks/overhead.py). So as few are started as can be, and none imports torch but the workers.
"""

import contextvars
import json
import logging
import os
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from math import ceil
from pathlib import Path

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon an end or a death is noticed
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "45",  # for the wait for free CPUs, in a busy cluster
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process more; a node that goes is a lost worker
    "RAY_prestart_worker_first_driver": "0",  # these would be of no use: Ray Train asks for others
}
for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)

import ray
import torch
import torch.distributed as dist
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)
from ray.exceptions import RayActorError, RayError
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError, get_context
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import (
    RayTrainError,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from training.job import Job, Progress
from training.loop import train

PROGRESS = "progress.json"
POLL_SECONDS = 0.5
GROUP_TIMEOUT_SECONDS = 120
ATTEMPTS = 4  # without a new checkpoint in between
OBJECT_STORE_BYTES = 80 * 1024 * 1024  # the least that Ray accepts: data reaches workers by files

Workers = int | tuple[int, int]

logger = logging.getLogger("lexloom.ray")


def train_on_ray(
    job: Job,
    *,
    workers: Workers,
    address: str | None = None,
    verbose: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] = logger.info,
) -> None:
    """`training.loop.train` on Ray Train workers; returns when the last checkpoint stands.

    `workers` are so many, or (least, most): as many as the cluster has room for, and more or fewer from the
    newest checkpoint on when nodes come or go. `address` names a Ray cluster to join; None starts a runtime
    on this machine for the call. `job.device` "cuda" gives each worker a GPU, or a share of one where there
    are fewer GPUs than workers. `on_note` is told which Ray is used, and of workers that were lost.

    Raises:
        ValueError: the cluster has too few CPUs or GPUs, or they stay busy.
        Exception: a worker's own, of the same type and message, with the worker's traceback as a note.
        RuntimeError: workers were lost again and again.
    """
    with ray_runtime(workers, address, verbose, on_note):
        scaling, backend = placement(workers, job.device, ray.cluster_resources())
        progress_file = job.checkpoints.parent / PROGRESS
        progress_file.parent.mkdir(parents=True, exist_ok=True)
        progress_file.unlink(missing_ok=True)
        with relayed(progress_file, on_progress):
            in_vain = 0
            while True:
                before = saved(job)
                try:
                    fit(job, scaling, backend)
                    return
                except (WorkerGroupError, ControllerError) as failure:
                    in_vain = in_vain + 1 if saved(job) == before else 1
                    if (error := meant_for_user(failure)) is not None:
                        raise error from failure
                    if in_vain == ATTEMPTS:
                        raise RuntimeError(
                            f"{lost(failure)}, {ATTEMPTS} times without a new checkpoint in between; the last"
                            " one is kept, so the same command goes on from there"
                        ) from failure
                    on_note(f"{lost(failure)}; going on from the last checkpoint")


def placement(workers: Workers, device: str, resources: dict[str, float]) -> tuple[ScalingConfig, str]:
    """What Ray reserves for the workers, and the torch.distributed backend among them.

    NCCL wants a GPU for each worker; where several share one they talk by gloo. ValueError where the
    cluster's `resources` can't hold the workers.
    """
    least = workers if isinstance(workers, int) else workers[0]
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if least > cpus:
        raise ValueError(f"{least} workers need as many CPUs, and the Ray cluster has {cpus}: ask for fewer")
    if device != "cuda":
        return ScalingConfig(num_workers=workers), "gloo"
    if gpus == 0:
        raise ValueError("the Ray cluster has no GPU: train on the CPU, or join a cluster that has one")
    sharing = ceil(least / gpus)
    reserved = {"CPU": 1, "GPU": 1 / sharing}
    scaling = ScalingConfig(num_workers=workers, use_gpu=True, resources_per_worker=reserved)
    return scaling, "nccl" if sharing == 1 else "gloo"


class Trainer(DataParallelTrainer):
    """Without two of Ray Train's processes: one for Ray Data, and one that cleans up after a dead
    controller, which the end of this process does too."""

    def _create_default_callbacks(self) -> list[object]:
        needless = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [each for each in super()._create_default_callbacks() if not isinstance(each, needless)]


def fit(job: Job, scaling: ScalingConfig, backend: str) -> None:
    """One group of workers, from the newest checkpoint to the end.

    In a thread of its own, where Ray leaves SIGINT alone: its handler would end this process with status 0.
    So Ctrl-C and a cancel are raised here, while waiting, and the runtime is shut down on the way out. Ray
    keeps its records beside the checkpoints, in a folder that all nodes share.
    """
    with tempfile.TemporaryDirectory(
        dir=job.checkpoints.parent, prefix="ray-", ignore_cleanup_errors=True
    ) as storage:
        trainer = Trainer(
            partial(run_worker, job, backend),
            scaling_config=scaling,
            run_config=RunConfig(
                name=job.fingerprint,
                storage_path=storage,
                failure_config=FailureConfig(controller_failure_limit=0),  # else it waits for ever
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
        done.result()


def run_worker(job: Job, backend: str) -> None:
    """What each Ray Train worker runs."""
    context = get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    progress_file = job.checkpoints.parent / PROGRESS
    try:
        if job.device == "cuda":
            job = replace(job, device=own_gpu())
        if world_size > 1:
            join_group(rank, world_size, backend)
        train(
            job,
            rank=rank,
            world_size=world_size,
            on_progress=lambda point: write_progress(progress_file, point),
        )
        if world_size > 1:
            dist.destroy_process_group()
    except Exception as error:
        error.add_note(f"on training worker {rank}:\n{traceback.format_exc()}")
        raise


def own_gpu() -> str:
    from ray.train.torch import get_device  # here, since a run without GPUs can do without

    device = get_device()
    torch.cuda.set_device(device)
    return str(device)


def join_group(rank: int, world_size: int, backend: str) -> None:
    """Makes the process group; not by Ray's `TorchConfig`, for whose sake the controller imports torch."""
    timeout = timedelta(seconds=GROUP_TIMEOUT_SECONDS)
    store, place = None, None
    if rank == 0:
        host = ray.util.get_node_ip_address()
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        place = (host, store.port)
    host, port = broadcast_from_rank_zero(place)
    dist.init_process_group(
        backend,
        store=store or dist.TCPStore(host, port, timeout=timeout),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )


def write_progress(path: Path, point: Progress) -> None:
    writing = path.with_suffix(".writing")
    writing.write_text(json.dumps(asdict(point)))
    writing.replace(path)


@contextmanager
def relayed(path: Path, on_progress: Callable[[Progress], None] | None) -> Iterator[None]:
    """Hands each new point in `path` to `on_progress`, from a thread of its own."""
    finished = threading.Event()

    def follow() -> None:
        last, ended = "", False
        while not ended:
            ended = finished.wait(POLL_SECONDS)
            text = path.read_text() if path.exists() else ""
            if text and text != last and on_progress:
                last = text
                try:
                    on_progress(Progress(**json.loads(text)))
                except Exception:
                    logger.warning("the progress could not be shown; training goes on", exc_info=True)

    in_this_context = contextvars.copy_context().run  # so that `on_progress` knows the caller's run
    thread = threading.Thread(target=in_this_context, args=(follow,), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


@contextmanager
def ray_runtime(
    workers: Workers, address: str | None, verbose: bool, on_note: Callable[[str], None] = logger.info
) -> Iterator[None]:
    """A connection to `address`, or a runtime on this machine; an existing one is used as it is."""
    if ray.is_initialized():
        yield
        return
    level = logging.INFO if verbose else logging.CRITICAL
    for name in ("ray", "ray.train", "ray.tune", "ray.data"):
        logging.getLogger(name).setLevel(level)
    ray._private.worker._worker_logs_enabled = verbose  # what raylets say, on stdout; errors are raised
    with signals_kept():
        if address is not None:
            ray.init(address=address, log_to_driver=verbose, logging_level=level)
        else:
            ray.init(
                num_cpus=max(workers if isinstance(workers, int) else workers[0], os.cpu_count() or 1),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=verbose,
                logging_level=level,
            )
    try:
        on_note(description(address))
        get_or_create_autoscaling_coordinator()  # else it is started only when the controller waits for it
        yield
    finally:
        ray.shutdown()


def description(address: str | None) -> str:
    """Which Ray this is: `Ray: joined the cluster at auto (10.0.0.1:6379): 2 nodes, 16 CPUs`."""
    resources = ray.cluster_resources()
    parts = [f"{int(resources[name])} {name}s" for name in ("CPU", "GPU") if resources.get(name)]
    if address is None:
        return f"Ray: started on this machine with {', '.join(parts)}"
    nodes = sum(node["Alive"] for node in ray.nodes())
    return f"Ray: joined the cluster at {address}: {', '.join([f'{nodes} nodes', *parts])}"


@contextmanager
def signals_kept() -> Iterator[None]:
    """Puts back the handlers of SIGINT and SIGTERM that `ray.init` replaces: a cancel must stay a cancel."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def saved(job: Job) -> set[str]:
    return {folder.name for folder in job.checkpoints.glob("step-*")}


def meant_for_user(failure: WorkerGroupError | ControllerError) -> Exception | None:
    """The error that another attempt would meet again; None where a worker was lost.

    Who loses its peer gets a RuntimeError of torch.distributed, so that is no error of a worker's own.
    """
    if isinstance(failure, WorkerGroupError):
        errors = failure.worker_failures.values()
        own = (each for each in errors if not isinstance(each, RuntimeError | RayError | RayTrainError))
        return next(own, None)
    cause = failure.controller_failure
    if isinstance(cause, WorkerGroupStartupTimeoutError):
        cpus, free = (int(found.get("CPU", 0)) for found in (ray.cluster_resources(), ray.available_resources()))
        return ValueError(
            f"{cause.num_workers} workers found no room: of the Ray cluster's {cpus} CPUs {cpus - free} are"
            " busy with other work; wait until it is done, or ask for fewer workers"
        )
    if isinstance(cause, WorkerGroupStartupFailedError):
        return None
    return RuntimeError(f"the training workers could not be started: {last_line(cause)}")


def lost(failure: WorkerGroupError | ControllerError) -> str:
    """Which worker was lost, and why, in a few words."""
    if isinstance(failure, ControllerError):
        return "a training worker was lost while it started"
    died = (WorkerHealthCheckFailedError, RayActorError)
    rank, error = min(
        failure.worker_failures.items(), key=lambda entry: (not isinstance(entry[1], died), entry[0])
    )
    reason = "its process ended" if isinstance(error, died) else last_line(error)
    return f"training worker {rank} was lost ({reason})"


def last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1]
