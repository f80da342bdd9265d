"""Alias tables: a sample of a discrete distribution in constant time.

Draw a cell i uniformly; return i with `probability[i]`, otherwise `alias[i]` (Walker 1977; built in linear
time by Vose 1991).
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lexloom.models.word2vec.grid import Grid


def alias_table(shares: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return the alias table, (V,) each, of a distribution `shares` (V,), which sums to one."""
    return fill_cells(shares * len(shares))


def alias_tables(weights: NDArray[np.float64], grid: Grid) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """Return the alias tables of a grid's parts, (P, rows) each, from the words' weights, (V,).

    In a part whose words all have weight 0, words are drawn uniformly. Unused rows are 0.
    """
    probability = np.zeros((grid.parts, grid.rows), np.float32)
    alias = np.zeros((grid.parts, grid.rows), np.uint16)
    for part in range(grid.parts):
        own = weights[grid.words_of(part)]
        shares = own / own.sum() if own.sum() else np.full(len(own), 1 / len(own))
        probability[part, : len(own)], alias[part, : len(own)] = alias_table(shares)
    return probability, alias


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
