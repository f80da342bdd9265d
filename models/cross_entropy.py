"""Cross-entropy of a linear layer's logits, which are never held all at once.

For a vocabulary of 50,000, the logits of 16,000 tokens are 3.2 GB in float32, and their gradient as much
again. Here tokens go by in chunks: a chunk's logits give its loss and, at once, its gradients with respect to
the features and the weight, which are all that stays.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_LOGITS = 1 << 24  # 64 MB in float32


def linear_cross_entropy(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy, in nats, of softmax(features @ weight.T) against the labels.

    features: (N, C); weight: (V, C); labels: (N,) of any integer type, 0 to V - 1. The products are made in
    the type that autocast says, the loss, without dimensions, in float32.
    """
    labels = labels.long()
    if torch.is_grad_enabled():
        return cast(Tensor, LinearCrossEntropy.apply(features, weight, labels))
    total = torch.zeros((), device=features.device)
    for chunk in chunks(len(labels), len(weight)):
        logits = F.linear(features[chunk], weight).float()  # (n, V)
        total = total + F.cross_entropy(logits, labels[chunk], reduction="sum")
    return total / len(labels)


def chunks(tokens: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_LOGITS // vocabulary)
    return [slice(start, start + size) for start in range(0, tokens, size)]


class LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        total = torch.zeros((), device=features.device)
        features_gradient = torch.empty_like(features)  # (N, C)
        weight_gradient = torch.zeros_like(weight)  # (V, C)
        for chunk in chunks(len(labels), len(weight)):
            logits = F.linear(features[chunk], weight)  # (n, V)
            logarithms = F.log_softmax(logits, dim=-1, dtype=torch.float32)  # (n, V)
            at_label = labels[chunk, None]  # (n, 1)
            total = total - logarithms.gather(1, at_label).sum()
            gradient = logarithms.exp_()  # (n, V), of the chunk's sum with respect to its logits
            gradient.scatter_add_(1, at_label, gradient.new_full((1, 1), -1.0).expand_as(at_label))
            gradient = gradient.to(logits.dtype)
            features_gradient[chunk] = gradient @ weight
            weight_gradient += gradient.T @ features[chunk]
        ctx.save_for_backward(features_gradient, weight_gradient)
        ctx.tokens = len(labels)
        return total / len(labels)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        features_gradient, weight_gradient = ctx.saved_tensors
        share = gradient / ctx.tokens
        return features_gradient * share, weight_gradient * share, None
