"""Prefect's temporary server as a program: python -m flows.temporary_server PORT.

It serves this machine alone, refuses pages of other sites, and ends when its parent ends, even by SIGKILL:
the parent holds the other end of standard input, and the system closes it.
"""

import os
import signal
import sys
import time
from threading import Thread

import uvicorn
from prefect.server.api.server import create_app

from flows.same_origin import SameOrigin

HOST = "127.0.0.1"
SHUTDOWN_SECONDS = 5


def main(port: int) -> None:
    Thread(target=end_with_parent, name="parent", daemon=True).start()
    app = SameOrigin(create_app(ephemeral=True, final=True), HOST)
    uvicorn.run(app, host=HOST, port=port, log_level="error", lifespan="on")


def end_with_parent() -> None:
    """Wait for the end of standard input; then end, in order if that is possible."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SHUTDOWN_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
