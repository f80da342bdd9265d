"""Commands that start the web page or Prefect's UI, or deploy the flows to a Prefect server."""

import os
import sys
from importlib.util import find_spec
from typing import Annotated

from cyclopts import Parameter

WEB_APP = (
    "lexloom.deployments.web.app"  # started as a program of its own, since it sets the process up for Gradio
)

Host = Annotated[str, Parameter(help="Address to bind to.")]
AllowHost = Annotated[
    list[str] | None,
    Parameter(
        help="Additional host name to accept, such as a reverse proxy's; repeatable.", metavar="NAME[:PORT]"
    ),
]


def open_app(
    *,
    host: Host = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port to listen on; 0 picks a free port.")] = 7860,
    allow_host: AllowHost = None,
) -> None:
    """Serve a web page for trying out the models in the store."""
    if find_spec("gradio") is None:
        raise ModuleNotFoundError("the web page needs Gradio: pip install 'lexloom[app]'")
    flags = ["--host", host, "--port", str(port)]
    flags += [part for name in allow_host or () for part in ("--allow-host", name)]
    # -P: do not import a module from the current folder
    os.execv(sys.executable, [sys.executable, "-P", "-m", WEB_APP, *flags])


def open_ui(
    *,
    host: Host = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port to listen on; 0 picks a free port.")] = 4200,
    allow_host: AllowHost = None,
    no_login: bool = False,
    link: bool = False,
) -> int:
    """Start a Prefect server with the flows deployed, and run their flow runs.

    Args:
        no_login: Disable the login: any user of this machine can then start runs.
        link: Print a new login link for the running `lexloom ui` and exit.
    """
    from lexloom.deployments.server.ui import print_login_link, serve

    if link:
        print_login_link()
        return 0
    return serve(host, port, allow_host or (), login=not no_login)


def deploy(*, runs: int = 2) -> None:
    """Deploy the flows to the Prefect server at PREFECT_API_URL.

    An existing work pool keeps its concurrency limit, and existing deployments keep their schedules.

    Args:
        runs: Concurrency limit of a new work pool.
    """
    from lexloom.deployments.server.register import register

    if runs < 1:
        raise ValueError(f"--runs is {runs}: it must be 1 or more")
    register(runs)
