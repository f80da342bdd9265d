"""A language model that predicts nothing but ends of texts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lexloom.models.language_model import LanguageModel
from lexloom.models.tokenizer.tokenizer import Tokenizer


def silent_model() -> LanguageModel:
    """Return a model of characters whose every sample is an end-of-text token."""
    tokenizer = Tokenizer.of_characters("The people")

    def logits(texts: Sequence[Sequence[int]]) -> Tensor:
        scores = torch.zeros(len(texts), tokenizer.size)
        scores[:, tokenizer.end_of_text] = 100.0
        return scores

    return LanguageModel(tokenizer, None, lambda: logits, lambda *windows: (None, torch.empty(0)))
