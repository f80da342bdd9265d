"""Tests of training that continues a pretrained decoder: its start, adapters, resumption, and bad input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from lexloom.flows.transformer_lm import TransformerLMFlowConfig
from lexloom.models.language_model import load_language_model
from lexloom.models.sampling import Sampling
from lexloom.models.tokenizer.tokenizer import Tokenizer
from lexloom.models.transformer.hf_io import load
from lexloom.tasks.plan import Measurement
from lexloom.tasks.plan_transformer import candidates, learning_values, plan_size
from lexloom.tasks.sources import backbone
from lexloom.tasks.sources.initial_model import InitialModel, locate_initial_model
from lexloom.tasks.store.artifacts import Artifact, Store, Summary
from lexloom.tasks.subwords import SubwordsConfig
from lexloom.tasks.train import transformer as module
from lexloom.tasks.train.fine_tuning import FineTuneTransformerConfig, continue_from, tokenization_of
from lexloom.tasks.train.transformer import TrainTransformerConfig, make_trainable, train_transformer
from lexloom.tasks.windows import WindowsConfig, windows
from tests.models.decoders import POSITIONS, TEXT, write_decoder
from tests.tasks import guarantees
from tests.tasks.cards import run_card

CONTEXT = 16
Inputs = tuple[Artifact, Artifact]


@pytest.fixture
def theirs(tmp_path: Path) -> PreTrainedModel:
    return write_decoder(tmp_path / "theirs", "llama")


@pytest.fixture
def initial(theirs: PreTrainedModel, tmp_path: Path) -> InitialModel:
    return locate_initial_model(str(tmp_path / "theirs"))


@pytest.fixture
def inputs(initial: InitialModel, store: Store, build: Callable[..., Artifact]) -> Inputs:
    """Windows and tokens of a repetitive text, encoded by the initial model's tokenizer."""
    tokenizer = Tokenizer(initial.encoding().load())
    folder = store.folder("subwords", "key")
    tokenizer.save(folder / "tokenizer")
    for part, times in (("train", 60), ("validation", 10)):
        rows = pa.array([tokenizer.encode(TEXT * times)], pa.list_(pa.int32()))
        pq.write_table(pa.table({"tokens": rows}), folder / f"{part}-00000.parquet")
    tokens = Artifact(
        stage="subwords",
        key="key",
        folder=folder,
        summary=Summary(rows_in=1, unit_in="rows", rows=1, unit="rows"),
    )
    across = WindowsConfig(size=CONTEXT + 1, stride=CONTEXT, across_documents=True)
    return build(windows, tokens, config=across), tokens


def config(initial: InitialModel, **changes: Any) -> FineTuneTransformerConfig:
    given = {"runner": "local", "workers": 1, "context": CONTEXT, "learning_rate": 0.003, "epochs": 2}
    return continue_from(initial, TrainTransformerConfig(init_from=initial.name, **given | changes))


