"""Prefect's temporary server as a program: python -m lexloom.flows.local_server.program PORT (or fd=NUMBER).

It listens on loopback only, rejects cross-site requests, and exits when its parent exits, even if the parent
is killed by SIGKILL: the parent holds the write end of the server's standard input, and the kernel closes it.
"""

import gc
import os
import signal
import socket
import sys
import time
from threading import Thread

from lexloom.flows.local_server.early import HOST

SHUTDOWN_SECONDS = 5
TRY_ANOTHER_PORT = 3  # Prefect retries on another port after this exit status


def main(place: str) -> int:
    """Serve at a port, or on a bound socket that was inherited, until SIGTERM or the end of standard input.

    Return the exit status.
    """
    if place.startswith("fd="):
        bound = socket.socket(fileno=int(place.removeprefix("fd=")))
    else:
        bound = socket.socket()  # not listening yet: Prefect waits as long as connections are refused
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((HOST, int(place)))
        except OSError:
            return TRY_ANOTHER_PORT
    Thread(target=end_with_parent, name="parent", daemon=True).start()
    gc.disable()  # makes the imports a sixth faster
    import uvicorn
    from prefect.server.api.server import create_app

    from lexloom.flows.local_server.same_origin import SameOrigin

    gc.freeze()
    gc.enable()
    app = SameOrigin(create_app(ephemeral=True, final=True), HOST)
    uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on")).run(sockets=[bound])
    return 0


def end_with_parent() -> None:
    """Wait for EOF on standard input, then shut down; force the exit after SHUTDOWN_SECONDS."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SHUTDOWN_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
