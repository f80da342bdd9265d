"""A split encoder computes the whole model's logits in every mode."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    FunnelConfig,
    GPT2Config,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
    XLNetConfig,
)

from lexloom.models.sentiment.batching import group_by_length, map_in_threads, pad_batch
from lexloom.models.sentiment.encoder_structure import find_blocks, max_text_length
from lexloom.models.sentiment.first_position import FirstPosition, use_first_position_block
from lexloom.models.sentiment.frozen_encoder import FrozenPart, TrainedPart
from lexloom.models.sentiment.hf_loading import load_classifier, load_tokenizer
from tests.models.tiny import BERT, BLOCKS, KINDS, LONGEST, VOCABULARY, config, write_backbone

IDS = torch.tensor([[2, 7, 8, 9, 10, 3], [2, 11, 12, 3, 0, 0], [2, 3, 0, 0, 0, 0]])
MASK = (IDS != 0).long()


def classifier(kind: str, **changes: Any) -> PreTrainedModel:
    """A classifier of three labels, the same for the same arguments."""
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config(kind, num_labels=3, **changes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=IDS, attention_mask=MASK).logits


@pytest.mark.parametrize("blocks", range(BLOCKS + 1))
@pytest.mark.parametrize("kind", KINDS)
def test_parts_give_the_logits_of_the_whole_model(kind: str, blocks: int) -> None:
    with torch.no_grad():
        expected = logits(classifier(kind))
        activations = FrozenPart(classifier(kind), blocks)(IDS, MASK).clone()
        from_activations = TrainedPart(classifier(kind), blocks, from_activations=True)
        from_ids = TrainedPart(classifier(kind), blocks, from_activations=False)
        torch.testing.assert_close(from_activations(activations, MASK), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(from_ids(IDS, MASK), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_same_from_activations_and_from_ids(kind: str) -> None:
    """They equal the whole model's gradients of the last two blocks and the head."""
    whole = classifier(kind)
    logits(whole).square().sum().backward()
    expected = {name: parameter.grad for name, parameter in whole.named_parameters()}
    activations = FrozenPart(classifier(kind), 2)(IDS, MASK).clone()
    for rows, from_activations in ((activations, True), (IDS, False)):
        part = TrainedPart(classifier(kind), 2, from_activations=from_activations)
        part(rows, MASK).square().sum().backward()
        trained = {part.names[name]: p for name, p in part.named_parameters() if p.requires_grad}
        assert {name.split(".")[3] for name in trained if ".layer." in name} == {"1", "2"}
        assert not [name for name in trained if "embeddings" in name or "relative_attention" in name]
        for name, parameter in trained.items():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            wanted = expected[name]
            if wanted is not None:
                torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("kind", "last"), [("bert", FirstPosition), ("roberta", FirstPosition)])
def test_last_block_computes_one_position_if_the_classifier_reads_one(kind: str, last: type) -> None:
    assert isinstance(use_first_position_block(classifier(kind))[-1], last)


def test_block_with_another_layout_is_not_replaced() -> None:
    assert not isinstance(use_first_position_block(classifier("mpnet"))[-1], FirstPosition)


