"""Training of word vectors."""

import math
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import pytest
import torch

from lexloom.models.word2vec import cpu as sgns_cpu
from lexloom.models.word2vec.skipgram import THRESHOLD_ONE, SkipGrams
from lexloom.models.word2vec.trainable import EVALUATION_SEED, Word2Vec, Word2VecFromTokens


def model(words: int = 10, **options) -> Word2Vec:
    """A model with uniform noise."""
    noise = np.ones(words, dtype=np.float32), np.zeros(words, dtype=np.int32)
    return Word2Vec(*noise, **{"dim": 20, **options})


def batch(targets: Sequence[int] | np.ndarray, contexts: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    return {"target": np.array(targets, dtype=np.int32), "context": np.array(contexts, dtype=np.int32)}


# Training


def test_initial_tables_are_uniform_and_zero():
    fresh = model(words=2000, dim=100, seed=3)
    assert fresh.vectors.shape == fresh.contexts.shape == (2000, 112)  # whole vectors of 16
    assert fresh.vectors.dtype == fresh.contexts.dtype == torch.float32
    assert not fresh.contexts.any()
    assert not fresh.vectors[:, 100:].any()
    drawn = fresh.vectors[:, :100]
    assert drawn.abs().max() <= 0.005
    assert drawn.std().item() == pytest.approx(0.01 / math.sqrt(12), rel=0.01)  # of an even distribution
    assert torch.equal(fresh.vectors, model(words=2000, dim=100, seed=3).vectors)
    assert not torch.equal(fresh.vectors, model(words=2000, dim=100, seed=4).vectors)


def test_learning_rate_decays_linearly():
    falling = model(learning_rate=0.05, min_learning_rate=0.01)
    rates = [falling.learning_rate(progress) for progress in (0.0, 0.25, 0.5, 1.0, 1.5)]
    assert rates == pytest.approx([0.05, 0.04, 0.03, 0.01, 0.01])


def test_initial_loss_is_log_two_per_compared_word():
    # all outputs are zero, so every score is; among 10,000 words noise that is the target is rare
    assert model(10_000, negatives=7).train_step(
        batch([1, 1, 2], [3, 4, 5]), progress=0.0, seed=0
    ) == pytest.approx(8 * math.log(2), rel=1e-5)


def test_learning_rate_follows_progress():
    def move(progress: float) -> torch.Tensor:
        stepped = model(1000, learning_rate=0.1, min_learning_rate=0.0)
        stepped.train_step(batch([1], [2]), progress=progress, seed=0)
        return stepped.contexts[1]

    assert move(0.0).any()
    torch.testing.assert_close(move(0.75), move(0.0) / 4)
    assert not move(1.0).any()


class LateThread:
    """A thread that starts its task when somebody waits for it."""

    def submit(self, function, *arguments):
        done = Future()

        def begun_first(wait):
            def begin_and_wait():
                if not done.done():
                    done.set_result(function(*arguments))
                return wait()

            return begin_and_wait

        done.result, done.exception = begun_first(done.result), begun_first(done.exception)
        return done


@pytest.mark.parametrize(
    "ask",
    [
        lambda trained: trained.tables(),
        lambda trained: trained.state_dict(),
        lambda trained: trained.word_vectors(list("abcdefghij")),
        lambda trained: trained.evaluate(batch([1], [2])),
    ],
)
def test_tables_are_returned_after_pending_batches(monkeypatch, ask):
    monkeypatch.setattr(sgns_cpu, "_thread_pools", lambda threads: [LateThread() for _ in range(threads)])
    trained, expected = model(threads=2), model()
    losses = [each.train_step(batch([1, 3], [2, 4]), progress=0.0, seed=0) for each in (trained, expected)]
    assert not trained.contexts.any(), "still on its way"
    ask(trained)
    torch.testing.assert_close(trained.contexts, expected.contexts)
    assert float(losses[0]) == pytest.approx(losses[1])


def test_number_of_pending_batches_is_bounded(monkeypatch):
    monkeypatch.setattr(sgns_cpu, "_thread_pools", lambda threads: [LateThread() for _ in range(threads)])
    trained = model(threads=2)
    for step in range(5):
        trained.train_step(batch([1, 3], [2, 4]), progress=0.0, seed=step)
    assert len(trained._pending) == 2


def test_empty_batch_changes_nothing():
    unchanged = model()
    assert unchanged.train_step(batch([], []), progress=0.0, seed=0) == 0.0
    assert torch.equal(unchanged.vectors, model().vectors)


def test_evaluation_returns_the_loss_and_changes_nothing():
    learner, untouched = model(), model()
    pairs = batch([1, 1], [2, 3])  # one target: the step's own moves come after its losses
    learner.contexts[:, :8] = torch.linspace(-1, 1, 8)
    untouched.contexts[:, :8] = learner.contexts[:, :8]
    loss, examples = learner.evaluate(pairs)
    assert examples == 2
    assert learner.evaluate(pairs) == (loss, 2)
    assert torch.equal(learner.vectors, untouched.vectors)
    assert torch.equal(learner.contexts, untouched.contexts)
    assert loss / 2 == pytest.approx(learner.train_step(pairs, progress=0.0, seed=EVALUATION_SEED), rel=1e-6)


def test_unknown_id_is_rejected():
    with pytest.raises(ValueError, match=r"context column contains the id 10, .* 0 to 9"):
        model().train_step(batch([1, 2], [3, 10]), progress=0.0, seed=0)


def test_training_learns_topics():
    """Ten topics of five words each: a word's four nearest neighbours are the others of its topic."""
    random = np.random.default_rng(0)
    topics = random.integers(10, size=20_000) * 5
    pairs = batch(topics + random.integers(5, size=20_000), topics + random.integers(5, size=20_000))
    learner = model(words=50, learning_rate=0.05)
    learner.prepare("cpu")
    losses = [learner.train_step(pairs, progress=step / 10, seed=step) for step in range(10)]
    assert losses[-1] < 0.7 * losses[0]
    trained = learner.word_vectors([f"{topic}{i}" for topic in "abcdefghij" for i in range(5)])
    for word, found in zip(trained.words, trained.neighbours(trained.words, k=4), strict=True):
        assert {neighbour[0] for neighbour, _ in found} == {word[0]}


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
    ],
)
def test_options_out_of_range_are_rejected(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        model(**options)


@pytest.mark.parametrize(
    ("probability", "alias", "sentence"),
    [
        (np.ones(3), np.array([0, 1, 3]), "ids from 0 to 3 for 3 words"),
        (np.ones(3), np.array([0, -1, 2]), "ids from -1 to 2 for 3 words"),
        (np.ones(3), np.zeros(2, dtype=int), "one probability and one alias"),
        (np.ones(0), np.zeros(0, dtype=int), "at least one word"),
    ],
)
def test_invalid_alias_table_is_rejected(probability, alias, sentence):
    with pytest.raises(ValueError, match=sentence):
        Word2Vec(probability, alias)


def test_resumed_training_equals_uninterrupted():
    steps = [batch([1, 1, 2], [3, 4, 5]), batch([6, 7, 7], [8, 9, 1])]
    straight, stopped, resumed = model(seed=1), model(seed=1), model(seed=2)
    straight.train_step(steps[0], progress=0.0, seed=10)
    stopped.train_step(steps[0], progress=0.0, seed=10)
    resumed.load_state_dict(stopped.state_dict())
    resumed.prepare("cpu")
    assert straight.train_step(steps[1], progress=0.5, seed=11) == resumed.train_step(
        steps[1], progress=0.5, seed=11
    )
    for name, table in straight.state_dict().items():
        assert torch.equal(table, resumed.state_dict()[name])


def test_state_is_copied_and_tables_are_live():
    source, reader = model(seed=1), model(seed=2)
    reader.load_state_dict(source.state_dict())
    source.tables()["vectors"][3, 0] = 5.0
    assert source.vectors[3, 0] == 5.0
    assert reader.vectors[3, 0] != 5.0


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"vectors": torch.zeros(10, 32)}, r"tables \['contexts', 'vectors'\], not \['vectors'\]"),
        ({"vectors": torch.zeros(10, 32), "contexts": torch.zeros(9, 32)}, r"'contexts' is \(9, 32\)"),
        ({"vectors": torch.ones(10, 32), "contexts": torch.zeros(10, 32)}, "not zero from column 20 on"),
    ],
)
def test_state_of_another_model_is_rejected_and_changes_nothing(state, sentence):
    refusing = model()
    with pytest.raises(ValueError, match=sentence):
        refusing.load_state_dict(state)
    assert torch.equal(refusing.vectors, model().vectors)


