"""Root-mean-square normalisation (Zhang and Sennrich 2019), with a backward pass of its own on a processor.

There torch 2.13 makes it of ten passes over its input; these are six, in two thirds of the time or less
(benchmarks/LOG.md).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class RMSNorm(nn.RMSNorm):
    """x / √(mean x² + ε) · weight, over the last dimension.

    Keeps the type of what it is given: under autocast, that may be another than its weight's. In training on
    a processor the root is rounded to that type, too.
    """

    eps: float

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__(width, epsilon)

    def forward(self, x: Tensor) -> Tensor:  # (..., C) -> (..., C)
        assert self.weight is not None
        if x.is_cpu and torch.is_grad_enabled():
            normed: Tensor = Normalise.apply(x, self.weight, self.eps)
            return normed
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact).square_()  # (..., 1)
        scale = squares.div_(x.size(-1)).add_(epsilon).rsqrt_().to(x.dtype)  # (..., 1)
        unit = x * scale  # (..., C)
        ctx.save_for_backward(unit, scale, weight)
        return unit * weight.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        unit, scale, weight = ctx.saved_tensors
        (gradient,) = gradients
        weight_now = weight.to(unit.dtype)
        by_weight = gradient * unit  # (..., C)
        rows = by_weight.flatten(0, -2)
        of_weight = rows.sum(0, dtype=weight.dtype)
        along = torch.mv(rows, weight_now).view_as(scale)  # (..., 1)
        of_x = torch.addcmul(gradient * weight_now, unit, along, value=-1 / unit.size(-1)).mul_(scale)
        return of_x, of_weight, None
