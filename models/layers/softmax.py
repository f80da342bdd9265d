"""Output layers for large vocabularies: from features to the cross-entropy of the label, fast on CPUs.

`AdaptiveSoftmax` (Grave et al. 2017, "Efficient softmax approximation for GPUs") exploits that a few tokens
make up most of a text. These have their own entries in a small *head*; the others are in *tails*, which are
computed from narrower features and only for labels in them. It is exact: the probabilities sum to 1.

Ids must be ordered by frequency, the most frequent first, for the adaptive softmax.

Shapes: B rows, d features, V tokens.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lexloom.models.layers.cross_entropy import linear_cross_entropy

SMALLEST_TAIL = 8  # features

# ids at which tails begin, for about 27,000 byte-pair tokens of English
CUTOFFS = (2000, 10_000)


class FullSoftmax(nn.Module):
    """A softmax over all tokens, with a weight (V, d) that may be tied to another layer's."""

    def __init__(self, width: int, probabilities: Tensor, tied_weight: Tensor | None = None) -> None:
        super().__init__()
        weight = nn.Parameter(torch.zeros(len(probabilities), width)) if tied_weight is None else tied_weight
        if isinstance(weight, nn.Parameter):
            self.weight: Tensor = weight
        else:
            self.register_buffer("weight", weight, persistent=False)
        self.bias = nn.Parameter(probabilities.log())

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy, in nats, for features (B, d) and labels (B,) int64."""
        return linear_cross_entropy(features, self.weight, labels, self.bias) / len(labels)

    def log_probabilities(self, features: Tensor) -> Tensor:
        """(B, V) for features (B, d)."""
        return F.linear(features, self.weight, self.bias).log_softmax(1)

    def best(self, features: Tensor, k: int) -> Tensor:
        """The k most probable tokens, (B, k), the most probable first."""
        return F.linear(features, self.weight, self.bias).topk(k).indices


class AdaptiveSoftmax(nn.Module):
    """A head with the first `cutoffs[0]` tokens and an entry per tail; tail i starts at cutoffs[i].

    Args:
        width: d. Tail i has d / 2^(i + 1) features.
        probabilities: (V,) initial probabilities of the tokens, positive, the most frequent first.
        cutoffs: ids at which tails begin; increasing, below V.
    """

    def __init__(self, width: int, probabilities: Tensor, cutoffs: Sequence[int]) -> None:
        super().__init__()
        self.cutoffs = [*cutoffs, len(probabilities)]
        if sorted({0, *self.cutoffs}) != [0, *self.cutoffs]:
            raise ValueError(
                f"cutoffs are {list(cutoffs)}: they must increase, between 0 and {len(probabilities)}"
            )
        head = probabilities[: cutoffs[0]]
        tails = [probabilities[start:end] for start, end in pairwise(self.cutoffs)]
        self.head = make_output_layer(width, torch.cat([head, torch.stack([tail.sum() for tail in tails])]))
        widths = [max(SMALLEST_TAIL, width >> (tail_index + 1)) for tail_index in range(len(tails))]
        self.narrow = nn.ModuleList(nn.Linear(width, each, bias=False) for each in widths)
        self.tails = nn.ModuleList(
            make_output_layer(each, tail) for each, tail in zip(widths, tails, strict=True)
        )

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy, in nats, for features (B, d) and labels (B,) int64."""
        in_head = labels
        total = features.new_zeros(())
        for tail_index, (narrow, tail) in enumerate(zip(self.narrow, self.tails, strict=True)):
            start, end = self.cutoffs[tail_index : tail_index + 2]
            inside = (labels >= start) & (labels < end)
            in_head = torch.where(inside, self.cutoffs[0] + tail_index, in_head)
            rows = inside.nonzero()[:, 0]
            total = total + cross_entropy(tail, narrow(features[rows]), labels[rows] - start)
        return (total + cross_entropy(self.head, features, in_head)) / len(labels)

    def log_probabilities(self, features: Tensor) -> Tensor:
        """(B, V) for features (B, d)."""
        head = self.head(features).log_softmax(1)
        first = self.cutoffs[0]
        tails = [
            tail(narrow(features)).log_softmax(1) + head[:, first + tail_index, None]
            for tail_index, (narrow, tail) in enumerate(zip(self.narrow, self.tails, strict=True))
        ]
        return torch.cat([head[:, :first], *tails], dim=1)

    def best(self, features: Tensor, k: int) -> Tensor:
        """The k most probable tokens, (B, k), the most probable first.

        A tail is only computed for rows where it is, as a whole, more probable than the k-th token found
        before.
        """
        head = self.head(features).log_softmax(1)
        first = self.cutoffs[0]
        scores, tokens = topk_padded(head[:, :first], k)
        for tail_index, (narrow, tail) in enumerate(zip(self.narrow, self.tails, strict=True)):
            tail_score = head[:, first + tail_index]
            rows = (tail_score > scores[:, -1]).nonzero()[:, 0]
            inside = tail(narrow(features[rows])).log_softmax(1) + tail_score[rows, None]
            tail_scores, indices = topk_padded(inside, k)
            all_scores = torch.cat([scores[rows], tail_scores], dim=1)
            all_tokens = torch.cat([tokens[rows], indices + self.cutoffs[tail_index]], dim=1)
            scores[rows], order = all_scores.topk(k)
            tokens[rows] = all_tokens.gather(1, order)
        return tokens


def make_output_layer(width: int, probabilities: Tensor) -> nn.Linear:
    """Make a layer whose initial logits give these probabilities for any features."""
    layer = nn.Linear(width, len(probabilities))
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_((probabilities / probabilities.sum()).log())
    return layer


def cross_entropy(layer: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    """The sum of the rows' cross-entropy."""
    assert isinstance(layer, nn.Linear)
    return linear_cross_entropy(features, layer.weight, labels, layer.bias)


def topk_padded(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest scores of each row and their indices; -inf if a row has fewer."""
    found, indices = scores.topk(min(k, scores.shape[1]))
    missing = k - found.shape[1]
    return F.pad(found, (0, missing), value=-torch.inf), F.pad(indices, (0, missing))
