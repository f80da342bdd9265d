"""What a flow gives back: where the model is, how good it is, and what had to run."""

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

import lexloom.flows.local_server.server  # noqa: F401 - a flow that is called from Python gets the protected server, too
from lexloom.tasks.display.console import describe
from lexloom.tasks.store.artifacts import Artifact
from lexloom.tasks.store.parallel import use_cluster
from lexloom.tasks.store.stage import StageRecord, record_stages

SHOWN_KEY = 8  # characters, enough to find it in the column of keys
LINEAGE = "The stages of this run, and which was made from which. `lexloom store explain STAGE` says more."

logger = logging.getLogger("lexloom.outcome")


class Outcome(BaseModel):
    """The last line of `--json`, and the return value of every flow."""

    flow: str
    model: Path = Field(description="the model's folder")
    report: Path
    evaluation: Artifact = Field(exclude=True, description="for the table at the end of a run")
    metrics: dict[str, JsonValue]
    stages: int
    cached: int
    seconds: float


class Story:
    """A run as it unfolds: collects what its stages did."""

    def __init__(self, flow: str, records: list[StageRecord]) -> None:
        self._flow = flow
        self._records = records
        self._started = time.perf_counter()

    def outcome(self, model: Artifact, evaluation: Artifact, report: Artifact) -> Outcome:
        """The flow's result; `metrics` are the facts of the model and of its evaluation."""
        return Outcome(
            flow=self._flow,
            model=model.folder,
            report=report.folder / "report.html",
            evaluation=evaluation,
            metrics={**self._facts(model), **self._facts(evaluation)},
            stages=len(self._records),
            cached=sum(record.cached for record in self._records),
            seconds=round(time.perf_counter() - self._started, 2),
        )

    def _facts(self, artifact: Artifact) -> dict[str, JsonValue]:
        """An artifact's facts; of one that a later stage had built again, the new ones."""
        place = artifact.stage, artifact.key
        summaries = [each.summary for each in self._records if (each.stage, each.key) == place]
        return summaries[0].facts if summaries else artifact.facts


@contextmanager
def story(flow: str, cluster: str) -> Iterator[Story]:
    """Tells a run's story; on Prefect's page its stages are a table, of a run that failed, too.

    `cluster` is the address of the Ray cluster that stages fan out over; empty for none.
    """
    with use_cluster(cluster), record_stages() as records:
        try:
            yield Story(flow, records)
        finally:
            if not isinstance(sys.exception(), TerminationSignal | KeyboardInterrupt):  # it has to be quick
                show_stages(records)


def show_stages(records: list[StageRecord]) -> None:
    """The table of stages on Prefect's page; where that can't be reached the run ends as it would have."""
    try:
        create_table_artifact([row(record) for record in records], key="stages", description=LINEAGE)
    except Exception:
        logger.warning("the table of stages could not be shown on Prefect's page", exc_info=True)


def row(record: StageRecord) -> dict[str, Any]:
    """A line of the table of stages."""
    return {
        "stage": record.stage,
        "cached": "yes" if record.cached else "no",
        "seconds": round(record.seconds, 1),
        "rows": describe(record.summary),
        "made from": ", ".join(shortened(parent) for parent in record.parents),
        "key": record.key,
        "why it ran": "; ".join(record.why),
    }


def shortened(parent: str) -> str:
    stage, key = parent.split("/")
    return f"{stage}/{key[:SHOWN_KEY]}"
