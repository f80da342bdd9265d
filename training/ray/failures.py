"""Causes of failed Ray Train runs: errors of the training code, and lost workers."""

import re

from ray.exceptions import RayActorError, RayError
from ray.train.v2._internal import exceptions
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

Failure = WorkerGroupError | ControllerError
PROCESS_DIED = (exceptions.WorkerHealthCheckFailedError, RayActorError)


def is_startup_timeout(failure: Failure) -> bool:
    return isinstance(failure, ControllerError) and isinstance(
        failure.controller_failure, exceptions.WorkerGroupStartupTimeoutError
    )


def find_training_error(failure: Failure) -> Exception | None:
    """Return the error of the training code, which a retry would repeat; None if a worker was lost.

    A RuntimeError does not count, because torch.distributed raises it on workers that lost a peer.
    """
    if isinstance(failure, WorkerGroupError):
        others = (RuntimeError, RayError, exceptions.RayTrainError)
        errors = [error for error in failure.worker_failures.values() if not isinstance(error, others)]
        return errors[0] if errors else None
    cause = failure.controller_failure
    transient = (exceptions.WorkerGroupStartupFailedError, exceptions.WorkerGroupStartupTimeoutError)
    if isinstance(cause, transient):
        return None
    return RuntimeError(f"the training workers could not be started: {last_line(cause)}")


def find_runtime_error(failure: Failure) -> Exception | None:
    """Return a worker's RuntimeError if no worker died; if it repeats, it comes from the training code."""
    if not isinstance(failure, WorkerGroupError):
        return None
    errors = list(failure.worker_failures.values())
    alive = all(isinstance(error, RuntimeError) and not isinstance(error, PROCESS_DIED) for error in errors)
    return errors[0] if errors and alive else None


def describe_loss(failure: Failure) -> str:
    """Describe in one phrase which worker was lost, and why."""
    if isinstance(failure, ControllerError):
        return "a training worker was lost while it started"
    errors = failure.worker_failures.items()
    rank, error = min(errors, key=lambda entry: (not isinstance(entry[1], PROCESS_DIED), entry[0]))
    if isinstance(error, PROCESS_DIED):
        return f"training worker {rank} was lost (its process exited)"
    return f"training worker {rank} failed ({last_line(error)})"


def last_line(error: BaseException) -> str:
    """Return the last line of a message, without a leading C++ source location and gloo's advice."""
    line = (str(error).strip() or type(error).__name__).splitlines()[-1]
    return re.sub(r"^\[[^]]*\] *|\. This is typically caused by a remote worker .*$", "", line)
