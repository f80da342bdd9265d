"""Training of word vectors on the diagonals of a grid, by one worker or by several."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lexloom.models.word2vec import cpu as sgns_cpu
from lexloom.models.word2vec import reference as sgns_reference
from lexloom.models.word2vec.alias import alias_tables
from lexloom.models.word2vec.grid import Grid
from lexloom.models.word2vec.splitmix import hash_seed
from lexloom.models.word2vec.tables import CONTEXTS, VECTORS, assemble, piece_name
from lexloom.models.word2vec.trainable import EVALUATION_SEED, MAX_PENDING_STEPS, Word2Vec
from lexloom.training.records import round_sum
from lexloom.training.trainable import Partitioned
from tests.models.word2vec.test_cpu import noise_of

Batch = dict[str, np.ndarray]
Pairs = tuple[np.ndarray, np.ndarray]
WORDS = 23  # with 5 parts, the last row of two parts is unused


def model(words: int = 10, **options: Any) -> Word2Vec:
    """A model with uniform noise."""
    return Word2Vec(np.ones(words), **{"dim": 20, **options})


def uneven(parts: int, words: int = WORDS, **options: Any) -> Word2Vec:
    """A model with noise of various weights, which it does not have to sum up."""
    return Word2Vec(np.arange(1.0, words + 1), parts=parts, **{"dim": 20, "seed": 4, **options})


def diagonals(targets: Any, contexts: Any, grid: Grid, own: range | None = None) -> list[Batch]:
    """The pairs of words as the batches of an episode, P diagonals of the blocks of the input parts `own`."""
    own = range(grid.parts) if own is None else own
    outputs, targets = np.divmod(grid.codes(np.asarray(targets, np.int64)), 1 << 16)
    inputs, contexts = np.divmod(grid.codes(np.asarray(contexts, np.int64)), 1 << 16)
    batches = []
    for step in range(grid.parts):
        blocks = [np.flatnonzero((inputs == i) & (outputs == (i + step) % grid.parts)) for i in own]
        chosen = np.concatenate(blocks)
        bounds = np.cumsum([0, *map(len, blocks)])
        columns = {"target": targets[chosen], "context": contexts[chosen]}
        batches.append({name: ids.astype(np.uint16) for name, ids in columns.items()} | {"bounds": bounds})
    return batches


def batch(targets: Sequence[int], contexts: Sequence[int], words: int = 10) -> Batch:
    """The only diagonal of an episode of a vocabulary in one part."""
    return diagonals(targets, contexts, Grid(words, 1))[0]


def random_pairs(seed: int, words: int = WORDS, pairs: int = 300) -> Pairs:
    """Targets that repeat 1 to 12 times, and contexts."""
    random = np.random.default_rng(seed)
    targets = np.repeat(random.integers(words, size=pairs), random.integers(1, 13, size=pairs))[:pairs]
    return targets, random.integers(words, size=pairs)


def without(pairs: Pairs, grid: Grid, empty: Sequence[int], part: int | None = None) -> Pairs:
    """Leave out the pairs of some diagonals (of one input part)."""
    output, own = (grid.codes(ids) >> 16 for ids in pairs)
    leave_out = np.isin((output.astype(int) - own) % grid.parts, empty)
    if part is not None:
        leave_out &= own == part
    return pairs[0][~leave_out], pairs[1][~leave_out]


def train_episodes(
    models: Sequence[Word2Vec], episodes: Sequence[Pairs], first: int = 0, last: int = 10**9
) -> list[float]:
    """Train on the steps `first` to `last` of the episodes, as the workers of the training loop do.

    Returns: the sum of the losses of each step.
    """
    workers, grid = len(models), models[0].grid
    readers = [
        [each for pairs in episodes for each in diagonals(*pairs, grid, grid.own(rank, workers))]
        for rank in range(workers)
    ]
    steps = range(first, min(last, len(readers[0])))
    losses: list[list[tuple[Any, int]]] = []
    for step in steps:
        losses.append([])
        for trained, reader in zip(models, readers, strict=True):
            if size := len(reader[step]["target"]):
                loss = trained.train_step(reader[step], progress=step / len(readers[0]), seed=step)
                losses[-1].append((loss, size))
        rotate(models)
    for trained in models:
        trained.wait()
    return [sum(round_sum(float(loss) * size) for loss, size in each) for each in losses]


def rotate(models: Sequence[Word2Vec]) -> None:
    if len(models) > 1:
        sent = [trained.outgoing().clone() for trained in models]
        for rank, trained in enumerate(models):
            trained.incoming().copy_(sent[(rank + 1) % len(models)])
    for trained in models:
        trained.rotate()


def pieces(models: Sequence[Word2Vec]) -> dict[str, Tensor]:
    """The pieces of all workers."""
    state: dict[str, Tensor] = {}
    for trained in models:
        own = trained.state_dict()
        assert list(own) == trained.piece_names()
        assert not own.keys() & state.keys()
        state |= {name: piece.clone() for name, piece in own.items()}
    return state


def assert_same_pieces(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, piece in ours.items():
        assert torch.equal(piece, theirs[name]), name


# The model


def test_model_is_partitioned():
    assert isinstance(model(), Partitioned)


def test_initial_tables_are_uniform_and_zero():
    fresh = model(words=1999, dim=100, seed=3, parts=4)
    assert fresh.vectors.shape == fresh.contexts.shape == (4, 500, 112)  # rows of whole cache lines
    assert fresh.vectors.dtype == fresh.contexts.dtype == torch.float32
    assert not fresh.contexts.any()
    assert not fresh.vectors[:, :, 100:].any()
    assert [len(fresh.grid.words_of(part)) for part in range(4)] == [499, 500, 500, 500]
    assert not fresh.vectors[0, 499].any()
    drawn = fresh.word_vectors([str(word) for word in range(1999)]).vectors
    assert drawn.abs().max() <= 0.005
    assert drawn.std().item() == pytest.approx(0.01 / math.sqrt(12), rel=0.01)  # of a uniform distribution
    assert len(drawn[:, 0].unique()) > 1990
    assert torch.equal(fresh.vectors, model(words=1999, dim=100, seed=3, parts=4).vectors)
    assert not torch.equal(fresh.vectors, model(words=1999, dim=100, seed=4, parts=4).vectors)


def test_worker_holds_its_own_parts_only():
    whole, worker = uneven(5), uneven(5)
    worker.own(1, 3)
    assert not {VECTORS, CONTEXTS} & worker.__dict__.keys(), "a table is allocated before it is used"
    assert worker.vectors.shape == (2, 5, 32)
    assert worker.contexts.shape == (3, 5, 32)  # with the part that arrives next
    assert torch.equal(worker.vectors, whole.vectors[1:3])
    assert worker.piece_names() == [
        *("vectors.00001", "vectors.00002"),
        *("contexts.00001", "contexts.00002"),
    ]
    worker.start_at(9)
    assert worker.piece_names()[2:] == ["contexts.00000", "contexts.00001"]
    with pytest.raises(ValueError, match="6 workers can't share 5 parts"):
        worker.own(0, 6)


def test_word_vectors_are_in_the_order_of_ids():
    grid = Grid(WORDS, 5)
    state = {
        piece_name(VECTORS, part): torch.zeros(grid.rows, 32).index_fill_(1, torch.tensor([3]), 1.0)
        * torch.from_numpy(np.resize(grid.words_of(part), grid.rows))[:, None]
        for part in range(5)
    }
    rows = assemble(VECTORS, state, grid, 20)
    assert rows.shape == (WORDS, 20)
    assert rows[:, 3].tolist() == list(range(WORDS))


def test_learning_rate_decays_linearly():
    falling = model(learning_rate=0.05, min_learning_rate=0.01)
    rates = [falling.learning_rate(progress) for progress in (0.0, 0.25, 0.5, 1.0, 1.5)]
    assert rates == pytest.approx([0.05, 0.04, 0.03, 0.01, 0.01])


def test_initial_loss_is_log_two_per_compared_word():
    # all outputs are zero, so every score is; among 10,000 words noise that is the target is rare
    step = model(10_000, negatives=7).train_step(batch([1, 1, 2], [3, 4, 5], 10_000), progress=0.0, seed=0)
    assert float(step) == pytest.approx(8 * math.log(2), rel=1e-5)


def test_learning_rate_follows_progress():
    def change(progress: float) -> Tensor:
        stepped = model(1000, learning_rate=0.1, min_learning_rate=0.0)
        float(stepped.train_step(batch([1], [2], 1000), progress=progress, seed=0))
        return stepped.contexts[0, 1]

    assert change(0.0).any()
    torch.testing.assert_close(change(0.75), change(0.0) / 4)
    assert not change(1.0).any()


# The update


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 5])
def test_steps_equal_the_reference_on_every_block(parts):
    """A block's noise is drawn from the words of its output part, by the step's seed and the input part."""
    trained = uneven(parts, negatives=3, learning_rate=0.1, min_learning_rate=0.0)
    grid, episodes = trained.grid, [random_pairs(0), random_pairs(1)]
    probability, alias = alias_tables(np.arange(1.0, WORDS + 1), grid)
    vectors, outputs = (table.double().clone()[:, :, :20] for table in (trained.vectors, trained.contexts))
    expected, all_diagonals = [], [each for pairs in episodes for each in diagonals(*pairs, grid)]
    for step, columns in enumerate(all_diagonals):
        loss = 0.0
        for i in range(parts):
            j = (i + step) % parts
            words, block = len(grid.words_of(j)), slice(*columns["bounds"][i : i + 2])
            targets, contexts = columns["target"][block], columns["context"][block]
            drawn = noise_of(targets, (probability[j, :words], alias[j, :words]), 3, hash_seed(step, i))
            lr = 0.1 * (1 - step / len(all_diagonals))
            loss += sgns_reference.train_batch(
                vectors[i], outputs[j], targets.tolist(), contexts.tolist(), drawn, lr
            )
        expected.append(loss)
    losses = train_episodes([trained], episodes)
    assert losses == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(trained.vectors[:, :, :20].double(), vectors, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(trained.contexts[:, :, :20].double(), outputs, rtol=1e-4, atol=1e-6)


def test_every_block_has_noise_of_its_own():
    with np.errstate(all="raise"):
        seeds = {hash_seed(seed, part) for seed in (0, 1, 2**63 - 1) for part in range(100)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_empty_batch_changes_nothing():
    unchanged = model()
    assert float(unchanged.train_step(batch([], []), progress=0.0, seed=0)) == 0.0
    assert torch.equal(unchanged.vectors, model().vectors)


def test_read_only_and_strided_columns_are_accepted():
    (columns,) = diagonals(*random_pairs(0), Grid(WORDS, 1))
    expected, found = uneven(1), uneven(1)
    float(expected.train_step(columns, progress=0.0, seed=0))
    strided = np.stack([columns["target"], columns["context"]], axis=1)
    strided.flags.writeable = False
    views = {"target": strided[:, 0], "context": strided[:, 1], "bounds": columns["bounds"]}
    float(found.train_step(views, progress=0.0, seed=0))
    assert_same_pieces(found.state_dict(), expected.state_dict())


def test_evaluation_returns_the_loss_and_changes_nothing():
    learner, untouched = model(), model()
    pairs = batch([1, 1], [2, 3])  # one run: the step's own updates come after its losses
    learner.contexts[:, :, :8] = torch.linspace(-1, 1, 8)
    untouched.contexts[:, :, :8] = learner.contexts[:, :, :8]
    loss, examples = learner.evaluate(pairs)
    assert examples == 2
    assert learner.evaluate(pairs) == (loss, 2)
    assert_same_pieces(learner.state_dict(), untouched.state_dict())
    step = learner.train_step(pairs, progress=0.0, seed=EVALUATION_SEED)
    assert loss / 2 == pytest.approx(float(step), rel=1e-6)


@pytest.mark.parametrize("parts", [1, 4])
def test_training_learns_topics(parts):
    """Ten topics of five words each: a word's four nearest neighbours are the others of its topic."""
    random = np.random.default_rng(0)
    topics = random.integers(10, size=20_000) * 5
    pairs = topics + random.integers(5, size=20_000), topics + random.integers(5, size=20_000)
    learner = model(words=50, learning_rate=0.05, parts=parts)
    learner.prepare("cpu")
    losses = train_episodes([learner], [pairs] * 10)
    assert sum(losses[-parts:]) < 0.7 * sum(losses[:parts])
    trained = learner.word_vectors([f"{topic}{i}" for topic in "abcdefghij" for i in range(5)])
    for word, found in zip(trained.words, trained.neighbours(trained.words, k=4), strict=True):
        assert {neighbour[0] for neighbour, _ in found} == {word[0]}