@pytest.mark.parametrize("rank", [None, 4])
def test_logits_before_the_first_step_are_the_initial_models(
    rank: int | None, initial: InitialModel, theirs: PreTrainedModel
) -> None:
    ours = config(initial, lora_rank=rank)
    made = make_trainable(ours.network(1), ours, ours.resources())
    made.prepare("cpu")
    ids = torch.arange(2 * CONTEXT).reshape(2, CONTEXT)
    with torch.no_grad():
        torch.testing.assert_close(made.module(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)
    trained = sum(parameter.numel() for parameter in made.tables().values())
    # A and B of rank 4 for 7 matrices in each of 2 blocks: q, o; k, v (to 16); gate, up, down (48)
    adapters = 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
    assert trained == (adapters if rank else theirs.num_parameters())


@pytest.mark.parametrize("rank", [None, 4])
def test_training_lowers_the_loss_and_writes_a_folder_that_can_be_continued(
    rank: int | None, inputs: Inputs, initial: InitialModel, build: Callable[..., Artifact], tmp_path: Path
) -> None:
    ours = config(initial, lora_rank=rank, learning_rate=0.003 if rank is None else 0.03)
    made = build(train_transformer, *inputs, config=ours, scratch=tmp_path)
    metrics = json.loads((made.folder / "metrics.json").read_text())
    assert metrics["validation_loss"] < 0.8 * metrics["history"][0]["loss"]
    model = load(made.folder)
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").state_dict()
    after = load_file(made.folder / "model.safetensors")
    assert after.keys() == before.keys(), "adapters are merged"
    moved = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    frozen = {"embed_tokens", "norm", "lm_head", "input_layernorm", "post_attention_layernorm"}
    assert bool(moved & frozen) == (rank is None)
    assert {"q_proj", "v_proj", "down_proj"} <= moved
    # all that reads a model folder reads this one
    names = run_card(made.folder, {'"The people"': '"the "', '"The "': '"the "'})
    ids = torch.arange(CONTEXT)[None]
    with torch.no_grad():
        torch.testing.assert_close(names["model"](ids).logits, model(ids), atol=1e-4, rtol=1e-4)
    loaded = load_language_model(made.folder)
    assert "".join(piece for (piece,) in loaded.generate(["the cat"], Sampling(max_tokens=8)))
    assert "Training continued" in (made.folder / "README.md").read_text()
    described = json.loads((made.folder / "lexloom.json").read_text())
    assert described["init_from_digest"] == initial.digest
    again = locate_initial_model(str(made.folder))
    assert again.network().context == POSITIONS
    assert again.encoding().load().encode(TEXT).tolist() == names["tokenizer"].encode(TEXT)


@pytest.mark.parametrize("rank", [None, 2])
def test_resumed_equals_uninterrupted_bit_for_bit(
    rank: int | None,
    inputs: Inputs,
    initial: InitialModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = config(initial, lora_rank=rank, dropout=0.1, precision="float32")
    plan = guarantees.planner(monkeypatch, module, train_transformer, inputs, ours, tmp_path)
    guarantees.assert_resumed_equals_uninterrupted(plan, 8)


def test_the_key_depends_on_the_initial_models_content_only(
    initial: InitialModel, tmp_path: Path, inputs: Inputs
) -> None:
    (tmp_path / "theirs").rename(tmp_path / "moved")
    moved = locate_initial_model(str(tmp_path / "moved"))
    key = train_transformer.key(inputs, config(moved))
    assert moved.digest == initial.digest
    config_file = tmp_path / "moved" / "config.json"
    config_file.write_text(config_file.read_text().replace("}", " }"))
    other = locate_initial_model(str(tmp_path / "moved"))
    assert train_transformer.key(inputs, config(other)) != key
    assert other.encoding().key == moved.encoding().key, "the tokens are the same"
    with pytest.raises(ValueError, match="changed"):
        config(moved).new_network(moved.network())


def test_defaults_are_those_of_fine_tuning(initial: InitialModel) -> None:
    full = continue_from(initial, TrainTransformerConfig(init_from="x"))
    assert (full.learning_rate, full.matrix_learning_rate, full.optimizer) == (5e-5, 5e-5, "adamw")
    assert full.context == POSITIONS, "fewer than the default of 256"
    lora = TrainTransformerConfig(init_from="x", lora_rank=8)
    assert (lora.learning_rate, lora.matrix_learning_rate) == (2e-4, 2e-4)
    given = TrainTransformerConfig(init_from="x", learning_rate=1e-3, epochs=1)
    assert (given.learning_rate, given.matrix_learning_rate, given.epochs) == (1e-3, 1e-3, 1)
    assert TrainTransformerConfig.model_validate(given.model_dump()) == given
    tokenization = tokenization_of(initial, SubwordsConfig())
    assert (tokenization.encoding, tokenization.compact) == ("pretrained", False)


def test_plan_keeps_the_size_and_the_rates_of_the_initial_model(initial: InitialModel) -> None:
    """Its length and its batch size are planned, for at most three epochs."""
    unplanned = continue_from(initial, TrainTransformerConfig(init_from="x", runner="local", workers=1))
    assert not unplanned.is_complete
    tokens = {"vocabulary": 100, "tokens": 60_000, "validation_tokens": 6_000}
    facts = Summary(rows_in=1, unit_in="rows", rows=1, unit="rows", facts=tokens)
    text = Artifact(stage="subwords", key="key", folder=initial.folder, summary=facts)
    (shape,) = candidates(unplanned, text)
    found = initial.network()
    assert [shape[name] for name in ("layers", "width", "heads", "kv_heads", "ffn_dim", "context")] == [
        *(found.layers, found.width, found.heads, found.kv_heads, found.ffn_dim, POSITIONS)
    ]
    measured = Measurement(
        shape=shape, parameters=30_000, cost=1.0, train_seconds=1e-4, evaluation_seconds=1e-5
    )
    plan = plan_size(measured, unplanned, text, unplanned.resources(), 100.0)
    assert plan.epochs == pytest.approx(3, rel=0.05)
    values = plan.values(fixed_steps=True) | learning_values(plan)
    planned = unplanned.complete(values)
    assert planned.is_complete
    assert (planned.max_steps, planned.batch_size) == (plan.steps, unplanned.batch_size)
    assert (planned.learning_rate, planned.dropout) == (5e-5, 0.0)
    assert planned.network(100) == unplanned.network(100)


@pytest.mark.parametrize(
    ("train", "subwords", "says"),
    [
        ({"layers": 4}, {}, "the model of init_from determines layers: omit layers"),
        ({"style": "gpt2"}, {}, "the model of init_from determines style"),
        ({"preset": "small"}, {}, "the model of init_from determines preset"),
        ({}, {"encoding": "gpt2"}, "the model of init_from determines the tokenizer: omit encoding"),
        ({"init_from": None, "lora_rank": 4}, {}, "lora_rank is only used to continue a pretrained model"),
    ],
)
def test_options_that_the_model_determines_are_rejected(
    train: dict[str, Any], subwords: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValidationError, match=says):
        TransformerLMFlowConfig(train={"init_from": "x", **train}, subwords=subwords)


def test_adapters_without_peft_are_rejected_before_training(
    initial: InitialModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lexloom.tasks.train.fine_tuning.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"need peft: pip install 'lexloom\[lora\]'"):
        config(initial, lora_rank=4)


def test_unsuitable_models_are_rejected(
    initial: InitialModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="the context of 65 tokens exceeds the 64 positions of"):
        config(initial, context=65)
    with pytest.raises(FileNotFoundError, match="the initial model 'nowhere' does not exist"):
        locate_initial_model("nowhere")
    weights = tmp_path / "theirs" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(ValueError, match=r"has no weights .*its weights are pickled, so load it with"):
        locate_initial_model(str(tmp_path / "theirs"))
    weights.with_name("pytorch_model.bin").rename(weights)
    asked: list[object] = []

    def download(*arguments: object) -> Path:
        asked.append(arguments[:3])
        return tmp_path / "theirs"

    monkeypatch.setattr(backbone, "download_model", download)
    assert locate_initial_model("hf:owner/name@v2").digest == initial.digest
    assert asked == [("owner/name@v2", "owner/name", "v2")]
