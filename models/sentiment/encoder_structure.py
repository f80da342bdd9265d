"""Finds and replaces parts of a Hugging Face encoder, and checks that its logits stay the same."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBE_TEXTS, PROBE_TOKENS = 3, 6  # not two texts, which could be taken for the pair that some blocks return
PROBE_TOLERANCE = 0.01  # relative to the spread of the texts' logits; float32 gives about 1e-5


def find_blocks(model: "PreTrainedModel") -> nn.ModuleList:
    """Find the encoder's list of blocks.

    Raises:
        ValueError: the encoder has no such list.
    """
    depth = getattr(model.config, "num_hidden_layers", None)
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ValueError(
        f"{type(model).__name__} has no list of {depth} blocks to split: use an encoder like BERT"
    )


def find_embeddings(model: "PreTrainedModel") -> nn.Module:
    """Find the module that computes the first block's input from ids."""
    words, blocks = model.get_input_embeddings(), find_blocks(model)
    for part in model.base_model.children():
        inside = list(part.modules())
        if part is not words and words in inside and blocks not in inside:
            return part
    raise ValueError(f"{type(model).__name__} has no separate embeddings: use an encoder like BERT")


def max_text_length(model: "PreTrainedModel") -> int | None:
    """Return the number of tokens that the encoder has positions for; None if it is unlimited.

    Encoders like RoBERTa count positions from after that of padding.
    """
    positions = getattr(model.config, "max_position_embeddings", None) or 0
    if positions < 1:
        return None
    unused = 0
    for name, module in model.base_model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
    return int(positions) - unused


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace every occurrence of `old` in the model with `new`."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)


def make_probe(model: "PreTrainedModel") -> tuple[Tensor, Tensor]:
    """Return (ids, mask), both (B, T), of three short texts, one of them shorter than the others."""
    ids = torch.arange(PROBE_TEXTS * PROBE_TOKENS).view(PROBE_TEXTS, PROBE_TOKENS)
    mask = torch.ones_like(ids)
    mask[1, PROBE_TOKENS // 2 :] = 0
    return ids % model.config.vocab_size, mask


@torch.no_grad()
def gives_same_logits(expected: Tensor, changed: Callable[[], Tensor]) -> bool:
    """Whether the changed model still computes the expected logits."""
    try:
        logits = changed()
    except Exception:  # other architectures may fail in any way
        return False
    if logits.shape != expected.shape:
        return False
    spread = (expected - expected.mean(0)).abs().max()
    return bool((logits - expected).abs().max() <= PROBE_TOLERANCE * spread)
