"""The training stage of word2vec: its files, and the same bits after restarts and with any workers."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

import lexloom.tasks.train.word2vec
from lexloom.models.normalization import Normalization
from lexloom.models.word2vec.grid import Grid
from lexloom.models.word2vec.tables import CONTEXTS, VECTORS, assemble
from lexloom.models.word2vec.trainable import Word2Vec
from lexloom.models.word2vec.vectors import WordVectors
from lexloom.tasks.negative_sampling import NoiseConfig, negative_sampling
from lexloom.tasks.pairs import PairsConfig, count_pairs, pairs
from lexloom.tasks.store.activity import list_interrupted_stages
from lexloom.tasks.store.artifacts import Artifact, Store, Summary
from lexloom.tasks.train.run import ACCOUNTS, mean_loss
from lexloom.tasks.train.word2vec import (
    MAX_AUTO_EPOCHS,
    SINGLE_EPOCH_PAIRS,
    TrainWord2VecConfig,
    train_word2vec,
)
from lexloom.training.checkpoint_files import Checkpoint, Checkpoints
from lexloom.training.job import Job
from lexloom.training.stopping import Stopping
from tests.tasks.cards import run_card
from tests.training.test_rotation import comparable
from tests.training.toy import KilledError, on_processes, train_in_pieces

RULES = {"normalization": Normalization().model_dump(mode="json")}
WORDS, PARTS = 50, 4
CONFIG = TrainWord2VecConfig(runner="local", workers=1, epochs=2, dim=16, checkpoint_every=7, negatives=3)
PAIRS_OF = PairsConfig(window=3, subsample=0, parts=PARTS, pairs_per_episode=4000)
STREAMED = CONFIG.reading(PAIRS_OF.model_copy(update={"mode": "streamed"}))
Inputs = tuple[Artifact, Artifact, Artifact]


@pytest.fixture
def tokens(store: Store) -> Artifact:
    """400 documents of 10 to 29 words of a synthetic language: each is all even or all odd."""
    generator = np.random.default_rng(1)
    documents = [
        (generator.integers(0, WORDS // 2, length) * 2 + number % 2).tolist()
        for number, length in enumerate(generator.integers(10, 30, 400))
    ]
    return tokens_of(documents, store)


def tokens_of(documents: list[list[int]], store: Store, key: str = "key") -> Artifact:
    """Write documents in two shards."""
    folder = store.folder("tokens", key)
    folder.mkdir(parents=True)
    for shard in (0, 1):
        rows = pa.array(documents[shard * len(documents) // 2 :][: len(documents) // 2], pa.list_(pa.int32()))
        pq.write_table(pa.table({"tokens": rows}), folder / f"shard-{shard:05d}.parquet", row_group_size=50)
    total = sum(map(len, documents))
    summary = Summary(rows_in=total, unit_in="words", rows=total, unit="tokens")
    return Artifact(stage="tokens", key=key, folder=folder, summary=summary)


@pytest.fixture
def vocabulary(store: Store) -> Artifact:
    folder = store.folder("vocabulary", "key")
    folder.mkdir(parents=True)
    table = {"word": [f"w{i}" for i in range(WORDS)], "count": np.arange(WORDS, 0, -1)}
    pq.write_table(pa.table(table), folder / "vocabulary.parquet")
    summary = Summary(rows_in=1, unit_in="rows", rows=1, unit="rows", facts=RULES)
    return Artifact(stage="vocabulary", key="key", folder=folder, summary=summary)


@pytest.fixture
def inputs(tokens: Artifact, vocabulary: Artifact, build: Callable[..., Artifact]) -> Inputs:
    """Pairs, in eight episodes, noise and vocabulary."""
    stored = build(pairs, tokens, vocabulary, config=PAIRS_OF)
    assert stored.facts["episodes"] == 8
    return stored, build(negative_sampling, vocabulary, config=NoiseConfig()), vocabulary


@pytest.fixture
def validated(
    inputs: Inputs, tokens: Artifact, vocabulary: Artifact, build: Callable[..., Artifact]
) -> Inputs:
    """The inputs with held-out documents."""
    config = PAIRS_OF.model_copy(update={"validation_share": 0.1})
    return build(pairs, tokens, vocabulary, config=config), *inputs[1:]


@pytest.fixture
def train_stage(store: Store) -> Callable[..., dict[str, bytes]]:
    """Build the stage's artifact; return the files that do not depend on the time; and remove it."""

    def run(inputs: Inputs, config: TrainWord2VecConfig) -> dict[str, bytes]:
        key = train_word2vec.key(inputs, config)
        made, *_ = train_word2vec._build(store, key, inputs, config, [])
        files = {
            path.name: path.read_bytes()
            for path in made.folder.iterdir()
            if path.name not in ("metrics.json", "README.md", "manifest.json")
        }
        assert {"model.safetensors", "word2vec.bin", "word2vec.vocab", "config.json"} <= files.keys()
        store.discard("train_word2vec", key)
        return files

    return run