# Threads and workers


def episodes_with_gaps(grid: Grid) -> list[Pairs]:
    """Two full episodes, and some in which diagonals, or some of their blocks, have no pairs."""
    return [
        random_pairs(0),
        without(random_pairs(1), grid, [0, 3]),
        without(random_pairs(2), grid, [2, 3, 4], part=0),
        without(random_pairs(3), grid, [1], part=grid.parts - 1),
        random_pairs(4, pairs=3),
        random_pairs(5),
    ]


@pytest.mark.parametrize("parts", [1, 2, 5, 20])
@pytest.mark.parametrize("threads", [2, 3, 16])
def test_any_number_of_threads_makes_the_same_bits(parts, threads):
    one, many = uneven(parts), uneven(parts, threads=threads)
    episodes = episodes_with_gaps(one.grid) * 3
    assert train_episodes([one], episodes) == train_episodes([many], episodes)
    assert_same_pieces(one.state_dict(), many.state_dict())


@pytest.mark.parametrize(("parts", "workers"), [(5, 1), (5, 2), (5, 3), (5, 5), (8, 7), (2, 2)])
@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_workers_makes_the_same_bits(parts, workers, threads):
    one, many = uneven(parts), [uneven(parts, threads=threads) for _ in range(workers)]
    for rank, worker in enumerate(many):
        worker.own(rank, workers)
        worker.prepare("cpu")
        worker.start_at(0)
    episodes = episodes_with_gaps(one.grid)
    assert train_episodes([one], episodes) == train_episodes(many, episodes)
    assert_same_pieces(one.state_dict(), pieces(many))


