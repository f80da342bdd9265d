"""Optimizers for language models: Muon for the hidden matrices, AdamW for all other parameters.

Muon orthogonalizes its momentum, so that a matrix is updated by the same amount in all directions, including
those with rare gradients. Embeddings, the head, norms and biases are trained by AdamW.

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
    """An optimizer and its hyperparameters.

    Attributes:
        name: "muon" (and AdamW for parameters other than hidden matrices), or "adamw" for all.
        matrix_lr: base learning rate of the hidden matrices.
        lr: base learning rate of all other parameters.
        momentum: Muon's.
        betas: AdamW's.
        weight_decay: of matrices and tables, relative to their learning rate; norms and biases have none.

    Raises:
        ValueError: a number is out of range, or the name is unknown.
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
    """Make the optimizer of a module's parameters, of which `hidden` are its hidden matrices."""
    matrices = list(hidden)
    matrix_ids = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in module.parameters() if id(parameter) not in matrix_ids]
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
    return CombinedOptimizer(muon, adamw)


class BatchedMuon(torch.optim.Muon):
    """torch's Muon, with all matrices of one shape orthogonalized in one batch: few large matrix products.

    State: `momentum_buffer`, a tensor per matrix.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    shapes.setdefault((min(matrix.shape), max(matrix.shape)), []).append(matrix)
            for matrices in shapes.values():
                updates = torch.stack(
                    [self._wide_update(matrix, group) for matrix in matrices]
                )  # (n, short, long)
                updates = orthogonalize(updates, group["ns_coefficients"], group["ns_steps"], group["eps"])
                for matrix, update in zip(matrices, updates, strict=True):
                    rows, columns = matrix.shape
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    scale = max(1.0, rows / columns) ** 0.5
                    matrix.add_(update.T if rows > columns else update, alpha=-group["lr"] * scale)

    def _wide_update(self, matrix: Tensor, group: dict[str, Any]) -> Tensor:
        """Return the matrix's momentum update, transposed if it is tall: (short, long)."""
        gradient, state = matrix.grad, self.state[matrix]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        momentum: Tensor = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        return update.T if matrix.size(0) > matrix.size(1) else update


def orthogonalize(
    matrices: Tensor, coefficients: tuple[float, float, float], steps: int, epsilon: float
) -> Tensor:
    """Bring the singular values of (n, short, long) matrices close to 1 by a Newton-Schulz iteration.

    X <- a X + (b A + c A²) X with A = X Xᵀ, in bfloat16 under autocast. The coefficients increase small
    singular values fast, to between about 0.7 and 1.2, rather than converge to 1.
    """
    a, b, c = coefficients
    device = matrices.device.type
    x = matrices.bfloat16() if torch.is_autocast_enabled(device) else matrices
    with torch.autocast(device, enabled=False):  # autocast would compute norms, and thus all else, in float32
        x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=epsilon)
        for _ in range(steps):
            square = x @ x.mT  # (n, short, short)
            x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)


class CombinedOptimizer(Optimizer):
    """Several optimizers of different parameters as one, with all their parameter groups and state."""

    def __init__(self, *parts: Optimizer) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()
