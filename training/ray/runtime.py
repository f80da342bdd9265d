"""The Ray runtime of a run: started on this machine, or a connection to a cluster."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager

import ray
from ray._private.services import canonicalize_bootstrap_address
from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator
from ray.exceptions import AuthenticationError

from lexloom.training.ray.address import require_cluster
from lexloom.training.ray.resources import (
    available_workers,
    check_capacity,
    describe_cluster,
    worker_capacity,
)
from lexloom.training.ray.token import protect_token

NODE_SECONDS = 600  # time that a run waits for a replacement of a lost node
CLEANUP_SECONDS = 3  # time that Ray takes to free the resources of a worker group
SIGNAL_POLL_SECONDS = 0.05  # interval at which signal handlers are restored
OBJECT_STORE_BYTES = 80 * 1024 * 1024  # Ray's minimum: workers read their data from files

logger = logging.getLogger("lexloom.ray")


def wait_for_room(
    minimum: int, maximum: int, device: str, on_note: Callable[[str], None], cpus: int = 1
) -> int:
    """Wait for free resources; return the number of workers, up to `maximum`, that they suffice for.

    A busy cluster gets `CLEANUP_SECONDS` to free the resources of the previous worker group; one that has
    lost a node gets `NODE_SECONDS` to replace it.

    Raises:
        ValueError: there is no room for `minimum` workers.
    """
    started, noted = time.monotonic(), False
    while True:
        cluster, free = ray.cluster_resources(), ray.available_resources()
        try:
            check_capacity(minimum, device, cluster, cpus)
            return available_workers(minimum, maximum, device, cluster, free, cpus)
        except ValueError:
            too_small = worker_capacity(device, cluster, cpus) < minimum
            if time.monotonic() - started > (NODE_SECONDS if too_small else CLEANUP_SECONDS):
                raise
        if too_small and not noted:
            on_note(f"the Ray cluster has lost a node: waiting up to {NODE_SECONDS} seconds for a new one")
            noted = True
        time.sleep(1)


@contextmanager
def ray_runtime(
    workers: int, address: str | None, verbose: bool, on_note: Callable[[str], None] = logger.info
) -> Iterator[None]:
    """A connection to `address`, or a new runtime on this machine; an existing one is reused.

    Ray is initialized and shut down in a thread, so that an exception raised by a signal handler here
    (Ctrl-C, a cancel) can't interrupt it and leave processes behind.
    """
    if ray.is_initialized():
        yield
        return
    if address is not None:
        require_cluster(address, canonicalize_bootstrap_address(address) if address == "auto" else None)
    level = logging.INFO if verbose else logging.CRITICAL
    for name in ("ray", "ray.train", "ray.tune", "ray.data"):
        logging.getLogger(name).setLevel(level)
    ray._private.worker._worker_logs_enabled = verbose  # reports of dead workers, which are also raised
    local_options = {
        "address": "local",  # otherwise Ray would join a running cluster, or that of RAY_ADDRESS
        "num_cpus": max(workers, os.cpu_count() or 1),
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }
    options = local_options if address is None else {"address": address}
    initialized: Future[None] = Future()
    finished, ended = threading.Event(), threading.Event()

    def run_ray() -> None:
        try:
            if address is None:
                protect_token()
            ray.init(**options, log_to_driver=verbose, logging_level=level)
            if not finished.is_set():  # the controller needs it, and would wait for its start
                default_autoscaling_coordinator.get_or_create_autoscaling_coordinator()
        except BaseException as error:
            initialized.set_exception(
                refused_token_error(address) if is_authentication_error(error) else error
            )
        else:
            initialized.set_result(None)
            finished.wait()  # Ray's processes on this machine die with the thread that started them
        finally:
            ray.shutdown()
            ended.set()

    try:
        threading.Thread(target=run_ray, name="ray").start()
        wait_with_own_signal_handlers(initialized)
        nodes = sum(node["Alive"] for node in ray.nodes())
        on_note(describe_cluster(ray.cluster_resources(), address, nodes))
        yield
    finally:
        finished.set()
        ended.wait()  # not join(): a signal may have interrupted start()


def measure_nodes(address: str, verbose: bool) -> list[dict[str, float]]:
    """Connect to a cluster, and return the resources of each node: {"CPU": 16.0, "GPU": 2.0, ...}."""
    with ray_runtime(1, address, verbose):
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def is_authentication_error(error: BaseException) -> bool:
    """Whether Ray rejected the token; after 20 attempts, Ray raises another error with only its text."""
    return isinstance(error, AuthenticationError) or "AuthenticationError" in str(error.__cause__)


def refused_token_error(address: str | None) -> PermissionError:
    return PermissionError(
        f"the Ray cluster at {address} rejected the token: set RAY_AUTH_TOKEN, or the content of the file at"
        " RAY_AUTH_TOKEN_PATH, to the token of the cluster"
    )


def wait_with_own_signal_handlers(initialized: Future[None]) -> None:
    """Wait until Ray is initialized; restore this process's signal handlers whenever Ray replaces them.

    Ray's handler of SIGTERM aborts the process after three seconds, by an alarm, which would turn a cancel
    into a crash.
    """
    is_main = threading.current_thread() is threading.main_thread()
    handlers = (
        {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if is_main else {}
    )
    try:
        done = False
        while not done:
            done = initialized.done()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            wait([initialized], timeout=SIGNAL_POLL_SECONDS)
    except BaseException:
        signal.alarm(0)
        raise
    initialized.result()