@pytest.mark.parametrize("step", [3, 5, 13])
@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2), (2, 5), (5, 1)])
def test_other_workers_continue_at_any_step(step, before, after):
    one = uneven(5)
    episodes = episodes_with_gaps(one.grid)[:4]
    losses = train_episodes([one], episodes)

    def workers(count: int, first: int) -> list[Word2Vec]:
        made = [uneven(5) for _ in range(count)]
        for rank, worker in enumerate(made):
            worker.own(rank, count)
            worker.prepare("cpu")
            worker.start_at(first)
        return made

    stopped, resumed = workers(before, 0), workers(after, step)
    found = train_episodes(stopped, episodes, last=step)
    state = pieces(stopped)
    for worker in resumed:
        worker.load_state_dict({name: state[name] for name in worker.piece_names()})
    assert found + train_episodes(resumed, episodes, first=step) == losses
    assert_same_pieces(one.state_dict(), pieces(resumed))


def test_evaluation_within_an_episode_does_not_affect_training():
    one, two = uneven(5), [uneven(5), uneven(5)]
    for rank, worker in enumerate(two):
        worker.own(rank, 2)
    episodes = [random_pairs(0), random_pairs(1)]
    losses = train_episodes([one], episodes)
    measured = train_episodes(two, episodes, last=3)
    sums = []
    for rank, worker in enumerate(two):
        held_out = diagonals(*random_pairs(9), worker.grid, worker.grid.own(rank, 2))
        sums.append(held_out[3:] + held_out[:3])  # an evaluation begins with the diagonal of the next step
    total = 0.0
    for columns in zip(*sums, strict=True):
        total += sum(worker.evaluate(each)[0] for worker, each in zip(two, columns, strict=True))
        rotate(two)
    measured += train_episodes(two, episodes, first=3)
    assert measured == losses
    assert_same_pieces(one.state_dict(), pieces(two))
    assert 0 < total < 300 * 10


