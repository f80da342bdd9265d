"""Any language model in a folder, ready to write: its kind, its tokenizer, and its next token's logits."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lexloom.models.normalization import DESCRIPTIONS, Normalization, normalize_prompt, read_normalization
from lexloom.models.sampling import NextLogits
from lexloom.models.tokenizer.tokenizer import Tokenizer
from lexloom.models.transformer import hf_io as transformer_folder
from lexloom.models.transformer.model import CachedDecoder
from lexloom.models.window_lm import WindowLM

TOKENIZER = "tokenizer"


class LanguageModel(NamedTuple):
    """`next_logits` may remember what it has read, while the texts of a call go on from the last one's."""

    next_logits: NextLogits
    tokenizer: Tokenizer
    normalization: Normalization | None = None

    def prompt(self, text: str) -> str:
        """What the model goes on from: the text, normalised as its training text was."""
        return normalize_prompt(text, self.normalization)

    def anew(self) -> "LanguageModel":
        """The same model, having read nothing: texts that are written at once, or by turns, need one each."""
        if isinstance(self.next_logits, CachedDecoder):
            return self._replace(next_logits=CachedDecoder(self.next_logits.model))
        return self


def load_language_model(folder: Path) -> LanguageModel:
    """Reads a folder that `lexloom window-lm` or `lexloom transformer-lm` has written.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing.
        ValueError: the folder holds another kind of model, or a file is damaged.
    """
    kind = kind_of(folder)
    if kind == "transformer":
        next_logits: NextLogits = CachedDecoder(transformer_folder.load(folder))
    elif kind == "window_lm":
        next_logits = Windows(WindowLM.load(folder))
    else:
        raise ValueError(
            f"{folder} holds a {kind} model, which does not write: name a language model's folder"
        )
    return LanguageModel(next_logits, Tokenizer.load(folder / TOKENIZER), read_normalization(folder))


def kind_of(folder: Path) -> str:
    """What the folder's description says: word2vec, window_lm, transformer or sentiment."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no model folder {folder}: `lexloom store ls` lists what there is")
    for name in DESCRIPTIONS:
        path = folder / name
        if path.is_file():
            try:
                return str(json.loads(path.read_text(encoding="utf-8"))["model"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} is not the description of a Lexloom model") from error
    raise FileNotFoundError(f"{folder} is no model folder: it has neither {' nor '.join(DESCRIPTIONS)}")


class Windows:
    """A window model's view of texts of any lengths: the last N - 1 tokens of each, filled up on the left."""

    def __init__(self, model: WindowLM) -> None:
        self._model = model

    @torch.inference_mode()
    def __call__(self, texts: Sequence[Sequence[int]]) -> Tensor:  # (B, V)
        context, padding = self._model.config.context, self._model.config.padding
        ends = [list(text[-context:]) for text in texts]
        filled = [[padding] * (context - len(end)) + end for end in ends]
        return self._model.next_logits(torch.tensor(filled, dtype=torch.int32))
