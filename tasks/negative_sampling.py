"""The noise distribution of negative sampling: count^0.75, as an alias table.

A sample takes constant time (Walker 1977; built in linear time by Vose 1991): draw a cell i uniformly; return
i with `probability[i]`, otherwise `alias[i]`.
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
def negative_sampling(vocabulary: Artifact, config: NoiseConfig, out: Path) -> Summary:
    """Write `noise.parquet`: `probability` (float32) and `alias` (int32), one row per word."""
    _, counts = read_vocabulary(vocabulary)
    weights = counts.astype(np.float64) ** config.power
    probability, alias = alias_table(weights / weights.sum())
    pq.write_table(pa.table([probability, alias], schema=SCHEMA), out / FILE, compression="zstd")
    return Summary(rows_in=len(counts), unit_in="words", rows=len(counts), unit="words")


def read_noise(artifact: Artifact) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Read (probability, alias), each (V,), of a `negative_sampling` artifact."""
    table = pq.read_table(artifact.folder / FILE)
    return table["probability"].to_numpy(), table["alias"].to_numpy()


def alias_table(shares: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return the alias table of a distribution `shares` (V,), which sums to one."""
    return fill_cells(shares * len(shares))


@njit(cache=True)
def fill_cells(filling):  # type: ignore[no-untyped-def]
    """Vose's algorithm: fill each cell below 1 with the excess of a cell above 1.

    `filling` (V,) has a mean of one and is overwritten.
    """
    size = len(filling)
    probability, alias = np.ones(size, np.float32), np.arange(size).astype(np.int32)
    waiting = np.empty(size, np.int32)  # cells below 1 from the left, cells above 1 from the right
    low, high = 0, size
    for cell in range(size):
        if filling[cell] < 1.0:
            waiting[low] = cell
            low += 1
        else:
            high -= 1
            waiting[high] = cell
    while low > 0 and high < size:  # the remaining cells are 1 up to rounding
        low -= 1
        small, large = waiting[low], waiting[high]
        probability[small], alias[small] = filling[small], large
        filling[large] -= 1.0 - filling[small]
        if filling[large] < 1.0:
            high += 1
            waiting[low] = large
            low += 1
    return probability, alias
