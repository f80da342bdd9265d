"""Tests of the training stage of word2vec: model folder, and bit-identical resumption."""

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
from lexloom.models.word2vec.trainable import Word2Vec
from lexloom.models.word2vec.vectors import WordVectors
from lexloom.tasks.negative_sampling import NoiseConfig, negative_sampling, read_noise
from lexloom.tasks.pairs import PairsConfig
from lexloom.tasks.store.activity import list_interrupted_stages
from lexloom.tasks.store.artifacts import Artifact, Store, Summary, canonical
from lexloom.tasks.train.run import ACCOUNTS, mean_loss
from lexloom.tasks.train.word2vec import TrainWord2VecConfig, train_word2vec
from lexloom.training.checkpoint_files import Checkpoints
from lexloom.training.stopping import Stopping
from lexloom.training.sync.config import SyncConfig
from tests.tasks.cards import run_card
from tests.tasks.guarantees import assert_equal, broken, planner
from tests.training.toy import on_processes, train_in_pieces

RULES = {"normalization": Normalization().model_dump(mode="json")}
WORDS = 50
PAIRS = 20_000
CONFIG = TrainWord2VecConfig(
    runner="local", workers=1, epochs=2, dim=16, batch_size=1000, checkpoint_every=7, negatives=3
)


@pytest.fixture
def inputs(store: Store, build: Callable[..., Artifact]) -> tuple[Artifact, Artifact, Artifact]:
    """Pairs, noise and vocabulary of a synthetic language in which even words co-occur with even words."""
    generator = np.random.default_rng(0)
    targets = np.repeat(generator.integers(0, WORDS, PAIRS // 5), 5).astype(np.int32)
    contexts = (generator.integers(0, WORDS // 2, PAIRS) * 2 + targets % 2).astype(np.int32)
    artifacts = {}
    for stage, name, table in [
        ("pairs", "train-00000.parquet", {"target": targets, "context": contexts}),
        (
            "vocabulary",
            "vocabulary.parquet",
            {"word": [f"w{i}" for i in range(WORDS)], "count": np.arange(WORDS, 0, -1)},
        ),
    ]:
        folder = store.folder(stage, "key")
        folder.mkdir(parents=True)
        pq.write_table(pa.table(table), folder / name)
        artifacts[stage] = Artifact(
            stage=stage,
            key="key",
            folder=folder,
            summary=Summary(rows_in=1, unit_in="rows", rows=1, unit="rows", facts=RULES),
        )
    vocabulary = artifacts["vocabulary"]
    return artifacts["pairs"], build(negative_sampling, vocabulary, config=NoiseConfig()), vocabulary


def test_the_model_folder_has_all_files(
    inputs: tuple[Artifact, ...], build: Callable[..., Artifact], tmp_path: Path
) -> None:
    model = build(train_word2vec, *inputs, config=CONFIG, scratch=tmp_path)
    vectors = WordVectors.load(model.folder)
    assert vectors.vectors.shape == (WORDS, 16)
    assert vectors.normalization == Normalization()
    near = [word for word, _ in vectors.neighbours(["«W10»"], 10)[0]]
    assert sum(int(word[1:]) % 2 == 0 for word in near) >= 9
    metrics = json.loads((model.folder / "metrics.json").read_text())
    assert metrics["examples"] == 2 * PAIRS
    assert metrics["loss"] < metrics["history"][0]["loss"]
    assert "dim" in json.loads((model.folder / "config.json").read_text())
    assert "runner" not in json.loads((model.folder / "config.json").read_text())
    assert "Word vectors" in (model.folder / "README.md").read_text()


def test_gensim_loads_the_model_by_the_cards_code(
    inputs: tuple[Artifact, ...], build: Callable[..., Artifact], tmp_path: Path
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
    inputs: tuple[Artifact, ...], build: Callable[..., Artifact], tmp_path: Path
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
    inputs: tuple[Artifact, ...], build: Callable[..., Artifact], tmp_path: Path
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
    inputs: tuple[Artifact, ...], build: Callable[..., Artifact], tmp_path: Path
) -> None:
    pairs = inputs[0]
    (train,) = pairs.files()
    pq.write_table(pq.read_table(train).slice(0, 2000), pairs.folder / "validation-00000.parquet")
    config = CONFIG.model_copy(
        update={"epochs": 50, "evaluate_every": 10, "patience": 2, "min_delta": 0.05, "learning_rate": 0.2}
    )
    model = build(train_word2vec, *inputs, config=config, scratch=tmp_path)
    metrics = json.loads((model.folder / "metrics.json").read_text())
    assert metrics["stop_reason"] == "patience"
    assert metrics["epochs"] < 50
    losses = {score["step"]: score["loss"] for score in metrics["scores"]}
    assert losses[metrics["best_step"]] == metrics["validation_loss"] == min(losses.values())
    probability, alias = read_noise(inputs[1])
    kept = Word2Vec(probability, alias, dim=16, negatives=3)
    kept.vectors[:, :16] = load_file(model.folder / "model.safetensors")["vectors"]
    best = Checkpoints(tmp_path / "checkpoints", fingerprint_of(tmp_path)).load_step(metrics["best_step"])
    assert best is not None
    assert torch.equal(best.tensors["vectors"], kept.vectors), "the model is not the best step's"
    accounts = sum(metrics[f"{name}_seconds"] for name in ACCOUNTS)
    assert 0.5 * metrics["seconds"] < accounts <= metrics["seconds"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_reported(
    inputs: tuple[Artifact, ...], build: Callable[..., Artifact], tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"device": "cuda"})
    with pytest.raises(ValueError, match="torch finds no GPU on this machine"):
        build(train_word2vec, *inputs, config=config, scratch=tmp_path)


def fingerprint_of(scratch: Path) -> str:
    manifest = next((scratch / "checkpoints").glob("step-*/manifest.json"))
    return str(json.loads(manifest.read_text())["fingerprint"])


def test_a_killed_stage_is_resumed_with_the_same_result(
    inputs: tuple[Artifact, ...],
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
    inputs: tuple[Artifact, ...],
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
    inputs: tuple[Artifact, ...],
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


@pytest.mark.parametrize("change", [{"checkpoint_every": 3}, {"checkpoint_seconds": 5.0}])
def test_checkpoint_options_are_not_part_of_the_key(
    inputs: tuple[Artifact, ...], change: dict[str, Any]
) -> None:
    assert train_word2vec.key(inputs, CONFIG) == train_word2vec.key(inputs, CONFIG.model_copy(update=change))


def test_a_full_disk_during_a_checkpoint_is_reported_in_one_sentence(
    inputs: tuple[Artifact, ...], store: Store, tmp_path: Path
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
        ({"runner": "local", "workers": 2}, "the local runner has one worker"),
        ({"workers": 2, "min_workers": 3}, "min_workers 3 exceeds the 2 workers"),
        ({"learning_rate": 0.00001}, "is above learning_rate"),
        ({"sync_period": 17}, "sync_rare_period 16 is below sync_period 17"),
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"negatives": 0}, "greater than or equal to 1"),
    ],
)
def test_inconsistent_values_are_rejected_early(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        TrainWord2VecConfig(**fields)  # type: ignore[arg-type]


# from tokens


STREAMED = CONFIG.reading(PairsConfig(mode="streamed", window=3, subsample=0))


@pytest.fixture
def tokens(store: Store) -> Artifact:
    """Write 400 documents of 10 to 29 words of the same language, in two shards."""
    generator = np.random.default_rng(1)
    documents = [
        (generator.integers(0, WORDS // 2, length) * 2 + number % 2).tolist()
        for number, length in enumerate(generator.integers(10, 30, 400))
    ]
    return tokens_of(documents, store)


def tokens_of(documents: list[list[int]], store: Store) -> Artifact:
    folder = store.folder("tokens", "key")
    folder.mkdir(parents=True)
    for shard in (0, 1):
        rows = pa.array(documents[shard * len(documents) // 2 :][: len(documents) // 2], pa.list_(pa.int32()))
        pq.write_table(pa.table({"tokens": rows}), folder / f"shard-{shard:05d}.parquet", row_group_size=50)
    total = sum(map(len, documents))
    summary = Summary(rows_in=total, unit_in="words", rows=total, unit="tokens")
    return Artifact(stage="tokens", key="key", folder=folder, summary=summary)


def test_streamed_pairs_give_the_same_neighbours_and_count_tokens(
    inputs: tuple[Artifact, ...], tokens: Artifact, build: Callable[..., Artifact], tmp_path: Path
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
    ("batch_size", "options", "tokens_of_a_step"),
    [
        (12_000, {"window": 3, "subsample": 0}, 3000),  # a window of 1, 2 or 3: four pairs a token
        (12_000, {"window": 3, "subsample": 0, "shrink_window": False}, 2000),
        (1000, {"window": 3, "subsample": 0}, 8 * 64 * 3),  # else the ends of the lanes' parts cost pairs
        (12_000, {"window": 3, "subsample": 1e-6}, 12_000),  # hardly a word is kept
    ],
)
def test_the_tokens_of_a_step_make_about_batch_size_pairs(
    inputs: tuple[Artifact, ...],
    tokens: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int,
    options: dict[str, Any],
    tokens_of_a_step: int,
) -> None:
    config = CONFIG.model_copy(update={"batch_size": batch_size})
    config = config.reading(PairsConfig(mode="streamed", **options))
    plan = planner(
        monkeypatch, lexloom.tasks.train.word2vec, train_word2vec, (tokens, *inputs[1:]), config, tmp_path
    )
    assert plan("job", SyncConfig("delta_sum")).batch_size == tokens_of_a_step


def test_the_key_has_pair_parameters_only_with_streamed_pairs(
    inputs: tuple[Artifact, ...], tokens: Artifact
) -> None:
    def key(**options: Any) -> str:
        pairs = PairsConfig(**{"mode": "streamed", **options})
        return train_word2vec.key((tokens, *inputs[1:]), CONFIG.reading(pairs))

    changes: list[dict[str, Any]] = [
        *({"window": 4}, {"shrink_window": False}, {"subsample": 0.1}, {"seed": 2}),
        {"validation_share": 0.1},
    ]
    assert len({key(), *(key(**change) for change in changes)}) == 6
    assert key(compression="zstd", pairs_per_shard=1) == key()
    assert CONFIG.reading(PairsConfig(window=4)) is CONFIG


def test_training_with_streamed_pairs_stops_early(
    inputs: tuple[Artifact, ...], tokens: Artifact, build: Callable[..., Artifact], tmp_path: Path
) -> None:
    patient = CONFIG.model_copy(
        update={"epochs": 50, "evaluate_every": 10, "patience": 2, "min_delta": 0.05, "learning_rate": 0.2}
    )
    config = patient.reading(PairsConfig(mode="streamed", window=3, subsample=0, validation_share=0.2))
    model = build(train_word2vec, tokens, *inputs[1:], config=config, scratch=tmp_path)
    metrics = json.loads((model.folder / "metrics.json").read_text())
    assert metrics["stop_reason"] == "patience"
    assert metrics["epochs"] < 50
    assert metrics["validation_loss"] == min(score["loss"] for score in metrics["scores"])


def note(folder: Path, epoch: int, step: int, worker: int, batch: dict[str, np.ndarray]) -> None:
    np.stack([batch["row"], batch["position"]]).tofile(folder / f"{epoch}-{step}-{worker}")


def test_streamed_pairs_resume_bit_for_bit_and_are_shared_by_workers(
    inputs: tuple[Artifact, ...], tokens: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage_inputs = (tokens, *inputs[1:])
    plan = planner(
        monkeypatch, lexloom.tasks.train.word2vec, train_word2vec, stage_inputs, STREAMED, tmp_path
    )
    delta_sum = SyncConfig("delta_sum", period=3)
    whole, killed, shared, cut_short = (plan(name, delta_sum) for name in ("a", "b", "c", "d"))
    train_in_pieces(0, 1, [whole, broken(killed, 8), killed])
    assert_equal(whole, killed)
    (noted := tmp_path / "noted").mkdir()
    epoch = replace(
        plan("e", delta_sum, epochs=1), stopping=Stopping(max_epochs=1), on_batch=partial(note, noted)
    )
    on_processes(2, train_in_pieces, [shared, broken(cut_short, 8), cut_short, epoch])
    assert_equal(shared, cut_short)
    taken = np.concatenate([np.fromfile(path, np.int64).reshape(2, -1) for path in noted.iterdir()], axis=1)
    lengths = [len(row) for path in tokens.files() for row in pq.read_table(path)["tokens"].to_pylist()]
    everything = [(row, place) for row, length in enumerate(lengths) for place in range(length)]
    assert sorted(map(tuple, taken.T.tolist())) == everything


def test_tokens_without_pairs_or_held_out_documents_are_rejected(
    inputs: tuple[Artifact, ...], store: Store, build: Callable[..., Artifact], tmp_path: Path
) -> None:
    lonely = tokens_of([[1], [2], [3], [4]], store)
    with pytest.raises(ValueError, match="no pair can be made of 8 tokens: no document keeps two words"):
        build(train_word2vec, lonely, *inputs[1:], config=STREAMED, scratch=tmp_path)
    config = CONFIG.reading(PairsConfig(mode="streamed", validation_share=0.001))
    with pytest.raises(ValueError, match="none of 4 documents is held out: raise validation_share"):
        build(train_word2vec, lonely, *inputs[1:], config=config, scratch=tmp_path)


def test_the_mean_loss_is_weighted_by_examples() -> None:
    points = ((100, 4.0), (100, 2.0), (50, 1.0))
    history = [{"loss_examples": examples, "loss": loss} for examples, loss in points]
    assert mean_loss(history) == pytest.approx((100 * 4 + 100 * 2 + 50 * 1) / 250)
    assert mean_loss(history[:1]) == 4.0


def test_threads_are_rejected_on_a_gpu() -> None:
    with pytest.raises(ValueError, match="threads only apply to a CPU: omit --threads"):
        TrainWord2VecConfig(workers=1, device="cuda", threads=2)


def test_the_default_batch_size_depends_on_workers_and_device():
    one = TrainWord2VecConfig(workers=1)
    assert (one.batch_size, TrainWord2VecConfig(workers=2).batch_size) == (131_072, 32_768)
    assert TrainWord2VecConfig(workers=1, device="cuda").batch_size == 1 << 20
    assert TrainWord2VecConfig(workers=1, batch_size=8).batch_size == 8
    assert canonical(one) == canonical(TrainWord2VecConfig(workers=1, batch_size=131_072)), "the same key"