class Delayed:
    """Threads that begin some blocks late."""

    def __init__(self, trained: Word2Vec, is_late: Callable[[int], bool]) -> None:
        self.threads, self.is_late, self.gate = trained._threads._pool, is_late, threading.Event()

    def submit(self, run: Callable[..., None], train: Any, first: int, last: int, needed: Any) -> Any:
        def begin() -> None:
            if self.is_late(first):
                self.gate.wait(10)
            run(train, first, last, needed)

        return self.threads.submit(begin)


@pytest.fixture
def delayed() -> Iterator[Callable[..., tuple[Word2Vec, Delayed]]]:
    """Make a worker with parts 0 to 3 of 5, whose blocks wait for `gate` if they are late."""
    gates = []

    def make(is_late: Callable[[int], bool], world_size: int = 5, **options: Any) -> tuple[Word2Vec, Delayed]:
        trained = uneven(20, **{"threads": 4, **options})
        trained.own(0, world_size)
        trained.prepare("cpu")
        pool = Delayed(trained, is_late)
        trained._threads._pool = pool  # type: ignore[assignment]
        gates.append(pool.gate)
        return trained, pool

    yield make
    for gate in gates:
        gate.set()


def first_steps(own: range) -> list[Batch]:
    return diagonals(*random_pairs(0, pairs=2000), Grid(WORDS, 20), own)


