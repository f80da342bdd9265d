"""Flow runs that are cancelled by Prefect's API, as its page does it, and by Ctrl-C in a terminal.

Every run is a whole `word2vec` flow on two Ray workers: served by `flow.serve`, or by a process worker, or
started as a command. It is stopped at a seeded random moment: in the stages before training, while Ray
starts, or (mostly) in training. Then no process of it may be left, and the next run must take up what was
finished: stages from the store, training from the newest checkpoint on disk; and end with the weights of the
run that nobody disturbed.
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
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from measure import summary
from processes import processes_of, wait_for

LINES, WORDS_PER_LINE = 5_000, 40
SETTINGS: dict[str, dict[str, Any]] = {
    "train": {"epochs": 6, "workers": 2, "batch_size": 4096, "dim": 64, "checkpoint_every": 20},
}
START_SECONDS, RUN_SECONDS, CANCEL_SECONDS = 180, 400, 30
PHASES = ("training", "starting Ray", "training", "stages", "training")  # of the cancels, in turns
EARLY_STAGES = ("corpus", "vocabulary", "tokens", "pairs", "noise")
FLOW_STAGES = (*EARLY_STAGES, "train_word2vec", "evaluate", "report")
INTERRUPTED = 130
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
        self.steps = json.loads((folder / "metrics.json").read_text())["steps"]
        print(f"undisturbed: {self.steps} steps, {self.ray_seconds:.1f} s to start Ray", flush=True)
        self.clear()

    def clear(self) -> None:
        for folder in (self.store, self.ray):
            shutil.rmtree(folder)
            folder.mkdir()


def await_moment(ground: Ground, phase: str, chance: random.Random, is_over: Callable[[], bool]) -> str:
    """Waits for a random moment in a phase of a run that has begun; returns where the run then is.

    A moment is a count of stages, of seconds or of steps, so that it lies within the phase however busy the
    machine is.
    """
    wanted = chance.random()
    if phase == "stages":
        stages = int(wanted * len(EARLY_STAGES))
        wait_for(lambda: len(ground.finished()) >= stages or is_over(), RUN_SECONDS, "the stages")
    elif phase == "starting Ray":
        wait_for(lambda: ground.training() or is_over(), RUN_SECONDS, "training begins")
        deadline = time.monotonic() + wanted * ground.ray_seconds
        wait_for(
            lambda: time.monotonic() > deadline or ground.checkpoint() or is_over(), RUN_SECONDS, "a moment"
        )
    else:
        step = wanted * ground.steps
        wait_for(lambda: (ground.checkpoint() or 0) >= step or is_over(), RUN_SECONDS, f"step {step}")
    time.sleep(chance.uniform(0, 0.5))
    return f"{phase}, step {ground.checkpoint() or 0}, {len(ground.finished())} stages finished"


def check_resumed(ground: Ground, told: str, finished: set[str], step: int | None) -> None:
    """The next run took up the finished stages and the newest checkpoint, and made the same weights."""
    for stage in FLOW_STAGES:
        line = next((line for line in told.splitlines() if line.split()[:1] == [stage]), "")
        assert ("cached" in line) == (stage in finished), f"{stage} was finished: {stage in finished}: {line}"
    goes_on = "goes on from its checkpoint of step"
    if step is None:
        assert goes_on not in told, "there was no checkpoint to go on from"
    else:
        assert f"{goes_on} {step:,}\n" in told.replace("\r", ""), f"it did not go on from step {step}"
    assert ground.weights() == ground.model, "the weights differ"


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

    name: str
    id: UUID
    log: Path


def by_api(work: Path, corpus: Path, count: int) -> dict[str, Any]:
    """Cancels `count` runs by setting their state through Prefect's client, and lets each run again."""
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.states import Cancelling

    ground, chance = Ground(work, corpus), random.Random("api")
    with prefect_services(ground) as (url, deployments), SyncPrefectClient(api=url) as client:

        def start(deployment: Deployment) -> UUID:
            run = client.create_flow_run_from_deployment(
                deployment.id, parameters={"config": ground.settings}
            )
            wait_for(lambda: state(run.id) != "SCHEDULED", START_SECONDS, "the run is taken up")
            wait_for(lambda: state(run.id) not in ("SCHEDULED", "PENDING"), START_SECONDS, "the run begins")
            return run.id

        def state(run: UUID) -> str:
            found = client.read_flow_run(run).state
            return found.type.value if found else ""

        def is_over(run: UUID) -> bool:
            return state(run) in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

        def finish(deployment: Deployment) -> str:
            """Lets a run go to its end; returns what it printed."""
            before = deployment.log.stat().st_size
            run = start(deployment)
            wait_for(lambda: is_over(run), RUN_SECONDS, "the run ends")
            wait_for(lambda: not processes_of(ground.ray), CANCEL_SECONDS, "Ray's processes end")
            with deployment.log.open() as file:
                file.seek(before)
                told = file.read()
            assert state(run) == "COMPLETED", told
            return told

        watching = ground.watch()
        finish(deployments[0])
        ground.remember(watching)
        seconds: dict[str, list[float]] = {"until Cancelled": [], "until no process": []}
        counted: Counter[str] = Counter()
        while counted.total() < count:
            number = counted.total()
            deployment, phase = deployments[number % len(deployments)], PHASES[number % len(PHASES)]
            run = start(deployment)
            at = await_moment(ground, phase, chance, lambda run=run: is_over(run))
            if is_over(run):
                print(f"api        it ended before its moment ({phase}): not counted", flush=True)
                ground.clear()
                continue
            begun = time.monotonic()
            client.set_flow_run_state(run, Cancelling())
            times = follow_cancel(
                {
                    "until Cancelled": lambda run=run: is_over(run),
                    "until no process": lambda: not processes_of(ground.ray),
                },
                begun,
            )
            if state(run) == "COMPLETED":
                print("api        it ended before the cancel came: not counted", flush=True)
                ground.clear()
                continue
            assert state(run) == "CANCELLED", state(run)
            for name, value in times.items():
                seconds[name].append(value)
            finished, step = ground.finished(), ground.checkpoint()
            check_resumed(ground, finish(deployment), finished, step)
            counted[f"{deployment.name}, {phase}"] += 1
            told = ", ".join(f"{value:.1f} s {name}" for name, value in times.items())
            print(f"api        cancel {number + 1:2} ({deployment.name}; {at}): {told}; equal", flush=True)
            ground.clear()
    return {
        "cancels": count,
        "cancelled_and_resumed_bit_identical": counted.total(),
        "by": dict(counted),
        **{f"seconds_{name.replace(' ', '_').lower()}": summary(values) for name, values in seconds.items()},
    }


