"""The compiled kernel computes the update that models/word2vec/reference.py defines."""

import hashlib
from concurrent.futures import Future
from pathlib import Path
from threading import Timer

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lexloom.models.word2vec import cpu as sgns_cpu
from lexloom.models.word2vec import cpu_llvm as sgns_block
from lexloom.models.word2vec import reference as sgns_reference


def random_tables(words: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two (words, stride) tables of scores around one, with zero padding."""
    random = np.random.default_rng(seed)
    tables = np.zeros((2, words, sgns_cpu.padded_dim(dim)), dtype=np.float32)
    tables[:, :, :dim] = random.normal(scale=dim**-0.25, size=(2, words, dim))
    return tables[0], tables[1]


def even_noise(words: int) -> tuple[np.ndarray, np.ndarray]:
    """An alias table of the uniform distribution."""
    return np.ones(words, dtype=np.float32), np.zeros(words, dtype=np.int32)


def random_runs(words: int, pairs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Targets in runs of 1 to 10, and contexts."""
    random = np.random.default_rng(seed)
    targets = np.repeat(random.integers(words, size=pairs), random.integers(1, 11, size=pairs))[:pairs]
    return targets.astype(np.int32), random.integers(words, size=pairs).astype(np.int32)


def noise_of(targets: np.ndarray, noise: tuple[np.ndarray, np.ndarray], negatives: int, seed: int) -> list:
    """The noise words of each run, as the kernel draws them."""
    drawn = []
    for start, _ in sgns_reference.runs(targets.tolist()):
        out = np.empty(negatives, dtype=np.int32)
        sgns_cpu.draw_negatives(np.uint64(seed), start, *noise, out)
        drawn.append(out.tolist())
    return drawn


def train(tables, targets, contexts, *, negatives=5, rate=0.1, seed=7, threads=1) -> float:
    return sgns_cpu.start_batch(
        *tables,
        targets,
        contexts,
        *even_noise(len(tables[0])),
        negatives=negatives,
        learning_rate=rate,
        seed=seed,
        threads=threads,
    ).loss()


def assert_as_reference(
    words: int, dim: int, negatives: int, targets: np.ndarray, contexts: np.ndarray
) -> None:
    tables = random_tables(words, dim)
    exact = [torch.tensor(table, dtype=torch.float64) for table in tables]
    before = [table.clone() for table in exact]
    drawn = noise_of(targets, even_noise(words), negatives, seed=7)
    exact_loss = sgns_reference.train_batch(*exact, targets.tolist(), contexts.tolist(), drawn, 0.1)

    loss = train(tables, targets, contexts, negatives=negatives)

    assert loss == pytest.approx(exact_loss, rel=5e-5)
    for table, exact_table, old in zip(tables, exact, before, strict=True):
        moved = torch.from_numpy(table).double() - old
        torch.testing.assert_close(moved, exact_table - old, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dim", [8, 100, 112, 300])
@pytest.mark.parametrize("negatives", [1, 5, 20])
def test_update_and_loss_equal_the_reference(dim, negatives):
    # 30 words and 20 negatives: the noise meets its target and repeats itself in most runs
    assert_as_reference(30, dim, negatives, *random_runs(words=30, pairs=200))


@pytest.mark.parametrize(
    ("targets", "contexts"),
    [
        ([1], [2]),
        ([1, 1, 1], [2, 2, 2]),  # one context again and again: each pair sees the one before
        ([1, 1, 0], [1, 0, 0]),  # a word beside itself
        ([0, 1, 2, 0], [1, 2, 0, 1]),  # runs of one pair
        ([2] * 40, [0, 1] * 20),  # one long run
    ],
)
@pytest.mark.parametrize("words", [3, 4])
def test_update_equals_the_reference_on_tiny_vocabularies(words, targets, contexts):
    assert_as_reference(words, 100, 5, np.array(targets, dtype=np.int32), np.array(contexts, dtype=np.int32))


def test_single_word_vocabulary_has_no_noise():
    tables = np.full((1, 16), 0.25, dtype=np.float32), np.full((1, 16), 0.5, dtype=np.float32)
    loss = train(tables, np.zeros(1, dtype=np.int32), np.zeros(1, dtype=np.int32), rate=1.0)
    assert loss == pytest.approx(np.log1p(np.exp(-2.0)), abs=1e-5)  # the score is 16 * 0.25 * 0.5
    step = 1 / (1 + np.exp(2.0))
    np.testing.assert_allclose(tables[0], 0.25 + step * 0.5, rtol=1e-5)
    np.testing.assert_allclose(tables[1], 0.5 + step * 0.25, rtol=1e-5)


@pytest.mark.parametrize("score", [-1000.0, -16.5, -16.0, -3.3, 0.0, 0.7, 15.999, 16.0, 1000.0])
def test_loss_is_accurate_for_large_scores(score):
    tables = np.zeros((1, 16), dtype=np.float32), np.zeros((1, 16), dtype=np.float32)
    tables[0][0, 0], tables[1][0, 0] = score, 1.0
    one = np.zeros(1, dtype=np.int32)
    assert train(tables, one, one) == pytest.approx(np.logaddexp(0.0, -score), rel=1e-5, abs=1e-5)


def test_nonfinite_tables_give_a_nonfinite_loss():
    tables = random_tables(5, 16)
    tables[0][2, 3] = np.nan
    assert np.isnan(train(tables, np.array([1], dtype=np.int32), np.array([2], dtype=np.int32)))


def test_only_rows_of_the_batch_change():
    tables = random_tables(1000, 100)
    before = [table.copy() for table in tables]
    targets, contexts = random_runs(words=1000, pairs=60)
    train(tables, targets, contexts)
    changed = [(table != old).any(axis=1).nonzero()[0] for table, old in zip(tables, before, strict=True)]
    drawn = np.unique(noise_of(targets, even_noise(1000), 5, seed=7))
    assert changed[0].tolist() == np.unique(contexts).tolist()
    assert changed[1].tolist() == np.union1d(targets, drawn).tolist()


@pytest.mark.parametrize("dim", [8, 100, 300])
def test_padding_stays_zero(dim):
    tables = random_tables(50, dim)
    train(tables, *random_runs(words=50, pairs=500), threads=2)
    assert not tables[0][:, dim:].any()
    assert not tables[1][:, dim:].any()


def test_one_thread_is_reproducible_bit_for_bit():
    first, second, other = random_tables(100, 100), random_tables(100, 100), random_tables(100, 100)
    batch = random_runs(words=100, pairs=2000)
    assert train(first, *batch) == train(second, *batch) != train(other, *batch, seed=8)
    for table, same in zip(first, second, strict=True):
        np.testing.assert_array_equal(table, same)


def test_two_threads_equal_one_up_to_races():
    one, two = random_tables(5000, 100), random_tables(5000, 100)
    batch = random_runs(words=5000, pairs=20_000)
    loss = train(one, *batch, rate=0.01)
    assert train(two, *batch, rate=0.01, threads=2) == pytest.approx(loss, rel=1e-2)
    for table, same, start in zip(one, two, random_tables(5000, 100), strict=True):
        assert np.linalg.norm(same - table) < 0.2 * np.linalg.norm(table - start), "of how far it moved"


def test_many_threads_train_frequent_words_like_one():
    """If their updates of one row were unseen by each other for too long, they would diverge."""
    random = np.random.default_rng(0)
    words = 400
    topics = random.integers(20, size=100_000)
    targets = np.repeat(topics * 20 + random.zipf(1.3, 100_000) % 20, 5).astype(np.int32)
    contexts = (np.repeat(topics, 5) * 20 + random.zipf(1.3, 500_000) % 20).astype(np.int32)
    losses = {}
    for threads in (1, 8):
        tables = random_tables(words, 16)
        for _ in range(7):
            losses[threads] = train(tables, targets, contexts, rate=0.05, threads=threads) / len(targets)
    assert losses[8] == pytest.approx(losses[1], rel=0.35)  # races cost a tenth; unseen moves, a multiple


def test_thread_error_is_raised_after_all_threads_finish():
    failed, at_work = Future(), Future()
    failed.set_exception(MemoryError("no room"))
    Timer(0.2, at_work.set_result, [1.0]).start()
    with pytest.raises(MemoryError, match="no room"):
        sgns_cpu.PendingBatch([failed, at_work]).loss()
    assert at_work.done()


def test_split_over_threads_without_races_changes_nothing(monkeypatch):
    monkeypatch.setattr(sgns_cpu, "_thread_pools", lambda threads: [_InTurn()] * threads)
    targets, contexts = random_runs(words=200, pairs=300)  # of which 128 words are trained in copies
    one, three = random_tables(200, 16), random_tables(200, 16)
    assert train(one, targets, contexts) == pytest.approx(train(three, targets, contexts, threads=3))
    for table, same in zip(one, three, strict=True):
        np.testing.assert_allclose(table, same, rtol=1e-5, atol=1e-6)


class _InTurn:
    """A thread that runs its task when the result is read, which excludes races."""

    def submit(self, function, *arguments):
        done = Future()
        done.set_result(function(*arguments))
        return done


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), max_size=30),
    st.integers(1, 8),
)
def test_batch_is_split_between_runs(runs, parts):
    targets = np.array([word for word, length in runs for _ in range(length)], dtype=np.int32)
    bounds = sgns_cpu.split_at_runs(targets, parts)
    assert len(bounds) == parts + 1
    assert bounds[0] == 0
    assert bounds[-1] == len(targets)
    assert bounds == sorted(bounds)
    assert all(targets[b - 1] != targets[b] for b in bounds if 0 < b < len(targets))


