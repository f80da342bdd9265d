"""Prefect's server with cross-site request protection: python -m lexloom.deployments.server.prefect_server.

It is configured by Prefect's settings (PREFECT_SERVER_...). If PREFECT_SERVER_API_AUTH_STRING is set, it
requires that login and issues one-time login links.
"""

import argparse
import sys

import uvicorn
from prefect.server.api.server import create_app
from prefect.settings import get_current_settings
from starlette.types import ASGIApp

from lexloom.deployments.server.login import LoginLinks
from lexloom.deployments.server.sockets import listen
from lexloom.flows.local_server.same_origin import SameOrigin


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM; return the exit status."""
    options = build_parser().parse_args(argv)
    settings = get_current_settings().server
    host = options.host or settings.api.host
    port = settings.api.port if options.port is None else options.port
    try:
        listener = listen(host, port)
        app = protect(create_app(final=True, webserver_only=options.no_services), host, options.allow_host)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    config = uvicorn.Config(
        app,
        log_level=settings.logging_level.lower(),
        timeout_keep_alive=settings.api.keepalive_timeout,
        ws_ping_interval=settings.api.websocket_ping_interval,
        ws_ping_timeout=settings.api.websocket_ping_timeout,
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=[listener])
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lexloom.deployments.server.prefect_server")
    parser.add_argument("--host", help="address to bind to (default: PREFECT_SERVER_API_HOST)")
    parser.add_argument("--port", type=int, help="port to listen on (default: PREFECT_SERVER_API_PORT)")
    parser.add_argument(
        "--no-services",
        action="store_true",
        help="do not run background services",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME[:PORT]",
        help="additional host name to accept, such as a reverse proxy's; repeatable",
    )
    return parser


def protect(app: ASGIApp, host: str, allow_hosts: list[str]) -> ASGIApp:
    """Add the checks of origin and host to Prefect's application and, if it has a login, login links."""
    login = get_current_settings().server.api.auth_string
    if login is not None:
        app = LoginLinks(app, login.get_secret_value())
    return SameOrigin(app, host, allow_hosts)


if __name__ == "__main__":
    sys.exit(main())
