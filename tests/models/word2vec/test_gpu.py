"""The GPU kernel and its torch equivalent compute the update that models/word2vec/reference.py defines.

Without a GPU, Triton's interpreter runs the kernel, one program after the other.
"""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lexloom.models.word2vec import cpu as sgns_cpu
from lexloom.models.word2vec import gpu as sgns_gpu
from lexloom.models.word2vec import reference as sgns_reference
from lexloom.models.word2vec.blocks import MAX_RUN
from lexloom.models.word2vec.gpu_batches import BatchPrefetcher, Pairs, find_runs
from lexloom.models.word2vec.trainable import Word2Vec
from tests.models.word2vec.test_cpu import even_noise, noise_of, random_runs
from tests.models.word2vec.test_trainable import diagonals, train_episodes

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not TRITON, reason="Triton is not installed")
RATE = 0.125  # a power of two: the kernel's float32 holds it exactly


@pytest.fixture(params=[pytest.param("sgns_triton", marks=needs_triton), "torch"])
def way(request):
    """Each of the two ways to train on a block."""
    if request.param == "torch":
        return sgns_gpu.train_in_torch
    return importlib.import_module("lexloom.models.word2vec.triton").train_batch


def random_tables(words: int, stride: int) -> list[Tensor]:
    """Two float64 tables of scores around one."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(words, stride, generator=generator, dtype=torch.float64) * stride**-0.25 for _ in range(2)
    ]


def uneven_noise(words: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    return random.random(words, dtype=np.float32), random.integers(words, size=words).astype(np.uint16)


def on_device(targets, contexts) -> Pairs:
    ids = (torch.tensor(np.array(column, np.int32), device=DEVICE) for column in (targets, contexts))
    return find_runs(*ids)


def train(way, tables, targets, contexts, noise, *, negatives=5, rate=RATE, seed=7, programs=1) -> float:
    """Train `tables` in place on their device, and return the loss."""
    moved = [table.to(DEVICE) for table in tables]
    loss = way(
        *moved,
        on_device(targets, contexts),
        torch.from_numpy(noise[0]).to(DEVICE),
        torch.from_numpy(noise[1].astype(np.int32)).to(DEVICE),
        negatives=negatives,
        learning_rate=rate,
        seed=seed,
        programs=programs,
    )
    for table, trained in zip(tables, moved, strict=True):
        table.copy_(trained)
    return float(loss)


def assert_as_reference(way, words, stride, negatives, targets, contexts, programs=1) -> None:
    noise = uneven_noise(words)
    expected, tables = random_tables(words, stride), random_tables(words, stride)
    targets, contexts = np.asarray(targets), np.asarray(contexts)
    drawn = noise_of(targets, noise, negatives, seed=7)
    exact = sgns_reference.train_batch(*expected, targets.tolist(), contexts.tolist(), drawn, RATE)
    loss = train(way, tables, targets, contexts, noise, negatives=negatives, programs=programs)
    assert loss == pytest.approx(exact, rel=1e-9)
    for table, same in zip(tables, expected, strict=True):
        torch.testing.assert_close(table, same, rtol=1e-9, atol=1e-9)


# Noise


@pytest.mark.parametrize("seed", [0, 7, 2**63 + 5, 2**64 - 1])
def test_noise_equals_the_cpus(seed):
    probability, alias = noise = uneven_noise(1000)
    positions = [0, 1, 2, 99_999, 2**31 - 1]
    table = torch.from_numpy(probability), torch.from_numpy(alias.astype(np.int32))
    found = sgns_gpu.draw_negatives(seed, torch.tensor(positions), *table, 20)
    for position, row in zip(positions, found, strict=True):
        out = np.empty(20, np.uint16)
        sgns_cpu.draw_negatives(np.uint64(seed), position, *noise, out)
        assert row.tolist() == out.tolist()


# Runs


def test_runs_have_one_target():
    assert on_device([3, 3, 5, 3, 4, 4], [0] * 6).starts.tolist() == [0, 2, 3, 4, 6]
    assert on_device([3], [0]).starts.tolist() == [0, 1]
    assert on_device([], []).starts.tolist() == [0]


def test_longer_sequences_are_cut():
    assert MAX_RUN == 8
    assert on_device([3] * 20, [0] * 20).starts.tolist() == [0, 8, 16, 20]
    assert on_device([5] * 3 + [3] * 17 + [4], [0] * 21).starts.tolist() == [0, 3, 11, 19, 20, 21]
    assert on_device([3] * 8 + [4] * 8, [0] * 16).starts.tolist() == [0, 8, 16]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 30)), max_size=12))
def test_runs_equal_the_references(repeats):
    targets = [target for target, count in repeats for _ in range(count)]
    firsts = [start for start, _ in sgns_reference.runs(targets)]
    assert on_device(targets, [0] * len(targets)).starts.tolist() == [*firsts, len(targets)]


def test_prefetcher_returns_the_given_pairs():
    feed = BatchPrefetcher(DEVICE)
    blocks = [random_runs(words=50, pairs=pairs, seed=pairs) for pairs in (1000, 10, 500, 0)]
    for targets, contexts in blocks:
        strided = np.stack([targets, contexts], axis=1).astype(np.int32)
        strided.flags.writeable = False
        fed = feed(strided[:, 0], strided[:, 1])
        assert fed.targets.tolist() == targets.tolist()
        assert fed.contexts.tolist() == contexts.tolist()
        firsts = [start for start, _ in sgns_reference.runs(targets.tolist())] if len(targets) else []
        assert fed.starts.tolist() == [*firsts, len(targets)]


# The number of programs


@pytest.mark.skipif(GPU, reason="a GPU has a limit of its own")
@pytest.mark.parametrize(
    ("words", "negatives", "rate", "programs"),
    [
        (10_000, 5, 0.05, 666),  # 200 / (6 * 0.05)
        (10_000, 5, 0.025, 1333),
        (10_000, 19, 0.05, 200),
        (10_000, 5, 0.0, 2048),
        (50, 5, 0.05, 50),  # one for each row of a part
        (50, 100, 10.0, 1),
    ],
)
def test_programs_decrease_with_the_total_step(words, negatives, rate, programs):
    assert sgns_gpu.default_programs(torch.zeros(words, 16), negatives, rate) == programs


def test_number_of_programs_is_that_of_a_part():
    model = Word2Vec(np.ones(2000), parts=4, dim=20)
    model.to_device(DEVICE)
    assert model.programs == sgns_gpu.default_programs(model.vectors[0], 5, 0.05) <= 500


# The update


@pytest.mark.parametrize(("stride", "negatives"), [(16, 1), (112, 5), (64, 20), (304, 2)])
def test_one_program_equals_the_reference(way, stride, negatives):
    # 12 words and 20 negatives: the noise meets its target and repeats itself in every run
    assert_as_reference(way, 12, stride, negatives, *random_runs(words=12, pairs=40))


@pytest.mark.parametrize(
    ("targets", "contexts"),
    [
        ([1], [2]),
        ([1, 1, 1], [2, 2, 2]),  # one context again and again: each pair sees the one before
        ([1, 1, 1, 1], [2, 0, 2, 0]),
        ([1, 1, 0], [1, 0, 0]),  # a word beside itself
        ([0, 1, 2, 0], [1, 2, 0, 1]),  # runs of one pair
        ([2] * 40, [0, 1] * 20),  # one target in five runs
        ([0] * 3 + [1] * 9 + [0] * 8, [0, 1] * 10),
    ],
)
@pytest.mark.parametrize("words", [3, 4])
def test_one_program_equals_the_reference_on_tiny_vocabularies(way, words, targets, contexts):
    assert_as_reference(way, words, 16, 5, targets, contexts)


@pytest.mark.parametrize("programs", [2, 5, 8])
def test_programs_equal_the_reference_without_shared_words(way, programs):
    targets, contexts = np.repeat(np.arange(8), [1, 5, 2, 3, 3, 1, 4, 2]), np.arange(100, 121)
    drawn = noise_of(targets, uneven_noise(60_000), 3, seed=7)
    assert len(np.unique(drawn)) == 24
    assert np.min(drawn) > 121, "the noise meets the words of the batch"
    assert_as_reference(way, 60_000, 16, 3, targets, contexts, programs)


def test_programs_in_lockstep_do_not_see_each_others_updates():
    targets, contexts = np.repeat([1, 2, 1], 2), [5, 6, 5, 6, 5, 6]
    noise = uneven_noise(10)
    drawn = noise_of(targets, noise, 5, seed=7)
    start, tables = random_tables(10, 16), random_tables(10, 16)
    expected = [table.clone() for table in start]
    for run in range(3):
        alone = [table.clone() for table in start]
        sgns_reference.train_batch(
            *alone, targets[2 * run :][:2].tolist(), contexts[2 * run :][:2], [drawn[run]], RATE
        )
        for table, moved, old in zip(expected, alone, start, strict=True):
            table += moved - old
    train(sgns_gpu.train_in_torch, tables, targets, contexts, noise, programs=3)
    for table, same in zip(tables, expected, strict=True):
        torch.testing.assert_close(table, same, rtol=1e-9, atol=1e-9)


def test_every_run_is_trained_once_by_any_number_of_programs(way):
    batch, noise = random_runs(words=20, pairs=30), uneven_noise(20)
    runs = len(sgns_reference.runs(batch[0].tolist()))
    tables = random_tables(20, 16)
    losses = [
        train(way, tables, *batch, noise, rate=0.0, programs=programs)
        for programs in (1, 2, 3, runs, runs + 9)
    ]
    assert losses == pytest.approx([losses[0]] * 5, rel=1e-12)
    for table, same in zip(tables, random_tables(20, 16), strict=True):
        assert torch.equal(table, same), "a rate of 0 moves nothing"


def test_noise_has_words_only(way):
    """The last row of a part may be unused: then the alias table has one word less than the part has rows."""
    (targets, contexts), noise = random_runs(words=12, pairs=60), uneven_noise(12)
    drawn = noise_of(targets, noise, 5, seed=7)
    expected, tables = random_tables(20, 16), random_tables(20, 16)
    sgns_reference.train_batch(*expected, targets.tolist(), contexts.tolist(), drawn, RATE)
    train(way, tables, targets, contexts, noise)
    for table, same in zip(tables, expected, strict=True):
        torch.testing.assert_close(table, same, rtol=1e-9, atol=1e-9)


def test_single_word_vocabulary_has_no_noise(way):
    tables = [torch.full((1, 16), 0.25, dtype=torch.float64), torch.full((1, 16), 0.5, dtype=torch.float64)]
    loss = train(way, tables, [0], [0], even_noise(1), rate=1.0)
    assert loss == pytest.approx(np.log1p(np.exp(-2.0)))  # the score is 16 * 0.25 * 0.5
    step = 1 / (1 + np.exp(2.0))
    torch.testing.assert_close(tables[0], torch.full_like(tables[0], 0.25 + step * 0.5))
    torch.testing.assert_close(tables[1], torch.full_like(tables[1], 0.5 + step * 0.25))


@pytest.mark.parametrize("score", [-1000.0, -16.5, 0.0, 0.7, 16.0, 1000.0])
def test_loss_is_accurate_for_large_scores(way, score):
    tables = [torch.zeros(1, 16), torch.zeros(1, 16)]
    tables[0][0, 0], tables[1][0, 0] = score, 1.0
    loss = train(way, tables, [0], [0], even_noise(1))
    assert loss == pytest.approx(np.logaddexp(0.0, -score), rel=1e-6, abs=1e-7)


def test_nonfinite_tables_give_a_nonfinite_loss(way):
    tables = random_tables(5, 16)
    tables[0][2, 3] = np.nan
    assert np.isnan(train(way, tables, [1], [2], even_noise(5)))


def test_padding_stays_zero(way):
    tables = random_tables(10, 64)
    for table in tables:
        table[:, 50:] = 0.0
    train(way, tables, *random_runs(words=10, pairs=20), even_noise(10), programs=2)
    assert not any(table[:, 50:].any() for table in tables)


@needs_triton
def test_rows_too_large_for_registers_use_torch():
    kernel = importlib.import_module("lexloom.models.word2vec.triton")
    assert all(kernel.fits(negatives, stride) for negatives, stride in [(1, 16), (5, 304), (20, 304)])
    assert not kernel.fits(100, 304)
    assert not kernel.fits(20, 4096)


@needs_triton
@pytest.mark.parametrize(("negatives", "stride"), [(5, 112), (5, 304)])
def test_kernel_compiles_without_a_gpu(negatives, stride):
    """The interpreter accepts more than the compiler."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(sgns_gpu.__file__).parents[3]
    found = subprocess.run(
        [sys.executable, "-c", COMPILE, str(negatives), str(stride)],
        env=environment | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert "red.global" in found.stdout or "atom.global" in found.stdout


COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lexloom.models.word2vec.triton import constants, _train_runs

types = "*fp32 *fp32 *i32 *i32 *i64 *fp32 *i32 *fp64 i32 i32 u64 fp32".split()
fixed, warps = constants(int(sys.argv[1]), int(sys.argv[2]))
signature = dict(zip(_train_runs.arg_names, types + ["constexpr"] * 5, strict=True))
source = ASTSource(_train_runs, signature, fixed)
print(triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}).asm["ptx"])
"""


# The model


def learner(**options) -> Word2Vec:
    options = {"parts": 3, "dim": 20, "programs": 1, "seed": 4} | options
    return Word2Vec(np.arange(50.0), **options)


def on_gpu(**options) -> Word2Vec:
    """A model that uses the GPU code, on the CPU if there is no GPU."""
    model = learner(**options)
    model.to_device(DEVICE)
    return model


def test_gpu_model_takes_the_cpus_steps():
    ours, theirs = on_gpu(), learner()
    episodes = [random_runs(words=50, pairs=400, seed=seed) for seed in range(3)]
    losses = train_episodes([ours], episodes)
    assert losses == pytest.approx(train_episodes([theirs], episodes), rel=1e-4)
    batch = diagonals(*episodes[0], ours.grid)[0]
    loss = ours.train_step(batch, progress=1.0, seed=0)
    assert isinstance(loss, Tensor)
    assert float(loss) == pytest.approx(float(theirs.train_step(batch, progress=1.0, seed=0)), rel=1e-4)
    assert ours.evaluate(batch) == pytest.approx(theirs.evaluate(batch), rel=1e-4)
    words = [f"w{word}" for word in range(50)]
    torch.testing.assert_close(
        ours.word_vectors(words).vectors, theirs.word_vectors(words).vectors, rtol=1e-3, atol=1e-5
    )


def test_gpu_workers_take_the_steps_of_one():
    one, two = on_gpu(), [learner(), learner()]
    for rank, worker in enumerate(two):
        worker.own(rank, 2)
        worker.to_device(DEVICE)
    episodes = [random_runs(words=50, pairs=400, seed=seed) for seed in range(2)]
    assert train_episodes(two, episodes) == pytest.approx(train_episodes([one], episodes), rel=1e-4)
    for worker in two:
        for name, piece in worker.state_dict().items():
            torch.testing.assert_close(piece, one.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_gpu_model_resumes_from_a_cpu_state():
    theirs = learner(seed=9)
    model = on_gpu()
    model.load_state_dict(theirs.state_dict())
    for name, table in model.state_dict().items():
        assert table.device.type == DEVICE.type
        assert torch.equal(table.cpu(), theirs.state_dict()[name])


def test_many_programs_learn_topics():
    """Ten topics of five words each: a word's four nearest neighbours are the others of its topic."""
    random = np.random.default_rng(0)
    topics = np.repeat(random.integers(10, size=1000) * 5, 5)
    pairs = topics + np.repeat(random.integers(5, size=1000), 5), topics + random.integers(5, size=5000)
    model = Word2Vec(np.ones(50), parts=2, dim=20)
    model.to_device(DEVICE)
    losses = train_episodes([model], [pairs] * 20)
    assert sum(losses[-2:]) < 0.7 * sum(losses[:2])
    trained = model.word_vectors([f"{topic}{i}" for topic in "abcdefghij" for i in range(5)])
    for word, found in zip(trained.words, trained.neighbours(trained.words, k=4), strict=True):
        assert {neighbour[0] for neighbour, _ in found} == {word[0]}


@pytest.mark.parametrize("name", ["target", "context"])
def test_row_outside_of_its_part_is_rejected(name):
    model = on_gpu()
    before = model.vectors.clone()
    batch = diagonals(*random_runs(words=50, pairs=100), model.grid)[0]
    batch[name][2] = 17
    with pytest.raises(ValueError, match=rf"{name} column contains the row 17, but the part has 17 words"):
        model.train_step(batch, progress=0.0, seed=0)
    assert torch.equal(model.vectors, before)


def test_empty_batch_changes_nothing():
    model = on_gpu()
    before = model.vectors.clone()
    assert float(model.train_step(diagonals([], [], model.grid)[0], progress=0.0, seed=0)) == 0.0
    assert torch.equal(model.vectors, before)
