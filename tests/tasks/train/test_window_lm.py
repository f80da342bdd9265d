"""Tests of the training stage of the window language model: model folder, embeddings, resumption."""

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from lexloom.models.language_model import load_language_model
from lexloom.models.tokenizer.tokenizer import Tokenizer
from lexloom.models.window_lm import WindowLM, scale_to_unit_rms
from lexloom.tasks.corpus import AsWritten
from lexloom.tasks.embeddings import EmbeddingsConfig, embeddings, locate_embeddings, read_embeddings
from lexloom.tasks.store.artifacts import Artifact, Store, Summary
from lexloom.tasks.subwords import SubwordsConfig, locate_encoding, subwords
from lexloom.tasks.train import window_lm as module
from lexloom.tasks.train.window_lm import TrainWindowLMConfig, train_window_lm
from lexloom.tasks.windows import WindowsConfig, windows
from lexloom.training.loop import train
from lexloom.training.sync.config import SyncConfig
from lexloom.training.torch_trainable import TorchTrainable
from tests.tasks import guarantees
from tests.tasks.cards import run_card
from tests.tasks.guarantees import Plan, planner
from tests.tasks.test_vocabulary import corpus_of

SYLLABLES = ("ba", "de", "fi", "go", "ku")
CONFIG = TrainWindowLMConfig(
    runner="local",
    workers=1,
    epochs=2,
    batch_size=64,
    checkpoint_every=7,
    width=32,
    depth=2,
    fine_tuned=False,
    features=16,
    cutoffs=(8,),
    learning_rate=0.01,
    precision="float32",
)
Inputs = tuple[Artifact, Artifact, Artifact]


def babble(documents: int = 60) -> list[str]:
    """Return texts in which each vowel follows from the consonant before it, and consonants are random."""
    generator = np.random.default_rng(0)
    return ["".join(generator.choice(SYLLABLES, 20)) for _ in range(documents)]


@pytest.fixture
def inputs(build: Callable[..., Artifact], tmp_path: Path) -> Inputs:
    """Windows of three characters, random embeddings, and their tokens."""
    corpus = corpus_of(tmp_path / "corpus", babble())
    corpus.facts["normalization"] = AsWritten(lower=True).model_dump(mode="json")
    config = SubwordsConfig(encoding="characters", validation_share=0.2)
    tokens = build(subwords, corpus, locate_encoding(config), config=config)
    table = EmbeddingsConfig(source="random", dim=8)
    return (
        build(windows, tokens, config=WindowsConfig(size=3)),
        build(embeddings, tokens, locate_embeddings(table), config=table),
        tokens,
    )


def test_the_model_folder_has_all_files(
    inputs: Inputs, build: Callable[..., Artifact], tmp_path: Path
) -> None:
    made = build(train_window_lm, *inputs, config=CONFIG, scratch=tmp_path)
    model, tokenizer = WindowLM.load(made.folder), Tokenizer.load(made.folder / "tokenizer")
    assert load_language_model(made.folder).prompt("BAd ") == "bad "
    ids = torch.tensor([tokenizer.encode("bad"), tokenizer.encode("gok")])
    assert tokenizer.decode(model.best(ids[:, -2:], 1)[:, 0].tolist()) == "eu"
    metrics = json.loads((made.folder / "metrics.json").read_text())
    # half of the letters are chance, one of five: log(5) / 2 and a little for the ends is what can be learned
    assert 0.7 < metrics["validation_loss"] < 1.1
    assert metrics["precision"] == made.facts["precision"] == "float32"
    assert metrics["examples"] == 2 * int(inputs[0].facts["windows"])  # type: ignore[call-overload]
    config = json.loads((made.folder / "config.json").read_text())
    assert (config["model"], config["shape"]["context"], config["learning_rate"]) == ("window_lm", 2, 0.01)
    assert "runner" not in config
    assert made.facts["validation_loss"] == metrics["validation_loss"]


def test_the_code_of_the_model_card_runs(
    inputs: Inputs, build: Callable[..., Artifact], tmp_path: Path
) -> None:
    """The code runs unchanged except for the folder's name and a prompt of known characters."""
    made = build(train_window_lm, *inputs, config=CONFIG, scratch=tmp_path)
    card = (made.folder / "README.md").read_text()
    assert "Predicts the next token from the 2 before it: 2 dense layers of 32" in card
    assert "Trained with Lexloom on" in card
    with redirect_stdout(io.StringIO()) as printed:
        run_card(made.folder, {"The people": "baf", "temperature=0.8": "temperature=0"})
    assert printed.getvalue().startswith("i")
    assert "transformers can't load this folder" in card
    for door in (AutoModel, AutoModelForCausalLM, AutoTokenizer):
        with pytest.raises(ValueError, match=r"Unrecognized model|Couldn't instantiate"):
            door.from_pretrained(made.folder)


@pytest.mark.parametrize("fine_tuned", [False, True])
def test_embeddings_change_only_if_fine_tuned(
    inputs: Inputs, build: Callable[..., Artifact], tmp_path: Path, fine_tuned: bool
) -> None:
    config = CONFIG.model_copy(update={"fine_tuned": fine_tuned})
    made = build(train_window_lm, *inputs, config=config, scratch=tmp_path)
    before = scale_to_unit_rms(read_embeddings(inputs[1]))
    assert torch.equal(WindowLM.load(made.folder).embeddings, before) is not fine_tuned


