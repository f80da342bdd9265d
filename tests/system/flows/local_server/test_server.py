"""Prefect's temporary server as a process: it yields a port in use, and ends when its parent is killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SECONDS = 120


def test_a_port_in_use_makes_prefect_try_another() -> None:
    """Which it does after exit status 3 (`SubprocessASGIServer.start`)."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "lexloom.flows.local_server.program", str(taken.getsockname()[1])]
        assert subprocess.run(command, stdin=subprocess.PIPE, timeout=SECONDS).returncode == 3


DRIVER = """
import signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
from lexloom.flows.local_server.server import start_server
from prefect.server.api.server import SubprocessASGIServer
start_server()
print(SubprocessASGIServer().server_process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_the_server_ends_when_its_parent_is_killed(prefect_home: Path, number: signal.Signals) -> None:
    environment = {
        **os.environ,
        "PREFECT_HOME": str(prefect_home),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(SECONDS),
    }
    command = [sys.executable, "-c", DRIVER]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        temporary = psutil.Process(int(driver.stdout.readline()))
        assert os.getsid(temporary.pid) != os.getsid(driver.pid), "a terminal's Ctrl-C does not reach it"
        driver.send_signal(number)
        driver.wait(SECONDS)
    end = time.monotonic() + SECONDS
    while temporary.is_running() and temporary.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "it lives on"
        time.sleep(0.1)
