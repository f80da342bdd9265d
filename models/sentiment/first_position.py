"""The last block of an encoder, computed at position 0 only.

Legend: B texts, T tokens of the longest, D width, H heads, d = D / H.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lexloom.models.sentiment.encoder_structure import find_blocks, gives_same_logits, make_probe, replace

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FirstPosition(nn.Module):
    """A BERT block that only computes its output at position 0: (B, T, D) to (B, 1, D).

    With one query per text, keys and values need not be computed for each token, because the projection can
    be moved to the other side: q · (K x) = (Kᵀ q) · x, and the sum of a (V x) is V applied to the sum of a x.
    A token then costs 2 H D multiplications instead of 2 D D and those of the query, the output and the two
    dense layers. The keys' bias shifts all scores of a head equally, so it cancels in the softmax.

    `block` must be self-attention, add and norm, two dense layers, add and norm; its modules are identified
    by their order (`has_bert_layout`), so that names don't matter.
    """

    def __init__(self, block: nn.Module, heads: int) -> None:
        super().__init__()
        self.block, self.heads = block, heads
        # tuples, so that each parameter is registered once, in the block
        self._linears = tuple(part for part in block.modules() if isinstance(part, nn.Linear))
        self._norms = tuple(part for part in block.modules() if isinstance(part, nn.LayerNorm))
        self._dropouts = tuple(part for part in block.modules() if isinstance(part, nn.Dropout))
        self._activations = tuple(
            part
            for part in block.modules()
            if not list(part.children()) and not isinstance(part, nn.Linear | nn.LayerNorm | nn.Dropout)
        )

    def has_bert_layout(self) -> bool:
        """Whether the block has the modules of a BERT block; a probe must check what they compute."""
        counts = [len(parts) for parts in (self._linears, self._norms, self._activations)]
        if counts != [6, 2, 1] or len(self._dropouts) not in (2, 3):
            return False
        query, key, value, out, inner, outer = [tuple(part.weight.shape) for part in self._linears]
        width = query[1]
        square = query == key == value == out == (width, width) and width % self.heads == 0
        return square and inner[1] == width and outer == inner[::-1]

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        """hidden: (B, T, D); attention_mask: (B or 1, 1, T or 1, T), boolean or additive, or None."""
        query, key, value, out, inner, outer = self._linears
        attention_dropout, *output_dropout, dense_dropout = self._dropouts
        batch, width = hidden.shape[0], hidden.shape[2]
        size = width // self.heads
        first = hidden[:, 0]  # (B, D)
        by_head = (self.heads, size, width)
        projected_query = torch.einsum(
            "bhd,hdw->bhw", query(first).view(batch, *by_head[:2]), key.weight.view(by_head)
        )
        scores = (hidden @ projected_query.transpose(1, 2)).transpose(1, 2) * size**-0.5  # (B, H, T)
        if attention_mask is not None:
            row = attention_mask[:, :, 0]  # (B, 1, T): position 0's
            scores = scores.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else scores + row
        weights = attention_dropout(scores.softmax(-1))  # (B, H, T)
        attended_values = torch.einsum("bhw,hdw->bhd", weights @ hidden, value.weight.view(by_head))
        total = weights.sum(-1, keepdim=True)  # (B, H, 1): 1, but for dropout
        attended_values = attended_values + total * value.bias.view(by_head[:2])
        attention_output = out(attended_values.reshape(batch, width))
        for dropout in output_dropout:
            attention_output = dropout(attention_output)
        attended = self._norms[0](attention_output + first)  # (B, D)
        dense = dense_dropout(outer(self._activations[0](inner(attended))))
        return self._norms[1](dense + attended)[:, None]


def use_first_position_block(model: "PreTrainedModel") -> nn.ModuleList:
    """Make the last block compute position 0 only, if the logits stay the same; return the blocks."""
    blocks = find_blocks(model)
    last = FirstPosition(blocks[-1], model.config.num_attention_heads)
    if not last.has_bert_layout():
        return blocks
    ids, mask = make_probe(model)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
    short = nn.ModuleList([*blocks[:-1], last])
    replace(model, blocks, short)
    if gives_same_logits(expected, lambda: model(input_ids=ids, attention_mask=mask).logits):
        return short
    replace(model, short, blocks)
    return blocks