def test_the_model_folder_has_all_files(
    inputs: Inputs, build: Callable[..., Artifact], tmp_path: Path
) -> None:
    model = build(train_word2vec, *inputs, config=CONFIG, scratch=tmp_path)
    vectors = WordVectors.load(model.folder)
    assert vectors.vectors.shape == (WORDS, 16)
    assert vectors.normalization == Normalization()
    near = [word for word, _ in vectors.neighbours(["«W10»"], 10)[0]]
    assert sum(int(word[1:]) % 2 == 0 for word in near) >= 9
    metrics = json.loads((model.folder / "metrics.json").read_text())
    assert metrics["examples"] == 2 * inputs[0].facts["pairs"]
    assert metrics["steps"] == 2 * 8 * PARTS
    assert metrics["loss"] < metrics["history"][0]["loss"]
    assert "dim" in json.loads((model.folder / "config.json").read_text())
    assert "runner" not in json.loads((model.folder / "config.json").read_text())
    assert "Word vectors" in (model.folder / "README.md").read_text()


def test_gensim_loads_the_model_by_the_cards_code(
    inputs: Inputs, build: Callable[..., Artifact], tmp_path: Path
) -> None:
    folder = build(train_word2vec, *inputs, config=CONFIG, scratch=tmp_path).folder
    theirs, ours = run_card(folder)["vectors"], WordVectors.load(folder)
    assert [theirs.get_vecattr(f"w{i}", "count") for i in range(WORDS)] == list(range(WORDS, 0, -1))
    np.testing.assert_array_equal(theirs.vectors, ours.vectors.numpy())
    words, cosines = zip(*ours.neighbours(["w10"], 10)[0], strict=True)
    found = theirs.most_similar("w10", topn=10)
    assert [word for word, _ in found] == list(words)
    assert [cosine for _, cosine in found] == pytest.approx(list(cosines), abs=1e-5)
    assert not (folder / "contexts.bin").exists()