def test_run_may_continue_in_the_next_batch():
    targets, contexts = np.full(6, 1, dtype=np.int32), np.arange(6, dtype=np.int32)
    for cut in range(7):
        assert_as_reference(6, 16, 5, targets[:cut], contexts[:cut])
        assert_as_reference(6, 16, 5, targets[cut:], contexts[cut:])


@pytest.mark.parametrize("name", ["target", "context"])
@pytest.mark.parametrize("offending", [-1, 10, 2**31 - 1, -(2**31)])
def test_id_outside_of_the_vocabulary_is_rejected(name, offending):
    tables = random_tables(10, 16)
    before = [table.copy() for table in tables]
    batch = {"target": np.zeros(4, dtype=np.int32), "context": np.zeros(4, dtype=np.int32)}
    batch[name][2] = offending
    with pytest.raises(ValueError, match=rf"{name} column contains the id {offending}, .* 0 to 9"):
        train(tables, batch["target"], batch["context"])
    np.testing.assert_array_equal(tables, before)


@pytest.mark.parametrize(
    ("targets", "contexts", "sentence"),
    [
        (np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int32), "int64 .* must be int32"),
        (np.zeros(3, dtype=np.int32), np.zeros(2, dtype=np.int32), "both must be"),
        (np.zeros((3, 1), dtype=np.int32), np.zeros((3, 1), dtype=np.int32), "both must be"),
    ],
)
def test_mismatched_columns_are_rejected(targets, contexts, sentence):
    with pytest.raises(ValueError, match=sentence):
        train(random_tables(10, 16), targets, contexts)


