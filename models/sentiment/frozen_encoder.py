"""A Hugging Face encoder with a classifier, split where its frozen part ends.

The frozen part is the embeddings and the first blocks: their activations never change, so they can be
computed once (`FrozenPart`). The trained part is the last blocks and the classifier (`TrainedPart`); its
input are those activations, or token ids. Both run the model's own code with another list of blocks, so they
support any encoder whose blocks are one list, and the trained parameters can be saved in a checkpoint of the
same architecture.

If the classifier only reads position 0, only that position's output of the last block is needed
(`FirstPosition`); it is used if a probe shows that the logits stay the same.

Legend: B texts, T tokens of the longest, D width, C labels.
"""

from threading import local
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lexloom.models.sentiment.encoder_structure import (
    find_blocks,
    find_embeddings,
    gives_same_logits,
    make_probe,
    replace,
)
from lexloom.models.sentiment.first_position import use_first_position_block

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CaptureOutput(nn.Module):
    """Replaces the blocks after the split: returns its input and keeps it, separately for each thread.

    Other attributes that the encoder reads (ModernBERT: the attention type) are those of `block`.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self._block = (block,)  # a tuple, so that it is not registered as a submodule
        self._captured = local()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_block"][0], name)

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        self._captured.hidden = hidden
        return hidden

    @property
    def captured(self) -> Tensor:
        return self._captured.hidden


class PassThrough(nn.Module):
    """Replaces the embeddings: returns the activations (B, T, D) among its arguments."""

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        values = (*arguments, *named.values())
        return next(x for x in values if isinstance(x, Tensor) and x.is_floating_point() and x.dim() == 3)


def truncate_blocks(blocks: nn.ModuleList, cut: int) -> tuple[nn.ModuleList, CaptureOutput]:
    """Return the first `cut` blocks followed by a CaptureOutput, and the latter."""
    capture = CaptureOutput(blocks[min(cut, len(blocks) - 1)])
    return nn.ModuleList([*blocks[:cut], capture]), capture


def count_frozen_blocks(blocks: nn.ModuleList, trainable_blocks: int) -> int:
    """Return the number of blocks that are not trained."""
    if not 0 <= trainable_blocks <= len(blocks):
        raise ValueError(
            f"trainable_blocks is {trainable_blocks}, but the encoder has {len(blocks)} blocks: use 0 to"
            f" {len(blocks)}"
        )
    return len(blocks) - trainable_blocks


class FrozenPart(nn.Module):
    """Computes the input of the first trained block from token ids. Takes ownership of `model`.

    With `bfloat16`, matrix products are computed in bfloat16, sums and norms in float32.
    """

    def __init__(self, model: "PreTrainedModel", trainable_blocks: int, *, bfloat16: bool = False) -> None:
        super().__init__()
        blocks = find_blocks(model)
        lower, self._capture = truncate_blocks(blocks, count_frozen_blocks(blocks, trainable_blocks))
        replace(model, blocks, lower)
        self.encoder = model.base_model
        self._bfloat16 = bfloat16
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask: (B, T); returns (B, T, D), which is undefined at masked positions."""
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self._bfloat16):
            self.encoder(input_ids=ids, attention_mask=mask)
        return self._capture.captured


class TrainedPart(nn.Module):
    """The last blocks and the classifier, applied to the frozen part's activations or to ids.

    Takes ownership of `model`. With `from_activations` the frozen part is removed, which frees its memory;
    otherwise it is kept, frozen and in eval mode. Both give the same logits.

    Attributes:
        names: a parameter's name here -> its name in a checkpoint of the model.
    """

    def __init__(self, model: "PreTrainedModel", trainable_blocks: int, *, from_activations: bool) -> None:
        super().__init__()
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        blocks = find_blocks(model)
        cut = count_frozen_blocks(blocks, trainable_blocks)
        embeddings = find_embeddings(model)
        ids, mask = make_probe(model)
        try:
            with torch.no_grad():
                expected = model(input_ids=ids, attention_mask=mask).logits
            frozen, activations = find_frozen(model, cut, ids, mask)
        except Exception as error:  # other architectures may have other inputs and outputs
            raise ValueError(
                f"an encoder of the type {model.config.model_type} can't be split between its blocks: use"
                " one like BERT"
            ) from error
        for parameter in frozen:
            parameter.requires_grad_(False)
        short = use_first_position_block(model)
        self.model, self._from_activations = model, from_activations
        self._frozen: tuple[nn.Module, ...] = tuple(blocks[:cut])  # already registered in the model
        if from_activations:
            replace(model, embeddings, PassThrough())
            replace(model, short, short[cut:])
            if not gives_same_logits(expected, lambda: self(activations, mask)):
                raise ValueError(
                    f"{type(model).__name__} can't be trained from its blocks' activations alone: use"
                    " --no-cache-features"
                )
        else:
            self._frozen += (embeddings,)
        self.names = {name: names[id(parameter)] for name, parameter in self.named_parameters()}

    def train(self, mode: bool = True) -> "TrainedPart":
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        """rows: (B, T, D) float32 activations, or (B, T) ids; mask: (B, T); returns logits (B, C)."""
        if self._from_activations:
            return self.model(inputs_embeds=rows, attention_mask=mask).logits
        return self.model(input_ids=rows, attention_mask=mask).logits


def find_frozen(
    model: "PreTrainedModel", cut: int, ids: Tensor, mask: Tensor
) -> tuple[list[nn.Parameter], Tensor]:
    """Return the parameters that the activations before block `cut` depend on, and those activations.

    They are found in the autograd graph instead of by name, since some encoders share parameters between
    blocks.
    """
    blocks = find_blocks(model)
    lower, capture = truncate_blocks(blocks, cut)
    replace(model, blocks, lower)
    parameters = list(model.parameters())
    with torch.enable_grad():
        model.base_model(input_ids=ids, attention_mask=mask)
        gradients = torch.autograd.grad(capture.captured.sum(), parameters, allow_unused=True)
    replace(model, lower, blocks)
    frozen = [
        parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None
    ]
    return frozen, capture.captured.detach()
