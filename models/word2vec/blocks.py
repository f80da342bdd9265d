"""Sorts the pairs of an episode into the blocks of the grid, and the pairs of a block into runs.

A pair belongs to the block of its context's part and its target's part (models/word2vec/grid.py). Within a
block, pairs are in the order of their contexts in the text, and then gathered into *runs*: up to `MAX_RUN`
pairs of one target, which share noise words in training. Runs are in the order of their first pairs. Longer
runs would be faster, but lower analogy accuracy; so does an order by target (benchmarks/LOG.md).

The pairs are enumerated twice, to count and to place them, instead of being stored in between. Both passes
and the gathering run in any number of threads; the result does not depend on it.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from itertools import pairwise
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lexloom.models.word2vec.grid import Blocks, Contexts, Grid

MAX_RUN = 8


@njit(nogil=True, cache=True)
def count_pairs(codes, reach, offsets, first, last, window, own_first, own_last, parts, counts):  # type: ignore[no-untyped-def]
    """Add the number of pairs of each block to `counts`, (own_last - own_first) * parts."""
    for document in range(np.searchsorted(offsets, first, side="right") - 1, len(offsets) - 1):
        begin, end = offsets[document], offsets[document + 1]
        if begin >= last:
            break
        for context in range(max(begin, first), min(end, last)):
            part = np.int64(codes[context] >> 16)
            if not own_first <= part < own_last:
                continue
            row = (part - own_first) * parts
            for target in range(max(begin, context - window), context):
                counts[row + np.int64(codes[target] >> 16)] += context - target <= np.int64(reach[target])
            for target in range(context + 1, min(end, context + window + 1)):
                counts[row + np.int64(codes[target] >> 16)] += target - context <= np.int64(reach[target])


@njit(nogil=True, cache=True)
def place_pairs(  # type: ignore[no-untyped-def]
    codes, reach, offsets, first, last, window, own_first, own_last, parts, cursors, targets, contexts
):
    """Write the pairs of each block from its cursor on. The last element of the columns is overwritten."""
    spare = len(targets) - 1
    for document in range(np.searchsorted(offsets, first, side="right") - 1, len(offsets) - 1):
        begin, end = offsets[document], offsets[document + 1]
        if begin >= last:
            break
        for context in range(max(begin, first), min(end, last)):
            part = np.int64(codes[context] >> 16)
            if not own_first <= part < own_last:
                continue
            row, own = (part - own_first) * parts, np.uint16(codes[context] & np.uint32(0xFFFF))
            for target in range(max(begin, context - window), min(end, context + window + 1)):
                code = codes[target]
                block = row + np.int64(code >> 16)
                is_pair = (abs(target - context) <= np.int64(reach[target])) & (target != context)
                at = cursors[block] if is_pair else spare  # without a branch, which would be mispredicted
                targets[at] = np.uint16(code & np.uint32(0xFFFF))
                contexts[at] = own
                cursors[block] += is_pair


@njit(nogil=True, cache=True)
def gather_runs(targets, contexts, bounds, rows, run_targets, run_contexts):  # type: ignore[no-untyped-def]
    """Copy the blocks bounds[b]:bounds[b + 1], and gather each block's pairs into runs."""
    longest = np.max(bounds[1:] - bounds[:-1]) if len(bounds) > 1 else 0
    run_of = np.empty(longest, np.int32)  # of each pair of the block
    place = np.empty(longest + 1, np.int64)  # of each run's next pair
    newest = np.full(rows, -1, np.int32)  # run of each target
    for block in range(len(bounds) - 1):
        first, last = bounds[block], bounds[block + 1]
        runs = 0
        for i in range(first, last):
            target = np.int64(targets[i])
            run = newest[target]
            if run < 0 or place[run + 1] == MAX_RUN:
                run = newest[target] = runs
                runs += 1
                place[runs] = 0
            place[run + 1] += 1  # the length, until the next loop
            run_of[i - first] = run
        place[0] = first
        for run in range(runs):
            place[run + 1] += place[run]
        for i in range(first, last):
            target = np.int64(targets[i])
            newest[target] = -1
            run = run_of[i - first]
            run_targets[place[run]] = target
            run_contexts[place[run]] = contexts[i]
            place[run] += 1


def make_blocks(
    ranges: Sequence[Contexts],
    grid: Grid,
    *,
    window: int,
    own: range | None = None,
    pool: Executor | None = None,
    threads: int = 1,
) -> Blocks:
    """Return the blocks of the pairs whose contexts are in `ranges` and in the input parts `own` (all)."""
    parts = grid.parts
    own = range(parts) if own is None else own
    pieces = [piece for one in ranges for piece in one.split(threads)]
    run: Callable[..., Any] = map if pool is None else pool.map
    shared = (window, own.start, own.stop, parts)

    def count(piece: Contexts) -> NDArray[np.int64]:
        counts = np.zeros(len(own) * parts, np.int64)
        count_pairs(piece.codes, piece.reach, piece.offsets, piece.first, piece.last, *shared, counts)
        return counts

    counts = np.array(list(run(count, pieces))).reshape(len(pieces), len(own) * parts)
    bounds = np.concatenate([[0], np.cumsum(counts.sum(0))])
    cursors = bounds[:-1] + np.cumsum(counts, 0) - counts
    targets, contexts = (np.empty(bounds[-1] + 1, np.uint16) for _ in range(2))

    def place(piece: Contexts, cursor: NDArray[np.int64]) -> None:
        place_pairs(
            *(piece.codes, piece.reach, piece.offsets, piece.first, piece.last),
            *(*shared, cursor, targets, contexts),
        )

    list(run(place, pieces, cursors))
    run_targets, run_contexts = (np.empty(bounds[-1], np.uint16) for _ in range(2))

    def gather(first: int, last: int) -> None:
        gather_runs(targets, contexts, bounds[first : last + 1], grid.rows, run_targets, run_contexts)

    cuts = np.searchsorted(bounds, np.linspace(0, bounds[-1], threads + 1)[1:-1]).tolist()
    some = [(a, b) for a, b in pairwise([0, *cuts, len(bounds) - 1]) if a < b]
    list(run(gather, *zip(*some, strict=True)))
    at_rows = np.arange(len(own))[:, None] * parts + np.arange(parts + 1)
    return Blocks(run_targets, run_contexts, bounds[at_rows])