def test_piece_leaves_while_other_blocks_are_trained(delayed):
    trained, pool = delayed(lambda block: block > 0)
    columns = first_steps(range(4))[0]
    loss = trained.train_step(columns, progress=0.0, seed=1)
    expected = uneven(20)
    float(expected.train_step(first_steps(range(20))[0], progress=0.0, seed=1))
    assert torch.equal(trained.outgoing(), expected.contexts[0, :, :20])
    assert trained.outgoing().any()
    assert not loss.done()
    assert trained.idle_since() is None
    assert not trained.contexts[1].any(), "it is trained already"
    before = time.perf_counter()
    pool.gate.set()
    assert float(loss) > 0
    assert loss.done()
    assert before < trained.idle_since() < time.perf_counter()
    assert_same_pieces(
        {name: expected.state_dict()[name] for name in trained.piece_names()}, trained.state_dict()
    )


def test_piece_does_not_leave_before_the_last_step_that_trained_it(delayed):
    """In a step without pairs, the piece that leaves was trained in another block of the step before."""
    trained, pool = delayed(lambda block: block > 0)
    trained.train_step(first_steps(range(4))[0], progress=0.0, seed=1)
    trained.outgoing()
    trained.rotate()
    threading.Timer(0.05, pool.gate.set).start()
    expected = uneven(20)
    float(expected.train_step(first_steps(range(20))[0], progress=0.0, seed=1))
    assert torch.equal(trained.outgoing(), expected.contexts[1, :, :20])


@pytest.mark.parametrize(
    "read",
    [
        lambda trained, columns: trained.state_dict(),
        lambda trained, columns: trained.word_vectors([str(word) for word in range(WORDS)]),
        lambda trained, columns: trained.evaluate(columns),
        lambda trained, columns: trained.load_state_dict(trained.state_dict()),
        lambda trained, columns: trained.start_at(0),
    ],
)
def test_tables_are_read_after_pending_steps(delayed, read):
    trained, pool = delayed(lambda block: True, world_size=1)
    expected, columns = uneven(20), first_steps(range(20))[0]
    losses = [each.train_step(columns, progress=0.0, seed=0) for each in (trained, expected)]
    assert not trained.contexts.any(), "it is trained already"
    threading.Timer(0.05, pool.gate.set).start()
    read(trained, columns)
    assert trained.contexts.any()
    assert float(losses[0]) == float(losses[1])
    assert_same_pieces(trained.state_dict(), expected.state_dict())


def test_number_of_pending_steps_is_bounded(delayed):
    trained, pool = delayed(lambda block: True, world_size=1)
    begun = []

    def train_steps() -> None:
        for columns in first_steps(range(20))[:6]:
            trained.train_step(columns, progress=0.0, seed=0)
            trained.rotate()
            begun.append(columns)

    loop = threading.Thread(target=train_steps)
    loop.start()
    time.sleep(0.1)
    assert len(begun) == MAX_PENDING_STEPS
    pool.gate.set()
    loop.join()
    assert len(begun) == 6


