"""A Ray cluster of several hosts on one machine, to be killed and cut off.

    with hosts(3) as cluster:
        cluster.start([sys.executable, "driver.py", cluster.address])
        cluster.cut_off(cluster.nodes[1])

Each host is a network namespace with an address of its own; a bridge, in a namespace too, joins them, so
nothing shows in the machine's own network. They share its files, as hosts share a network folder. Where
namespaces are not allowed, hosts are several Ray nodes on one address, and one that is cut off is stopped
instead: its connections stay open, and silent.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import psutil

PORT = 6400
START_SECONDS = 240
OBJECT_STORE_BYTES = 80 * 1024 * 1024
LOOPBACK = "127.0.0.1"
# what the head is told, so that it gives up a silent node after 16 seconds at most, and not 65
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "4",
}

_clusters = count()


def namespaces_allowed() -> bool:
    """Whether this user may make network namespaces and links between them."""
    name = f"lexloom-{os.getpid()}-probe"
    try:
        ip("netns", "add", name)
        ip("-n", name, "link", "add", "bridge", "type", "bridge")
    except (OSError, subprocess.CalledProcessError):
        return False
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return True


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass
class Node:
    """One host of the cluster."""

    number: int
    address: str
    namespace: str | None
    process: subprocess.Popen[bytes]
    lost: bool = False

    def processes(self) -> list[psutil.Process]:
        """The processes of its Ray node."""
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


class Cluster:
    """The hosts; `nodes[0]` is the head, where drivers run."""

    def __init__(self, folder: Path, cpus: int, namespaces: bool) -> None:
        self._folder, self._cpus, self._namespaces = folder, cpus, namespaces
        self._name = f"lexloom-{os.getpid()}-{next(_clusters)}"
        self._made: list[str] = []
        self.nodes: list[Node] = []
        self.environment = {
            **os.environ,
            **HEALTH,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._name.ljust(32, "-"),
            "RAY_TMPDIR": str(folder / "driver"),
        }
        self._hub = f"{self._name}-hub"
        self._port = PORT if namespaces else free_port()

    def begin(self) -> None:
        if self._namespaces:
            self._add_namespace(self._hub)
            ip("-n", self._hub, "link", "add", "bridge", "type", "bridge")
            ip("-n", self._hub, "link", "set", "bridge", "up")

    @property
    def address(self) -> str:
        return f"{self.nodes[0].address}:{self._port}"

    def _add_namespace(self, name: str) -> None:
        ip("netns", "add", name)
        self._made.append(name)

    def add(self) -> Node:
        """Starts one more host; returns once it has joined the cluster."""
        node = self.launch()
        self.await_start(node)
        return node

    def launch(self) -> Node:
        number = len(self.nodes)
        address = f"10.77.0.{number + 1}" if self._namespaces else LOOPBACK
        namespace = f"{self._name}-{number}" if self._namespaces else None
        if namespace is not None:
            self._add_namespace(namespace)
            link = f"host{number}"
            ip("-n", self._hub, "link", "add", link, "type", "veth", "peer", "eth0", "netns", namespace)
            ip("-n", self._hub, "link", "set", link, "master", "bridge", "up")
            ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
            for end in ("lo", "eth0"):
                ip("-n", namespace, "link", "set", end, "up")
        place = self._folder / str(number)
        place.mkdir()
        head = ["--head", "--port", str(self._port), "--include-dashboard", "false"]
        role = ["--address", self.address] if number else head
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *role),
            *("--node-ip-address", address, "--num-cpus", str(self._cpus)),
            *("--object-store-memory", str(OBJECT_STORE_BYTES), "--temp-dir", str(place)),
            "--disable-usage-stats",
        ]
        with (place / "log").open("wb") as log:
            process = subprocess.Popen(
                self._in(namespace, command),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.nodes.append(Node(number, address, namespace, process))
        return self.nodes[-1]

    def await_start(self, node: Node) -> None:
        deadline = time.monotonic() + START_SECONDS
        log = self._folder / str(node.number) / "log"
        while b"Ray runtime started" not in (said := log.read_bytes()):
            if node.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"host {node.number} did not start:\n{said.decode(errors='replace')}")
            time.sleep(0.1)

    def _in(self, namespace: str | None, command: list[str]) -> list[str]:
        return command if namespace is None else ["ip", "netns", "exec", namespace, *command]

    def start(self, command: list[str], **options: Any) -> "subprocess.Popen[str]":
        """Starts a command on the head's host."""
        within = self._in(self.nodes[0].namespace, command)
        return subprocess.Popen(within, env=self.environment, text=True, **options)

    def kill(self, node: Node) -> None:
        """As if its power had failed: all its processes end at once."""
        node.lost = True
        signal_all(node.processes(), signal.SIGKILL)
        node.process.wait()

    def cut_off(self, node: Node) -> None:
        """Its processes go on, but nothing goes in or out any more."""
        node.lost = True
        if node.namespace is not None:
            ip("-n", self._hub, "link", "set", f"host{node.number}", "down")
        else:
            signal_all(node.processes(), signal.SIGSTOP)

    def alive(self) -> list[Node]:
        return [node for node in self.nodes if not node.lost]

    def of(self, pid: int) -> Node:
        """The host that a process runs on."""
        return next(node for node in self.nodes if pid in [process.pid for process in node.processes()])

    def close(self) -> None:
        for node in self.nodes:
            self.kill(node)
        for name in self._made:
            inside = subprocess.run(
                ["ip", "netns", "pids", name], capture_output=True, text=True, check=False
            )
            for pid in map(int, inside.stdout.split()):  # a driver's, or what outlived its parent
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def signal_all(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


@contextmanager
def hosts(number: int, cpus: int = 1, namespaces: bool | None = None) -> Iterator[Cluster]:
    """A cluster of so many hosts with so many CPUs each; nothing of it is left behind.

    `namespaces` None makes them where they are allowed.
    """
    folder = Path(tempfile.mkdtemp(prefix="hosts-"))  # a short path: sockets' names may have 107 letters
    with ExitStack() as over:
        over.callback(shutil.rmtree, folder, ignore_errors=True)
        cluster = Cluster(folder, cpus, namespaces_allowed() if namespaces is None else namespaces)
        over.callback(cluster.close)
        cluster.begin()
        cluster.add()
        for node in [cluster.launch() for _ in range(number - 1)]:
            cluster.await_start(node)
        yield cluster
