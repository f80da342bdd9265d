"""Language models are loaded from their folders; other folders are rejected."""

import json
from pathlib import Path

import pytest
import torch

from lexloom.models.language_model import TOKENIZER, Windows, kind_of, load_language_model
from lexloom.models.normalization import Normalization, normalize_prompt, read_normalization
from lexloom.models.tokenizer.tokenizer import Tokenizer
from lexloom.models.window_lm import WindowLM, WindowLMConfig


def test_window_model_reads_the_end_of_texts_and_pads_short_ones() -> None:
    torch.manual_seed(0)
    model = WindowLM(WindowLMConfig(vocabulary=20, context=3, dim=4, padding=19, output="full")).eval()
    logits = Windows(model)([[1, 2, 3, 4, 5], [7], [3, 4, 5]])
    by_hand = model.next_logits(torch.tensor([[3, 4, 5], [19, 19, 7], [3, 4, 5]]))
    torch.testing.assert_close(logits, by_hand)


def test_prompt_is_normalized_like_the_training_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.of_characters("the people")
    shape = WindowLMConfig(vocabulary=tokenizer.size, context=3, dim=4, padding=tokenizer.end_of_text)
    rules = Normalization(strip_punctuation=False, strip_digits=False)
    WindowLM(shape).save(tmp_path, {"normalization": rules.model_dump()})
    tokenizer.save(tmp_path / TOKENIZER)
    model = load_language_model(tmp_path)
    assert model.normalization == rules
    assert model.prompt("  The<br>\tPe&ouml;ple ") == "the peöple "
    assert model.prompt("") == model.prompt(" ") == ""
    assert model.anew().prompt("THE") == "the"


def test_folder_without_rules_does_not_normalize(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model": "word2vec"}))
    assert read_normalization(tmp_path) is None
    assert read_normalization(tmp_path / "nowhere") is None
    assert normalize_prompt(" <B> ", None) == " <B> "
    (tmp_path / "config.json").write_text(json.dumps({"model": "word2vec", "normalization": {"lower": "?"}}))
    with pytest.raises(ValueError, match=r"config.json is damaged .*: train or export the model again"):
        read_normalization(tmp_path)


def test_folders_without_a_language_model_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no model folder"):
        kind_of(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"is no model folder: it has neither lexloom\.json nor"):
        kind_of(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="is not the description of a Lexloom model"):
        kind_of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model": "word2vec"}))
    assert kind_of(tmp_path) == "word2vec"
    with pytest.raises(ValueError, match="holds a word2vec model, which does not write"):
        load_language_model(tmp_path)
