"""Optimizers: the batched Muon equals torch's Muon."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lexloom.models.optim import BatchedMuon, OptimizerConfig, make_optimizer, orthogonalize
from lexloom.models.transformer.model import Transformer, TransformerConfig, next_token_loss
from lexloom.training.checkpoint_files import Checkpoints
from lexloom.training.loop import train
from lexloom.training.stopping import Stopping
from lexloom.training.sync.config import SyncConfig
from lexloom.training.torch_trainable import TorchTrainable
from tests.training.toy import KilledError, die_at, job, on_processes, train_on

V, T = 13, 8
NETWORK = TransformerConfig(vocabulary=V, context=T, layers=2, width=16, heads=2)
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_batched_muon_equals_torchs_muon(
    weight_decay: float,
) -> None:
    """For square, wide and tall matrices, some of one shape, one transposed, one without a gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 8), (8, 8), (8, 20), (20, 8), (20, 8), (6, 4), (3, 3)]
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = copy.deepcopy(ours)
    batched = BatchedMuon(ours, lr=0.02, weight_decay=weight_decay)
    torchs = torch.optim.Muon(theirs, lr=0.02, weight_decay=weight_decay)
    for _ in range(4):
        for mine, other in zip(ours[:-1], theirs[:-1], strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        with torch.autocast("cpu", dtype=torch.bfloat16):  # in which torch's is always
            batched.step()
        torchs.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=4 * 0.02 * 0.02, rtol=0)  # bfloat16 has 8 bits
    assert set(batched.state[ours[0]]) == set(torchs.state[theirs[0]]) == {"momentum_buffer"}
    torch.testing.assert_close(
        batched.state[ours[3]]["momentum_buffer"], torchs.state[theirs[3]]["momentum_buffer"]
    )
    assert torch.equal(ours[-1], theirs[-1])


def test_orthogonalize_changes_singular_values_only() -> None:
    matrices = torch.randn(3, 6, 40, generator=torch.Generator().manual_seed(0))
    found = orthogonalize(matrices, COEFFICIENTS, 5, 1e-7)
    assert found.dtype == torch.float32
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6
    assert values.max() < 1.3
    left, before, right = torch.linalg.svd(matrices, full_matrices=False)
    inside = left.mT @ found @ right.mT  # diagonal where singular vectors stayed
    assert (inside - torch.diag_embed(inside.diagonal(dim1=1, dim2=2))).abs().max() < 1e-4
    a, b, c = COEFFICIENTS
    expected = before / torch.linalg.vector_norm(before, dim=1, keepdim=True)
    for _ in range(5):
        expected = a * expected + b * expected**3 + c * expected**5
    torch.testing.assert_close(inside.diagonal(dim1=1, dim2=2), expected, atol=1e-4, rtol=1e-4)


def test_zero_gradient_changes_nothing() -> None:
    assert not orthogonalize(torch.zeros(2, 3, 4), COEFFICIENTS, 5, 1e-7).any()


def rates(optimizer: Optimizer, model: nn.Module) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay by parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_learning_rate_and_weight_decay_by_parameter(name: str) -> None:
    model = Transformer(NETWORK)
    config = OptimizerConfig(name, matrix_lr=0.5, lr=0.25, weight_decay=0.125)  # type: ignore[arg-type]
    optimizer = make_optimizer(model, model.hidden_matrices(), config)
    found = rates(optimizer, model)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(found)
    assert found["blocks.1.attention.query.weight"] == (0.5, 0.125)
    assert found["blocks.0.feed_forward.down.weight"] == (0.5, 0.125)
    assert found["embedding.weight"] == found["head.weight"] == (0.25, 0.125)
    assert found["blocks.0.attention.query_norm.weight"] == found["final_norm.weight"] == (0.25, 0.0)
    assert sum(rate == 0.5 for rate, _ in found.values()) == 2 * 7


