"""Language models of any network: what they generate, what they predict, and how they read prompts."""

import json
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from lexloom.models.language_model import TOKENIZER, LanguageModel, load_language_model
from lexloom.models.normalization import Normalization, normalize_prompt, read_normalization
from lexloom.models.sampling import Sampling
from lexloom.models.tokenizer.tokenizer import Tokenizer
from lexloom.models.window_lm import WindowDecoder, WindowLM, WindowLMConfig


def test_a_window_model_reads_the_end_of_each_text_and_pads_short_ones() -> None:
    torch.manual_seed(0)
    model = WindowLM(WindowLMConfig(vocabulary=20, context=3, dim=4, padding=19, output="full")).eval()
    logits = WindowDecoder(model)([[1, 2, 3, 4, 5], [7], [3, 4, 5]])
    by_hand = model.next_logits(torch.tensor([[3, 4, 5], [19, 19, 7], [3, 4, 5]]))
    torch.testing.assert_close(logits, by_hand)


def test_a_prompt_is_normalized_like_the_training_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.of_characters("the people")
    shape = WindowLMConfig(vocabulary=tokenizer.size, context=3, dim=4, padding=tokenizer.end_of_text)
    rules = Normalization(strip_punctuation=False, strip_digits=False)
    WindowLM(shape).save(tmp_path, {"normalization": rules.model_dump()})
    tokenizer.save(tmp_path / TOKENIZER)
    model = load_language_model(tmp_path)
    assert model.normalization == rules
    assert model.prompt("  The<br>\tPe&ouml;ple ") == "the peöple "
    assert model.prompt("") == model.prompt(" ") == ""
    sampling = Sampling(max_tokens=3)
    assert list(model.generate(["THE"], sampling)) == list(model.generate(["the"], sampling))


def test_without_recorded_rules_a_prompt_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model": "word2vec"}))
    assert read_normalization(tmp_path) is None
    assert read_normalization(tmp_path / "nowhere") is None
    assert normalize_prompt(" <B> ", None) == " <B> "
    (tmp_path / "config.json").write_text(json.dumps({"model": "word2vec", "normalization": {"lower": "?"}}))
    with pytest.raises(ValueError, match=r"config.json is damaged .*: train or export the model again"):
        read_normalization(tmp_path)


class Causal(nn.Module):
    """The logits at a token are the sum of the embeddings up to it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, size)

    def forward(self, tokens: Tensor) -> Tensor:
        return cast(Tensor, self.embedding(tokens).cumsum(1))


@pytest.fixture
def causal(tmp_path: Path) -> tuple[LanguageModel, Causal]:
    torch.manual_seed(0)
    tokenizer = Tokenizer.of_characters("the people")
    tokenizer.save(tmp_path / TOKENIZER)
    network = Causal(tokenizer.size)
    return LanguageModel.of_network(network, tmp_path), network


def test_a_causal_network_continues_texts_of_different_lengths(causal: tuple[LanguageModel, Causal]) -> None:
    model, network = causal
    logits = model.new_decoder()([[1, 2, 3], [4]])
    table = network.embedding.weight
    torch.testing.assert_close(logits, torch.stack([table[1] + table[2] + table[3], table[4]]).detach())
    sampling = Sampling(max_tokens=8, seed=3)
    both = ["".join(pieces) for pieces in zip(*model.generate(["the ", "peo"], sampling), strict=True)]
    (alone,) = ("".join(pieces) for pieces in zip(*model.generate(["the "], sampling), strict=True))
    assert both[0] == alone


def test_a_causal_network_predicts_every_token_of_a_window(causal: tuple[LanguageModel, Causal]) -> None:
    model, network = causal
    nats, best = model.predict(torch.tensor([[1, 2], [3, 4]]), torch.tensor([5, 6]), 2)
    table = network.embedding.weight.detach()
    logs = torch.stack([table[1], table[1] + table[2], table[3], table[3] + table[4]]).log_softmax(1)
    by_hand = -sum(float(logs[row, token]) for row, token in enumerate([2, 5, 4, 6]))
    assert nats == pytest.approx(by_hand, rel=1e-5)
    assert torch.equal(best.flatten(0, 1), logs.topk(2).indices)
