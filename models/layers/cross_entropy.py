"""Cross-entropy of a linear layer's logits, which are never held all at once.

For a vocabulary of 50,000, the logits of 16,000 tokens are 3.2 GB in float32, and their gradient as much
again. Here rows go by in chunks: a chunk's logits give its loss and, at once, its gradients with respect to
the features, the weight and the bias, which are all that stays.

Shapes: N rows, C features, V classes.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# A processor's chunk fits its cache, but has rows enough to be worth a pass over the weight; a GPU's is as
# large as it can be (64 MB in float32).
CHUNK_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 24}
CHUNK_ROWS = 512


def linear_cross_entropy(
    features: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The sum over rows of the cross-entropy, in nats, of softmax(features @ weight.T + bias).

    features: (N, C); weight: (V, C); bias: (V,); labels: (N,) of any integer type, 0 to V - 1. The products
    are made in the type that autocast says, the rest, and the sum, without dimensions, in float32.
    """
    labels = labels.long()
    if torch.is_grad_enabled():
        return cast(Tensor, LinearCrossEntropy.apply(features, weight, bias, labels))
    total = torch.zeros((), device=features.device)
    for chunk in chunks(features, weight):
        losses, _ = softmax_losses(F.linear(features[chunk], weight), bias, labels[chunk, None])
        total = total + losses.sum()
    return total


def chunks(features: Tensor, weight: Tensor) -> list[slice]:
    size = max(CHUNK_ROWS, CHUNK_LOGITS[features.device.type] // len(weight))
    return [slice(start, start + size) for start in range(0, len(features), size)]


def softmax_losses(logits: Tensor, bias: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(n, V), (V,), (n, 1) -> (n, 1) cross-entropies and (n, V) probabilities, both in float32.

    With one exponential an entry: the largest logit and its probability tell the sum of exponentials.
    """
    exact = logits.float()  # before the bias is added: a sum of two types is slow
    if bias is not None:
        exact = exact + bias
    probabilities = F.softmax(exact, dim=-1)
    log_sum = exact.amax(1, keepdim=True) - probabilities.amax(1, keepdim=True).log()  # (n, 1)
    return log_sum - exact.gather(1, labels), probabilities


class LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        total = torch.zeros((), device=features.device)
        of_features = torch.empty_like(features)  # (N, C)
        of_weight = torch.zeros_like(weight)  # (V, C)
        of_bias = None if bias is None else torch.zeros_like(bias)  # (V,)
        for chunk in chunks(features, weight):
            logits = F.linear(features[chunk], weight)  # (n, V)
            at_label = labels[chunk, None]  # (n, 1)
            losses, gradient = softmax_losses(logits, bias, at_label)
            total = total + losses.sum()
            # (n, V), of the chunk's sum with respect to its logits: the probabilities, less 1 at the label
            gradient.scatter_add_(1, at_label, gradient.new_full((1, 1), -1.0).expand_as(at_label))
            if of_bias is not None:
                of_bias += gradient.sum(0)
            gradient = gradient.to(logits.dtype)
            of_features[chunk] = gradient @ weight
            of_weight += gradient.T @ features[chunk]
        ctx.save_for_backward(of_features, of_weight, of_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (*(None if each is None else each * gradient for each in ctx.saved_tensors), None)
