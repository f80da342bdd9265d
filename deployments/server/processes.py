"""The child processes of `lexloom ui`, which end with it, the last one first."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any, NoReturn
from urllib.error import URLError
from urllib.request import urlopen

from rich.text import Text

from lexloom.deployments.server.register import end_with_parent, python
from lexloom.tasks.display.console import stderr

START_SECONDS = 300  # for busy machines
END_SECONDS = 15


class Program:
    """A Python module in its own session, which Ctrl-C does not reach; it ends with this process."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: dict[str, str],
        log: IO[bytes],
        before: Any = lambda: None,
    ) -> None:
        self.name, self._before = name, before
        self._start = lambda: subprocess.Popen(
            python(*arguments),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        self._log = log.name
        self._process = self._start()

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def complain(self) -> NoReturn:
        raise RuntimeError(f"the {self.name} exited with status {self._process.returncode}: see {self._log}")

    def restart(self) -> None:
        self._process = self._start()

    def until_healthy(self, url: str) -> None:
        """Wait until the server responds."""
        deadline = time.monotonic() + START_SECONDS
        while not is_healthy(url):
            if self.has_ended():
                self.complain()
            if time.monotonic() > deadline:
                raise RuntimeError(f"the {self.name} does not respond at {url}: see {self._log}")
            time.sleep(0.2)

    def end(self) -> None:
        """Call `before`, terminate the process, and kill what it may have left."""
        if not self.has_ended():
            self._before()
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextmanager
def ended_in_order() -> Iterator[list[Program]]:
    """Yield a list of programs; they end with the block, the last one first, despite signals."""
    programs: list[Program] = []
    try:
        yield programs
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        stderr.print(Text("stopping", style="yellow"))
        for program in reversed(programs):
            program.end()


def is_healthy(url: str) -> bool:
    try:
        with urlopen(f"{url}/api/health", timeout=5) as answer:
            return answer.status == 200
    except (URLError, OSError):
        return False
