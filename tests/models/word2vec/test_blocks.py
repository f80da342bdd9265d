"""Sorting the pairs of text positions into blocks and runs."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexloom.models.word2vec.blocks import MAX_RUN, make_blocks
from lexloom.models.word2vec.grid import Blocks, Contexts, Grid

WINDOW = 3


def text(documents: list[list[int]], grid: Grid, reach: list[int]) -> Contexts:
    """The positions of documents; their windows repeat `reach`."""
    offsets = np.cumsum([0, *map(len, documents)])
    ids = np.array([word for document in documents for word in document], np.int64)
    windows = np.resize(np.array(reach, np.uint16), len(ids))
    return Contexts(grid.codes(ids), windows, offsets, 0, len(ids))


def expected(documents: list[list[int]], reach: list[int]) -> Counter[tuple[int, int]]:
    pairs, position = Counter[tuple[int, int]](), 0
    for document in documents:
        for i, target in enumerate(document):
            window = reach[(position + i) % len(reach)]
            for j in range(max(0, i - window), min(len(document), i + window + 1)):
                if i != j:
                    pairs[target, document[j]] += 1
        position += len(document)
    return pairs


def found(blocks: Blocks, grid: Grid, own: range | None = None) -> Counter[tuple[int, int]]:
    """The pairs of all blocks, as (target, context) words."""
    pairs = Counter[tuple[int, int]]()
    for index, i in enumerate(range(grid.parts) if own is None else own):
        for j in range(grid.parts):
            block = slice(blocks.bounds[index, j], blocks.bounds[index, j + 1])
            targets = grid.words_of(j)[blocks.targets[block]]
            contexts = grid.words_of(i)[blocks.contexts[block]]
            pairs.update(zip(targets.tolist(), contexts.tolist(), strict=True))
    return pairs


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Compile before the tests, which have deadlines."""
    grid = Grid(1, 1)
    make_blocks([text([[0, 0]], grid, [1])], grid, window=WINDOW)


documents = st.lists(st.lists(st.integers(0, 11), max_size=12), max_size=6)
reaches = st.lists(st.integers(1, WINDOW), min_size=1, max_size=7)


@given(documents, reaches, st.integers(1, 12))
def test_each_pair_is_in_the_block_of_its_parts(texts, reach, parts):
    grid = Grid(12, parts)
    blocks = make_blocks([text(texts, grid, reach)], grid, window=WINDOW)
    assert found(blocks, grid) == expected(texts, reach)
    assert blocks.bounds[0, 0] == 0
    assert blocks.bounds[-1, -1] == len(blocks.targets) == len(blocks.contexts)
    assert (np.diff(blocks.bounds, axis=1) >= 0).all()


@given(documents, reaches, st.integers(0, 72), st.integers(1, 4))
def test_blocks_do_not_depend_on_ranges_and_threads(texts, reach, cut, threads):
    grid = Grid(12, 3)
    whole = text(texts, grid, reach)
    middle = min(cut, whole.last)
    ranges = [
        Contexts(whole.codes, whole.reach, whole.offsets, first, last)
        for first, last in ((0, middle), (middle, whole.last))
    ]
    one = make_blocks([whole], grid, window=WINDOW)
    with ThreadPoolExecutor(threads) as pool:
        many = make_blocks(ranges, grid, window=WINDOW, pool=pool, threads=threads)
    for name in ("targets", "contexts", "bounds"):
        np.testing.assert_array_equal(getattr(one, name), getattr(many, name))


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_worker_draws_the_blocks_of_its_own_parts_only(workers):
    grid = Grid(40, 5)
    random = np.random.default_rng(0)
    whole = text([random.integers(40, size=30).tolist() for _ in range(50)], grid, [3, 1, 2])
    everything = make_blocks([whole], grid, window=WINDOW)
    for rank in range(workers):
        own = grid.own(rank, workers)
        blocks = make_blocks([whole], grid, window=WINDOW, own=own)
        first, last = everything.bounds[own.start, 0], everything.bounds[own.stop - 1, -1]
        np.testing.assert_array_equal(blocks.targets, everything.targets[first:last])
        np.testing.assert_array_equal(blocks.contexts, everything.contexts[first:last])
        np.testing.assert_array_equal(blocks.bounds, everything.bounds[own.start : own.stop] - first)


def test_pairs_of_one_target_are_gathered_into_runs():
    grid = Grid(200, 1)
    random = np.random.default_rng(0)
    words = np.minimum(random.zipf(1.3, 50_000) - 1, 199).tolist()
    blocks = make_blocks([text([words], grid, [3])], grid, window=WINDOW)
    begins = np.flatnonzero(np.diff(blocks.targets)) + 1
    lengths = np.diff([0, *begins.tolist(), len(blocks.targets)])
    runs = np.ceil(lengths / MAX_RUN).sum()  # the kernel cuts longer sequences
    assert len(blocks.targets) / runs > 0.9 * MAX_RUN
