"""Stages called without Prefect, for tests of what the store does."""

from typing import Any

from prefect import State
from pydantic import BaseModel

from lexloom.tasks.store.artifacts import Artifact
from lexloom.tasks.store.stage import Stage


def call_stage(stage: Stage, *inputs: Any, config: BaseModel) -> Artifact:
    """What `Stage.__call__` does, in no task run; stands in its place."""
    found = stage._run(inputs, config)
    return found.data if isinstance(found, State) else found
