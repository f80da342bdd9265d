"""Wraps a torch module, a loss function and an optimizer as a `Differentiable` for the training loop."""

import logging
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from lexloom.training.memory import keep_freed_memory
from lexloom.training.schedules import constant
from lexloom.training.trainable import Batch

Loss = Callable[[nn.Module, dict[str, Tensor]], Tensor]

logger = logging.getLogger("lexloom.torch_trainable")


class TorchTrainable:
    """A torch module in training. Nothing is allocated before `prepare`, so it is cheap to pickle.

    Args:
        make_module: makes the module. Its random numbers come from `seed`, so every worker makes the same
            one.
        loss: computes the mean loss over a batch's rows, a 0-dimensional tensor, from the module and the
            batch (the stream's columns as tensors on the device).
        make_optimizer: makes the optimizer of a module. Each parameter group's `lr` is its base learning
            rate.
        schedule: factor of the base learning rates as a function of progress (training/schedules.py).
        micro_batch: rows per forward and backward pass. A larger batch is split, and gradients are
            accumulated. None never splits.
        clip: maximum global gradient norm; None disables clipping.
        bfloat16: run forward passes and the optimizer under autocast to bfloat16; float32 on a GPU without
            bfloat16. May be a function of the device, called in `prepare`. All workers use worker 0's answer,
            and a resumed run its original one (`hardware_choices`).
        threads: torch's number of CPU threads; None keeps torch's default.
        seed: of the initial parameters.

    The module must not keep running statistics (BatchNorm): they would differ between workers. The
    optimizer's state of a parameter must consist of float tensors and `step`, initially zero, as in SGD,
    Adam, AdamW, RMSprop and Muon, but not in LBFGS, NAdam and ASGD.
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
        self._bfloat16_option, self._threads, self._seed = bfloat16, threads, seed

    def prepare(self, device: str) -> None:
        """Create the module and the optimizer with all of its state.

        Raises:
            ValueError: the module keeps running statistics or has no trainable parameters, or the optimizer's
                state can't be saved.
        """
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        if device == "cpu":
            keep_freed_memory()
        torch.manual_seed(self._seed)
        self._device = torch.device(device)
        self.module = self._make_module().to(self._device)
        self.optimizer = self._make_optimizer(self.module)
        self._parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self._base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self._check_module()
        self._create_optimizer_state()
        option = self._bfloat16_option
        self._bfloat16 = option(device) if callable(option) else option
        if self._bfloat16 and self._device.type == "cuda" and not torch.cuda.is_bf16_supported():
            logger.warning("this GPU does not support bfloat16: training in float32")
            self._bfloat16 = False

    def hardware_choices(self) -> dict[str, bool]:
        return {"bfloat16": self._bfloat16}

    def apply_hardware_choices(self, choices: Mapping[str, bool]) -> None:
        self._bfloat16 = choices["bfloat16"]

    def learning_rate(self, progress: float) -> float:
        """The learning rate of the first parameter group."""
        return self._base_lrs[0] * self._schedule(progress)

    def train_step(self, batch: Batch, *, progress: float, seed: int) -> float | Tensor:
        loss = self.backward(batch, seed=seed)
        self.update(progress=progress)
        return loss

    def backward(self, batch: Batch, *, seed: int) -> float | Tensor:
        """Compute the gradients. `seed` sets torch's random state, for dropout."""
        torch.manual_seed(seed)
        if not self.module.training:
            self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        total: float | Tensor = 0.0
        for part, share in self._micro_batches(batch):
            loss = self._mean_loss(part) * share
            loss.backward()
            total = total + loss.detach().double()
        return total

    def gradients(self) -> list[Tensor]:
        """The gradients, zeros for parameters without one: other workers may have one for them."""
        for parameter in self._parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]

    def update(self, *, progress: float) -> None:
        if self._clip is not None:
            clip_grad_norm_(self._parameters.values(), self._clip)
        scale = self._schedule(progress)
        for group, lr in zip(self.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = lr * scale
        with self._precision():
            self.optimizer.step()

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[float, float]:
        """The loss in eval mode, summed over rows, and the number of rows."""
        self.module.eval()
        rows = count_rows(batch)
        return sum(
            float(self._mean_loss(part)) * share for part, share in self._micro_batches(batch)
        ) * rows, rows

    def tables(self) -> dict[str, Tensor]:
        """The trainable parameters."""
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    def optimizer_tables(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": value
            for name, parameter in self._parameters.items()
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
        """Copy a state into the live tensors.

        Raises:
            ValueError: a tensor is missing, unknown or has another shape. Nothing is changed then.
        """
        live = self.state_dict()
        if state.keys() != live.keys():
            raise ValueError(
                "the state does not have the model's tensors; the differences are"
                f" {sorted(state.keys() ^ live.keys())[:5]}"
            )
        for name, value in live.items():
            if state[name].shape != value.shape:
                raise ValueError(
                    f"{name} is {tuple(state[name].shape)} in the state and {tuple(value.shape)} in the model"
                )
        for name, value in live.items():
            value.copy_(state[name])

    def _micro_batches(self, batch: Batch) -> Iterator[tuple[dict[str, Tensor], float]]:
        """Yield the batch's micro-batches on the device, each with its share of the batch's rows."""
        rows = count_rows(batch)
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

    def _check_module(self) -> None:
        if not self._parameters:
            raise ValueError("the module has no trainable parameters: all have requires_grad=False")
        for name, module in self.module.named_modules():
            if isinstance(module, _NormBase) and module.track_running_stats:
                raise ValueError(
                    f"the layer {name} ({type(module).__name__}) keeps running statistics, which would differ"
                    " between workers: use LayerNorm or GroupNorm"
                )

    def _create_optimizer_state(self) -> None:
        """Make the optimizer create its state now, as torch.distributed.checkpoint does.

        Workers must agree on which tensors to exchange and save, whatever share of the first batch they get.
        """
        before = [parameter.detach().clone() for parameter in self._parameters.values()]
        existing = {id(value) for state in self.optimizer.state.values() for value in state.values()}
        for parameter in self._parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter, value in zip(self._parameters.values(), before, strict=True):
                parameter.copy_(value)
            for name, value in self.optimizer_tables().items():
                if not isinstance(value, Tensor) or not (value.ndim or name.endswith(".step")):
                    raise ValueError(
                        f"the optimizer {type(self.optimizer).__name__} has the state {name}, which is"
                        " neither a tensor of moments nor a step counter: use another optimizer, e.g. AdamW"
                    )
                if not value.ndim or id(value) not in existing:
                    value.zero_()


def count_rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))
