"""Flow runs that are stopped by Prefect's API, as its page does it, and by Ctrl-C in a terminal.

Every run is a whole `word2vec` flow on two Ray workers: served by `flow.serve`, or by a process worker, or
started as a command. Runs come in chains: the first is stopped in the stages before training, the next goes
on from there and is stopped while Ray starts, three more in training, each at a seeded random moment; the
last is left to its end. After each stop no process of the run may be left. Each run must take up what the one
before had finished: stages from the store, training from the newest checkpoint on disk. The end of a chain
must have the weights of the run that nobody disturbed, bit for bit.
"""

import fcntl
import json
import os
import pty
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import numpy as np

from benchmarks.measure import summary
from tests.system.harness.processes import POLL_SECONDS, processes_of, wait_for

LINES, WORDS_PER_LINE = 5_000, 40
SETTINGS: dict[str, dict[str, Any]] = {
    "train": {"epochs": 4, "workers": 2, "dim": 64, "checkpoint_every": 20},
}
START_SECONDS, RUN_SECONDS, CANCEL_SECONDS = 300, 900, 30
CHAIN = ("stages", "starting Ray", "training", "training", "training")
EARLY_STAGES = ("corpus", "vocabulary", "tokens", "pairs", "negative_sampling")
FLOW_STAGES = (*EARLY_STAGES, "train_word2vec", "evaluate_word2vec", "report_word2vec")
INTERRUPTED = 130
ASK_SECONDS = 1.0
RETRIES = 30  # of a question to a server that is busy
CTRL_C = b"\x03"
STYLING = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # what makes a terminal bold, coloured or move


@dataclass
class Ground:
    """Folders that runs of one kind share, and what the undisturbed run was."""

    work: Path
    corpus: Path
    model: bytes = b""
    steps: int = 0
    ray_seconds: float = 0.0  # from the beginning of the training stage to the first checkpoint

    def __post_init__(self) -> None:
        for folder in (self.store, self.ray, self.home):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def store(self) -> Path:
        return self.work / "store"

    @property
    def ray(self) -> Path:
        return self.work / "ray"

    @property
    def home(self) -> Path:
        return self.work / "prefect"

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        return {"corpus": {"source": str(self.corpus)}, **SETTINGS}

    def environment(self, **more: str) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
            "LEXLOOM_STORE": str(self.store),
            "RAY_TMPDIR": str(self.ray),
            "PREFECT_HOME": str(self.home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            **more,
        }

    def training(self) -> bool:
        return any(self.store.glob(".scratch/train_*"))

    def checkpoint(self) -> int | None:
        """The step of the newest checkpoint of an unfinished training."""
        steps = [int(path.name.removeprefix("step-")) for path in self.store.glob(".scratch/*/*/step-*")]
        return max(steps, default=None)

    def finished(self) -> set[str]:
        return {path.parent.parent.name for path in self.store.glob("[!.]*/*/manifest.json")}

    def weights(self) -> bytes:
        (path,) = self.store.glob("train_word2vec/*/model.safetensors")
        return path.read_bytes()

    def watch(self) -> threading.Thread:
        """Notes, meanwhile, how long Ray takes to start."""

        def follow() -> None:
            wait_for(self.training, RUN_SECONDS, "training begins")
            self.ray_seconds = wait_for(self.checkpoint, RUN_SECONDS, "the first checkpoint")

        watching = threading.Thread(target=follow, daemon=True)
        watching.start()
        return watching

    def remember(self, watching: threading.Thread) -> None:
        """Takes the undisturbed run's result, and makes room for the next."""
        watching.join()
        (folder,) = self.store.glob("train_word2vec/*")
        self.model = self.weights()
        self.steps = json.loads((folder / "metrics.json").read_text())["history"][-1]["step"]
        print(f"undisturbed: {self.steps} steps, {self.ray_seconds:.1f} s to start Ray", flush=True)
        self.clear()

    def clear(self) -> None:
        for folder in (self.store, self.ray):
            shutil.rmtree(folder)
            folder.mkdir()


class FlowRun(Protocol):
    """A run of the flow that can be watched, stopped and read, however it was started."""

    kind: str

    def is_over(self) -> bool: ...

    def stop(self, chance: random.Random) -> dict[str, float]:
        """Stops it; returns how many seconds each part of that took. Empty if it ended by itself before."""

    def finish(self) -> None:
        """Waits for its good end."""

    def said(self) -> str:
        """What it has printed, once it is over."""


