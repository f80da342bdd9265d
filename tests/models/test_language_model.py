"""A folder of a language model is found out and writes; other folders are refused by a sentence."""

import json
from pathlib import Path

import pytest
import torch

from models.language_model import Windows, kind_of, load_language_model
from models.window_lm import WindowLM, WindowLMConfig


def test_a_window_model_reads_the_end_of_each_text_and_fills_up_short_ones() -> None:
    torch.manual_seed(0)
    model = WindowLM(WindowLMConfig(vocabulary=20, context=3, dim=4, padding=19, output="full")).eval()
    logits = Windows(model)([[1, 2, 3, 4, 5], [7], [3, 4, 5]])
    by_hand = model.next_logits(torch.tensor([[3, 4, 5], [19, 19, 7], [3, 4, 5]]))
    torch.testing.assert_close(logits, by_hand)


def test_folders_that_hold_no_language_model_are_refused(tmp_path: Path) -> None:
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