# Errors


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_missing_gpu_is_reported():
    with pytest.raises(ValueError, match="device 'cuda': torch finds no GPU on this machine"):
        model().prepare("cuda")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dim": 0}, "dim is 0"),
        ({"negatives": 0}, "negatives is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"programs": 0}, "programs is 0"),
        ({"learning_rate": 0.01, "min_learning_rate": 0.02}, "can't decay from 0.01 to 0.02"),
        ({"parts": 11}, "parts is 11: it must be between 1 and 10"),
    ],
)
def test_options_out_of_range_are_rejected(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        model(**options)


@pytest.mark.parametrize(
    "weights", [np.ones(0), np.array([1.0, -1.0]), np.array([1.0, np.nan]), np.ones((2, 2))]
)
def test_invalid_noise_weights_are_rejected(weights):
    with pytest.raises(
        ValueError, match="there must be one weight, at least 0, for each of at least one word"
    ):
        Word2Vec(weights)


@pytest.mark.parametrize("name", ["target", "context"])
@pytest.mark.parametrize("row", [5, 65_535])
def test_row_outside_of_its_part_is_rejected_and_nothing_changes(name, row):
    """Parts 0, 2 and 3 have five rows, and parts 1 and 4 have four."""
    refusing = uneven(5)
    columns = diagonals(*random_pairs(0), refusing.grid)[0]
    columns[name][7] = row
    with pytest.raises(ValueError, match=rf"{name} column contains the row {row}, but the part has \d words"):
        refusing.train_step(columns, progress=0.0, seed=0)
    assert_same_pieces(refusing.state_dict(), uneven(5).state_dict())


@pytest.mark.parametrize(("name", "step", "block"), [("context", 2, 4), ("target", 2, 2), ("target", 0, 1)])
def test_row_of_a_larger_part_is_rejected(name, step, block):
    refusing = uneven(5)
    refusing.start_at(step)
    columns = diagonals(*random_pairs(0), refusing.grid)[step]
    columns[name][columns["bounds"][block]] = 4
    with pytest.raises(ValueError, match=f"{name} column contains the row 4, but the part has 4 words"):
        refusing.train_step(columns, progress=0.0, seed=0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"target": np.zeros(3, np.int32)}, "column target is int32 with the shape .* must be uint16"),
        ({"context": np.zeros(2, np.uint16)}, "both columns must be uint16 of equal length"),
        ({"target": np.zeros((3, 1), np.uint16)}, "both columns must be"),
        ({"bounds": np.array([0, 1, 3])}, "the batch has 2 blocks .* the model has 1 parts"),
        ({"bounds": np.array([0, 2])}, "3 pairs, of which the blocks have 2"),
        ({"bounds": np.array([1, 3])}, "3 pairs, of which the blocks have 2"),
    ],
)
def test_mismatched_columns_are_rejected(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        model().train_step(batch([1, 2, 3], [3, 4, 5]) | change, progress=0.0, seed=0)


# State


def test_state_is_copied_and_pieces_are_live():
    source, reader = uneven(5, seed=1), uneven(5, seed=2)
    reader.load_state_dict(source.state_dict())
    source.state_dict()["vectors.00003"][2, 0] = 5.0
    assert source.vectors[3, 2, 0] == 5.0
    assert reader.vectors[3, 2, 0] != 5.0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"contexts.00000": None}, r"the state has no part 'contexts.00000'"),
        ({"contexts.00000": torch.zeros(9, 32)}, r"'contexts.00000' is \(9, 32\)"),
        ({"vectors.00000": torch.ones(10, 32)}, "'vectors.00000' is not zero from column 20 on"),
    ],
)
def test_state_of_another_model_is_rejected_and_changes_nothing(change, sentence):
    refusing, other = model(), model(seed=9)
    state = {name: piece for name, piece in (other.state_dict() | change).items() if piece is not None}
    with pytest.raises(ValueError, match=sentence):
        refusing.load_state_dict(state)
    assert_same_pieces(refusing.state_dict(), model().state_dict())


def test_losses_are_multiples_of_a_unit():
    trained = uneven(5)
    for columns in diagonals(*random_pairs(0), trained.grid):
        loss = float(trained.train_step(columns, progress=0.0, seed=0)) * len(columns["target"])
        units = loss / sgns_cpu.LOSS_UNIT
        assert units == pytest.approx(round(units), abs=1e-3)
        trained.rotate()