def stop_runs(
    ground: Ground, start: Callable[[int], FlowRun], count: int, chance: random.Random
) -> dict[str, Any]:
    """Stops `count` runs, which `start` starts by their number, in chains."""
    watching = ground.watch()
    start(0).finish()
    ground.remember(watching)
    seconds: dict[str, list[float]] = {}
    load: list[float] = []
    counted: Counter[str] = Counter()
    chains = 0
    while counted.total() < count:
        finished: set[str] = set()
        step: int | None = None
        shares = iter(sorted(chance.random() for _ in CHAIN))
        for phase in CHAIN[: count - counted.total()]:
            number = counted.total()
            run = start(number)
            at = await_moment(ground, phase, next(shares), chance, step, run.is_over)
            waiting = os.getloadavg()[0]
            times = {} if run.is_over() else run.stop(chance)
            if not times:
                print(f"{run.kind}: it ended before its moment ({phase}); not counted", flush=True)
                run.finish()
                break
            for name, value in times.items():
                seconds.setdefault(name, []).append(value)
            load.append(waiting)
            check_resumed(run.said(), finished, step, trained=phase != "stages", whole=False)
            finished, step = ground.finished(), ground.checkpoint()
            counted[f"{run.kind}, {phase}"] += 1
            took = ", ".join(f"{value:.1f} s {name}" for name, value in times.items())
            print(f"stop {number + 1:2} ({run.kind}; {at}): {took}; load {waiting:.0f}", flush=True)
        else:
            run = start(counted.total())
            run.finish()
        check_resumed(run.said(), finished, step, trained=True, whole=True)
        assert ground.weights() == ground.model, "the weights differ"
        chains += 1
        print(f"chain {chains}: its last run went on from step {step}; equal weights", flush=True)
        ground.clear()
    return {
        "stops": counted.total(),
        "by": dict(sorted(counted.items())),
        "chains_bit_identical": chains,
        "without_a_process_in_30_seconds": sum(
            value < CANCEL_SECONDS for value in seconds["until no process"]
        ),
        "load": summary(load),
        **{f"seconds_{name.replace(' ', '_')}": summary(values) for name, values in seconds.items()},
    }


def await_moment(
    ground: Ground,
    phase: str,
    share: float,
    chance: random.Random,
    step: int | None,
    is_over: Callable[[], bool],
) -> str:
    """Waits for a random moment in a phase of a run that has begun; returns where the run then is.

    A moment is a count of stages, of seconds or of steps (beyond `step`, where the run began): it lies
    within the phase however busy the machine is.
    """
    if phase == "stages":
        stages = int(share * len(EARLY_STAGES))
        wait_for(lambda: len(ground.finished()) >= stages or is_over(), RUN_SECONDS, "the stages")
    elif phase == "starting Ray":
        wait_for(lambda: ground.training() or is_over(), RUN_SECONDS, "training begins")
        deadline = time.monotonic() + chance.random() * ground.ray_seconds
        wait_for(
            lambda: time.monotonic() > deadline or ground.checkpoint() != step or is_over(),
            RUN_SECONDS,
            "a moment",
        )
    else:
        goal = max(share * ground.steps, (step or 0) + 1)
        wait_for(lambda: (ground.checkpoint() or 0) >= goal or is_over(), RUN_SECONDS, f"step {goal}")
    time.sleep(chance.uniform(0, 0.5))
    return f"{phase}, {len(ground.finished())} stages finished, step {ground.checkpoint() or 0}"


def check_resumed(said: str, finished: set[str], step: int | None, *, trained: bool, whole: bool) -> None:
    """A run took up what was there: the finished stages, and the newest checkpoint if it has `trained`.

    A run that was stopped need not have come to every stage; a `whole` one must.
    """
    lines = {line.split()[0]: line for line in said.splitlines() if line.split()[:1]}
    for stage in FLOW_STAGES:
        if whole or stage in lines:
            assert ("cached" in lines[stage]) == (stage in finished), f"{stage}: {said}"
    goes_on = f"resumes from the checkpoint of step {step or 0:,}"
    told = any(line.rstrip().endswith(goes_on) for line in said.splitlines())
    assert told == (step is not None and trained), f"step {step}: {said}"