# From tokens


def from_tokens(words: int = 10, held_out_share: float = 0.0, **options) -> Word2VecFromTokens:
    thresholds = np.full(words, THRESHOLD_ONE // 2, np.uint64)
    skipgrams = SkipGrams(thresholds, 2, shrink_window=True, seed=3, held_out_share=held_out_share)
    noise = np.ones(words, dtype=np.float32), np.zeros(words, dtype=np.int32)
    return Word2VecFromTokens(skipgrams, *noise, **{"dim": 20, **options})


def sentences(count: int = 40, words: int = 10) -> dict[str, np.ndarray]:
    """`count` documents of 8 words, as the stream yields them."""
    tokens = np.random.default_rng(0).integers(0, words, 8 * count).astype(np.int32)
    return {"tokens": tokens, "row": np.arange(8 * count) // 8, "position": np.arange(8 * count) % 8}


def test_step_on_tokens_equals_step_on_drawn_pairs():
    ours, theirs = from_tokens(), model()
    for seed, progress in ((5, 0.0), (6, 0.5)):
        pairs = ours._skipgrams.draw(sentences(), seed)
        assert 200 < len(pairs["target"]) < 480  # 320 tokens, half of them kept, 3 pairs each but at the ends
        loss = ours.train_step(sentences(), progress=progress, seed=seed)
        assert loss == theirs.train_step(pairs, progress=progress, seed=seed)
    assert torch.equal(ours.vectors, theirs.vectors)


def test_held_out_documents_are_only_evaluated():
    learner = from_tokens(held_out_share=0.3)
    assert learner.train_step(sentences(), progress=0.0, seed=1) > 0
    before = learner.vectors.clone()
    loss, pairs = learner.evaluate(sentences())
    assert 0 < pairs < 250
    assert (loss, pairs) == learner.evaluate(sentences())
    assert torch.equal(learner.vectors, before)
    numbers = np.flatnonzero(learner._skipgrams.held_out(np.arange(40)))
    held_out = np.isin(sentences()["row"], numbers)
    kept_back = {name: values[held_out] for name, values in sentences().items()}
    assert learner.train_step(kept_back, progress=0.0, seed=2) == 0.0
    assert torch.equal(learner.vectors, before)


def test_tokens_without_pairs_change_nothing():
    alone = {"tokens": np.arange(5, dtype=np.int32), "row": np.arange(5), "position": np.zeros(5, int)}
    assert from_tokens().train_step(alone, progress=0.0, seed=0) == 0.0
    none = {name: values[:0] for name, values in alone.items()}
    assert from_tokens().train_step(none, progress=0.0, seed=0) == 0.0


@pytest.mark.parametrize("offending", [-1, 10])
def test_unknown_token_is_rejected(offending):
    broken = sentences()
    broken["tokens"][7] = offending
    with pytest.raises(ValueError, match=rf"tokens column contains the id {offending}, .* 0 to 9"):
        from_tokens().train_step(broken, progress=0.0, seed=0)


def test_thresholds_of_another_vocabulary_are_rejected():
    skipgrams = SkipGrams(np.full(9, THRESHOLD_ONE, np.uint64), 2, shrink_window=True, seed=3)
    with pytest.raises(ValueError, match="alias table has 10 words, but the subsampling thresholds have 9"):
        Word2VecFromTokens(skipgrams, np.ones(10, np.float32), np.zeros(10, np.int32))
