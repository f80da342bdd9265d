"""`lexloom ui`: Prefect's UI, with the flows deployed on this machine.

It starts Prefect's server, applies the deployments of all flows, and starts a worker that runs them with this
Python, this store and this working directory. On exit, it pauses the work pool, cancels active runs, and
stops the worker and the server. Runs that have not started begin the next time, when the pool is resumed.
"""

import fcntl
import os
import platform
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import IO, Any, NoReturn
from uuid import UUID

from httpx import HTTPError
from rich.text import Text

from lexloom.deployments.server.login import Session, new_login, publish, running_session
from lexloom.deployments.server.orphaned_runs import ACTIVE_STATES, mark_crashed, read_runs
from lexloom.deployments.server.processes import Program, ended_in_order
from lexloom.deployments.server.register import POOL, POOL_TYPE, deploy, job_template, make_pool, python
from lexloom.deployments.server.sockets import listen
from lexloom.flows.command import error_message
from lexloom.flows.environment import QUIET_LIBRARIES
from lexloom.flows.local_server.same_origin import Address
from lexloom.tasks.display.console import NAME_WIDTH, clipped, stderr
from lexloom.tasks.store.artifacts import Store

EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # the address for requests
LOG = "lexloom-ui.log"
POLL_SECONDS = 2
CANCEL_SECONDS = 60
SHOWN_RUNS, MESSAGE_WIDTH = 20, 100


def serve(host: str, port: int, allow_hosts: Sequence[str] = (), login: bool = True) -> int:
    """Run `operate` on the default store until Ctrl-C or SIGTERM; return the exit status.

    Raises:
        OSError, ValueError: see `operate`; one sentence.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        operate(host, port, Store(), allow_hosts, login)
    except KeyboardInterrupt:
        return 0
    except (RuntimeError, HTTPError) as error:
        raise OSError(error_message(error)) from error


def print_login_link() -> None:
    print(running_session(prefect_home()).new_link())


def interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def operate(host: str, port: int, store: Store, allow_hosts: Sequence[str], login: bool) -> NoReturn:
    """Start the server and the worker, report run states, and stop both on any exception.

    `allow_hosts` are additional host names to accept. Without `login`, any user of this machine has access.

    Raises:
        OSError: the port is in use, or the store can't be written.
        ValueError: Prefect is configured for another server, a host name is invalid, or `login` conflicts
        with
            the settings or the address.
        RuntimeError: the server or the worker exited by itself.
    """
    for name in allow_hosts:
        Address.parse(name)
    with listen(host, port) as listener:
        address, port = listener.getsockname()[:2]
    url = url_of(host, port)
    refuse_another_server(f"{url}/api")
    secret = login_of(address, login)
    store.make_writable()
    with log_file() as log, ended_in_order() as programs:
        stderr.print(Text("lexloom ui", style="bold") + Text(f" · store {store.root}", style="dim"))
        environment = environment_of(f"{url}/api", store, secret)
        serve = ["lexloom.deployments.server.prefect_server", "--host", host, "--port", str(port)]
        serve += [part for name in allow_hosts for part in ("--allow-host", name)]
        begun = time.monotonic()
        server = Program("server", serve, environment, log)
        programs.append(server)
        client = client_of(environment)
        server.until_healthy(url)
        tell("server", begun, f"logs of the server and the runs: {log.name}")

        begun = time.monotonic()
        mark_crashed(client)
        make_pool(client, on_this_machine())
        resume_pool(client)
        names = deploy(client, environment, log)
        tell("deployments", begun, " · ".join(names))

        work = ["prefect", "worker", "start", "--pool", POOL, "--type", POOL_TYPE]
        work += ["--name", f"lexloom ui on {platform.node()}"]
        programs.append(Program("worker", work, environment, log, before=lambda: cancel_runs(client, server)))
        with publish(Session(url=url, login=secret), prefect_home()) if secret else nullcontext():
            print(invitation(url, secret), flush=True)
            watch(client, programs, url)


def invitation(url: str, login: str | None) -> str:
    """Return the line that says where the UI is."""
    if login is None:
        return f"Prefect UI (no login): {url} (Ctrl-C stops the server and cancels active runs)"
    link = Session(url=url, login=login).new_link()
    return f"Prefect UI: {link} (one-time link; Ctrl-C stops the server and cancels active runs)"


def url_of(host: str, port: int) -> str:
    host = EVERYWHERE.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def refuse_another_server(api: str) -> None:
    from prefect.settings import get_current_settings

    other = get_current_settings().api.url
    if other and other.rstrip("/") != api:
        raise ValueError(
            f"PREFECT_API_URL is {other}, but `lexloom ui` starts its own server. Unset it, or deploy to that"
            " server with `lexloom deploy` and start a worker with"
            f" `prefect worker start --pool {POOL} --type {POOL_TYPE}`"
        )


def login_of(address: str, wanted: bool) -> str | None:
    """Return the configured login as `name:password`, or generate one; None if it is not wanted.

    Raises:
        ValueError: none is wanted, but one is configured or the address is not loopback.
    """
    from prefect.settings import get_current_settings

    setting = get_current_settings().server.api.auth_string
    configured = setting.get_secret_value() if setting else None
    if wanted:
        return configured or new_login()
    if configured:
        raise ValueError(
            "--no-login conflicts with PREFECT_SERVER_API_AUTH_STRING: unset the variable or omit --no-login"
        )
    if not ip_address(address).is_loopback:
        raise ValueError(
            f"--no-login requires a loopback address, but --host is {address}: omit --no-login or --host"
        )
    return None


def prefect_home() -> Path:
    from prefect.settings import get_current_settings

    home = get_current_settings().home
    home.mkdir(parents=True, exist_ok=True)
    return home


def environment_of(api: str, store: Store, login: str | None) -> dict[str, str]:
    """Return the environment of server, worker and runs; variables that the user has set are kept."""
    from prefect.settings import get_current_settings

    configured = get_current_settings()
    quiet = os.environ.get("PREFECT_LOGGING_LEVEL") == QUIET_LIBRARIES["PREFECT_LOGGING_LEVEL"]
    defaults = {
        "PREFECT_SERVER_UI_API_URL": "/api",  # relative to the address in the browser
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": api.removesuffix("/api"),  # no other origin
        "PREFECT_SERVER_UI_V2_ENABLED": "false",  # the new UI reports visits to another host
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }
    login_settings = {} if login is None else {"PREFECT_API_AUTH_STRING": login}
    if configured.server.api.auth_string:  # the user's login, which the client may override
        defaults |= login_settings
        login_settings = {}
    elif login is not None:
        login_settings["PREFECT_SERVER_API_AUTH_STRING"] = login
    settled = {
        "PREFECT_API_URL": api,
        "LEXLOOM_STORE": str(store.root),
        **login_settings,
        **({"PREFECT_LOGGING_LEVEL": "INFO"} if quiet else {}),  # the stages' log lines for the run's page
    }
    return {**defaults, **os.environ, **settled}


# processes


@contextmanager
def log_file() -> Iterator[IO[bytes]]:
    """Open the log of the processes, emptied and locked while one of them is alive."""
    home = prefect_home()
    with (home / LOG).open("ab") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(
                f"another `lexloom ui` is using {home}: stop it, or set PREFECT_HOME to another folder"
            ) from None
        log.truncate(0)
        yield log


# requests to the server


def client_of(environment: dict[str, str]) -> Any:
    from prefect.client.orchestration import SyncPrefectClient

    login = environment.get("PREFECT_API_AUTH_STRING")
    return SyncPrefectClient(api=environment["PREFECT_API_URL"], auth_string=login)


def asked_once() -> AbstractContextManager[Any]:
    """Disable the retries of Prefect's client, which would hide for a minute that the server is dead."""
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    return temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})


