"""Optimizers for language models: Muon for the hidden matrices, AdamW for everything else.

Muon's step is its momentum made orthogonal: all directions of a matrix move by the same amount, those too
that rarely have a gradient. Embeddings, the head, norms and biases are no such matrices, and go to AdamW.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Loshchilov and Hutter 2019,
"Decoupled Weight Decay Regularization".
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer


@dataclass(frozen=True)
class OptimizerConfig:
    """Which optimizer, and its base rates.

    Attributes:
        name: "muon" (and AdamW for what is not a hidden matrix), or "adamw" for all.
        matrix_lr: learning rate of the hidden matrices.
        lr: learning rate of everything else.
        momentum: Muon's.
        betas: AdamW's.
        weight_decay: of matrices and tables, a share of their learning rate; norms and biases do without.

    Raises:
        ValueError: a number is out of its range, or the name unknown.
    """

    name: Literal["muon", "adamw"] = "muon"
    matrix_lr: float = 0.02
    lr: float = 0.01
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in ("muon", "adamw"):
            raise ValueError(f"the optimizer is {self.name!r}: it must be 'muon' or 'adamw'")
        for name in ("matrix_lr", "lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be above 0")
        for share in (self.momentum, *self.betas):
            if not 0 <= share < 1:
                raise ValueError(f"a momentum or beta is {share}: it must be at least 0 and below 1")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay is {self.weight_decay}: it must be at least 0")


def make_optimizer(module: nn.Module, hidden: Iterable[nn.Parameter], config: OptimizerConfig) -> Optimizer:
    """The optimizer of a module's parameters, of which `hidden` are its hidden matrices."""
    matrices = list(hidden)
    theirs = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in module.parameters() if id(parameter) not in theirs]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in others if p.ndim > 1], "lr": config.lr, "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.ndim < 2], "lr": config.lr, "weight_decay": 0.0},
    ]
    if config.name == "adamw":
        groups.append({"params": matrices, "lr": config.matrix_lr, "weight_decay": config.weight_decay})
    adamw = AdamW([group for group in groups if group["params"]], betas=config.betas, fused=True)
    if config.name == "adamw":
        return adamw
    muon = BatchedMuon(
        matrices, lr=config.matrix_lr, weight_decay=config.weight_decay, momentum=config.momentum
    )
    return Joined(muon, adamw)


class BatchedMuon(torch.optim.Muon):
    """torch's Muon, with all matrices of one shape made orthogonal together: a few large products.

    State: `momentum_buffer`, a table for each matrix.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    shapes.setdefault((min(matrix.shape), max(matrix.shape)), []).append(matrix)
            for matrices in shapes.values():
                moves = torch.stack(
                    [self._wide_move(matrix, group) for matrix in matrices]
                )  # (n, short, long)
                moves = orthogonal(moves, group["ns_coefficients"], group["ns_steps"], group["eps"])
                for matrix, move in zip(matrices, moves, strict=True):
                    rows, columns = matrix.shape
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    scale = max(1.0, rows / columns) ** 0.5
                    matrix.add_(move.T if rows > columns else move, alpha=-group["lr"] * scale)

    def _wide_move(self, matrix: Tensor, group: dict[str, Any]) -> Tensor:
        """Where momentum would move the matrix, lying on its longer side: (short, long)."""
        gradient, state = matrix.grad, self.state[matrix]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        momentum: Tensor = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        move = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        return move.T if matrix.size(0) > matrix.size(1) else move


def orthogonal(
    matrices: Tensor, coefficients: tuple[float, float, float], steps: int, epsilon: float
) -> Tensor:
    """(n, short, long) matrices, their singular values brought near to 1 by Newton and Schulz's iteration.

    X <- a X + (b A + c A²) X with A = X Xᵀ, in bfloat16 under autocast. The coefficients bring small singular
    values up fast, to between about 0.7 and 1.2, rather than any to 1.
    """
    a, b, c = coefficients
    device = matrices.device.type
    x = matrices.bfloat16() if torch.is_autocast_enabled(device) else matrices
    with torch.autocast(device, enabled=False):  # which would make norms, and so all else, float32 again
        x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=epsilon)
        for _ in range(steps):
            square = x @ x.mT  # (n, short, short)
            x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)


class Joined(Optimizer):
    """Several optimizers of different parameters as one, whose groups and states are theirs."""

    def __init__(self, *parts: Optimizer) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()