def follow_cancel(ends: dict[str, Callable[[], bool]], begun: float) -> dict[str, float]:
    """Seconds from `begun` until each condition holds; TimeoutError where that takes too long."""
    times: dict[str, float] = {}
    while len(times) < len(ends):
        for name, ended in ends.items():
            if name not in times and ended():
                times[name] = time.monotonic() - begun
        if time.monotonic() - begun > 4 * CANCEL_SECONDS:
            raise TimeoutError(f"after {4 * CANCEL_SECONDS} s: {sorted(ends.keys() - times.keys())} not yet")
        time.sleep(0.05)
    return times


@contextmanager
def prefect_services(ground: Ground) -> Iterator[tuple[str, list[Deployment]]]:
    """A Prefect server, the flow served by `flow.serve`, and a process worker that runs it too."""
    from prefect.client.orchestration import SyncPrefectClient

    url = f"http://127.0.0.1:{free_port()}/api"
    environment = ground.environment(
        PREFECT_API_URL=url, PREFECT_RUNNER_POLL_FREQUENCY="1", PREFECT_WORKER_QUERY_SECONDS="1"
    )
    prefect = [sys.executable, "-m", "prefect"]
    serve = (
        "from prefect.types.entrypoint import EntrypointType as E; from flows.word2vec import word2vec;"
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
                entrypoint="flows.word2vec.word2vec",
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


class Terminal:
    """The command in a terminal of its own, as a person has started it."""

    def __init__(self, ground: Ground) -> None:
        flags = [
            text
            for section in ground.settings.values()
            for name, value in section.items()
            for text in (f"--{name.replace('_', '-')}", str(value))
        ]
        self._keyboard, screen = pty.openpty()
        self._said: list[bytes] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows.word2vec", *flags],
            env=ground.environment(COLUMNS="200", TERM="xterm"),
            stdin=screen,
            stdout=screen,
            stderr=screen,
            start_new_session=True,
            preexec_fn=take_terminal,
        )
        os.close(screen)
        threading.Thread(target=self._read, daemon=True).start()
        wait_for(lambda: "lexloom word2vec" in self.said, START_SECONDS, "the command begins")

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._keyboard, 65536)
            except OSError:  # nobody holds the screen any more
                return
            self._said.append(data)

    @property
    def said(self) -> str:
        return STYLING.sub("", b"".join(self._said).decode(errors="replace"))

    def press_ctrl_c(self) -> None:
        os.write(self._keyboard, b"\x03")

    def is_over(self) -> bool:
        return self.process.poll() is not None

    def end(self) -> str:
        """Waits for the command's end; returns all that it said."""
        self.process.wait(RUN_SECONDS)
        time.sleep(0.2)
        os.close(self._keyboard)
        return self.said


