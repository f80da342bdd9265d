"""Stages without Prefect, for tests of the store."""

from typing import Any

from prefect import State
from pydantic import BaseModel

from lexloom.tasks.store.artifacts import Artifact
from lexloom.tasks.store.stage import Stage


def call_stage(stage: Stage, *inputs: Any, config: BaseModel) -> Artifact:
    """Replacement of `Stage.__call__` without a Prefect task run."""
    found = stage._run(inputs, config)
    return found.data if isinstance(found, State) else found