def test_block_with_other_outputs_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A probe detects that this classifier does not read position 0 of the last block."""
    model = classifier("bert")
    pooler = model.base_model.pooler
    monkeypatch.setattr(pooler, "forward", lambda hidden: torch.tanh(pooler.dense(hidden.mean(1))))
    expected = logits(model)
    assert not isinstance(use_first_position_block(model)[-1], FirstPosition)
    torch.testing.assert_close(logits(model), expected)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_first_position_block_applies_dropout_in_the_same_places(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a deterministic dropout, both are equal in training mode too."""

    def every_third(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        kept = torch.arange(values.shape[-1]) % 3 != 0
        return values * kept * 1.5 if training and p else values

    monkeypatch.setattr(torch.nn.functional, "dropout", every_third)
    rates = {"attn_implementation": "eager"}
    short, long = classifier(kind, **rates), classifier(kind, **rates)
    assert isinstance(use_first_position_block(short)[-1], FirstPosition)
    dropped = logits(long.train())
    assert not torch.allclose(dropped, logits(long.eval()), atol=1e-2)
    torch.testing.assert_close(logits(short.train()), dropped, rtol=1e-4, atol=1e-4)


def test_frozen_blocks_stay_in_eval_mode() -> None:
    part = TrainedPart(classifier("bert"), 1, from_activations=False).train()
    modes = [block.training for block in find_blocks(part.model)]
    assert modes == [False] * (BLOCKS - 1) + [True]
    assert not part.model.base_model.embeddings.training


def test_bfloat16_activations_are_close() -> None:
    exact = FrozenPart(classifier("bert"), 1)(IDS, MASK)[0]
    rough = FrozenPart(classifier("bert"), 1, bfloat16=True)(IDS, MASK)[0]
    assert 0 < float((exact - rough).norm() / exact.norm()) < 0.02


def test_trained_part_from_activations_excludes_frozen_blocks() -> None:
    part = TrainedPart(classifier("bert"), 1, from_activations=True)
    assert not [name for name in part.names.values() if "embeddings" in name or ".layer.0." in name]


def test_encoder_with_shared_blocks_is_rejected() -> None:
    model = AutoModelForSequenceClassification.from_config(AlbertConfig(**BERT, embedding_size=8))
    with pytest.raises(ValueError, match="AlbertForSequenceClassification has no list of 3 blocks"):
        TrainedPart(model.eval(), 1, from_activations=True)


def test_decoder_is_rejected() -> None:
    small = GPT2Config(vocab_size=60, n_embd=16, n_layer=3, n_head=4, pad_token_id=0)
    model = AutoModelForSequenceClassification.from_config(small)
    with pytest.raises(ValueError, match="has no separate embeddings"):
        TrainedPart(model.eval(), 1, from_activations=True)


SMALL = {"vocab_size": 60}
OTHERS: list[tuple[PreTrainedConfig, str]] = [
    (
        DebertaV2Config(
            **BERT, relative_attention=True, pos_att_type=["c2p", "p2c"], share_att_key=True, num_labels=2
        ),
        "an encoder of the type deberta-v2 can't be split between its blocks",
    ),
    (
        FunnelConfig(**SMALL, block_sizes=[1, 1, 1], d_model=16, n_head=4, d_head=4, d_inner=24),
        "an encoder of the type funnel can't be split between its blocks",
    ),
    (T5Config(**SMALL, d_model=16, d_kv=4, d_ff=24, num_layers=3, num_heads=4), "T5|t5"),
    (
        XLNetConfig(**SMALL, d_model=16, n_layer=3, n_head=4, d_inner=24),
        "XLNetForSequenceClassification has no separate embeddings",
    ),
]


@pytest.mark.parametrize(("other", "says"), OTHERS, ids=lambda value: getattr(value, "model_type", ""))
def test_unsupported_architectures_are_rejected_by_name(other: PreTrainedConfig, says: str) -> None:
    model = AutoModelForSequenceClassification.from_config(other).eval()
    with pytest.raises(ValueError, match=f"({says}).*: use (one|an encoder) like BERT"):
        TrainedPart(model, 1, from_activations=False)


def test_max_text_length_is_the_number_of_positions() -> None:
    assert max_text_length(classifier("bert")) == LONGEST
    assert max_text_length(classifier("roberta", pad_token_id=1)) == LONGEST - 2
    xlnet = AutoModelForSequenceClassification.from_config(OTHERS[-1][0])
    assert max_text_length(xlnet) is None


def test_too_many_trainable_blocks_are_rejected() -> None:
    with pytest.raises(ValueError, match="trainable_blocks is 4, but the encoder has 3 blocks"):
        FrozenPart(classifier("bert"), 4)


def test_batches_have_similar_lengths_and_bounded_padded_size() -> None:
    lengths = [3, 10, 1, 9, 4, 30]
    groups = [group.tolist() for group in group_by_length(lengths, 20)]
    assert groups == [[5], [1, 3], [4, 0, 2]]  # 30 alone; 2 x 10; 3 x 4, for 5 x 4 there is no more


def test_padding_is_zero_and_masked() -> None:
    rows, mask = pad_batch([torch.tensor([5, 6, 7]), torch.tensor([8])])
    assert rows.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_new_head_depends_on_torchs_seed(tmp_path: Path) -> None:
    folder = write_backbone(tmp_path)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return load_classifier(folder, ["no", "yes"]).classifier.weight

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert load_classifier(folder, ["no", "yes"]).config.id2label == {0: "no", 1: "yes"}


def test_backbone_is_never_unpickled(tmp_path: Path) -> None:
    folder = write_backbone(tmp_path / "backbone")
    (folder / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "run",)

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"embeddings": Evil()}))
    with pytest.raises(ValueError, match=r"can't be read as an encoder by transformers"):
        load_classifier(folder)
    assert not (tmp_path / "run").exists()


def test_folder_without_an_encoder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(ValueError, match=r"can't be read as an encoder by transformers: .*no-such-model"):
        load_classifier(tmp_path)
    with pytest.raises(ValueError, match="can't be read as a tokenizer"):
        load_tokenizer(tmp_path)


def test_tokenizer_keeps_its_special_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_backbone(tmp_path)).backend_tokenizer
    assert tokenizer.encode("good film").ids == [VOCABULARY[w] for w in ("[CLS]", "good", "film", "[SEP]")]


def test_threads_return_their_own_activations() -> None:
    """Each thread gets the activations of its own texts when many run in parallel."""
    frozen = FrozenPart(classifier("bert"), 1)
    texts = [torch.tensor([[2, 5 + number % 40, *range(6, 6 + number % 7), 3]]) for number in range(64)]

    def activations(ids: Tensor) -> Tensor:
        return frozen(ids, torch.ones_like(ids)).clone()

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        side_by_side = map_in_threads(activations, texts, "cpu")
        assert torch.get_num_threads() == 4
        torch.set_num_threads(1)
        alone = map_in_threads(activations, texts, "cpu")
    finally:
        torch.set_num_threads(before)
    for found, wanted in zip(side_by_side, alone, strict=True):
        torch.testing.assert_close(found, wanted)
