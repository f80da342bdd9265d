"""Output layers over many tokens: from features to the cross-entropy of the label, fast on a processor.

`AdaptiveSoftmax` (Grave et al. 2017, "Efficient softmax approximation for GPUs") knows that few tokens make
up most of a text: those have an entry each in a small *head*; the others stand in *tails*, which are only
computed where the label lies in them, from narrower features. It is exact: the probabilities sum to 1.

Ids are in order of frequency, the most frequent first, as the adaptive softmax needs them.

Shapes: B rows, d features, V tokens.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lexloom.models.layers.cross_entropy import linear_cross_entropy

SMALLEST_TAIL = 8  # features

# ids at which tails begin, for some 27,000 byte-pair tokens of English
CUTOFFS = (2000, 10_000)


class FullSoftmax(nn.Module):
    """Every token has its row in one table of (V, d), which may be shared with another layer (`tied`)."""

    def __init__(self, width: int, chances: Tensor, tied: Tensor | None = None) -> None:
        super().__init__()
        weight = nn.Parameter(torch.zeros(len(chances), width)) if tied is None else tied
        if isinstance(weight, nn.Parameter):
            self.weight: Tensor = weight
        else:
            self.register_buffer("weight", weight, persistent=False)
        self.bias = nn.Parameter(chances.log())

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy, in nats, of features (B, d) and labels (B,) int64."""
        return linear_cross_entropy(features, self.weight, labels, self.bias) / len(labels)

    def log_probabilities(self, features: Tensor) -> Tensor:
        """(B, V) of features (B, d)."""
        return F.linear(features, self.weight, self.bias).log_softmax(1)

    def best(self, features: Tensor, k: int) -> Tensor:
        """The k most probable tokens, (B, k), the most probable first."""
        return F.linear(features, self.weight, self.bias).topk(k).indices


class AdaptiveSoftmax(nn.Module):
    """The first `cutoffs[0]` tokens and one entry a tail in the head; tail i from cutoffs[i] to the next.

    Args:
        width: d. Tail i has d / 2^(i + 1) features.
        chances: (V,) of the tokens, above 0, the most frequent first: the probabilities before training.
        cutoffs: where tails begin; rising, below V.
    """

    def __init__(self, width: int, chances: Tensor, cutoffs: Sequence[int]) -> None:
        super().__init__()
        self.cutoffs = [*cutoffs, len(chances)]
        if sorted({0, *self.cutoffs}) != [0, *self.cutoffs]:
            raise ValueError(f"cutoffs are {list(cutoffs)}: they must rise, between 0 and {len(chances)}")
        head = chances[: cutoffs[0]]
        tails = [chances[start:end] for start, end in pairwise(self.cutoffs)]
        self.head = entries(width, torch.cat([head, torch.stack([tail.sum() for tail in tails])]))
        widths = [max(SMALLEST_TAIL, width >> (place + 1)) for place in range(len(tails))]
        self.narrow = nn.ModuleList(nn.Linear(width, each, bias=False) for each in widths)
        self.tails = nn.ModuleList(entries(each, tail) for each, tail in zip(widths, tails, strict=True))

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy, in nats, of features (B, d) and labels (B,) int64."""
        in_head = labels
        total = features.new_zeros(())
        for place, (narrow, tail) in enumerate(zip(self.narrow, self.tails, strict=True)):
            start, end = self.cutoffs[place : place + 2]
            inside = (labels >= start) & (labels < end)
            in_head = torch.where(inside, self.cutoffs[0] + place, in_head)
            rows = inside.nonzero()[:, 0]
            total = total + cross_entropy(tail, narrow(features[rows]), labels[rows] - start)
        return (total + cross_entropy(self.head, features, in_head)) / len(labels)

    def log_probabilities(self, features: Tensor) -> Tensor:
        """(B, V) of features (B, d)."""
        head = self.head(features).log_softmax(1)
        first = self.cutoffs[0]
        tails = [
            tail(narrow(features)).log_softmax(1) + head[:, first + place, None]
            for place, (narrow, tail) in enumerate(zip(self.narrow, self.tails, strict=True))
        ]
        return torch.cat([head[:, :first], *tails], dim=1)

    def best(self, features: Tensor, k: int) -> Tensor:
        """The k most probable tokens, (B, k), the most probable first.

        A tail is only looked into where it is, as a whole, more probable than the k-th of those found before.
        """
        head = self.head(features).log_softmax(1)
        first = self.cutoffs[0]
        chances, tokens = padded_top(head[:, :first], k)
        for place, (narrow, tail) in enumerate(zip(self.narrow, self.tails, strict=True)):
            of_tail = head[:, first + place]
            rows = (of_tail > chances[:, -1]).nonzero()[:, 0]
            inside = tail(narrow(features[rows])).log_softmax(1) + of_tail[rows, None]
            more, places = padded_top(inside, k)
            both = torch.cat([chances[rows], more], dim=1)
            either = torch.cat([tokens[rows], places + self.cutoffs[place]], dim=1)
            chances[rows], order = both.topk(k)
            tokens[rows] = either.gather(1, order)
        return tokens


def entries(width: int, chances: Tensor) -> nn.Linear:
    """Logits of tokens that have these chances, whatever the features are, before training."""
    layer = nn.Linear(width, len(chances))
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_((chances / chances.sum()).log())
    return layer


def cross_entropy(layer: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    """The sum over rows."""
    assert isinstance(layer, nn.Linear)
    return linear_cross_entropy(features, layer.weight, labels, layer.bias)


def padded_top(chances: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their places; -inf where a row has fewer."""
    found, places = chances.topk(min(k, chances.shape[1]))
    missing = k - found.shape[1]
    return F.pad(found, (0, missing), value=-torch.inf), F.pad(places, (0, missing))