def test_gensim_continues_training_with_the_context_vectors(
    inputs: Inputs, build: Callable[..., Artifact], tmp_path: Path
) -> None:
    """On the same language, the loss is at once far below that of the same vectors without contexts."""
    config = CONFIG.model_copy(update={"save_context": True})
    folder = build(train_word2vec, *inputs, config=config, scratch=tmp_path).folder
    draw = np.random.default_rng(1)
    sentences = [
        [f"w{number * 2 + row % 2}" for number in draw.integers(0, WORDS // 2, 10)] for row in range(400)
    ]
    with_loss = {"epochs=1": "epochs=1, compute_loss=True"}
    going_on = run_card(folder, with_loss, sentences=sentences)["model"]
    from_nothing = run_card(
        folder, {**with_loss, "contexts[model.wv.index_to_key]": "0"}, sentences=sentences
    )["model"]
    assert going_on.get_latest_training_loss() < 0.9 * from_nothing.get_latest_training_loss()
    near = [word for word, _ in going_on.wv.most_similar("w10", topn=10)]
    assert sum(int(word[1:]) % 2 == 0 for word in near) >= 9
    assert going_on.wv.get_vecattr("w0", "count") == WORDS


def test_words_with_white_space_prevent_the_counts_file(
    inputs: Inputs, build: Callable[..., Artifact], tmp_path: Path
) -> None:
    path = inputs[2].folder / "vocabulary.parquet"
    table = pq.read_table(path)
    words = ["no\u00a0break", *table["word"].to_pylist()[1:]]
    pq.write_table(table.set_column(0, "word", pa.array(words)), path)
    made = build(train_word2vec, *inputs, config=CONFIG, scratch=tmp_path)
    assert made.summary.notes == {"words with white space, so no word2vec.vocab": 1}
    assert not (made.folder / "word2vec.vocab").exists()
    assert "There is no `word2vec.vocab`" in (made.folder / "README.md").read_text()
    theirs = run_card(made.folder)["vectors"]
    np.testing.assert_array_equal(theirs["no\u00a0break"], WordVectors.load(made.folder)["no\u00a0break"])


def test_training_stops_early_with_held_out_pairs(
    validated: Inputs, build: Callable[..., Artifact], tmp_path: Path
) -> None:
    """An evaluation every ten steps takes place within an episode of four."""
    config = CONFIG.model_copy(
        update={"epochs": 50, "evaluate_every": 10, "patience": 2, "min_delta": 0.05, "learning_rate": 0.2}
    )
    model = build(train_word2vec, *validated, config=config, scratch=tmp_path)
    metrics = json.loads((model.folder / "metrics.json").read_text())
    assert metrics["stop_reason"] == "patience"
    assert metrics["epochs"] < 50
    losses = {score["step"]: score["loss"] for score in metrics["scores"]}
    assert list(losses)[:3] == [10, 20, 30]
    assert losses[metrics["best_step"]] == metrics["validation_loss"] == min(losses.values())
    best = Checkpoints(tmp_path / "checkpoints", fingerprint_of(tmp_path)).load_step(metrics["best_step"])
    assert best is not None
    kept = assemble(VECTORS, best.tensors, Grid(WORDS, PARTS), 16)
    assert torch.equal(load_file(model.folder / "model.safetensors")["vectors"], kept), "not the best step's"
    accounts = sum(metrics[f"{name}_seconds"] for name in ACCOUNTS)
    assert 0.5 * metrics["seconds"] < accounts <= metrics["seconds"]


def test_context_vectors_are_those_of_the_output_table(
    inputs: Inputs, build: Callable[..., Artifact], tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"save_context": True})
    model = build(train_word2vec, *inputs, config=config, scratch=tmp_path)
    last = Checkpoints(tmp_path / "checkpoints", fingerprint_of(tmp_path)).load()
    assert last is not None
    for name, table in ((VECTORS, "word2vec.bin"), (CONTEXTS, "contexts.bin")):
        rows = assemble(name, last.tensors, Grid(WORDS, PARTS), 16)
        content = (model.folder / table).read_bytes()
        for word in (0, 17, WORDS - 1):
            assert f"w{word} ".encode() + rows[word].numpy().tobytes() in content


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_reported(inputs: Inputs, build: Callable[..., Artifact], tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"device": "cuda"})
    with pytest.raises(ValueError, match="torch finds no GPU on this machine"):
        build(train_word2vec, *inputs, config=config, scratch=tmp_path)


def fingerprint_of(scratch: Path) -> str:
    manifest = next((scratch / "checkpoints").glob("step-*/manifest.json"))
    return str(json.loads(manifest.read_text())["fingerprint"])


