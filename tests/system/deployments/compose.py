"""docker-compose.yml without Docker: its services as plain processes on this machine.

Their commands and environments come from the file, as docker-compose resolves it. Only host names (this
machine), ports (free ones) and volumes (folders of the test) differ.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

ROOT = Path(__file__).parents[3]
SCRIPTS = Path(sys.executable).parent
SECRETS = {
    "LEXLOOM_DATABASE_PASSWORD": "of-the-database",
    "LEXLOOM_RAY_TOKEN": "of-ray",
    "LEXLOOM_LOGIN": "lexloom:of-prefect",
}
SECONDS = 240.0  # until something is given up: a busy machine is slow
RESTARTS = 2
WITH_RAY = {"ray-head", "ray-worker", "ray-gpu-worker", "worker"}

Service = dict[str, Any]


def docker_compose(*arguments: str, secrets: dict[str, str], **variables: str) -> subprocess.CompletedProcess:
    """Run `docker compose` on the file, with only these variables set."""
    return subprocess.run(
        [
            SCRIPTS / "docker-compose",
            "--env-file",
            os.devnull,
            "--file",
            ROOT / "docker-compose.yml",
            *arguments,
        ],
        env={"PATH": os.environ["PATH"], **secrets, **variables},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def services(**variables: str) -> dict[str, Service]:
    """Return all services, including those of profiles, with `$$` replaced by `$`."""
    said = docker_compose("--profile", "*", "config", "--format", "json", secrets=SECRETS, **variables)
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout.replace("$$", "$"))["services"]


def programs_of_postgres() -> str | None:
    """Return the folder of Postgres' programs, which is not on Debian's PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [shutil.which("initdb")]
    return str(Path(found[-1]).parent) if found[-1] else None


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


class Stack:
    """The services of the file as processes; a context manager that stops them all."""

    def __init__(self) -> None:
        # not pytest's folder: Postgres' user must get in, and Ray's sockets want a short path
        self.folder = Path(tempfile.mkdtemp(prefix="lexloom-"))
        self.folder.chmod(0o755)
        for each in ("tmp", "store", "cache", "data"):
            (self.folder / each).mkdir()
        self.services = services()
        names = ("redis:6379", "6379", "4200", "5432", "6380", "7860", "8080")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.running: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "Stack":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in reversed(list(self.running)):
            self.end(name)
        shutil.rmtree(self.folder)

    # where things are

    def here(self, text: str) -> str:
        """Return the text with the hosts, ports and folders of this machine."""
        ports = "|".join(sorted(self.ports, key=len, reverse=True))
        text = re.sub(rf"\b({ports})\b", lambda found: self._port(found[0]), text)
        text = re.sub(r"(?<![\w-])((server|ray-head)(?=:)|localhost\b|0\.0\.0\.0)", "127.0.0.1", text)
        return re.sub(r"(?<!\w)/(store|cache|data|tmp)\b", rf"{self.folder}/\1", text)

    def _port(self, found: str) -> str:
        return f"127.0.0.1:{self.ports[found]}" if ":" in found else str(self.ports[found])

    def url(self, port: str) -> str:
        return f"http://127.0.0.1:{self.ports[port]}"

    def environment(self, name: str) -> dict[str, str]:
        """Return the service's variables and PATH, without the test's own environment."""
        own = {key: self.here(value) for key, value in self.services[name].get("environment", {}).items()}
        if own.get("PREFECT_SERVER_DATABASE_HOST") == "postgres":
            own["PREFECT_SERVER_DATABASE_HOST"] = "127.0.0.1"
        path = [str(SCRIPTS), programs_of_postgres() or "", os.environ["PATH"]]
        found = {"PATH": os.pathsep.join(path), "RAY_TMPDIR": str(self.folder), "PYTHONPATH": str(ROOT)}
        if name == "postgres":
            found |= {"PGPORT": str(self.ports["5432"]), "PGDATA": str(self.folder / "postgres")}
        return own | found

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    # what runs

    def start(self, name: str) -> None:
        """Start a service in a new session."""
        if name == "postgres":
            self._make_database()
        self.running[name] = self._process(name, self.services[name]["command"])

    def run(self, name: str) -> None:
        """Run a one-off service, and assert that it succeeds."""
        self.start(name)
        status = self.running[name].wait(SECONDS)
        assert status == 0, f"{name} ended with {status}: {self.log(name).read_text()}"

    def await_health(self, name: str) -> None:
        """Waits until the service's own health check passes; starts it again when it ends, as Docker would.

        (Ray gives up after 30 seconds, which a busy machine can take.)
        """
        (_, *probe) = self.services[name]["healthcheck"]["test"]
        end, restarts = time.monotonic() + SECONDS, 0
        while self._process(name, probe, f"{name}-probe").wait() != 0:
            if self.running[name].poll() is not None:
                restarts += 1
                assert restarts <= RESTARTS, f"{name} ends: {self.log(name).read_text()}"
                self.running[name] = self._process(name, self.services[name]["command"])
            assert time.monotonic() < end, f"{name} is not healthy: {self.log(name).read_text()}"
            time.sleep(0.2)

    def ask(self, name: str, *command: str, **variables: str) -> subprocess.CompletedProcess:
        """Run another command in a service's environment, as `docker compose exec` would."""
        return subprocess.run(
            command,
            env=self.environment(name) | variables,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    def end(self, name: str) -> list[psutil.Process]:
        """Stop a service as Docker does, by SIGTERM and then SIGKILL; return the killed processes."""
        process = self.running.pop(name)
        family = [] if process.poll() is not None else psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        # the agents of a Ray node wait a minute, unless a container ends: they are killed soon
        _, left = psutil.wait_procs(family, timeout=2 if name in WITH_RAY else 15)
        for each in left:
            with suppress(psutil.NoSuchProcess):  # it has just ended
                each.kill()
        psutil.wait_procs(left)
        return left

    def _process(self, name: str, command: list[str], log: str = "") -> subprocess.Popen:
        command = [self.here(word) for word in command]
        more: dict[str, Any] = {}
        if name == "postgres":
            command += ["-k", str(self.folder / "postgres")] if command[0] == "postgres" else []
            more = as_postgres()
        if name == "redis":
            port = ["--port" if command[0] == "redis-server" else "-p", str(self.ports["redis:6379"])]
            command[1:1] = [*port, "--dir", str(self.folder)] if command[0] == "redis-server" else port
        with self.log(log or name).open("a") as output:
            return subprocess.Popen(
                ["env", "--default-signal=INT", *command],  # as in a container; a shell's `&` ignores it
                env=self.environment(name),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **more,
            )

    def _make_database(self) -> None:
        """Initialize the database as the image's entry point does at its first start."""
        variables = self.environment("postgres")
        data = self.folder / "postgres"
        data.mkdir()
        if as_postgres():
            shutil.chown(data, "postgres", "postgres")
        password = self.folder / "password"
        password.write_text(variables["POSTGRES_PASSWORD"])
        initdb = ["initdb", f"--username={variables['POSTGRES_USER']}", f"--pwfile={password}", "--no-sync"]
        for command in (
            [*initdb, *variables["POSTGRES_INITDB_ARGS"].split()],
            ["postgres", "--single", "postgres"],
        ):
            subprocess.run(
                command,
                env=variables,
                input=f"CREATE DATABASE {variables['POSTGRES_DB']};\n" if "--single" in command else None,
                check=True,
                capture_output=True,
                text=True,
                cwd=data,
                **as_postgres(),
            )


def as_postgres() -> dict[str, Any]:
    """Return the arguments to run as the user postgres, since Postgres does not run as root."""
    return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
