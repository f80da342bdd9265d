"""The compiled kernel computes the update that models/word2vec/reference.py defines."""

import hashlib
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lexloom.models.word2vec import cpu as sgns_cpu
from lexloom.models.word2vec import cpu_llvm as sgns_block
from lexloom.models.word2vec import reference as sgns_reference
from lexloom.models.word2vec.blocks import MAX_RUN

Noise = tuple[np.ndarray, np.ndarray]


def random_tables(words: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two (words, stride) tables of scores around one, with zero padding."""
    random = np.random.default_rng(seed)
    tables = np.zeros((2, words, sgns_cpu.padded_dim(dim)), dtype=np.float32)
    tables[:, :, :dim] = random.normal(scale=dim**-0.25, size=(2, words, dim))
    return tables[0], tables[1]


def even_noise(words: int) -> Noise:
    """An alias table of the uniform distribution."""
    return np.ones(words, np.float32), np.zeros(words, np.uint16)


def random_runs(words: int, pairs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Targets that repeat 1 to 20 times, and contexts."""
    random = np.random.default_rng(seed)
    targets = np.repeat(random.integers(words, size=pairs), random.integers(1, 21, size=pairs))[:pairs]
    return targets.astype(np.uint16), random.integers(words, size=pairs).astype(np.uint16)


def noise_of(targets: np.ndarray, noise: Noise, negatives: int, seed: int) -> list[list[int]]:
    """The noise words of each run, as the kernel draws them."""
    drawn = []
    for start, _ in sgns_reference.runs(targets.tolist()):
        out = np.empty(negatives, np.uint16)
        sgns_cpu.draw_negatives(np.uint64(seed), start, *noise, out)
        drawn.append(out.tolist())
    return drawn


def train(tables, targets, contexts, *, negatives=5, rate=0.1, seed=7) -> float:
    """Train a single block in place; return the sum of its losses."""
    words, stride = tables[0].shape
    losses = np.zeros(1)
    sgns_cpu.compile_kernel(stride, negatives)(
        *(table.reshape(1, -1) for table in tables),
        *(np.asarray(targets, np.uint16), np.asarray(contexts, np.uint16), np.array([0, len(targets)])),
        *(np.array([0]), np.array([0]), *(column[None] for column in even_noise(words)), np.array([0])),
        *(np.array([words]), np.array([seed], np.uint64), np.float32(rate), losses),
    )
    return float(losses[0])


def assert_as_reference(words: int, dim: int, negatives: int, targets, contexts) -> None:
    targets, contexts = np.asarray(targets, np.uint16), np.asarray(contexts, np.uint16)
    tables = random_tables(words, dim)
    exact = [torch.tensor(table, dtype=torch.float64) for table in tables]
    before = [table.clone() for table in exact]
    drawn = noise_of(targets, even_noise(words), negatives, seed=7)
    exact_loss = sgns_reference.train_batch(*exact, targets.tolist(), contexts.tolist(), drawn, 0.1)

    loss = train(tables, targets, contexts, negatives=negatives)

    assert loss == pytest.approx(exact_loss, rel=5e-5)
    for table, exact_table, old in zip(tables, exact, before, strict=True):
        change = torch.from_numpy(table).double() - old
        torch.testing.assert_close(change, exact_table - old, rtol=1e-4, atol=2e-5)


# The update


@pytest.mark.parametrize("dim", [8, 100, 112, 300])
@pytest.mark.parametrize("negatives", [1, 5, 20])
def test_update_and_loss_equal_the_reference(dim, negatives):
    # 30 words and 20 negatives: the noise contains its target and repeated words in most runs
    assert_as_reference(30, dim, negatives, *random_runs(words=30, pairs=200))


@pytest.mark.parametrize(
    ("targets", "contexts"),
    [
        ([], []),
        ([1], [2]),
        ([1, 1, 1], [2, 2, 2]),  # each pair sees the update of the one before
        ([1, 1, 0], [1, 0, 0]),  # a word is its own context
        ([0, 1, 2, 0], [1, 2, 0, 1]),  # runs of one pair
        ([2] * 40, [0, 1] * 20),  # one target in five runs
        *(([1] * length, ([0, 1, 2] * 9)[:length]) for length in (7, 8, 9, 15, 16, 17)),
        ([0] * 3 + [1] * 9 + [0] * 8 + [2] * 10, [0, 1, 2] * 10),
    ],
)
@pytest.mark.parametrize("words", [3, 4])
def test_update_equals_the_reference_on_tiny_vocabularies(words, targets, contexts):
    assert_as_reference(words, 100, 5, targets, contexts)


def test_longer_sequence_of_one_target_is_cut_into_runs():
    assert sgns_reference.runs([2] * 20 + [3] + [2] * 9) == [
        (0, 8),
        (8, 16),
        (16, 20),
        (20, 21),
        (21, 29),
        (29, 30),
    ]
    assert sgns_reference.runs([]) == []
    assert MAX_RUN == 8
    # a run sees the score 0 for each pair; the ninth pair sees the updates of the first run
    tables = np.zeros((1, 16), np.float32), np.zeros((1, 16), np.float32)
    tables[0][0, 0] = 1.0
    train(tables, [0] * 9, [0] * 9, rate=1.0)
    step = 1 / (1 + np.exp(8 * 0.5))
    assert tables[1][0, 0] == pytest.approx(8 * 0.5 + step, rel=1e-5)
    assert tables[0][0, 0] == pytest.approx(1 + step * 8 * 0.5, rel=1e-5)


def test_single_word_vocabulary_has_no_noise():
    tables = np.full((1, 16), 0.25, dtype=np.float32), np.full((1, 16), 0.5, dtype=np.float32)
    loss = train(tables, [0], [0], rate=1.0)
    assert loss == pytest.approx(np.log1p(np.exp(-2.0)), abs=1e-5)  # the score is 16 * 0.25 * 0.5
    step = 1 / (1 + np.exp(2.0))
    np.testing.assert_allclose(tables[0], 0.25 + step * 0.5, rtol=1e-5)
    np.testing.assert_allclose(tables[1], 0.5 + step * 0.25, rtol=1e-5)


@pytest.mark.parametrize("score", [-1000.0, -16.5, -16.0, -3.3, 0.0, 0.7, 15.999, 16.0, 1000.0])
def test_loss_is_accurate_for_large_scores(score):
    tables = np.zeros((1, 16), dtype=np.float32), np.zeros((1, 16), dtype=np.float32)
    tables[0][0, 0], tables[1][0, 0] = score, 1.0
    assert train(tables, [0], [0]) == pytest.approx(np.logaddexp(0.0, -score), rel=1e-5, abs=1e-5)


def test_nonfinite_tables_give_a_nonfinite_loss():
    tables = random_tables(5, 16)
    tables[0][2, 3] = np.nan
    assert np.isnan(train(tables, [1], [2]))


def test_only_rows_of_the_block_change():
    tables = random_tables(1000, 100)
    before = [table.copy() for table in tables]
    targets, contexts = random_runs(words=1000, pairs=60)
    train(tables, targets, contexts)
    changed = [(table != old).any(axis=1).nonzero()[0] for table, old in zip(tables, before, strict=True)]
    drawn = np.unique(noise_of(targets, even_noise(1000), 5, seed=7))
    assert changed[0].tolist() == np.unique(contexts).tolist()
    assert changed[1].tolist() == np.union1d(targets, drawn).tolist()


def test_learning_rate_zero_changes_nothing():
    tables = random_tables(20, 100)
    before = [table.copy() for table in tables]
    assert train(tables, *random_runs(words=20, pairs=200), rate=0.0) > 0
    np.testing.assert_array_equal(tables, before)


@pytest.mark.parametrize("dim", [8, 100, 300])
def test_padding_stays_zero(dim):
    tables = random_tables(50, dim)
    train(tables, *random_runs(words=50, pairs=500))
    assert not tables[0][:, dim:].any()
    assert not tables[1][:, dim:].any()


def test_seed_determines_every_bit():
    first, second, other = random_tables(100, 100), random_tables(100, 100), random_tables(100, 100)
    block = random_runs(words=100, pairs=2000)
    assert train(first, *block) == train(second, *block) != train(other, *block, seed=8)
    np.testing.assert_array_equal(first, second)


# Several blocks


def test_blocks_are_trained_on_their_parts_with_noise_of_the_output_part():
    """Three blocks against blocks that are trained alone; parts have unused rows and different noise."""
    rows, stride, words = 12, 32, np.array([12, 11, 12, 10])
    random = np.random.default_rng(2)
    probability = random.random((4, rows), np.float32)
    alias = np.stack([random.integers(0, count, rows) for count in words]).astype(np.uint16)
    inputs_at, outputs_at, parts = np.array([2, 0, 1]), np.array([1, 3, 0]), np.array([3, 0, 1])
    seeds = np.array([5, 6, 2**64 - 1], np.uint64)
    blocks = [random_runs(10, pairs, seed=pairs) for pairs in (30, 0, 50)]
    targets, contexts = (np.concatenate(column) for column in zip(*blocks, strict=True))
    vectors, outputs = (random.normal(size=(4, rows * stride)).astype(np.float32) / 6 for _ in range(2))
    exact = [
        torch.tensor(table.reshape(4, rows, stride), dtype=torch.float64) for table in (vectors, outputs)
    ]
    losses, expected = np.full(3, np.nan), []
    for k, (block, part) in enumerate(zip(blocks, parts, strict=True)):
        noise = probability[part, : words[part]], alias[part, : words[part]]
        drawn = noise_of(block[0], noise, 2, int(seeds[k]))
        assert all(word < words[part] for run in drawn for word in run)
        place = exact[0][inputs_at[k]], exact[1][outputs_at[k]]
        expected.append(
            sgns_reference.train_batch(*place, *(column.tolist() for column in block), drawn, 0.1)
        )
    bounds = np.array([0, 30, 30, 80])
    sgns_cpu.compile_kernel(stride, 2)(
        *(vectors, outputs, targets, contexts, bounds, inputs_at, outputs_at, probability, alias, parts),
        *(words, seeds, np.float32(0.1), losses),
    )
    assert losses == pytest.approx(expected, rel=5e-5)
    assert losses[1] == 0.0
    for table, exact_table in zip((vectors, outputs), exact, strict=True):
        np.testing.assert_allclose(table.reshape(4, rows, stride), exact_table, atol=2e-5)


def test_noise_follows_the_alias_table():
    # word 0 keeps a quarter of its draws and gives the rest to word 2; word 1 gives half of its to word 0
    probability, alias = np.array([0.25, 0.5, 1.0], dtype=np.float32), np.array([2, 0, 2], dtype=np.uint16)
    out = np.empty(300_000, dtype=np.uint16)
    sgns_cpu.draw_negatives(np.uint64(3), 0, probability, alias, out)
    shares = np.bincount(out, minlength=3) / len(out)
    np.testing.assert_allclose(shares, [(0.25 + 0.5) / 3, 0.5 / 3, (1 + 0.75) / 3], atol=0.004)  # 4 sigma


def test_runs_and_seeds_draw_independent_noise():
    def draw(seed: int, position: int) -> np.ndarray:
        out = np.empty(1000, dtype=np.uint16)
        sgns_cpu.draw_negatives(np.uint64(seed), position, *even_noise(10_000), out)
        return out

    np.testing.assert_array_equal(draw(1, 5), draw(1, 5))
    for other in (draw(1, 6), draw(2, 5), draw(2, 4)):
        assert (draw(1, 5) == other).mean() < 0.01


def test_digest_of_the_inner_loop_is_current():
    """Numba's disk cache only checks cpu.py: put the digest of cpu_llvm.py and MAX_RUN there."""
    digest = hashlib.sha256(Path(sgns_block.__file__).read_bytes() + str(MAX_RUN).encode()).hexdigest()
    assert digest.startswith(sgns_cpu._BLOCK_DIGEST)


def test_compiled_kernel_is_found_on_disk():
    """Otherwise every process compiles it again, and the cache grows without end."""
    compiled = [sgns_cpu.compile_kernel.__wrapped__(16, 2) for _ in range(2)]
    assert compiled[0] is not compiled[1]
    assert compiled[1].stats.cache_hits
    assert not compiled[1].stats.cache_misses


# Threads


@pytest.mark.parametrize("circular", [True, False])
@pytest.mark.parametrize(("threads", "blocks"), [(1, 1), (2, 2), (3, 5), (8, 20), (2, 67)])
def test_block_follows_the_two_blocks_that_used_its_rows(circular, threads, blocks):
    """Block k of a step follows the blocks k and k + 1 of the step before."""
    pool = sgns_cpu.BlockThreads(threads)
    random = np.random.default_rng(0)
    delays = random.random((6, blocks)) * 0.002
    begun, ended = np.zeros((6, blocks)), np.full((6, blocks), np.inf)

    def train_at(step):
        def train(first, last):
            begun[step, first:last] = time.perf_counter()
            time.sleep(delays[step, first])
            ended[step, first:last] = time.perf_counter()

        return train

    steps = [pool.submit(train_at(step), np.zeros(blocks), step=step, circular=circular) for step in range(6)]
    steps[-1].wait()
    assert all(step.done() for step in steps)
    assert np.isfinite(ended).all()
    for step in range(1, 6):
        for block in range(blocks):
            assert ended[step - 1, block] <= begun[step, block]
            following = (block + 1) % blocks if circular else min(block + 1, blocks - 1)
            assert ended[step - 1, following] <= begun[step, block]
    assert pool.finished_at == pytest.approx(ended.max(), abs=0.1)


@pytest.mark.parametrize("circular", [True, False])
@pytest.mark.parametrize("late", [0, 3, 7])
def test_only_the_blocks_that_need_a_late_block_wait_for_it(circular, late):
    pool, gate = sgns_cpu.BlockThreads(4), threading.Event()
    trained = []

    def train_at(step):
        def train(first, last):
            if (step, first) == (0, late):
                gate.wait(10)
            trained.append((step, first))

        return train

    steps = [pool.submit(train_at(step), np.zeros(8), step=step, circular=circular) for step in range(2)]
    waiting = {late, (late - 1) % 8 if circular or late else late}
    for block in set(range(8)) - waiting:
        steps[1]._groups[block].result(10)
    time.sleep(0.02)
    assert {block for step, block in trained if step == 1} == set(range(8)) - waiting
    assert not steps[0].done()
    gate.set()
    steps[1].wait()
    assert len(trained) == 16


def test_first_groups_can_be_waited_for():
    pool, gate = sgns_cpu.BlockThreads(2), threading.Event()
    step = pool.submit(lambda first, last: first == 7 and gate.wait(10), np.zeros(8), step=0, circular=True)
    step.wait(groups=7)
    assert not step.done()
    gate.set()
    step.wait()
    assert step.done()


@pytest.mark.parametrize("step", [0, 2, 7])
def test_step_that_does_not_follow_depends_on_all_blocks(step):
    """As after a step without pairs, or when a step is trained twice."""
    pool, gate = sgns_cpu.BlockThreads(2), threading.Event()
    trained = []
    pool.submit(lambda first, last: gate.wait(10) if first == 5 else None, np.zeros(8), step=0, circular=True)
    later = pool.submit(lambda first, last: trained.append(first), np.zeros(8), step=step, circular=True)
    time.sleep(0.05)
    assert not trained
    gate.set()
    later.wait()
    assert len(trained) == 8


def test_thread_error_is_raised_after_all_groups_finish():
    finished = []

    def train(first, last):
        if first == 0:
            raise MemoryError("no room")
        time.sleep(0.02)
        finished.append(first)

    step = sgns_cpu.BlockThreads(2).submit(train, np.zeros(4), step=0, circular=True)
    with pytest.raises(MemoryError, match="no room"):
        step.loss()
    assert sorted(finished) == [1, 2, 3]


def test_error_ends_the_steps_that_depend_on_it():
    pool, trained = sgns_cpu.BlockThreads(2), []

    def fail(first, last):
        raise MemoryError("no room")

    pool.submit(fail, np.zeros(4), step=0, circular=True)
    with pytest.raises(MemoryError, match="no room"):
        pool.submit(lambda first, last: trained.append(first), np.zeros(4), step=1, circular=True).wait()
    assert not trained


def test_loss_is_a_multiple_of_a_unit_and_independent_of_the_order():
    losses = np.random.default_rng(0).random(1000) * 1000
    totals = {sgns_cpu.Step([], np.random.default_rng(seed).permutation(losses)).loss() for seed in range(5)}
    (total,) = totals
    assert total == pytest.approx(losses.sum(), abs=1000 * sgns_cpu.LOSS_UNIT)
    assert (total / sgns_cpu.LOSS_UNIT).is_integer()
    assert np.isnan(sgns_cpu.Step([], np.array([1.0, np.nan])).loss())
    assert np.isinf(sgns_cpu.Step([], np.array([1.0, np.inf])).loss())
