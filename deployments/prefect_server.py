"""Prefect's server, kept from pages of other sites: python -m deployments.prefect_server.

It serves Prefect's own application. Its settings are Prefect's (PREFECT_SERVER_...); with
PREFECT_SERVER_API_AUTH_STRING it asks for a login, and makes one-time links that log a browser in.
"""

import argparse
import sys

import uvicorn
from prefect.server.api.server import create_app
from prefect.settings import get_current_settings
from starlette.types import ASGIApp

from deployments.login import LoginLinks
from flows.same_origin import SameOrigin


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM; return the exit status."""
    options = build_parser().parse_args(argv)
    settings = get_current_settings().server
    host = options.host or settings.api.host
    port = settings.api.port if options.port is None else options.port
    try:
        app = protected(create_app(final=True, webserver_only=options.no_services), host, options.allow_host)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level=settings.logging_level.lower(),
        timeout_keep_alive=settings.api.keepalive_timeout,
        ws_ping_interval=settings.api.websocket_ping_interval,
        ws_ping_timeout=settings.api.websocket_ping_timeout,
        server_header=False,
    )
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deployments.prefect_server")
    parser.add_argument("--host", help="address to serve at (default: PREFECT_SERVER_API_HOST)")
    parser.add_argument("--port", type=int, help="default: PREFECT_SERVER_API_PORT")
    parser.add_argument("--no-services", action="store_true", help="serve the API and the page alone")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME[:PORT]",
        help="a further host name under which browsers and clients reach the server",
    )
    return parser


def protected(app: ASGIApp, host: str, allow_hosts: list[str]) -> ASGIApp:
    """Prefect's application behind the checks of origin and host and, if it has a login, with login links."""
    login = get_current_settings().server.api.auth_string
    if login is not None:
        app = LoginLinks(app, login.get_secret_value())
    return SameOrigin(app, host, allow_hosts)


if __name__ == "__main__":
    sys.exit(main())
