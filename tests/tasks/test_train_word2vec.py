"""The word2vec training stage: a model folder, resumed after a kill, the same to the bit."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from models.word2vec import Word2Vec, WordVectors
from tasks.artifacts import Artifact, Store, Summary, canonical
from tasks.noise import NoiseConfig, noise, read_noise
from tasks.train import ACCOUNTS, mean_loss
from tasks.train_word2vec import TrainWord2VecConfig, train_word2vec
from training.checkpoint import Checkpoints

WORDS = 50
PAIRS = 20_000
CONFIG = TrainWord2VecConfig(
    runner="local", workers=1, epochs=2, dim=16, batch_size=1000, checkpoint_every=7, negatives=3
)


@pytest.fixture
def inputs(store: Store, build: Callable[..., Artifact]) -> tuple[Artifact, Artifact, Artifact]:
    """Pairs, noise and vocabulary of an invented language in which even words meet even words."""
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
            summary=Summary(rows_in=1, unit_in="rows", rows=1, unit="rows"),
        )
    vocabulary = artifacts["vocabulary"]
    return artifacts["pairs"], build(noise, vocabulary, config=NoiseConfig()), vocabulary


def test_the_model_folder_holds_what_people_and_tools_read(
    inputs: tuple[Artifact, ...], build: Callable[..., Artifact], tmp_path: Path
) -> None:
    model = build(train_word2vec, *inputs, config=CONFIG, scratch=tmp_path)
    vectors = WordVectors.load(model.folder)
    assert vectors.vectors.shape == (WORDS, 16)
    near = [word for word, _ in vectors.neighbours(["w10"], 10)[0]]
    assert sum(int(word[1:]) % 2 == 0 for word in near) >= 9
    metrics = json.loads((model.folder / "metrics.json").read_text())
    assert metrics["examples"] == 2 * PAIRS
    assert metrics["loss"] < metrics["history"][0]["loss"]
    assert "dim" in json.loads((model.folder / "config.json").read_text())
    assert "runner" not in json.loads((model.folder / "config.json").read_text())
    assert "Word vectors" in (model.folder / "README.md").read_text()


def test_where_pairs_are_held_out_training_ends_when_the_error_ceases_to_shrink(
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
def test_a_missing_gpu_is_named(
    inputs: tuple[Artifact, ...], build: Callable[..., Artifact], tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"device": "cuda"})
    with pytest.raises(ValueError, match="torch finds no GPU on this machine"):
        build(train_word2vec, *inputs, config=config, scratch=tmp_path)


def fingerprint_of(scratch: Path) -> str:
    manifest = next((scratch / "checkpoints").glob("step-*/manifest.json"))
    return str(json.loads(manifest.read_text())["fingerprint"])


def test_a_stage_that_died_is_resumed_by_the_next_run_and_ends_the_same(
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
    assert "goes on" not in capsys.readouterr().err
    run()
    assert "goes on from its checkpoint of step 14" in capsys.readouterr().err
    assert len(steps) - before == all_steps - 14, "it did not go on from the checkpoint of step 14"
    assert torch.equal(weights(), undisturbed)
    assert not list(store.root.glob(".scratch/*"))


def test_a_disk_that_fills_up_under_a_checkpoint_ends_in_one_sentence(
    inputs: tuple[Artifact, ...], store: Store, tmp_path: Path
) -> None:
    """A limit on the size of files stands in for the full disk."""
    code = f"""
import resource, signal
from pathlib import Path
from tasks.artifacts import Artifact, Store
from tests.tasks.test_train_word2vec import CONFIG
from tasks.train_word2vec import train_word2vec
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
        cwd=Path(__file__).parents[2],
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
        ({"workers": 2, "min_workers": 3}, "min_workers 3 is above workers 2"),
        ({"learning_rate": 0.00001}, "is above learning_rate"),
        ({"sync_period": 17}, "sync_rare_period 16 is below sync_period 17"),
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"negatives": 0}, "greater than or equal to 1"),
    ],
)
def test_values_that_do_not_fit_are_refused_before_anything_runs(
    fields: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValidationError, match=complaint):
        TrainWord2VecConfig(**fields)  # type: ignore[arg-type]


def test_the_mean_loss_weighs_points_by_their_examples() -> None:
    history = [{"examples": 100, "loss": 4.0}, {"examples": 200, "loss": 2.0}, {"examples": 250, "loss": 1.0}]
    assert mean_loss(history) == pytest.approx((100 * 4 + 100 * 2 + 50 * 1) / 250)
    assert mean_loss(history[:1]) == 4.0


def test_steps_are_long_unless_workers_must_agree_after_them():
    one = TrainWord2VecConfig(workers=1)
    assert (one.batch_size, TrainWord2VecConfig(workers=2).batch_size) == (131_072, 32_768)
    assert TrainWord2VecConfig(workers=1, batch_size=8).batch_size == 8
    assert canonical(one) == canonical(TrainWord2VecConfig(workers=1, batch_size=131_072)), "the same key"
