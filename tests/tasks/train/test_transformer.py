"""Tests of the training stage of the transformer: model folder, and bit-identical resumption."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import pipeline

from lexloom.models.language_model import load_language_model
from lexloom.models.precision import Layer
from lexloom.models.sampling import Sampling, sample_text
from lexloom.models.tokenizer.tokenizer import Tokenizer
from lexloom.models.transformer.hf_io import load
from lexloom.models.transformer.model import CachedDecoder, Transformer, TransformerConfig, next_token_loss
from lexloom.tasks.corpus import AsWritten
from lexloom.tasks.store.artifacts import Artifact, Store, Summary
from lexloom.tasks.train import transformer as module
from lexloom.tasks.train.transformer import (
    TrainTransformerConfig,
    make_trainable,
    round_up_vocabulary,
    train_transformer,
)
from lexloom.tasks.train.transformer_defaults import PRESETS
from lexloom.tasks.windows import WindowsConfig, windows
from lexloom.training.torch_trainable import TorchTrainable
from tests.tasks import guarantees
from tests.tasks.cards import run_card
from tests.tasks.guarantees import Plan, planner

TEXT = "the cat sat on the mat and the dög ran. "  # every letter follows from the ones before it
CONTEXT = 16
CONFIG = TrainTransformerConfig(
    runner="local",
    workers=1,
    layers=1,
    width=32,
    context=CONTEXT,
    epochs=4,
    batch_size=16,
    checkpoint_every=7,
)
WINDOWS = WindowsConfig(size=CONTEXT + 1, stride=CONTEXT, across_documents=True)


@pytest.fixture
def inputs(store: Store, build: Callable[..., Artifact]) -> tuple[Artifact, Artifact]:
    """Windows and tokens of a repetitive text."""
    tokenizer = Tokenizer.of_characters(TEXT)
    folder = store.folder("subwords", "key")
    tokenizer.save(folder / "tokenizer")
    for part, times in (("train", 60), ("validation", 10)):
        rows = pa.array([tokenizer.encode(TEXT * times)], pa.list_(pa.int32()))
        pq.write_table(pa.table({"tokens": rows}), folder / f"{part}-00000.parquet")
    rules = AsWritten(strip_markup=True).model_dump(mode="json")
    facts = {"normalization": rules}
    summary = Summary(rows_in=1, unit_in="rows", rows=1, unit="rows", facts=facts)
    tokens = Artifact(stage="subwords", key="key", folder=folder, summary=summary)
    return build(windows, tokens, config=WINDOWS), tokens


def test_the_model_folder_has_all_files(
    inputs: tuple[Artifact, Artifact], build: Callable[..., Artifact], tmp_path: Path
) -> None:
    made = build(train_transformer, *inputs, config=CONFIG, scratch=tmp_path)
    folder = made.folder
    metrics = json.loads((folder / "metrics.json").read_text())
    model, tokenizer = load(folder), Tokenizer.load(folder / "tokenizer")

    assert load_language_model(folder).prompt("<p>The <unk>") == " The <unk>"
    rows = pq.read_table(inputs[0].files("validation-*.parquet"))
    batch = {
        "inputs": torch.tensor(rows["inputs"].to_pylist()),
        "label": torch.tensor(rows["label"].to_pylist()),
    }
    with torch.no_grad():
        loss = next_token_loss(model, batch).item()
    assert metrics["validation_loss"] == pytest.approx(loss, rel=0.02), "bfloat16, where it is faster"
    assert loss < 0.5 < 2.5 < metrics["history"][0]["loss"]
    text = TEXT * 10
    predicted = text[1 : 1 + CONTEXT * ((len(text) - 1) // CONTEXT)]
    nats = metrics["validation_loss"] * len(predicted)
    assert metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(predicted.encode()))
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["validation_loss"]))

    samples = [score["sample"] for score in metrics["scores"]]
    assert len(samples) == 4, "one an epoch"
    known = [sum(text[start : start + 4] in TEXT * 2 for start in range(61)) for text in samples]
    assert known[0] < known[-1] > 35, "it learns to write the text's words"

    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert made.summary.rows == sum(parameter.numel() for parameter in model.parameters())
    card = (folder / "README.md").read_text()
    assert f"{made.summary.rows:,} parameters" in card
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen3"


@pytest.mark.parametrize("style", ["modern", "gpt2"])
def test_transformers_loads_the_folder_by_the_cards_code(
    style: str, inputs: tuple[Artifact, Artifact], build: Callable[..., Artifact], tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"style": style, "epochs": 1})
    folder = build(train_transformer, *inputs, config=config, scratch=tmp_path).folder
    names = run_card(folder, {'"The people"': '"the "', '"The "': '"the "'})
    model, tokenizer = load(folder), Tokenizer.load(folder / "tokenizer")
    assert names["tokenizer"].encode(TEXT) == tokenizer.encode(TEXT)
    ids = tokenizer.encode(TEXT)[:CONTEXT]
    with torch.no_grad():
        theirs = names["model"](torch.tensor([ids])).logits
        torch.testing.assert_close(theirs, model(torch.tensor([ids])), atol=1e-4, rtol=1e-4)
    (found,) = pipeline("text-generation", str(folder))("the dög", do_sample=False)
    sampling = Sampling(max_tokens=CONTEXT - len("the dög"), temperature=0)
    pieces = sample_text(CachedDecoder(model), tokenizer, ["the dög"], sampling)
    assert found["generated_text"] == "the dög" + "".join(piece for (piece,) in pieces)


def test_a_killed_stage_is_resumed_with_the_same_result(
    inputs: tuple[Artifact, Artifact], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = train_transformer.key(inputs, CONFIG)

    def weights() -> dict[str, torch.Tensor]:
        (model,) = store.root.glob("train_transformer/*/model.safetensors")
        return load_file(model)

    def run() -> None:
        train_transformer._build(store, key, inputs, CONFIG, [])

    run()
    undisturbed = weights()
    store.discard("train_transformer", key)
    steps: list[float] = []
    train_step = TorchTrainable.train_step

    def dies_at_step_17(
        self: TorchTrainable, batch: dict[str, np.ndarray], *, progress: float, seed: int
    ) -> Any:
        steps.append(progress)
        if len(steps) == 17:
            raise KeyboardInterrupt
        return train_step(self, batch, progress=progress, seed=seed)

    monkeypatch.setattr(TorchTrainable, "train_step", dies_at_step_17)
    with pytest.raises(KeyboardInterrupt):
        run()
    run()
    assert steps[17] == steps[14], "it goes on from the checkpoint of step 14"
    for name, tensor in weights().items():
        assert torch.equal(tensor, undisturbed[name]), name


@pytest.fixture
def plan(inputs: tuple[Artifact, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    config = CONFIG.model_copy(update={"dropout": 0.1, "precision": "float32"})
    return planner(monkeypatch, module, train_transformer, inputs, config, tmp_path)


@pytest.mark.parametrize("step", [3, 5, 8])
def test_resumed_equals_uninterrupted_bit_for_bit(plan: Plan, step: int) -> None:
    guarantees.assert_resumed_equals_uninterrupted(plan, step)


def test_two_workers_resume_bit_for_bit_and_all_reduce_equals_one(plan: Plan) -> None:
    guarantees.assert_two_workers_resume_and_equal_one(
        plan, dropout=0.0, optimizer="adamw"
    )  # Muon makes as much of a gradient of rounding errors as of any other


def test_windows_of_another_length_are_rejected(
    inputs: tuple[Artifact, Artifact], build: Callable[..., Artifact], tmp_path: Path
) -> None:
    longer = TrainTransformerConfig(runner="local", workers=1, context=20, epochs=1)
    with pytest.raises(ValueError, match="the windows have 17 tokens, but a context of 20 needs 21"):
        build(train_transformer, *inputs, config=longer, scratch=tmp_path)


def test_a_text_shorter_than_a_window_is_rejected_before_training(
    inputs: tuple[Artifact, Artifact], build: Callable[..., Artifact]
) -> None:
    with pytest.raises(ValueError, match="no window of 5,001 tokens fits into the training part"):
        build(windows, inputs[1], config=WindowsConfig(size=5001, stride=5000, across_documents=True))


def test_without_held_out_text_there_is_no_score(
    inputs: tuple[Artifact, Artifact], build: Callable[..., Artifact], tmp_path: Path
) -> None:
    for path in inputs[0].files("validation-*.parquet"):
        path.unlink()
    config = CONFIG.model_copy(update={"max_steps": 2, "style": "gpt2", "optimizer": "adamw"})
    folder = build(train_transformer, *inputs, config=config, scratch=tmp_path).folder
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["steps"] == 2
    assert not metrics.keys() & {"validation_loss", "perplexity", "bits_per_byte"}
    assert "held-out text its loss" not in (folder / "README.md").read_text()


def test_defaults_are_the_presets() -> None:
    assert TrainTransformerConfig(epochs=2).model_dump().items() >= PRESETS["tiny"].items()
    assert TrainTransformerConfig(preset="tiny").model_dump().items() >= PRESETS["tiny"].items()
    small = TrainTransformerConfig(preset="small", layers=3, width=None)
    assert (small.layers, small.width, small.micro_batch) == (3, 768, 16)
    assert TrainTransformerConfig.model_validate(small.model_dump()) == small
    assert TrainTransformerConfig.model_validate_json(small.model_dump_json()) == small


@pytest.mark.parametrize(
    ("preset", "vocabulary", "parameters"),
    [("tiny", 66, 0.80e6), ("char", 66, 10.64e6), ("small", 50_257, 123.6e6)],
)
def test_presets_have_the_documented_sizes(preset: Any, vocabulary: int, parameters: float) -> None:
    network = TrainTransformerConfig(preset=preset).network(round_up_vocabulary(vocabulary))
    with torch.device("meta"):
        found = sum(parameter.numel() for parameter in Transformer(network).parameters())
    assert found == pytest.approx(parameters, rel=0.01)


def test_a_large_vocabulary_is_rounded_up() -> None:
    rounded = [round_up_vocabulary(size) for size in (66, 4095, 4097, 50_257, 50_304)]
    assert rounded == [66, 4095, 4160, 50_304, 50_304]


def test_options_reach_the_training() -> None:
    config = TrainTransformerConfig(
        epochs=1,
        matrix_learning_rate=0.5,
        learning_rate=0.25,
        decay=0.5,
        final=0.1,
        warm_up=0.1,
        precision="float32",
        threads=1,
    )
    network = TransformerConfig(vocabulary=5, context=4, layers=1, width=8, heads=1)
    made = make_trainable(network, config, config.resources())
    made.prepare("cpu")
    assert made.learning_rate(0.3) == 0.5
    assert made.learning_rate(1.0) == pytest.approx(0.05)
    assert made.learning_rate(0.0) == pytest.approx(0.005)
    assert not made._bfloat16
    use_bfloat16 = make_trainable(
        network, config.model_copy(update={"precision": "bfloat16"}), config.resources()
    )
    use_bfloat16.prepare("cpu")
    assert use_bfloat16._bfloat16


def test_automatic_precision_measures_a_layer_of_the_models_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Layer, str]] = []

    def pays(layer: Layer, device: str) -> bool:
        asked.append((layer, device))
        return True

    monkeypatch.setattr("lexloom.models.precision.is_bfloat16_faster", pays)
    network = TransformerConfig(vocabulary=5, context=4, layers=1, width=8, heads=1, ffn_dim=24)
    config = TrainTransformerConfig(workers=2, batch_size=16, context=4, epochs=1)
    for given, rows in ((config, 8 * 4), (config.model_copy(update={"micro_batch": 2}), 2 * 4)):
        made = make_trainable(network, given, given.resources())
        assert not asked, "asked before it is on its worker"
        made.prepare("cpu")
        assert made.hardware_choices() == {"bfloat16": True}
        assert asked.pop() == (Layer(rows, 8, 24), "cpu")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"preset": "huge"}, "'tiny', 'char' or 'small'"),
        ({"heads": 3, "epochs": 1}, "width is 128: it must be a multiple of heads, 3"),
        ({"heads": 5}, "it must be a multiple of heads, 5"),
        ({"width": 100, "heads": 3}, "width is 100: it must be a multiple of heads, 3"),
        ({"style": "gpt2", "kv_heads": 1}, "omit kv_heads"),
        ({"layers": 0}, "greater than or equal to 1"),
        ({"dropout": 1}, "less than 1"),
        ({"batch_size": 0}, "greater than or equal to 1"),
        ({"decay": 1.5}, "less than or equal to 1"),
        ({"depth": 3}, "Extra inputs are not permitted"),
    ],
)
def test_inconsistent_values_are_rejected_early(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        TrainTransformerConfig(**fields)