@pytest.mark.parametrize(
    "changes",
    [
        {"output": "tied", "fine_tuned": True},
        {"output": "full", "activation": "gelu"},
        {"objective": "embedding", "error": "squared"},
        {"objective": "embedding", "error": "cosine"},
    ],
)
def test_all_outputs_and_objectives_learn(
    inputs: Inputs, build: Callable[..., Artifact], tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = TrainWindowLMConfig(**{**CONFIG.model_dump(), "epochs": 4, **changes})
    made = build(train_window_lm, *inputs, config=config, scratch=tmp_path)
    model, tokenizer = WindowLM.load(made.folder), Tokenizer.load(made.folder / "tokenizer")
    ids = torch.tensor([tokenizer.encode(f"{SYLLABLES[i - 1][1]}{SYLLABLES[i][0]}") for i in range(5)])
    predicted = tokenizer.decode(model.best(ids, 1)[:, 0].tolist())
    assert predicted == "".join(syllable[1] for syllable in SYLLABLES)


def test_a_killed_stage_is_resumed_with_the_same_result(
    inputs: Inputs, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> bytes:
        train_window_lm._build(store, train_window_lm.key(inputs, CONFIG), inputs, CONFIG, [])
        (model,) = store.root.glob("train_window_lm/*/model.safetensors")
        return model.read_bytes()

    undisturbed = run()
    store.discard("train_window_lm", train_window_lm.key(inputs, CONFIG))
    steps: list[float] = []
    update = TorchTrainable.update

    def dies_at_step_17(self: TorchTrainable, *, progress: float) -> None:
        steps.append(progress)
        if len(steps) == 17:
            raise KeyboardInterrupt
        update(self, progress=progress)

    monkeypatch.setattr(TorchTrainable, "update", dies_at_step_17)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert not list(store.root.glob("train_window_lm/*"))
    assert run() == undisturbed
    assert steps[17] == steps[14], "it went on from the checkpoint of step 14"


# the guarantees of the training loop, for this model


@pytest.fixture
def plan(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    config = CONFIG.model_copy(update={"fine_tuned": True, "dropout": 0.2})
    return planner(monkeypatch, module, train_window_lm, inputs, config, tmp_path)


@pytest.mark.parametrize("step", [3, 5, 8])
def test_resumed_equals_uninterrupted_bit_for_bit(plan: Plan, step: int) -> None:
    guarantees.assert_resumed_equals_uninterrupted(plan, step)


@pytest.mark.parametrize(("batch_size", "lanes"), [(1, 1), (3, 2), (100, 64)])
def test_a_batch_of_any_size_is_trained_in_full(plan: Plan, batch_size: int, lanes: int) -> None:
    job = plan("job", SyncConfig("all_reduce"), batch_size=batch_size)
    assert job.lanes == lanes
    assert train(job).examples == guarantees.STEPS * batch_size


def test_gradients_of_a_batchs_parts_have_the_mean_of_the_whole(plan: Plan) -> None:
    guarantees.gradients_of_a_batchs_parts_have_the_mean_of_the_whole(plan, dropout=0.0)


# what does not fit


def test_embeddings_of_other_tokens_are_rejected(
    inputs: Inputs, build: Callable[..., Artifact], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    save_file({"embeddings": torch.ones(99, 8)}, tmp_path / "other" / "embeddings.safetensors")
    summary = Summary(rows_in=1, unit_in="tokens", rows=1, unit="embeddings")
    other = Artifact(stage="embeddings", key="k", folder=tmp_path / "other", summary=summary)
    with pytest.raises(ValueError, match="embeddings for 99 tokens, but the tokenizer has 11"):
        build(train_window_lm, inputs[0], other, inputs[2], config=CONFIG, scratch=tmp_path)


def test_patience_without_held_out_windows_is_rejected(
    build: Callable[..., Artifact], inputs: Inputs, tmp_path: Path
) -> None:
    for path in inputs[0].files("validation-*.parquet"):
        path.unlink()
    config = CONFIG.model_copy(update={"patience": 2})
    with pytest.raises(ValueError, match="hold out some examples"):
        build(train_window_lm, *inputs, config=config, scratch=tmp_path)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"objective": "embedding", "fine_tuned": True}, "they would collapse"),
        ({"dropout": 1}, "less than 1"),
        ({"cutoffs": (10, 5)}, "cutoffs"),
        ({"output": "sampled"}, "'adaptive', 'full' or 'tied'"),
        ({"depth": 0}, "greater than or equal to 1"),
    ],
)
def test_inconsistent_values_are_rejected_early(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        TrainWindowLMConfig(**fields)


def test_embeddings_are_trained_unless_they_are_the_target() -> None:
    assert TrainWindowLMConfig().fine_tuned
    assert not TrainWindowLMConfig(objective="embedding").fine_tuned
    assert not TrainWindowLMConfig(fine_tuned=False).fine_tuned