def test_combined_optimizer_updates_each_parameter_by_its_own_rule() -> None:
    torch.manual_seed(0)  # by chance a singular value is so small that Muon can not lift it
    model = Transformer(NETWORK)
    optimizer = make_optimizer(model, model.hidden_matrices(), OptimizerConfig(matrix_lr=0.5, lr=0.25))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] *= 0.5  # as a schedule does
    optimizer.step()
    moved = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}
    # AdamW's first step is the rate, whatever the gradient; Muon's has singular values near its own rate
    torch.testing.assert_close(moved["head.weight"].abs(), torch.full((V, 16), 0.125), atol=1e-4, rtol=0)
    values = torch.linalg.svdvals(moved["blocks.0.attention.key.weight"])
    assert 0.1 < values.min() < values.max() < 0.35
    assert set(optimizer.state[model.blocks[0].attention.key.weight]) == {"momentum_buffer"}
    assert set(optimizer.state[model.head.weight]) == {"step", "exp_avg", "exp_avg_sq"}
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"name": "lion"}, "must be 'muon' or 'adamw'"),
        ({"matrix_lr": 0.0}, "matrix_lr is 0.0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"momentum": 1.0}, "momentum or beta is 1.0"),
        ({"betas": (0.9, -0.1)}, "momentum or beta is -0.1"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
    ],
)
def test_numbers_out_of_range_are_rejected(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        OptimizerConfig(**changes)  # type: ignore[arg-type]


# in the training loop


def optimizer_of(model: nn.Module) -> Optimizer:
    assert isinstance(model, Transformer)
    return make_optimizer(model, model.hidden_matrices(), OptimizerConfig())


def transformer(**options: object) -> TorchTrainable:
    return TorchTrainable(partial(Transformer, NETWORK), next_token_loss, optimizer_of, seed=3, **options)  # type: ignore[arg-type]


def windows_job(folder: Path, make: Callable[[], TorchTrainable] = transformer, **changes: object):  # type: ignore[no-untyped-def]
    """40 windows in 10 steps per epoch, of a text in which every token is the previous one plus 3."""
    folder.mkdir(parents=True, exist_ok=True)
    shard = folder / "train.parquet"
    if not shard.exists():
        rows = (np.arange(40)[:, None] + 3 * np.arange(T + 1)) % V
        inputs = pa.FixedSizeListArray.from_arrays(pa.array(rows[:, :-1].astype(np.int32).ravel()), T)
        table = pa.table({"inputs": inputs, "label": rows[:, -1].astype(np.int32)})
        pq.write_table(table, shard, row_group_size=5)
    options = {
        "files": (shard,),
        "columns": ("inputs", "label"),
        "batch_size": 4,
        "validation": (shard,),
        "sync": SyncConfig(),
        "stopping": Stopping(max_epochs=2),
        **changes,
    }
    return job(folder, make, **options)


def state(folder: Path) -> dict[str, Tensor]:
    found = Checkpoints(folder / "checkpoints", "fingerprint").load()
    assert found is not None
    return found.tensors


def test_resumed_transformer_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    run = train(windows_job(tmp_path / "whole"))
    assert run.scores[-1]["loss"] < 1.0 < run.history[0]["loss"]
    killed = partial(die_at, 13)
    with pytest.raises(KilledError):
        train(windows_job(tmp_path / "killed", on_batch=killed))
    train(windows_job(tmp_path / "killed"))
    whole, resumed = state(tmp_path / "whole"), state(tmp_path / "killed")
    assert any(name.endswith("momentum_buffer") for name in whole)
    assert any(name.endswith("exp_avg_sq") for name in whole)
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_micro_batches_give_the_gradient_of_the_batch(tmp_path: Path) -> None:
    train(windows_job(tmp_path / "whole", stopping=Stopping(max_steps=3)))
    train(
        windows_job(tmp_path / "micro", partial(transformer, micro_batch=3), stopping=Stopping(max_steps=3))
    )
    for name, tensor in state(tmp_path / "whole").items():
        torch.testing.assert_close(state(tmp_path / "micro")[name], tensor, atol=2e-3, rtol=0, msg=name)


def test_two_workers_train_with_every_strategy(tmp_path: Path) -> None:
    strategies = SyncConfig("all_reduce"), SyncConfig("average", period=3), SyncConfig("diloco", period=5)
    jobs = [windows_job(tmp_path / sync.strategy, sync=sync, lanes=2) for sync in strategies]
    on_processes(2, train_on, *jobs)
    for sync in strategies:
        found = Checkpoints(tmp_path / sync.strategy / "checkpoints", "fingerprint").load()
        assert found is not None
        assert found.state["scores"][-1]["loss"] < 2.0, sync.strategy
    train(windows_job(tmp_path / "one", lanes=2))
    together = state(tmp_path / "all_reduce")
    for name, tensor in state(tmp_path / "one").items():
        torch.testing.assert_close(together[name], tensor, atol=0.02, rtol=0, msg=name)