def take_terminal() -> None:
    """Makes Ctrl-C reach this process and its group, even if the soak runs where Ctrl-C is ignored."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def by_ctrl_c(work: Path, corpus: Path, count: int) -> dict[str, Any]:
    """Stops `count` commands by Ctrl-C, every third by an impatient one, and lets each run again."""
    ground, chance = Ground(work, corpus), random.Random("terminal")
    watching = ground.watch()
    first = Terminal(ground)
    said = first.end()
    assert first.process.returncode == 0, said
    ground.remember(watching)
    seconds: dict[str, list[float]] = {"until its exit": [], "until no process": []}
    counted: Counter[str] = Counter()
    while counted.total() < count:
        number = counted.total()
        phase, impatient = PHASES[number % len(PHASES)], number % 3 == 2
        terminal = Terminal(ground)
        at = await_moment(ground, phase, chance, terminal.is_over)
        if terminal.is_over():
            print(f"ctrl-c     it ended before its moment ({phase}): not counted", flush=True)
            ground.clear()
            continue
        begun = time.monotonic()
        terminal.press_ctrl_c()
        if impatient:
            time.sleep(chance.uniform(0.1, 2))
            with_second = not terminal.is_over()
            terminal.press_ctrl_c()
            at += ", pressed twice" if with_second else ", pressed again in vain"
        times = follow_cancel(
            {"until its exit": terminal.is_over, "until no process": lambda: not processes_of(ground.work)},
            begun,
        )
        told = terminal.end()
        code = terminal.process.returncode
        if code == 0:
            print("ctrl-c     it ended before the key was pressed: not counted", flush=True)
            ground.clear()
            continue
        assert code == INTERRUPTED, f"exit {code}: {told}"
        assert "Traceback" not in told, told
        for name, value in times.items():
            seconds[name].append(value)
        finished, step = ground.finished(), ground.checkpoint()
        again = Terminal(ground)
        said = again.end()
        assert again.process.returncode == 0, said
        check_resumed(ground, said, finished, step)
        counted[phase + (", pressed twice" if impatient else "")] += 1
        took = ", ".join(f"{value:.1f} s {name}" for name, value in times.items())
        print(f"ctrl-c     stop {number + 1:2} ({at}): {took}; equal", flush=True)
        ground.clear()
    return {
        "stops": count,
        "exit_130_and_resumed_bit_identical": counted.total(),
        "by": dict(counted),
        **{f"seconds_{name.replace(' ', '_')}": summary(values) for name, values in seconds.items()},
    }


def write_corpus(folder: Path) -> None:
    """Two files of nonsense in which frequent words are frequent."""
    generator = np.random.default_rng(5)
    names = np.array(["".join(letters) for letters in product("aeiou", "bcdfghjk", "aeiou", "lmnprstvz")])
    words = names[generator.zipf(1.1, (LINES, WORDS_PER_LINE)) % names.size]
    folder.mkdir()
    lines = [" ".join(line) + "\n" for line in words]
    (folder / "first.txt").write_text("".join(lines[::2]))
    (folder / "second.txt").write_text("".join(lines[1::2]))


def cancel_runs(work: Path, count: int, stops: int) -> dict[str, Any]:
    write_corpus(work / "corpus")
    return {
        "api": by_api(work / "api", work / "corpus", count),
        "ctrl_c": by_ctrl_c(work / "terminal", work / "corpus", stops),
    }