def on_this_machine() -> dict[str, Any]:
    """Return the job template of runs with this Python in the working directory."""
    return job_template(shlex.join(python("prefect.engine")), os.getcwd())


def resume_pool(client: Any) -> None:
    """Resume the work pool, which the exit of the last `lexloom ui` paused."""
    from prefect.client.schemas.actions import WorkPoolUpdate

    client.update_work_pool(POOL, WorkPoolUpdate(is_paused=False))


def cancel_runs(client: Any, server: Program) -> None:
    """Cancel active runs and wait until they have ended; scheduled runs are kept."""
    from prefect.client.schemas.actions import WorkPoolUpdate
    from prefect.states import Cancelling

    deadline = time.monotonic() + CANCEL_SECONDS
    while not server.has_ended() and time.monotonic() < deadline:
        with suppress(HTTPError), asked_once():  # the server is busy: try again
            client.update_work_pool(POOL, WorkPoolUpdate(is_paused=True))
            found = read_runs(client, ACTIVE_STATES)
            if not found:
                return
            for run in found:  # repeatedly: the worker may have started one before the pause
                if not run.state.is_cancelling():
                    client.set_flow_run_state(
                        run.id, Cancelling(message="lexloom ui was stopped"), force=True
                    )
        time.sleep(0.5)


# terminal output


def tell(name: str, begun: float, what: str) -> None:
    line = Text(f"{name:<{NAME_WIDTH}} ", style="bold")
    line.append(f"{time.monotonic() - begun:6.1f} s ", style="cyan")
    stderr.print(line.append(f" {what}"))


def watch(client: Any, programs: list[Program], url: str) -> NoReturn:
    """Print each change of a run's state until an exception; restart the server if it dies."""
    server, worker = programs
    states = (*ACTIVE_STATES, "COMPLETED", "FAILED", "CRASHED", "CANCELLED")
    reported: dict[UUID, str] = {run.id: run.state_name for run in read_runs(client, states, SHOWN_RUNS)}

    @cache
    def flow_name(flow_id: UUID) -> str:
        return str(client.read_flow(flow_id).name)

    while True:
        time.sleep(POLL_SECONDS)
        if worker.has_ended():
            worker.complain()
        if server.has_ended():
            begun = time.monotonic()
            server.restart()
            server.until_healthy(url)
            tell("server", begun, "exited unexpectedly; restarted")
        with suppress(HTTPError), asked_once():  # the server is busy: next time
            for run in reversed(read_runs(client, states, SHOWN_RUNS)):
                if reported.get(run.id) != run.state_name:
                    reported[run.id] = run.state_name
                    tell_run(flow_name(run.flow_id), run)


STYLES = {"COMPLETED": "green", "FAILED": "red", "CRASHED": "red", "CANCELLED": "yellow"}


def tell_run(flow: str, run: Any) -> None:
    kind = run.state_type.value
    line = Text(f"{flow:<{NAME_WIDTH}} ", style="bold")
    if kind in STYLES:
        line.append(f"{run.estimated_run_time.total_seconds():6.1f} s ", style="cyan")
    else:
        line.append(" " * 9)
    line.append(f" {run.name} ").append(run.state_name.lower(), style=STYLES.get(kind, ""))
    if kind in ("FAILED", "CRASHED") and run.state.message:
        line.append(f": {clipped(run.state.message, MESSAGE_WIDTH)}", style="dim")
    stderr.print(line)