def test_killed_stage_is_resumed_with_the_same_result(
    inputs: Inputs,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def weights() -> torch.Tensor:
        (model,) = store.root.glob("train_word2vec/*/model.safetensors")
        return load_file(model)["vectors"]

    def run() -> None:
        train_word2vec._build(store, train_word2vec.key(inputs, CONFIG), inputs, CONFIG, [])

    run()
    undisturbed = weights()
    (metrics,) = store.root.glob("train_word2vec/*/metrics.json")
    all_steps = json.loads(metrics.read_text())["history"][-1]["step"]
    store.discard("train_word2vec", train_word2vec.key(inputs, CONFIG))

    steps: list[float] = []
    train_step = Word2Vec.train_step

    def dies_at_step_17(self: Word2Vec, batch: dict[str, np.ndarray], *, progress: float, seed: int) -> float:
        steps.append(progress)
        if len(steps) == 17:
            raise KeyboardInterrupt
        return train_step(self, batch, progress=progress, seed=seed)

    monkeypatch.setattr(Word2Vec, "train_step", dies_at_step_17)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert not list(store.root.glob("train_word2vec/*"))
    before = len(steps)
    assert "stopped; run the same command again to resume from step 14" in capsys.readouterr().err
    run()
    assert "resumes from the checkpoint of step 14" in capsys.readouterr().err
    assert len(steps) - before == all_steps - 14, "it did not go on from the checkpoint of step 14"
    assert torch.equal(weights(), undisturbed)
    assert not list(store.root.glob(".scratch/*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_a_checkpoint_and_prints_its_step(
    inputs: Inputs,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    class Cancel(BaseException):
        pass

    def cancel(number: int, frame: object) -> None:
        raise Cancel

    def interrupt_step_11(self: Word2Vec, batch: dict[str, np.ndarray], **where: Any) -> Any:
        steps.append(0)
        if len(steps) == 11:
            os.kill(os.getpid(), number)
            time.sleep(0.2)  # until the main thread has received it
        return train_step(self, batch, **where)

    config = CONFIG.model_copy(update={"checkpoint_every": None})
    key = train_word2vec.key(inputs, config)
    whole, *_ = train_word2vec._build(store, key, inputs, config, [])
    weights = load_file(whole.folder / "model.safetensors")["vectors"]
    store.discard("train_word2vec", key)
    steps, train_step = list[int](), Word2Vec.train_step
    monkeypatch.setattr(Word2Vec, "train_step", interrupt_step_11)
    before = signal.signal(number, cancel)
    try:
        with pytest.raises(Cancel):
            train_word2vec._build(store, key, inputs, config, [])
    finally:
        signal.signal(number, before)
    said = capsys.readouterr().err
    assert "stopping after this step; interrupt again to stop without a checkpoint" in said
    assert "stopped; run the same command again to resume from step 11" in said
    (left,) = list_interrupted_stages(store, [])
    assert left.checkpoint == 11
    again, *_ = train_word2vec._build(store, key, inputs, config, [])
    assert "resumes from the checkpoint of step 11" in capsys.readouterr().err
    assert torch.equal(load_file(again.folder / "model.safetensors")["vectors"], weights)


def test_a_run_stopped_before_its_first_checkpoint_says_so(
    inputs: Inputs,
    tmp_path: Path,
    build: Callable[..., Artifact],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt_twice(self: Word2Vec, batch: dict[str, np.ndarray], **where: Any) -> Any:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # until the main thread has received it
        raise AssertionError("the second signal is not deferred")

    monkeypatch.setattr(Word2Vec, "train_step", interrupt_twice)
    with pytest.raises(KeyboardInterrupt):
        build(train_word2vec, *inputs, config=CONFIG, scratch=tmp_path)
    assert (
        "stopped; no checkpoint was written: run the same command again to restart training"
        in capsys.readouterr().err
    )


HOW_TO_RUN: list[dict[str, Any]] = [
    *({"checkpoint_every": 3}, {"checkpoint_seconds": 5.0}, {"threads": 3}),
    *({"runner": "ray", "workers": 3}, {"runner": "ray", "workers": 64, "min_workers": 2}),
]


@pytest.mark.parametrize("change", HOW_TO_RUN)
def test_how_to_run_is_not_part_of_the_key(inputs: Inputs, change: dict[str, Any]) -> None:
    for config in (CONFIG, STREAMED):
        assert train_word2vec.key(inputs, config) == train_word2vec.key(
            inputs, config.model_copy(update=change)
        )


@pytest.mark.parametrize("kind", ["stored", "validated", "streamed"])
def test_threads_do_not_change_a_byte(
    request: pytest.FixtureRequest, kind: str, train_stage: Callable[..., dict[str, bytes]]
) -> None:
    config = STREAMED if kind == "streamed" else CONFIG
    changes = {"save_context": True, "evaluate_every": 5 if kind == "validated" else None}
    config = config.model_copy(update=changes)
    chosen = request.getfixturevalue("validated" if kind == "validated" else "inputs")
    if kind == "streamed":
        chosen = (request.getfixturevalue("tokens"), *chosen[1:])
    one, *others = (
        train_stage(chosen, config.model_copy(update={"threads": threads})) for threads in (1, 2, 5)
    )
    assert "contexts.bin" in one
    assert all(files == one for files in others)


def workers_of(
    monkeypatch: pytest.MonkeyPatch, inputs: Inputs, config: TrainWord2VecConfig, folder: Path
) -> tuple[int, int | None]:
    """The workers, and the minimum, that the stage starts."""
    started: list[TrainWord2VecConfig] = []

    def catch(job: Job, config: TrainWord2VecConfig, unit: str) -> None:
        started.append(config)
        raise InterruptedError

    monkeypatch.setattr(lexloom.tasks.train.word2vec, "run_job", catch)
    with pytest.raises(InterruptedError):
        train_word2vec.function(*inputs, config, folder, folder)
    return started[0].workers, started[0].min_workers


@pytest.mark.parametrize(
    ("workers", "min_workers", "expected"),
    [(64, None, (4, 4)), (64, 8, (4, 4)), (64, 2, (4, 2)), (4, 3, (4, 3)), (3, None, (3, 3))],
)
def test_no_more_workers_than_parts_train(
    inputs: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workers: int,
    min_workers: int | None,
    expected: tuple[int, int | None],
) -> None:
    config = TrainWord2VecConfig(epochs=1, workers=workers, min_workers=min_workers)
    assert workers_of(monkeypatch, inputs, config, tmp_path) == expected
    said = "only 4 of 64 workers train, since the vocabulary has 4 parts (--parts)"
    assert (said in " ".join(capsys.readouterr().err.split())) == (workers == 64)


def test_a_full_disk_during_a_checkpoint_is_reported_in_one_sentence(
    inputs: Inputs, store: Store, tmp_path: Path
) -> None:
    """A limit on file sizes simulates a full disk."""
    code = f"""
import resource, signal
from pathlib import Path
from lexloom.tasks.store.artifacts import Artifact, Store
from tests.tasks.train.test_word2vec import CONFIG
from lexloom.tasks.train.word2vec import train_word2vec
inputs = [Artifact.model_validate_json(text) for text in {[entry.model_dump_json() for entry in inputs]!r}]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
try:
    train_word2vec._build(Store(), "k", tuple(inputs), CONFIG, [])
except OSError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "LEXLOOM_STORE": str(store.root)},
        check=False,
    )
    assert "File too large" in done.stdout, done.stderr
    assert not list(store.root.glob(".building/*"))
    assert not list(store.root.glob("train_word2vec/*"))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 3000


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"workers": 2, "min_workers": 3}, "min_workers 3 exceeds the 2 workers"),
        ({"learning_rate": 0.00001}, "is above learning_rate"),
        ({"workers": 1025}, "less than or equal to 1024"),
        ({"sync_period": 17}, "Extra inputs are not permitted"),
        ({"batch_size": 1000}, "Extra inputs are not permitted"),
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"negatives": 0}, "greater than or equal to 1"),
    ],
)
def test_inconsistent_values_are_rejected_early(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        TrainWord2VecConfig(**fields)  # type: ignore[arg-type]


# From tokens


def test_streamed_pairs_give_the_same_neighbours_and_count_tokens(
    inputs: Inputs, tokens: Artifact, build: Callable[..., Artifact], tmp_path: Path
) -> None:
    model = build(train_word2vec, tokens, *inputs[1:], config=STREAMED, scratch=tmp_path)
    near = [word for word, _ in WordVectors.load(model.folder).neighbours(["w10"], 10)[0]]
    assert sum(int(word[1:]) % 2 == 0 for word in near) >= 9
    metrics = json.loads((model.folder / "metrics.json").read_text())
    assert (metrics["unit"], metrics["examples"]) == ("tokens", 2 * tokens.summary.rows)
    assert (model.summary.rows_in, model.summary.unit_in) == (2 * tokens.summary.rows, "tokens in 2 epochs")
    assert "tokens (2 epochs)" in (model.folder / "README.md").read_text()
    assert json.loads((model.folder / "config.json").read_text())["pairs"]["window"] == 3


@pytest.mark.parametrize(
    ("episode", "options", "tokens_of_an_episode"),
    [
        (12_000, {}, 3000),  # a window of 1, 2 or 3: four pairs per token
        (12_000, {"shrink_window": False}, 2000),
        (1000, {}, 250),
        (1, {}, 1),
        (3000, {"subsample": 1e-6}, 3000),  # hardly a word is kept
    ],
)
def test_tokens_of_an_episode_make_about_its_number_of_pairs(
    inputs: Inputs,
    tokens: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    episode: int,
    options: dict[str, Any],
    tokens_of_an_episode: int,
) -> None:
    update = {"mode": "streamed", "pairs_per_episode": episode, **options}
    config = CONFIG.reading(PAIRS_OF.model_copy(update=update))
    job = plan(monkeypatch, (tokens, *inputs[1:]), config, tmp_path)
    epoch = job.open_stream(job, 0, 1, False).epoch(0)
    assert epoch.steps == PARTS * -(-tokens.summary.rows // tokens_of_an_episode)
    assert epoch.examples_until(PARTS) == tokens_of_an_episode


def test_the_key_has_pair_parameters_only_with_streamed_pairs(inputs: Inputs, tokens: Artifact) -> None:
    def key(**options: Any) -> str:
        pairs = PairsConfig(**{"mode": "streamed", **options})
        return train_word2vec.key((tokens, *inputs[1:]), CONFIG.reading(pairs))

    changes: list[dict[str, Any]] = [
        *({"window": 4}, {"shrink_window": False}, {"subsample": 0.1}, {"seed": 2}),
        *({"validation_share": 0.1}, {"parts": 2}, {"pairs_per_episode": 9}),
    ]
    assert len({key(), *(key(**change) for change in changes)}) == 8
    assert key(compression="zstd") == key()
    assert CONFIG.reading(PairsConfig(window=4)) is CONFIG


def test_training_with_streamed_pairs_stops_early(
    inputs: Inputs, tokens: Artifact, build: Callable[..., Artifact], tmp_path: Path
) -> None:
    patient = CONFIG.model_copy(
        update={"epochs": 50, "evaluate_every": 10, "patience": 2, "min_delta": 0.05, "learning_rate": 0.2}
    )
    held_out = {"mode": "streamed", "validation_share": 0.2}
    config = patient.reading(PAIRS_OF.model_copy(update=held_out))
    model = build(train_word2vec, tokens, *inputs[1:], config=config, scratch=tmp_path)
    metrics = json.loads((model.folder / "metrics.json").read_text())
    assert metrics["stop_reason"] == "patience"
    assert metrics["epochs"] < 50
    assert metrics["validation_loss"] == min(score["loss"] for score in metrics["scores"])


def test_tokens_without_pairs_or_held_out_documents_are_rejected(
    inputs: Inputs, store: Store, build: Callable[..., Artifact], tmp_path: Path
) -> None:
    lonely = tokens_of([[1], [2], [3], [4]], store, "lonely")
    with pytest.raises(ValueError, match="none of the 8 training steps had an example"):
        build(train_word2vec, lonely, *inputs[1:], config=STREAMED, scratch=tmp_path)
    config = CONFIG.reading(PairsConfig(mode="streamed", validation_share=0.001))
    with pytest.raises(ValueError, match="none of 4 documents is held out: raise validation_share"):
        build(train_word2vec, lonely, *inputs[1:], config=config, scratch=tmp_path)


def test_the_mean_loss_is_weighted_by_examples() -> None:
    points = ((100, 4.0), (100, 2.0), (50, 1.0))
    history = [{"loss_examples": examples, "loss": loss} for examples, loss in points]
    assert mean_loss(history) == pytest.approx((100 * 4 + 100 * 2 + 50 * 1) / 250)
    assert mean_loss(history[:1]) == 4.0


# Several workers


STEPS = 10  # ends within an episode
LIMITS: dict[str, Any] = {"stopping": Stopping(max_steps=STEPS), "checkpoint_every": 3}


def plan(
    monkeypatch: pytest.MonkeyPatch, inputs: Inputs, config: TrainWord2VecConfig, folder: Path, **own: Any
) -> Job:
    """The stage's job, in a folder of its own."""
    jobs: list[Job] = []

    def catch(job: Job, *_: Any) -> None:
        jobs.append(job)
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(lexloom.tasks.train.word2vec, "run_job", catch)
        with pytest.raises(InterruptedError):
            train_word2vec.function(*inputs, config, folder, folder)
    return replace(jobs[0], **own)


def die_at(step: int, epoch: int, place: int, worker: int, batch: dict[str, np.ndarray]) -> None:
    """`Job.on_batch` that kills the run before a step of the first epoch, on all workers."""
    if place >= step:
        raise KilledError


def result(job: Job) -> Checkpoint:
    found = Checkpoints(job.checkpoints, job.fingerprint).load()
    assert found is not None
    assert found.state["stop_reason"] == "max_steps"
    return found


def test_any_number_of_workers_makes_the_same_bits(
    inputs: Inputs,
    validated: Inputs,
    tokens: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stored and streamed, with and without validation; from three workers to two to one, with two kills.

    Groups of processes take seconds to start, so each group trains all jobs.
    """
    evaluated = CONFIG.model_copy(update={"evaluate_every": 3})
    streamed = {"mode": "streamed", "validation_share": 0.1}
    kinds = {
        "stored": (inputs, CONFIG),
        "stored, evaluated": (validated, evaluated),
        "streamed": ((tokens, *inputs[1:]), STREAMED),
        "streamed, evaluated": (
            (tokens, *inputs[1:]),
            evaluated.reading(PAIRS_OF.model_copy(update=streamed)),
        ),
    }

    def jobs(name: str, threads: int = 1, **own: Any) -> list[Job]:
        return [
            plan(
                *(
                    monkeypatch,
                    chosen,
                    config.model_copy(update={"threads": threads}),
                    tmp_path / kind / name,
                ),
                **LIMITS,
                **own,
            )
            for kind, (chosen, config) in kinds.items()
        ]

    train_in_pieces(0, 1, jobs("one"))
    changing = [jobs("changing", on_batch=partial(die_at, step)) for step in (4, 8)]
    on_processes(3, train_in_pieces, [*jobs("three", threads=2), *changing[0]])
    on_processes(2, train_in_pieces, [*jobs("two"), *changing[1]])
    train_in_pieces(0, 1, jobs("changing"))
    for name, one, *others in zip(
        kinds, *(jobs(name) for name in ("one", "two", "three", "changing")), strict=True
    ):
        expected = result(one)
        assert len(expected.tensors) == 2 * PARTS
        assert len(expected.state["scores"]) == (4 if "evaluated" in name else 0)
        for other in others:
            found = result(other)
            assert found.tensors.keys() == expected.tensors.keys()
            assert all(torch.equal(piece, found.tensors[key]) for key, piece in expected.tensors.items())
            for figures in ("history", "scores"):
                assert comparable(found.state[figures]) == comparable(expected.state[figures])


# the number of epochs


@pytest.mark.parametrize(
    ("given", "pairs", "epochs"),
    [
        ("auto", 1e12, 1),
        ("auto", SINGLE_EPOCH_PAIRS, 1),
        ("auto", SINGLE_EPOCH_PAIRS / 36, 6),
        ("auto", 10, MAX_AUTO_EPOCHS),
        (3, 1e9, 3),
        (200, 10, 200),
    ],
)
def test_epochs_follow_the_number_of_pairs_unless_they_are_given(
    given: Any, pairs: float, epochs: int
) -> None:
    config = TrainWord2VecConfig(epochs=given)
    resolved = config.with_epochs(pairs)
    assert resolved.epochs == epochs
    assert resolved.stopping().max_epochs == epochs
    key = train_word2vec.key((), resolved)
    assert key == train_word2vec.key((), TrainWord2VecConfig(epochs=epochs))


def test_pairs_are_counted_if_stored_and_estimated_if_streamed(inputs: Inputs, tokens: Artifact) -> None:
    examples, _, vocabulary = inputs
    stored = count_pairs(examples, vocabulary, PAIRS_OF)
    assert stored == examples.facts["pairs"]
    estimate = count_pairs(tokens, vocabulary, PAIRS_OF.model_copy(update={"mode": "streamed"}))
    counts = np.arange(WORDS, 0, -1)
    assert estimate == pytest.approx(counts.sum() * (PAIRS_OF.window + 1), rel=0.01)