def test_mismatched_tables_are_rejected():
    one = np.zeros(1, dtype=np.int32)
    with pytest.raises(ValueError, match="one row per word"):
        train((np.zeros((3, 16), dtype=np.float32), np.zeros((4, 16), dtype=np.float32)), one, one)
    with pytest.raises(ValueError, match="multiple of 16"):
        train((np.zeros((3, 10), dtype=np.float32), np.zeros((3, 10), dtype=np.float32)), one, one)


def test_read_only_and_strided_columns_are_accepted():
    targets, contexts = random_runs(words=20, pairs=100)
    expected, tables = random_tables(20, 16), random_tables(20, 16)
    train(expected, targets, contexts)
    strided = np.stack([targets, contexts], axis=1)
    strided.flags.writeable = False
    train(tables, strided[:, 0], strided[:, 1])
    np.testing.assert_array_equal(tables, expected)


def test_noise_follows_the_alias_table():
    # word 0 keeps a quarter of its draws and gives the rest to word 2; word 1 gives half of its to word 0
    probability, alias = np.array([0.25, 0.5, 1.0], dtype=np.float32), np.array([2, 0, 2], dtype=np.int32)
    out = np.empty(300_000, dtype=np.int32)
    sgns_cpu.draw_negatives(np.uint64(3), 0, probability, alias, out)
    shares = np.bincount(out, minlength=3) / len(out)
    np.testing.assert_allclose(shares, [(0.25 + 0.5) / 3, 0.5 / 3, (1 + 0.75) / 3], atol=0.004)  # 4 sigma


def test_runs_and_seeds_draw_independent_noise():
    def draw(seed: int, position: int) -> np.ndarray:
        out = np.empty(1000, dtype=np.int32)
        sgns_cpu.draw_negatives(np.uint64(seed), position, *even_noise(10_000), out)
        return out

    np.testing.assert_array_equal(draw(1, 5), draw(1, 5))
    for other in (draw(1, 6), draw(2, 5), draw(2, 4)):
        assert (draw(1, 5) == other).mean() < 0.01


def test_digest_of_the_inner_loop_is_current():
    """Numba's disk cache only checks cpu.py: put cpu_llvm.py's digest there."""
    digest = hashlib.sha256(Path(sgns_block.__file__).read_bytes()).hexdigest()
    assert digest.startswith(sgns_cpu._BLOCK_DIGEST)