def kill_tree(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# by Prefect's API


@dataclass
class Deployment:
    """One way to run the flow, and the log of what its runs print."""

    kind: str
    id: UUID
    log: Path


class ServedRun:
    """A run of a deployment; it is stopped by setting its state, as Prefect's page does."""

    def __init__(self, ground: Ground, client: Any, deployment: Deployment) -> None:
        self.ground, self.client, self.deployment = ground, client, deployment
        self.kind = deployment.kind
        self._log_before = deployment.log.stat().st_size
        self._state, self._asked = "", 0.0
        parameters = {"config": ground.settings}
        self.id = client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id
        wait_for(lambda: self.state() not in ("SCHEDULED", "PENDING"), START_SECONDS, "the run begins")

    def state(self) -> str:
        """By the API, which is asked once a second at most: it has other things to do."""
        if time.monotonic() - self._asked > ASK_SECONDS:
            self._state = self.client.read_flow_run(self.id).state.type.value
            self._asked = time.monotonic()
        return self._state

    def is_over(self) -> bool:
        return self.state() in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

    def is_gone(self) -> bool:
        return not processes_of(self.ground.ray)

    def stop(self, chance: random.Random) -> dict[str, float]:
        from prefect.states import Cancelling

        begun = time.monotonic()
        self.client.set_flow_run_state(self.id, Cancelling())
        times = follow_end({"until Cancelled": self.is_over, "until no process": self.is_gone}, begun)
        if self.state() == "COMPLETED":
            return {}
        assert self.state() == "CANCELLED", self.state()
        return times

    def finish(self) -> None:
        wait_for(lambda: self.is_over() and self.is_gone(), RUN_SECONDS, "the run ends")
        assert self.state() == "COMPLETED", self.said()

    def said(self) -> str:
        time.sleep(1)  # for the rest to pass from the run through its runner into the log
        with self.deployment.log.open() as file:
            file.seek(self._log_before)
            return file.read()


def by_api(work: Path, corpus: Path, count: int) -> dict[str, Any]:
    """Stops `count` runs by Prefect's API, half of them served and half on a process worker."""
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    ground = Ground(work, corpus)
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: RETRIES}),
        prefect_services(ground) as (url, deployments),
        SyncPrefectClient(api=url) as client,
    ):

        def start(number: int) -> ServedRun:
            return ServedRun(ground, client, deployments[number % len(deployments)])

        return stop_runs(ground, start, count, random.Random("api"))


def follow_end(ends: dict[str, Callable[[], bool]], begun: float) -> dict[str, float]:
    """Seconds from `begun` until each condition holds; TimeoutError where that takes too long."""
    times: dict[str, float] = {}
    while len(times) < len(ends):
        for name, ended in ends.items():
            if name not in times and ended():
                times[name] = time.monotonic() - begun
        if time.monotonic() - begun > 4 * CANCEL_SECONDS:
            raise TimeoutError(f"after {4 * CANCEL_SECONDS} s: {sorted(ends.keys() - times.keys())} not yet")
        time.sleep(POLL_SECONDS)
    return times


@contextmanager
def prefect_services(ground: Ground) -> Iterator[tuple[str, list[Deployment]]]:
    """A Prefect server, the flow served by `flow.serve`, and a process worker that runs it too."""
    from prefect.client.orchestration import SyncPrefectClient

    url = f"http://127.0.0.1:{free_port()}/api"
    environment = ground.environment(
        PREFECT_API_URL=url,
        PREFECT_RUNNER_POLL_FREQUENCY="2",
        PREFECT_WORKER_QUERY_SECONDS="2",
        PREFECT_SERVER_DATABASE_TIMEOUT="60",
    )
    prefect = [sys.executable, "-m", "prefect"]
    serve = (
        "from prefect.types.entrypoint import EntrypointType as E;"
        " from lexloom.flows.word2vec import word2vec;"
        " word2vec.serve(name='served', entrypoint_type=E.MODULE_PATH)"
    )
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, command: list[str]) -> Path:
        log = ground.work / f"{name}.log"
        with log.open("w") as file:
            started.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
        return log

    try:
        port = url.split(":")[2].split("/")[0]
        start("server", [*prefect, "server", "start", "--host", "127.0.0.1", "--port", port])
        wait_for(lambda: is_healthy(f"{url}/health"), START_SECONDS, "Prefect's server starts")
        served = start("served", [sys.executable, "-c", serve])
        worked = start("worker", [*prefect, "worker", "start", "--pool", "soak", "--type", "process"])
        with SyncPrefectClient(api=url) as client:
            wait_for(lambda: client.read_work_pools(), START_SECONDS, "the worker starts")
            client.create_deployment(
                client.create_flow_from_name("word2vec"),
                "worked",
                work_pool_name="soak",
                entrypoint="lexloom.flows.word2vec.word2vec",
            )
            wait_for(lambda: len(client.read_deployments()) == 2, START_SECONDS, "the flow is served")
            ids = {each.name: each.id for each in client.read_deployments()}
        yield (
            url,
            [
                Deployment("flow.serve", ids["served"], served),
                Deployment("process worker", ids["worked"], worked),
            ],
        )
    finally:
        for process in reversed(started):
            kill_tree(process)


