"""Register the work pool and a deployment of every flow on a Prefect server (`lexloom deploy`).

Flows of other packages are deployed like those of prefect.yaml. The command can be repeated: settings that a
user has changed since (the pool's limit, its pause, the schedules) are kept.
"""

import ctypes
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import yaml
from httpx import HTTPError

from lexloom.flows.command import error_message
from lexloom.flows.registry import FlowEntry, flows

POOL, POOL_TYPE, RUNS_AT_ONCE = "lexloom", "process", 2
DEPLOYMENTS = Path(__file__).parents[1] / "prefect.yaml"
REUSE = "Stages with cached results are skipped. The report is one of the run's artifacts."
PR_SET_PDEATHSIG = 1


def register(runs: int = RUNS_AT_ONCE) -> None:
    """Create or update the work pool and apply the deployments; a new pool runs `runs` at once.

    Raises:
        OSError: the server does not answer, or the deployments could not be applied.
        ValueError: there is a work pool of this name whose runs are not processes.
    """
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            make_pool(client, job_template(), runs)
            deploy(client)
    except (RuntimeError, HTTPError) as error:
        raise OSError(error_message(error)) from error


def job_template(command: str | None = None, working_dir: str | None = None) -> dict[str, Any]:
    """Return a base job template with no variables, so that a run can set only the flow's parameters.

    Prefect's default template also lets a run set the command, environment and working directory. `None`
    keeps Prefect's default: its engine, run by the worker's Python in a temporary directory.
    """
    return {
        "job_configuration": {"command": command, "working_dir": working_dir},
        "variables": {"type": "object", "properties": {}, "additionalProperties": False},
    }


def make_pool(client: Any, template: Mapping[str, Any], runs: int = RUNS_AT_ONCE) -> None:
    """Create the work pool or update its job template; an existing concurrency limit is kept.

    Raises:
        ValueError: the pool exists with another type.
    """
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    try:
        pool = client.read_work_pool(POOL)
    except ObjectNotFound:
        client.create_work_pool(
            WorkPoolCreate(
                name=POOL,
                type=POOL_TYPE,
                description="Lexloom's flows",
                base_job_template=dict(template),
                concurrency_limit=runs,
            )
        )
        return
    if pool.type != POOL_TYPE:
        raise ValueError(
            f"the work pool {POOL} has the type {pool.type}, not {POOL_TYPE}: delete it with `prefect"
            f" work-pool delete {POOL}`; the next start recreates it"
        )
    client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=dict(template)))


def deploy(
    client: Any,
    environment: Mapping[str, str] | None = None,
    log: IO[bytes] | None = None,
) -> list[str]:
    """Deploy all flows by Prefect's own command; return the deployments' names.

    Raises:
        RuntimeError: the command failed; `log`, or else stdout, says why.
    """
    with tempfile.TemporaryDirectory(prefix="lexloom-") as folder:
        document = read_deployments(client)
        path = Path(folder) / DEPLOYMENTS.name
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        done = subprocess.run(
            python("prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(path)),
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log and subprocess.STDOUT,
            preexec_fn=end_with_parent,
        )
    if done.returncode:
        raise RuntimeError("the flows could not be deployed" + (f": see {log.name}" if log else ""))
    return [entry["name"] for entry in document["deployments"]]


def read_deployments(client: Any) -> dict[str, Any]:
    """Return prefect.yaml with an entry for every registered flow.

    Deployments that exist on the server have no schedules in it, so that theirs are kept.
    """
    document: dict[str, Any] = yaml.safe_load(DEPLOYMENTS.read_text())
    registered = flows()
    listed = {entry["name"] for entry in document["deployments"]}
    document["deployments"] += [
        default_entry(flow) for name, flow in registered.items() if name not in listed
    ]
    existing = {deployment.name for deployment in client.read_deployments()}
    for entry in document["deployments"]:
        entry["description"] = f"{registered[entry['name']].purpose}. {REUSE}"
        entry["work_pool"] = {"name": POOL, "job_variables": {}}  # those of an earlier version are removed
        if entry["name"] in existing:
            entry.pop("schedules", None)
    return document


def default_entry(flow: FlowEntry) -> dict[str, Any]:
    """Return the deployment of a flow that has no entry in prefect.yaml: without parameters and schedules."""
    return {
        "name": flow.name,
        "entrypoint": flow.entrypoint,
        "tags": [POOL],
        "enforce_parameter_schema": True,
        "parameters": {},
        "schedules": [],
    }


def python(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module by this Python."""
    # -P: a folder in the current directory must not shadow an installed package
    return [sys.executable, "-P", "-m", module, *arguments]


def end_with_parent() -> None:
    """In a child before it starts its program: ask for SIGTERM when the parent dies (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
