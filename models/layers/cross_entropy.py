"""Cross-entropy of a linear layer's logits, without holding all logits in memory.

For a vocabulary of 50,000, the logits of 16,000 tokens take 3.2 GB in float32, and their gradient as much
again. Here rows are processed in chunks: a chunk's logits give its loss and immediately its gradients with
respect to the features, the weight and the bias, and are then discarded.

Shapes: N rows, C features, V classes.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# On CPUs a chunk fits in the cache, but has enough rows to amortize reading the weight; on GPUs it is as
# large as possible (64 MB in float32).
CHUNK_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 24}
CHUNK_ROWS = 512


def linear_cross_entropy(
    features: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The sum over rows of the cross-entropy, in nats, of softmax(features @ weight.T + bias).

    features: (N, C); weight: (V, C); bias: (V,); labels: (N,) of any integer dtype, 0 to V - 1. Products are
    computed in autocast's dtype, everything else, and the 0-dimensional result, in float32.
    """
    labels = labels.long()
    if torch.is_grad_enabled():
        return cast(Tensor, LinearCrossEntropy.apply(features, weight, bias, labels))
    total = torch.zeros((), device=features.device)
    for chunk in row_chunks(features, weight):
        losses, _ = softmax_losses(F.linear(features[chunk], weight), bias, labels[chunk, None])
        total = total + losses.sum()
    return total


def row_chunks(features: Tensor, weight: Tensor) -> list[slice]:
    size = max(CHUNK_ROWS, CHUNK_LOGITS[features.device.type] // len(weight))
    return [slice(start, start + size) for start in range(0, len(features), size)]


def softmax_losses(logits: Tensor, bias: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(n, V), (V,), (n, 1) -> (n, 1) cross-entropies and (n, V) probabilities, both in float32.

    Uses one exponential per logit: the log-sum-exp follows from the largest logit and its probability. The
    logits may be overwritten.
    """
    logits32 = logits.float()  # before the bias is added, since mixed-dtype sums are slow
    if bias is not None:
        logits32 += bias  # in place: allocating memory takes longer than the sum
    probabilities = F.softmax(logits32, dim=-1)
    log_sum = logits32.amax(1, keepdim=True) - probabilities.amax(1, keepdim=True).log()  # (n, 1)
    return log_sum - logits32.gather(1, labels), probabilities


class LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        total = torch.zeros((), device=features.device)
        grad_features = torch.empty_like(features)  # (N, C)
        grad_weight = torch.zeros_like(weight)  # (V, C)
        grad_bias = None if bias is None else torch.zeros_like(bias)  # (V,)
        for chunk in row_chunks(features, weight):
            logits = F.linear(features[chunk], weight)  # (n, V)
            at_label = labels[chunk, None]  # (n, 1)
            losses, gradient = softmax_losses(logits, bias, at_label)
            total = total + losses.sum()
            # (n, V), with respect to the logits: the probabilities, minus 1 at the label
            gradient.scatter_add_(1, at_label, gradient.new_full((1, 1), -1.0).expand_as(at_label))
            if grad_bias is not None:
                grad_bias += gradient.sum(0)
            gradient = gradient.to(logits.dtype)
            grad_features[chunk] = gradient @ weight
            grad_weight += gradient.T @ features[chunk]
        ctx.save_for_backward(grad_features, grad_weight, grad_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (*(None if each is None else each * gradient for each in ctx.saved_tensors), None)
