"""The noise distribution of negative sampling: count^0.75."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from lexloom.tasks.store.artifacts import Artifact, Summary
from lexloom.tasks.store.stage import stage
from lexloom.tasks.vocabulary import read_vocabulary

FILE = "noise.parquet"
SCHEMA = pa.schema([pa.field("probability", pa.float64(), False)])


class NoiseConfig(BaseModel):
    """Distribution from which negative samples are drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    power: float = Field(
        0.75,
        ge=0,
        le=2,
        description="Exponent of the word counts in the distribution of negatives; 0 makes it uniform.",
    )


@stage(version=2)
def negative_sampling(vocabulary: Artifact, config: NoiseConfig, out: Path) -> Summary:
    """Write `noise.parquet`: the `probability` of each word (float64), one row per word."""
    _, counts = read_vocabulary(vocabulary)
    weights = counts.astype(np.float64) ** config.power
    pq.write_table(pa.table([weights / weights.sum()], schema=SCHEMA), out / FILE, compression="zstd")
    return Summary(rows_in=len(counts), unit_in="words", rows=len(counts), unit="words")


def read_noise(artifact: Artifact) -> NDArray[np.float64]:
    """Read the probabilities, (V,), of a `negative_sampling` artifact."""
    return pq.read_table(artifact.folder / FILE)["probability"].to_numpy()
