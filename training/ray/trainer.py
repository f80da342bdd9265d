"""Runs the training loop on Ray Train workers.

Of all modules only this one and ray_map.py import ray. The loop's own checkpoints carry a run through
failures: when a worker dies the group is started again, and every worker takes up the newest checkpoint.

Most of the seconds to the first step go into processes that import ray, and torch (benchmarks/overhead.py).
So as few are started as can be, and torch is imported by the workers alone.
"""

import logging
import os
import re
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial

os.environ.update(
    {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_prestart_worker_first_driver": "0",  # processes that Ray Train can't use
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon an end or a death is noticed
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",  # of one wait for free CPUs in a busy cluster
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one more process; a node that goes is a lost worker
        "AUTOSCALER_METRIC_PORT": "-1",  # this server would accept any host; -1 opens no port
    }
    | os.environ
)

import psutil
import ray
import torch
import torch.distributed as dist
from ray._private.services import canonicalize_bootstrap_address
from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator
from ray.exceptions import AuthenticationError, RayActorError, RayError
from ray.train import RunConfig, get_context
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2._internal import callbacks, exceptions
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import FailureConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from lexloom.training.checkpoint import Checkpoints
from lexloom.training.job import Job
from lexloom.training.loop import train
from lexloom.training.progress import PROGRESS, Progress
from lexloom.training.ray.address import require_cluster
from lexloom.training.ray.progress_file import relayed, write_progress
from lexloom.training.ray.resources import capacity, described, require, reserved, room
from lexloom.training.ray.token import protect_token

GROUP_TIMEOUT_SECONDS = 120
ATTEMPTS = 4  # without a new checkpoint in between
WAITS_FOR_ROOM = 3
NODE_SECONDS = 600  # that a run waits for a node in the place of one that it lost
SETTLING_SECONDS = 3
RESIZE_SECONDS = 30  # between two looks at whether a node has come that more workers could use
SIGNALS_SECONDS = 0.05  # between two looks at whose handlers of signals stand
LEASE = "training"  # a file next to the checkpoints; workers train while it exists
LAST_CHECKPOINT_SECONDS = 20  # time limit for it after an interrupt; Prefect kills a run 30 s after a cancel
OBJECT_STORE_BYTES = 80 * 1024 * 1024  # the least that Ray accepts: data reaches workers by files

logger = logging.getLogger("lexloom.ray")


def train_on_ray(
    job: Job,
    *,
    workers: int | tuple[int, int],
    address: str | None = None,
    verbose: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] = logger.info,
) -> None:
    """`lexloom.training.loop.train` on Ray Train workers; returns when the last checkpoint stands.

    `workers` are so many, or (least, most): as many as the cluster has room for, and from the newest
    checkpoint on more or fewer when nodes come or go. Where a lost node leaves too little room for the least,
    the run waits `NODE_SECONDS` for another. `address` names a Ray cluster to join; None starts a runtime on
    this machine for the call. A job on "cuda" gives each worker a GPU of its own, or a share of one where
    there are fewer. `on_note` receives messages about the Ray runtime and lost workers. An exception that a
    signal raises here (Ctrl-C, a cancel) propagates once the workers have written a checkpoint.

    Raises:
        ValueError: the cluster has too few CPUs or GPUs, or all are busy.
        Exception: a worker's own error, with the worker's traceback as a note.
        RuntimeError: workers were lost again and again, or could not be started.
    """
    least, most = (workers, workers) if isinstance(workers, int) else workers
    if not 1 <= least <= most:
        raise ValueError(f"workers are {workers}: the least must be at least 1, and at most the most")
    with ray_runtime(least, address, verbose, on_note):
        require(least, job.device, ray.cluster_resources())
        with relayed(job.checkpoints.parent / PROGRESS, on_progress):
            checkpoints = Checkpoints(job.checkpoints, job.fingerprint)
            in_vain, told, limit = 0, None, most
            while True:
                before = set(job.checkpoints.glob("step-*"))
                try:
                    fit(job, least, limit, on_note)
                    return
                except (WorkerGroupError, ControllerError) as failure:
                    if (error := own_error(failure)) is not None:
                        raise error from None  # its notes have the worker's traceback
                    stuck = before == set(job.checkpoints.glob("step-*"))
                    complaint = runtime_error(failure)
                    if stuck and complaint is not None and str(complaint) == told:
                        raise complaint from None
                    told = None if complaint is None else str(complaint)
                    in_vain = in_vain + 1 if stuck else 1
                    if in_vain == ATTEMPTS:
                        raise RuntimeError(
                            f"{lost(failure)}, {ATTEMPTS} times in a row without a new checkpoint;"
                            f" {checkpoints.describe_resume()}"
                        ) from failure
                    if not waited_for_room(failure):
                        limit = most
                        step = checkpoints.newest_step()
                        again = (
                            "starting from the beginning" if step is None else f"resuming from step {step:,}"
                        )
                        on_note(f"{lost(failure)}; {again}")
                        continue
                    fitting = await_room(least, most, job.device, on_note)
                    if fitting < min(most, capacity(job.device, ray.cluster_resources())):
                        limit = fitting  # which Ray Train, that sees only nodes come and go, can't know
                        on_note(f"the Ray cluster is busy: going on with {limit} workers at most")


