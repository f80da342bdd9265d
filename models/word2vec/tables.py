"""The tables of word vectors in parts: their memory, the names of parts in a state, and the whole table.

Shapes: V words in P parts of `rows` words; dim floats per vector, padded to stride.
"""

import mmap
from collections.abc import Mapping
from contextlib import suppress

import torch
from torch import Tensor

from lexloom.models.word2vec.grid import Grid

VECTORS, CONTEXTS = "vectors", "contexts"  # names of the tables


def allocate_table(parts: int, rows: int, stride: int) -> Tensor:
    """Allocate zeros, (parts, rows, stride) float32, on huge pages if Linux offers them.

    Rows are accessed in random order, which misses the TLB with small pages; huge pages train a fifth faster.
    """
    size = parts * rows * stride * 4  # bytes
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(parts, rows, stride)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).view(parts, rows, stride)


def piece_name(table: str, part: int) -> str:
    """Return the name of a table's part in a state."""
    return f"{table}.{part:05d}"


def assemble(table: str, state: Mapping[str, Tensor], grid: Grid, dim: int) -> Tensor:
    """Return a table, (V, dim) in the order of the words' ids, from the state of all workers."""
    rows = torch.empty(grid.words, dim)
    for part in range(grid.parts):
        ids = torch.from_numpy(grid.words_of(part))
        rows[ids] = state[piece_name(table, part)][: len(ids), :dim].cpu()
    return rows
