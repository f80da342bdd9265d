"""The result of a flow: its model and the model's name, its metrics, and which stages ran."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect.artifacts import create_table_artifact
from prefect.exceptions import TerminationSignal
from pydantic import BaseModel, Field, JsonValue

import lexloom.flows.local_server.server  # noqa: F401 - installs the protected server for flows called from Python
from lexloom.flows.command_text import command_text
from lexloom.flows.config import FlowConfig
from lexloom.tasks.display.console import describe, note, warn
from lexloom.tasks.report.usage import describe_run, described_runs
from lexloom.tasks.store.artifacts import Artifact, Store
from lexloom.tasks.store.model_list import find_source_name
from lexloom.tasks.store.names import base_name, name_by_default, name_model, read_names
from lexloom.tasks.store.parallel import use_cluster
from lexloom.tasks.store.stage import StageRecord, record_stages

SHOWN_KEY = 8  # characters, which are enough to identify a key
LINEAGE = (
    "The stages of this run and their input artifacts, with shortened keys."
    " `lexloom store explain KEY` shows why a stage ran."
)

logger = logging.getLogger("lexloom.outcome")


class Outcome(BaseModel):
    """The return value of every flow, and the last line of `--json`."""

    flow: str
    name: str = Field(description="the model's name")
    model: Path = Field(description="the model's folder")
    report: Path
    evaluation: Artifact = Field(exclude=True, description="for the summary at the end of a run")
    metrics: dict[str, JsonValue]
    stages: int
    cached: int
    seconds: float


class RunRecorder:
    """Names the model of a run, and creates the run's outcome from the records of its stages."""

    def __init__(self, flow: str, config: FlowConfig, records: list[StageRecord]) -> None:
        self._flow = flow
        self._config = config
        self._records = records
        self._started = time.perf_counter()
        self._store = Store()
        read_names(self._store)  # report a damaged file now, not after the training
        self._name = ""

    def name_model(self, model: Artifact) -> None:
        """Give the model the name of the config, or by default one of its source and date.

        Call it before the report is built, because the report shows the name; otherwise, `outcome` calls it.
        Without a name in the config, a model keeps its name. If the default name can't be saved, the model is
        named by its key.
        """
        place = model.stage, model.key
        if self._config.name is not None:
            named = name_model(self._store, place, self._config.name)
            if named.moved_from is not None:
                stage, key = named.moved_from
                note("name", f"{named.name} moved to this model from {stage}/{key[:SHOWN_KEY]}")
            self._name = named.name
        else:
            try:
                self._name = name_by_default(self._store, place, self._base_name(model)).name
            except OSError as error:
                self._name = model.key[:SHOWN_KEY]
                warn(f"the model is named by its key, because names can't be saved ({error})")
        describe_run(self._name, command_text(self._flow, self._config))

    def _base_name(self, model: Artifact) -> str:
        manifests = {manifest.key: manifest for manifest in self._store.manifests()}
        found = manifests.get(model.key)
        return base_name(find_source_name(found, manifests) if found else None, self._flow)

    def outcome(self, model: Artifact, evaluation: Artifact, report: Artifact) -> Outcome:
        """Return the flow's result; `metrics` are the facts of the model and of its evaluation."""
        if not self._name:
            self.name_model(model)
        return Outcome(
            flow=self._flow,
            name=self._name,
            model=model.folder,
            report=report.folder / "report.html",
            evaluation=evaluation,
            metrics={**self._facts(model), **self._facts(evaluation)},
            stages=len(self._records),
            cached=sum(record.cached for record in self._records),
            seconds=round(time.perf_counter() - self._started, 2),
        )

    def _facts(self, artifact: Artifact) -> dict[str, JsonValue]:
        """Return an artifact's facts, or the updated facts if a later stage rebuilt it."""
        place = artifact.stage, artifact.key
        summaries = [each.summary for each in self._records if (each.stage, each.key) == place]
        return summaries[0].facts if summaries else artifact.facts


@contextmanager
def record_run(flow: str, config: FlowConfig, cluster: str) -> Iterator[RunRecorder]:
    """Record a run's stages, and publish them as a table in Prefect's UI even if the run fails.

    `cluster` is the address of the Ray cluster on which stages process shards in parallel; empty for none.
    """
    with use_cluster(cluster), described_runs(), record_stages() as records:
        try:
            yield RunRecorder(flow, config, records)
        finally:
            if not isinstance(
                sys.exception(), TerminationSignal | KeyboardInterrupt
            ):  # there is little time to end
                show_stages(records)


def show_stages(records: list[StageRecord]) -> None:
    """Publish the table of stages in Prefect's UI; if the server can't be reached, only log it."""
    try:
        create_table_artifact([row(record) for record in records], key="stages", description=LINEAGE)
    except Exception:
        logger.warning("the table of stages could not be published in Prefect's UI", exc_info=True)


def row(record: StageRecord) -> dict[str, Any]:
    """Return a row of the table of stages."""
    return {
        "stage": record.stage,
        "cached": "yes" if record.cached else "no",
        "seconds": round(record.seconds, 1),
        "rows": describe(record.summary),
        "inputs": ", ".join(shortened(parent) for parent in record.parents),
        "key": record.key[:SHOWN_KEY],
        "reason": "; ".join(record.why),
    }


def shortened(parent: str) -> str:
    """Return a parent as `vocabulary 0a1b2c3d`."""
    stage, key = parent.split("/")
    return f"{stage} {key[:SHOWN_KEY]}"
