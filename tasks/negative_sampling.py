"""The noise distribution of negative sampling: count^0.75, as an alias table.

A draw takes one random cell and one comparison, whatever the size of the vocabulary (Walker 1977; built in
linear time by Vose 1991): pick cell i at random; keep i with `probability[i]`, else take `alias[i]`.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numba import njit
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from lexloom.tasks.store.artifacts import Artifact, Summary
from lexloom.tasks.store.stage import stage
from lexloom.tasks.vocabulary import read_vocabulary

FILE = "noise.parquet"
SCHEMA = pa.schema([pa.field("probability", pa.float32(), False), pa.field("alias", pa.int32(), False)])


class NoiseConfig(BaseModel):
    """Distribution from which negative samples are drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    power: float = Field(
        0.75,
        ge=0,
        le=2,
        description="Exponent of the word counts in the distribution of negatives; 0 makes it uniform.",
    )


@stage(version=1)
def noise(vocabulary: Artifact, config: NoiseConfig, out: Path) -> Summary:
    """Writes `noise.parquet`: `probability` (float32) and `alias` (int32), one row a word."""
    _, counts = read_vocabulary(vocabulary)
    weights = counts.astype(np.float64) ** config.power
    probability, alias = alias_table(weights / weights.sum())
    pq.write_table(pa.table([probability, alias], schema=SCHEMA), out / FILE, compression="zstd")
    return Summary(rows_in=len(counts), unit_in="words", rows=len(counts), unit="words")


def read_noise(artifact: Artifact) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """(probability, alias), each (V,), of a `noise` artifact."""
    table = pq.read_table(artifact.folder / FILE)
    return table["probability"].to_numpy(), table["alias"].to_numpy()


def alias_table(shares: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The alias table of a distribution `shares` (V,), which sums to one."""
    return fill_cells(shares * len(shares))


@njit(cache=True)
def fill_cells(filling):  # type: ignore[no-untyped-def]
    """Vose's algorithm: every cell that is not full is topped up by one that is more than full.

    `filling` (V,) has a mean of one and is used up.
    """
    size = len(filling)
    probability, alias = np.ones(size, np.float32), np.arange(size).astype(np.int32)
    waiting = np.empty(size, np.int32)  # cells not yet full from the left, more than full from the right
    low, high = 0, size
    for cell in range(size):
        if filling[cell] < 1.0:
            waiting[low] = cell
            low += 1
        else:
            high -= 1
            waiting[high] = cell
    while low > 0 and high < size:  # what remains at the end is full but for rounding
        low -= 1
        poor, rich = waiting[low], waiting[high]
        probability[poor], alias[poor] = filling[poor], rich
        filling[rich] -= 1.0 - filling[poor]
        if filling[rich] < 1.0:
            high += 1
            waiting[low] = rich
            low += 1
    return probability, alias
