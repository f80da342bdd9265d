"""Runs the training loop on Ray Train workers.

The only module that imports ray. The loop's own checkpoints carry a run through failures: when a worker dies
Ray starts the group again, and every worker takes up the newest checkpoint. Progress reaches the driver
through a small file beside the checkpoints, since `ray.train.report` is a barrier and is drained slowly.
"""

import contextvars
import json
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # how soon an end or a death is noticed

import ray
from ray.train import RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import WorkerGroupError

from training.job import Job, Progress
from training.loop import train

PROGRESS = "progress.json"
POLL_SECONDS = 0.5
GROUP_TIMEOUT_SECONDS = 120
ATTEMPTS = 4
OBJECT_STORE_BYTES = 80 * 1024 * 1024  # the least that Ray accepts: data reaches workers by files
USER_ERRORS = (ValueError, OSError, ArithmeticError)

logger = logging.getLogger("lexloom.ray")


def train_on_ray(
    job: Job,
    *,
    workers: int,
    address: str | None = None,
    verbose: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> None:
    """`training.loop.train` on `workers` Ray Train workers; returns when the last checkpoint stands.

    `address` names a Ray cluster to join; None starts a runtime on this machine for the call. A worker's own
    ValueError, OSError or FloatingPointError is raised here again; ValueError where the cluster has too few
    CPUs for the workers.
    """
    with ray_runtime(workers, address, verbose):
        available = int(ray.cluster_resources().get("CPU", 0))
        if workers > available:
            raise ValueError(
                f"{workers} workers need as many CPUs, and the Ray cluster has {available}: ask for fewer"
            )
        progress_file = job.checkpoints.parent / PROGRESS
        progress_file.parent.mkdir(parents=True, exist_ok=True)
        progress_file.unlink(missing_ok=True)
        with relayed(progress_file, on_progress):
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    fit(job, workers)
                    return
                except WorkerGroupError as error:
                    meant_for_user = own_error(error)
                    if meant_for_user is not None or attempt == ATTEMPTS:
                        raise meant_for_user or lost(error) from error
                    logger.warning("%s; going on from the last checkpoint", lost(error))


def fit(job: Job, workers: int) -> None:
    """One group of workers, from the newest checkpoint to the end.

    In a thread of its own, where Ray leaves SIGINT alone: its handler would end this process with status 0.
    So Ctrl-C and a cancel are raised here, while waiting, and the runtime is shut down on the way out. Ray
    keeps its records beside the checkpoints, in a folder that all nodes share.
    """
    with tempfile.TemporaryDirectory(
        dir=job.checkpoints.parent, prefix="ray-", ignore_cleanup_errors=True
    ) as storage:
        trainer = TorchTrainer(
            run_worker,
            train_loop_config={"job": job},
            torch_config=TorchConfig(backend="gloo", timeout_s=GROUP_TIMEOUT_SECONDS),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=False),
            run_config=RunConfig(name=job.fingerprint, storage_path=storage),
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


def run_worker(config: dict[str, Job]) -> None:
    """What each Ray Train worker runs."""
    job, context = config["job"], get_context()
    progress_file = job.checkpoints.parent / PROGRESS
    train(
        job,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        on_progress=lambda point: write_progress(progress_file, point),
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
def ray_runtime(workers: int, address: str | None, verbose: bool) -> Iterator[None]:
    """A connection to `address`, or a runtime on this machine; an existing one is used as it is."""
    if ray.is_initialized():
        yield
        return
    level = logging.INFO if verbose else logging.CRITICAL
    for name in ("ray", "ray.train", "ray.tune", "ray.data"):
        logging.getLogger(name).setLevel(level)
    with signals_kept():
        if address is not None:
            ray.init(address=address, log_to_driver=verbose, logging_level=level)
        else:
            ray.init(
                num_cpus=max(workers, os.cpu_count() or 1),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=verbose,
                logging_level=level,
            )
    try:
        yield
    finally:
        ray.shutdown()


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


def own_error(failure: WorkerGroupError) -> Exception | None:
    """The sentence that a worker's own code meant for the user; None where a worker was lost."""
    for error in failure.worker_failures.values():
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, USER_ERRORS) and not isinstance(cause, ray.exceptions.RayError):
                return cause
            cause = getattr(cause, "cause", None) or cause.__cause__
    return None


def lost(failure: WorkerGroupError) -> RuntimeError:
    rank, error = min(failure.worker_failures.items())
    reason = str(error).strip().splitlines()[-1].split(". ")[0]
    return RuntimeError(f"training worker {rank} was lost ({reason})")
