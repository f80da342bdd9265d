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
from torch import Tensor

from lexloom.models.word2vec import cpu as sgns_cpu
from lexloom.models.word2vec import gpu as sgns_gpu
from lexloom.models.word2vec import reference as sgns_reference
from lexloom.models.word2vec.gpu_batches import BatchPrefetcher, Pairs, find_runs
from lexloom.models.word2vec.trainable import Word2Vec
from tests.models.word2vec.test_cpu import even_noise, noise_of, random_runs

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not TRITON, reason="Triton is not installed")
RATE = 0.125  # a power of two: the kernel's float32 holds it exactly


@pytest.fixture(params=[pytest.param("sgns_triton", marks=needs_triton), "torch"])
def way(request):
    """Each of the two ways to train on a batch."""
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
    return random.random(words, dtype=np.float32), random.integers(words, size=words, dtype=np.int32)


def on_device(targets, contexts) -> Pairs:
    ids = (
        torch.tensor(np.asarray(column), dtype=torch.int32, device=DEVICE) for column in (targets, contexts)
    )
    return find_runs(*ids)


def train(way, tables, targets, contexts, noise, *, negatives=5, rate=RATE, seed=7, programs=1) -> float:
    """Train `tables` in place on their device, and return the loss."""
    moved = [table.to(DEVICE) for table in tables]
    loss = way(
        *moved,
        on_device(targets, contexts),
        *(torch.from_numpy(part).to(DEVICE) for part in noise),
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
    targets, contexts = np.asarray(targets, dtype=np.int32), np.asarray(contexts, dtype=np.int32)
    drawn = noise_of(targets, noise, negatives, seed=7)
    exact = sgns_reference.train_batch(*expected, targets.tolist(), contexts.tolist(), drawn, RATE)
    loss = train(way, tables, targets, contexts, noise, negatives=negatives, programs=programs)
    assert loss == pytest.approx(exact, rel=1e-9)
    for table, same in zip(tables, expected, strict=True):
        torch.testing.assert_close(table, same, rtol=1e-9, atol=1e-9)


# Noise


@pytest.mark.parametrize("seed", [0, 7, 2**63 + 5, 2**64 - 1])
def test_noise_equals_the_cpus(seed):
    noise = uneven_noise(1000)
    positions = [0, 1, 2, 99_999, 2**31 - 1]
    found = sgns_gpu.draw_negatives(seed, torch.tensor(positions), *map(torch.from_numpy, noise), 20)
    for position, row in zip(positions, found, strict=True):
        out = np.empty(20, dtype=np.int32)
        sgns_cpu.draw_negatives(np.uint64(seed), position, *noise, out)
        assert row.tolist() == out.tolist()


# Batches


def test_runs_have_one_target():
    assert on_device([3, 3, 5, 3, 4, 4], [0] * 6).starts.tolist() == [0, 2, 3, 4, 6]
    assert on_device([3], [0]).starts.tolist() == [0, 1]
    assert on_device([], []).starts.tolist() == [0]


def test_prefetcher_returns_the_given_batches():
    feed = BatchPrefetcher(DEVICE)
    batches = [random_runs(words=50, pairs=pairs, seed=pairs) for pairs in (1000, 10, 500, 0)]
    for targets, contexts in batches:
        strided = np.stack([targets, contexts], axis=1)
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
        (50, 5, 0.05, 50),  # one for each word
        (50, 100, 10.0, 1),
    ],
)
def test_programs_decrease_with_the_total_step(words, negatives, rate, programs):
    assert sgns_gpu.default_programs(torch.zeros(words, 16), negatives, rate) == programs


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
        ([2] * 40, [0, 1] * 20),  # one long run
    ],
)
@pytest.mark.parametrize("words", [3, 4])
def test_one_program_equals_the_reference_on_tiny_vocabularies(way, words, targets, contexts):
    assert_as_reference(way, words, 16, 5, targets, contexts)


@pytest.mark.parametrize("programs", [2, 5, 8])
def test_programs_equal_the_reference_without_shared_words(way, programs):
    targets, contexts = np.repeat(np.arange(8), [1, 5, 2, 3, 3, 1, 4, 2]), np.arange(100, 121)
    drawn = noise_of(targets, uneven_noise(100_000), 3, seed=7)
    assert len(np.unique(drawn)) == 24
    assert np.min(drawn) > 121, "the noise meets the words of the batch"
    assert_as_reference(way, 100_000, 16, 3, targets, contexts, programs)


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
    options = {"dim": 20, "programs": 1, "seed": 4} | options
    return Word2Vec(*uneven_noise(50), **options)


def on_gpu(**options) -> Word2Vec:
    """A model that uses the GPU code, on the CPU if there is no GPU."""
    model = learner(**options)
    model.to_device(DEVICE)
    return model


def test_gpu_model_takes_the_cpus_steps():
    ours, theirs = on_gpu(), learner()
    for step in range(3):
        targets, contexts = random_runs(words=50, pairs=200, seed=step)
        batch = {"target": targets, "context": contexts}
        loss = ours.train_step(batch, progress=step / 3, seed=step)
        assert isinstance(loss, Tensor)
        assert float(loss) == pytest.approx(theirs.train_step(batch, progress=step / 3, seed=step), rel=1e-4)
    assert ours.evaluate(batch) == pytest.approx(theirs.evaluate(batch), rel=1e-4)
    words = [f"w{word}" for word in range(50)]
    torch.testing.assert_close(
        ours.word_vectors(words).vectors, theirs.word_vectors(words).vectors, rtol=1e-3, atol=1e-5
    )


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
    batch = {
        "target": (topics + np.repeat(random.integers(5, size=1000), 5)).astype(np.int32),
        "context": (topics + random.integers(5, size=5000)).astype(np.int32),
    }
    model = Word2Vec(*even_noise(50), dim=20)
    model.to_device(DEVICE)
    losses = [float(model.train_step(batch, progress=step / 20, seed=step)) for step in range(20)]
    assert losses[-1] < 0.7 * losses[0]
    trained = model.word_vectors([f"{topic}{i}" for topic in "abcdefghij" for i in range(5)])
    for word, found in zip(trained.words, trained.neighbours(trained.words, k=4), strict=True):
        assert {neighbour[0] for neighbour, _ in found} == {word[0]}


@pytest.mark.parametrize("name", ["target", "context"])
@pytest.mark.parametrize("offending", [-1, 50])
def test_id_outside_of_the_vocabulary_is_rejected(name, offending):
    model = on_gpu()
    before = model.vectors.clone()
    batch = {"target": np.zeros(4, dtype=np.int32), "context": np.zeros(4, dtype=np.int32)}
    batch[name][2] = offending
    with pytest.raises(ValueError, match=rf"{name} column contains the id {offending}, .* 0 to 49"):
        model.train_step(batch, progress=0.0, seed=0)
    assert torch.equal(model.vectors, before)


def test_empty_batch_changes_nothing():
    model = on_gpu()
    before = model.vectors.clone()
    none = np.zeros(0, dtype=np.int32)
    assert float(model.train_step({"target": none, "context": none}, progress=0.0, seed=0)) == 0.0
    assert torch.equal(model.vectors, before)