def is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# by Ctrl-C


class Command:
    """The command in a terminal of its own, as a person has started it."""

    def __init__(self, ground: Ground, impatient: bool) -> None:
        self.ground, self.impatient = ground, impatient
        self.kind = "Ctrl-C twice" if impatient else "Ctrl-C"
        flags = [
            text
            for section in ground.settings.values()
            for name, value in section.items()
            for text in (f"--{name.replace('_', '-')}", str(value))
        ]
        self._keyboard, screen = pty.openpty()
        self._said: list[bytes] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lexloom.flows.word2vec", *flags],
            env=ground.environment(COLUMNS="200", TERM="xterm"),
            stdin=screen,
            stdout=screen,
            stderr=screen,
            start_new_session=True,
            preexec_fn=take_terminal,
        )
        os.close(screen)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_for(lambda: "lexloom word2vec" in self.said(), START_SECONDS, "the command begins")

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._keyboard, 65536)
            except OSError:  # nobody holds the screen any more
                os.close(self._keyboard)
                return
            self._said.append(data)

    def said(self) -> str:
        if self.is_over():
            self._reader.join(1)
        return STYLING.sub("", b"".join(self._said).decode(errors="replace"))

    def is_over(self) -> bool:
        return self.process.poll() is not None

    def is_gone(self) -> bool:
        return self.is_over() and not processes_of(self.ground.work)

    def stop(self, chance: random.Random) -> dict[str, float]:
        begun = time.monotonic()
        os.write(self._keyboard, CTRL_C)
        if self.impatient:
            time.sleep(chance.uniform(0.1, 2))
            with suppress(OSError):  # it may have ended meanwhile
                os.write(self._keyboard, CTRL_C)
        times = follow_end({"until its exit": self.is_over, "until no process": self.is_gone}, begun)
        if self.process.returncode == 0:
            return {}
        assert self.process.returncode == INTERRUPTED, f"exit {self.process.returncode}: {self.said()}"
        assert "Traceback" not in self.said(), self.said()
        return times

    def finish(self) -> None:
        wait_for(self.is_gone, RUN_SECONDS, "the command ends")
        assert self.process.returncode == 0, self.said()


def take_terminal() -> None:
    """Makes Ctrl-C reach this process and its group, even if the soak runs where Ctrl-C is ignored."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def by_ctrl_c(work: Path, corpus: Path, count: int) -> dict[str, Any]:
    """Stops `count` commands by Ctrl-C, every third of them by an impatient person."""
    ground = Ground(work, corpus)
    return stop_runs(
        ground, lambda number: Command(ground, number % 3 == 2), count, random.Random("terminal")
    )


def write_corpus(folder: Path) -> None:
    """Two files of nonsense in which frequent words are frequent."""
    generator = np.random.default_rng(5)
    names = np.array(["".join(letters) for letters in product("aeiou", "bcdfghjk", "aeiou", "lmnprstvz")])
    words = names[generator.zipf(1.1, (LINES, WORDS_PER_LINE)) % names.size]
    folder.mkdir()
    lines = [" ".join(line) + "\n" for line in words]
    (folder / "first.txt").write_text("".join(lines[::2]))
    (folder / "second.txt").write_text("".join(lines[1::2]))
