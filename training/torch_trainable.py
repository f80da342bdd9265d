"""Makes any torch module, a loss function and an optimizer a `Differentiable` for the training loop."""

import logging
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from lexloom.training.schedules import constant
from lexloom.training.trainable import Batch

Loss = Callable[[nn.Module, dict[str, Tensor]], Tensor]

logger = logging.getLogger("lexloom.autograd")


class Autograd:
    """A torch module in training. Nothing is allocated before `prepare`, so it travels to workers cheaply.

    Args:
        make_module: makes the module; its chance comes from `seed`, so every worker makes the same one.
        loss: of the module and a batch (the stream's columns as tensors on the device), the mean over the
            batch's rows, a tensor without dimensions.
        make_optimizer: makes the optimizer of a module. Each parameter group's learning rate is its base.
        schedule: the share of the base rates in force at a progress (training/schedules.py).
        micro_batch: rows of one forward and backward pass; a larger batch is done in several, and their
            gradients accumulate. None takes every batch whole.
        clip: the largest global norm of the gradients; None leaves them as they are.
        bfloat16: run forward passes and the optimizer under autocast to bfloat16; float32 on a GPU that
            can't. Or a function that says so of the device, and is asked on it. Workers do as worker 0, and a
            resumed run as it began (`decisions`).
        threads: of torch on a CPU; None leaves torch's own choice.
        seed: of the first parameters.

    The module may not keep running statistics (BatchNorm): they would differ between workers. The optimizer's
    state of a parameter is float tensors and `step`, all of them zero at first, as in SGD, Adam, AdamW,
    RMSprop or Muon; not in LBFGS, NAdam and ASGD.
    """

    module: nn.Module
    optimizer: Optimizer

    def __init__(
        self,
        make_module: Callable[[], nn.Module],
        loss: Loss,
        make_optimizer: Callable[[nn.Module], Optimizer],
        *,
        schedule: Callable[[float], float] = constant,
        micro_batch: int | None = None,
        clip: float | None = None,
        bfloat16: bool | Callable[[str], bool] = False,
        threads: int | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (("micro_batch", micro_batch), ("clip", clip), ("threads", threads)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}: it must be above 0, or None")
        self._make_module, self._loss, self._make_optimizer = make_module, loss, make_optimizer
        self._schedule = schedule
        self._micro_batch, self._clip = micro_batch, clip
        self._wants_bfloat16, self._threads, self._seed = bfloat16, threads, seed

    def prepare(self, device: str) -> None:
        """Makes the module and the optimizer, with all of its state.

        Raises:
            ValueError: the module keeps running statistics, has nothing to train, or the optimizer's state
                can't be saved.
        """
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        torch.manual_seed(self._seed)
        self._device = torch.device(device)
        self.module = self._make_module().to(self._device)
        self.optimizer = self._make_optimizer(self.module)
        self._trained = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self._base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self._refuse_misfits()
        self._fill_optimizer()
        wanted = self._wants_bfloat16
        self._bfloat16 = wanted(device) if callable(wanted) else wanted
        if self._bfloat16 and self._device.type == "cuda" and not torch.cuda.is_bf16_supported():
            logger.warning("this GPU has no bfloat16: training in float32")
            self._bfloat16 = False

    def decisions(self) -> dict[str, bool]:
        return {"bfloat16": self._bfloat16}

    def decide(self, decisions: Mapping[str, bool]) -> None:
        self._bfloat16 = decisions["bfloat16"]

    def learning_rate(self, progress: float) -> float:
        """The first parameter group's rate."""
        return self._base_rates[0] * self._schedule(progress)

    def train_step(self, batch: Batch, *, progress: float, seed: int) -> float | Tensor:
        loss = self.backward(batch, seed=seed)
        self.update(progress=progress)
        return loss

    def backward(self, batch: Batch, *, seed: int) -> float | Tensor:
        """`seed` sets torch's random state, for dropout."""
        torch.manual_seed(seed)
        if not self.module.training:
            self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        total: float | Tensor = 0.0
        for part, share in self._parts(batch):
            loss = self._mean_loss(part) * share
            loss.backward()
            total = total + loss.detach().double()
        return total

    def gradients(self) -> list[Tensor]:
        """Zeros for parameters that took no part: on another worker they may have."""
        for parameter in self._trained.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self._trained.values() if parameter.grad is not None]

    def update(self, *, progress: float) -> None:
        if self._clip is not None:
            clip_grad_norm_(self._trained.values(), self._clip)
        scale = self._schedule(progress)
        for group, rate in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * scale
        with self._precision():
            self.optimizer.step()

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[float, float]:
        """The loss without dropout, summed over rows."""
        self.module.eval()
        rows = rows_of(batch)
        return sum(float(self._mean_loss(part)) * share for part, share in self._parts(batch)) * rows, rows

    def tables(self) -> dict[str, Tensor]:
        """The parameters that are trained."""
        return {name: parameter.detach() for name, parameter in self._trained.items()}

    def optimizer_tables(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": value
            for name, parameter in self._trained.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if value is not None
        }

    def state_dict(self) -> dict[str, Tensor]:
        """`module.*`: parameters (shared ones once) and persistent buffers; `optimizer.*`: its state."""
        saved = self.module.state_dict()
        module = {name: parameter.detach() for name, parameter in self.module.named_parameters()}
        module |= {name: buffer for name, buffer in self.module.named_buffers() if name in saved}
        return {f"module.{name}": value for name, value in module.items()} | {
            f"optimizer.{name}": value for name, value in self.optimizer_tables().items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copies a state into the live tensors.

        Raises:
            ValueError: a tensor is missing, unknown or of another shape. Nothing changed.
        """
        live = self.state_dict()
        if state.keys() != live.keys():
            raise ValueError(
                f"the state has other tensors than the model: {sorted(state.keys() ^ live.keys())[:5]}"
            )
        for name, value in live.items():
            if state[name].shape != value.shape:
                raise ValueError(
                    f"{name} is {tuple(state[name].shape)} in the state and {tuple(value.shape)} in the model"
                )
        for name, value in live.items():
            value.copy_(state[name])

    def _parts(self, batch: Batch) -> Iterator[tuple[dict[str, Tensor], float]]:
        """The batch's micro-batches on the device, and the share of its rows that each holds."""
        rows = rows_of(batch)
        size = self._micro_batch or max(rows, 1)
        for start in range(0, rows, size):
            part = {name: values[start : start + size] for name, values in batch.items()}
            tensors = {name: torch.from_numpy(values).to(self._device) for name, values in part.items()}
            yield tensors, min(size, rows - start) / rows

    def _mean_loss(self, batch: dict[str, Tensor]) -> Tensor:
        with self._precision():
            return self._loss(self.module, batch)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bfloat16)

    def _refuse_misfits(self) -> None:
        if not self._trained:
            raise ValueError("the module has no parameter to train: each one has requires_grad off")
        for name, part in self.module.named_modules():
            if isinstance(part, _NormBase) and part.track_running_stats:
                raise ValueError(
                    f"the layer {name} ({type(part).__name__}) keeps running statistics, which would differ"
                    " between workers: use LayerNorm or GroupNorm"
                )

    def _fill_optimizer(self) -> None:
        """Lets the optimizer make its state now: workers must agree on what there is to exchange and to save,
        whatever share of the first batch each of them gets. (torch.distributed.checkpoint does the same)"""
        before = [parameter.detach().clone() for parameter in self._trained.values()]
        had = {id(value) for state in self.optimizer.state.values() for value in state.values()}
        for parameter in self._trained.values():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter, value in zip(self._trained.values(), before, strict=True):
                parameter.copy_(value)
            for name, value in self.optimizer_tables().items():
                if not isinstance(value, Tensor) or not (value.ndim or name.endswith(".step")):
                    raise ValueError(
                        f"the optimizer {type(self.optimizer).__name__} keeps {name}, which is neither a"
                        " table of moments nor a count of steps: use another one, AdamW for example"
                    )
                if not value.ndim or id(value) not in had:
                    value.zero_()


def rows_of(batch: Batch) -> int:
    return len(next(iter(batch.values())))
