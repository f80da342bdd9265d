"""`lexloom app`: a web page on which the models of a store can be tried.

The page loads nothing from other hosts, neither fonts nor scripts nor analytics, and its content security
policy makes the browser refuse to.
"""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
if __name__ == "__main__":  # not where it is imported: other code of that process may need the hub
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models lie in the store

import argparse
import contextlib
import sys
import warnings
from collections.abc import Sequence

import gradio as gr
import uvicorn
from fastapi import FastAPI
from rich.text import Text
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lexloom.deployments.server.sockets import listen
from lexloom.deployments.web import theme
from lexloom.deployments.web.layout import build
from lexloom.deployments.web.model_catalog import ModelCatalog
from lexloom.deployments.web.queue import Sessions, TrackSessions
from lexloom.flows.local_server.same_origin import Address, SameOrigin
from lexloom.tasks.display.console import stderr
from lexloom.tasks.store.artifacts import Store
from lexloom.tasks.store.names import read_names

HOST, PORT = "127.0.0.1", 7860
SHUTDOWN_SECONDS = 1
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:;"
    " style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'"
)


class ContentSecurityPolicy:
    """ASGI middleware that makes the browser load nothing from other hosts."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self._app(scope, receive, send_with_policy)


def web_app(store: Store, host: str = HOST, allow_hosts: Sequence[str] = ()) -> FastAPI:
    """Return the page's application, which accepts requests to `host` and to the names in `allow_hosts`."""
    app = FastAPI(openapi_url=None)  # its documentation pages would load scripts from other hosts
    sessions = Sessions()
    app.add_middleware(TrackSessions, sessions=sessions)
    app.add_middleware(ContentSecurityPolicy)
    app.add_middleware(SameOrigin, host=host, allow_hosts=allow_hosts)  # added last, called first
    return gr.mount_gradio_app(
        app,
        build(ModelCatalog(store), sessions),
        path="/",
        theme=theme.theme(),
        head=theme.HEAD,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
    )


def main(argv: list[str] | None = None) -> int:
    """Serve the page until Ctrl-C; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="lexloom app", description="Serve a web page for trying out the models in the store."
    )
    parser.add_argument("--host", default=HOST, help=f"address to bind to (default: {HOST})")
    parser.add_argument(
        "--port", type=int, default=PORT, help=f"port to listen on (default: {PORT}; 0 picks a free port)"
    )
    parser.add_argument(
        "--store", metavar="FOLDER", help="store folder (default: $LEXLOOM_STORE or artifacts/)"
    )
    parser.add_argument(
        "--allow-host", action="append", default=[], help="additional host name to accept; repeatable"
    )
    options = parser.parse_args(argv)
    try:
        for name in options.allow_host:
            Address.parse(name)
        store = Store(options.store)
        read_names(store)
        listener = listen(options.host, options.port)
    except (OSError, ValueError) as error:
        stderr.print(Text("error: ", style="bold red") + Text(str(error)))
        return 1
    warnings.simplefilter("ignore")
    server = uvicorn.Server(
        uvicorn.Config(
            web_app(store, options.host, options.allow_host),
            log_level="warning",
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            server_header=False,
        )
    )
    host, port = listener.getsockname()[:2]
    print(f"serving the models of {store.root} at http://{host}:{port} (press Ctrl-C to stop)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