class Trainer(DataParallelTrainer):
    """Ray Train without two of its processes: one serves Ray Data, the other cleans up after a controller
    that died, as the end of this process does too."""

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        needless = (callbacks.DatasetsCallback, PlacementGroupCleanerCallback)
        return [each for each in super()._create_default_callbacks() if not isinstance(each, needless)]


def fit(job: Job, least: int, most: int, on_note: Callable[[str], None]) -> None:
    """Train with one group of workers, from the newest checkpoint to the end.

    Ray Train runs in a thread, where it does not install its SIGINT handler, which would end this process
    with status 0. So Ctrl-C and a cancel are raised here, while waiting. Active workers are then asked for a
    last checkpoint, and the runtime is shut down on exit. Ray keeps its records next to the checkpoints, in a
    folder that all nodes share.
    """
    lease = job.checkpoints.parent / LEASE
    lease.unlink(missing_ok=True)  # an older run's
    resources, backend = reserved(least, job.device, ray.cluster_resources())
    elastic = least < most
    with tempfile.TemporaryDirectory(
        dir=job.checkpoints.parent, prefix="ray-", ignore_cleanup_errors=True
    ) as storage:
        trainer = Trainer(
            partial(run_worker, job, backend),
            scaling_config=ScalingConfig(
                num_workers=(least, most) if elastic else least,
                elastic_resize_monitor_interval_s=RESIZE_SECONDS,
                use_gpu="GPU" in resources,
                resources_per_worker=resources,
            ),
            run_config=RunConfig(
                name=job.fingerprint,
                storage_path=storage,
                failure_config=FailureConfig(controller_failure_limit=0 if elastic else WAITS_FOR_ROOM - 1),
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
    """What each Ray Train worker runs."""
    context = get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    progress_file, lease = job.checkpoints.parent / PROGRESS, job.checkpoints.parent / LEASE
    try:
        if job.device == "cuda":
            job = replace(job, device=own_gpu())
        if world_size > context.get_local_world_size():
            # else gloo listens where the host's name leads, which on Debian is 127.0.1.1
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface_of(ray.util.get_node_ip_address()))
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


def own_gpu() -> str:
    """The GPU that Ray has given to this worker, as "cuda:0"; made the current one, as Triton wants it."""
    from ray.train.torch import get_device  # here, since a run without GPUs does without

    torch.cuda.set_device(get_device())
    return str(get_device())


def join_group(rank: int, world_size: int, backend: str) -> None:
    """Makes the process group; not through Ray's `TorchConfig`, which has the controller import torch."""
    timeout = timedelta(seconds=GROUP_TIMEOUT_SECONDS)
    store = None
    if rank == 0:
        address = ray.util.get_node_ip_address()
        store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=timeout)
    host, port = broadcast_from_rank_zero(store and (store.host, store.port))
    store = store or dist.TCPStore(host, port, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def interface_of(address: str) -> str:
    """The network interface that an address of this host belongs to."""
    interfaces = psutil.net_if_addrs().items()
    return next(name for name, entries in interfaces if address in [entry.address for entry in entries])


# the cluster


def await_room(least: int, most: int, device: str, on_note: Callable[[str], None]) -> int:
    """How many workers, up to `most`, there is room for; ValueError where there is none for the least.

    Before that, a cluster that is busy gets the time to free what a group left behind, and one that has lost
    a node `NODE_SECONDS` to replace it.
    """
    started, told = time.monotonic(), False
    while True:
        cluster, free = ray.cluster_resources(), ray.available_resources()
        try:
            require(least, device, cluster)
            return room(least, most, device, cluster, free)
        except ValueError:
            short = capacity(device, cluster) < least
            if time.monotonic() - started > (NODE_SECONDS if short else SETTLING_SECONDS):
                raise
        if short and not told:
            on_note(f"the Ray cluster has lost a node: waiting up to {NODE_SECONDS} seconds for another")
            told = True
        time.sleep(1)


@contextmanager
def ray_runtime(
    workers: int, address: str | None, verbose: bool, on_note: Callable[[str], None] = logger.info
) -> Iterator[None]:
    """A connection to `address`, or a runtime on this machine; an existing one is used as it is.

    It begins and ends in a thread of its own, so that an exception that a signal raises here (Ctrl-C, a
    cancel) can't break its start or its end, which would leave processes behind.
    """
    if ray.is_initialized():
        yield
        return
    if address is not None:
        require_cluster(address, canonicalize_bootstrap_address(address) if address == "auto" else None)
    level = logging.INFO if verbose else logging.CRITICAL
    for name in ("ray", "ray.train", "ray.tune", "ray.data"):
        logging.getLogger(name).setLevel(level)
    ray._private.worker._worker_logs_enabled = verbose  # what a raylet says of a death; it is raised as well
    here = {
        "address": "local",  # else Ray would join a cluster that it finds, or RAY_ADDRESS names
        "num_cpus": max(workers, os.cpu_count() or 1),
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }
    options = here if address is None else {"address": address}
    begun: Future[None] = Future()
    over, ended = threading.Event(), threading.Event()

    def live() -> None:
        try:
            if address is None:
                protect_token()
            ray.init(**options, log_to_driver=verbose, logging_level=level)
            if not over.is_set():  # the controller asks for it, and would wait while it is started
                default_autoscaling_coordinator.get_or_create_autoscaling_coordinator()
        except BaseException as error:
            begun.set_exception(refused(address) if is_about_token(error) else error)
        else:
            begun.set_result(None)
            over.wait()  # what Ray starts on this machine dies with the thread that started it
        finally:
            ray.shutdown()
            ended.set()

    try:
        threading.Thread(target=live, name="ray").start()
        await_with_own_signals(begun)
        nodes = sum(node["Alive"] for node in ray.nodes())
        on_note(described(ray.cluster_resources(), address, nodes))
        yield
    finally:
        over.set()
        ended.wait()  # not join(): a signal may have come before start() was through


def is_about_token(error: BaseException) -> bool:
    """Also where Ray, after 20 tries, is left with the text of the error alone."""
    return isinstance(error, AuthenticationError) or "AuthenticationError" in str(error.__cause__)


def refused(address: str | None) -> PermissionError:
    return PermissionError(
        f"the Ray cluster at {address} refuses the token: RAY_AUTH_TOKEN, or the file that"
        " RAY_AUTH_TOKEN_PATH names, must hold the one that it was started with"
    )


def await_with_own_signals(begun: Future[None]) -> None:
    """Waits until Ray has begun, and puts this process's handlers of signals back whenever Ray replaces them.

    Ray's for SIGTERM aborts the process three seconds later, by an alarm; but a cancel must stay a cancel.
    """
    here = threading.current_thread() is threading.main_thread()
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if here else {}
    try:
        done = False
        while not done:
            done = begun.done()
            for number, handler in kept.items():
                signal.signal(number, handler)
            wait([begun], timeout=SIGNALS_SECONDS)
    except BaseException:
        signal.alarm(0)
        raise
    begun.result()


# failures

Failure = WorkerGroupError | ControllerError
DIED = (exceptions.WorkerHealthCheckFailedError, RayActorError)


def waited_for_room(failure: Failure) -> bool:
    return isinstance(failure, ControllerError) and isinstance(
        failure.controller_failure, exceptions.WorkerGroupStartupTimeoutError
    )


def own_error(failure: Failure) -> Exception | None:
    """The error that another attempt would meet again; None where a worker was lost.

    A RuntimeError is what torch.distributed raises on a worker that has lost its peer.
    """
    if isinstance(failure, WorkerGroupError):
        others = (RuntimeError, RayError, exceptions.RayTrainError)
        errors = [error for error in failure.worker_failures.values() if not isinstance(error, others)]
        return errors[0] if errors else None
    cause = failure.controller_failure
    worth_a_try = (exceptions.WorkerGroupStartupFailedError, exceptions.WorkerGroupStartupTimeoutError)
    if isinstance(cause, worth_a_try):
        return None
    return RuntimeError(f"the training workers could not be started: {one_line(cause)}")


def runtime_error(failure: Failure) -> Exception | None:
    """A worker's RuntimeError where none has died: if it comes again, the worker's code is to blame."""
    if not isinstance(failure, WorkerGroupError):
        return None
    errors = list(failure.worker_failures.values())
    alive = all(isinstance(error, RuntimeError) and not isinstance(error, DIED) for error in errors)
    return errors[0] if errors and alive else None


def lost(failure: Failure) -> str:
    """Which worker was lost and why, in a few words."""
    if isinstance(failure, ControllerError):
        return "a training worker was lost while it started"
    errors = failure.worker_failures.items()
    rank, error = min(errors, key=lambda entry: (not isinstance(entry[1], DIED), entry[0]))
    if isinstance(error, DIED):
        return f"training worker {rank} was lost (its process ended)"
    return f"training worker {rank} failed ({one_line(error)})"


def one_line(error: BaseException) -> str:
    """The last line of a message, without the place in C++ that it begins with."""
    line = (str(error).strip() or type(error).__name__).splitlines()[-1]
    return re.sub(r"^\[[^]]*\] *", "", line)
