"""Synchronisation strategies against figures by hand; replicas are equal after every flush."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lexloom.training.sync.collectives import WeightedMean, sum_over_workers
from lexloom.training.sync.config import SyncConfig, check_strategy, make_synchronisation
from lexloom.training.sync.rotation import Rotation
from lexloom.training.sync.strategies import Average, DiLoCo, Synchronisation
from tests.training.toy import Counter, classifier, on_processes


class Tables:
    """The part of a trainable that a strategy uses."""

    def __init__(self, **tables: Tensor) -> None:
        self._tables = tables

    def tables(self) -> dict[str, Tensor]:
        return self._tables


def begun(config: SyncConfig, world_size: int, *tables: Tensor) -> Synchronisation:
    sync = make_synchronisation(config, world_size)
    sync.setup(Tables(**{str(place): table for place, table in enumerate(tables)}), world_size)  # type: ignore[arg-type]
    return sync


def dense_ones(rank: int, world_size: int) -> dict[str, Tensor]:
    """The strategies for dense tensors, with unequal shares: worker r has r + 1 of the examples."""
    found = {}
    mine, everybody = rank + 1, sum(range(world_size + 1))

    gradients = [torch.full((3,), 6.0 * (rank + 1)), torch.full((2, 2), float(rank))]
    sync = begun(SyncConfig("all_reduce"), world_size, *gradients)
    assert sync.wants_gradients(1)
    sync.after_backward(gradients, mine, everybody)
    assert sync.bytes_sent == 7 * 4
    found["all_reduce"] = gradients[0]

    table = torch.full((2, 3), 10.0 * rank)
    sync = begun(SyncConfig("average", period=2), world_size, table)
    sync.after_step(1, 0, 5)  # an empty share of the first batch
    assert table[0, 0] == 10.0 * rank
    sync.after_step(2, mine, everybody)
    found["average"] = table.clone()
    sent = sync.bytes_sent
    sync.flush()
    assert sync.bytes_sent == sent == table.nbytes

    for comm_dtype in ("float32", "bfloat16"):
        table = torch.full((1, 1), 1.0)
        sync = begun(SyncConfig("diloco", period=1, comm_dtype=comm_dtype), world_size, table)  # type: ignore[arg-type]
        table += [1.0, 3.0][rank % 2]
        sync.after_step(1, 1, 2)
        found[f"diloco {comm_dtype} 1"] = table.clone()
        state = {name: value.clone() for name, value in sync.state_dict().items()}
        again = begun(SyncConfig("diloco", period=1, comm_dtype=comm_dtype), world_size, table)  # type: ignore[arg-type]
        again.load_state_dict(state)
        table += [0.0, 1.0][rank % 2]
        again.after_step(2, 1, 2)
        found[f"diloco {comm_dtype} 2"] = table
        assert again.bytes_sent == table.nbytes / (1 if comm_dtype == "float32" else 2)
    return found


def warmed_up(rank: int, world_size: int) -> dict[str, Tensor]:
    """Two steps of all_reduce, then diloco from their result."""
    table = torch.ones(1, 2)
    config = SyncConfig("diloco", period=2, warm_up_steps=2, outer_learning_rate=0.5, outer_momentum=0.0)
    sync = begun(config, world_size, table)
    for step in (1, 2, 3, 4):
        gradient = [torch.full((1, 2), float(rank))]
        assert sync.wants_gradients(step) == (step <= 2)
        if sync.wants_gradients(step):
            sync.after_backward(gradient, 1, world_size)
        table += gradient[0]
        sync.after_step(step, 1, world_size)
    assert sync.bytes_sent == 3 * table.nbytes
    return {"warmed_up": table}


def optimizer_states(rank: int, world_size: int) -> dict[str, Tensor]:
    found = {}
    for choice in ("average", "keep"):
        model = classifier()
        model.prepare("cpu")
        for value in model.optimizer_tables().values():
            value.fill_(rank)
        sync = make_synchronisation(SyncConfig("average", optimizer_state=choice), world_size)  # type: ignore[arg-type]
        assert sync.local_optimizer == (choice == "keep")
        sync.setup(model, world_size)
        sync.after_step(1, 1, world_size)
        found[f"{choice} moment"] = model.optimizer_tables()["0.weight.exp_avg"]
        found[f"{choice} step"] = model.optimizer_tables()["0.weight.step"]
    return found


def many_tensors(rank: int, world_size: int) -> dict[str, Tensor]:
    """More than one bucket of several shapes, one of them empty."""
    generator = torch.Generator().manual_seed(rank)
    shapes = [(3_000_000,), (2000, 2000), (5,), (0, 3), (70, 7)]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    mean = WeightedMean(tensors, world_size)
    assert mean.nbytes == sum(tensor.nbytes for tensor in tensors)
    mean(tensors, [0.25, 0.75][rank])
    return {"first": tensors[0][:9], "last": tensors[-1]}


def check(rank: int, world_size: int, folder: str, *parts: Any) -> None:
    assert sum_over_workers([rank, 1.0], world_size) == [sum(range(world_size)), world_size]
    found = {name: value for part in parts for name, value in part(rank, world_size).items()}
    torch.save(found, Path(folder) / f"{rank}.pt")


def results(world_size: int, folder: Path, *parts: Any) -> list[dict[str, Tensor]]:
    on_processes(world_size, check, str(folder), *parts)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """The results of two workers; one group for all tests, since starting one takes seconds."""
    parts = (dense_ones, warmed_up, optimizer_states, many_tensors)
    return results(2, tmp_path_factory.mktemp("two"), *parts)


def test_gradients_are_weighted_by_examples(two: list[dict[str, Tensor]]) -> None:
    for found in two:  # (1 * 6 + 2 * 12) / 3
        assert torch.allclose(found["all_reduce"], torch.full((3,), 10.0))


def test_parameters_are_averaged_weighted_by_examples(
    two: list[dict[str, Tensor]],
) -> None:
    for found in two:  # the second worker trained 2 of the 8 examples of the two steps
        assert torch.allclose(found["average"], torch.full((2, 3), 10.0 * 2 / 8))


def test_diloco_equals_nesterov_by_hand(two: list[dict[str, Tensor]]) -> None:
    for found in two:
        # mean move 2: momentum -2, 1 + 0.7 * (2 + 0.9 * 2); then mean move 0.5: momentum -1.8 - 0.5
        assert found["diloco float32 1"].item() == pytest.approx(3.66, abs=1e-6)
        assert found["diloco float32 2"].item() == pytest.approx(3.66 + 0.7 * (0.5 + 0.9 * 2.3), abs=1e-6)
        # as bfloat16, the halves of the moves are rounded at the eighth bit
        assert found["diloco bfloat16 1"].item() == pytest.approx(3.66, abs=1e-6)
        assert found["diloco bfloat16 2"].item() == pytest.approx(3.66 + 0.7 * (0.5 + 0.9 * 2.3), abs=0.02)


def test_deltas_are_relative_to_the_end_of_the_warm_up(two: list[dict[str, Tensor]]) -> None:
    for found in two:  # 1, two steps of the mean gradient 0.5, then half of the mean of the moves 0 and 2
        assert torch.equal(found["warmed_up"], torch.full((1, 2), 2.5))


def test_optimizer_state_is_averaged_or_kept(two: list[dict[str, Tensor]]) -> None:
    for rank, found in enumerate(two):
        assert (found["average moment"] == 0.5).all()
        assert found["average step"] == 1.0  # the largest
        assert (found["keep moment"] == rank).all()
        assert found["keep step"] == rank


def test_buckets_contain_every_tensor_once(two: list[dict[str, Tensor]]) -> None:
    generators = [torch.Generator().manual_seed(rank) for rank in range(2)]
    drawn = [
        [torch.randn(count, generator=generator) for count in (3_000_000, 4_000_000, 5, 490)]
        for generator in generators
    ]
    for found in two:
        assert torch.allclose(found["first"], (drawn[0][0] * 0.25 + drawn[1][0] * 0.75)[:9])
        assert torch.allclose(found["last"].flatten(), drawn[0][-1] * 0.25 + drawn[1][-1] * 0.75)


def test_three_workers_are_equal_bit_for_bit(tmp_path: Path) -> None:
    found = results(3, tmp_path, dense_ones, warmed_up)
    for name in found[0]:
        for first, second in pairwise(found):
            assert torch.equal(first[name], second[name]), name


def test_single_worker_sends_nothing() -> None:
    table = torch.ones(1, 1)
    for strategy in ("all_reduce", "average"):
        sync = begun(SyncConfig(strategy), 1, table)  # type: ignore[arg-type]
        table += 1.0
        sync.after_step(1, 1, 1)
        sync.flush()
        assert (sync.bytes_sent, sync.seconds) == (0, 0.0)
    assert table.item() == 3.0
    sync = begun(SyncConfig("diloco"), 1, table)
    table += 1.0
    sync.after_step(1, 1, 1)
    assert table.item() == pytest.approx(3 + 0.7 * 1.9)
    assert sync.bytes_sent == 0


def test_configuration_selects_the_strategy() -> None:
    kinds = {
        strategy: type(make_synchronisation(SyncConfig(strategy), 2)).__name__
        for strategy in ("average", "diloco", "rotation")
    }  # type: ignore[arg-type]
    assert kinds == {each.__name__.lower(): each.__name__ for each in (Average, DiLoCo, Rotation)}


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"period": 0}, "period is 0: it must be at least 1"),
        ({"strategy": "gossip"}, "strategy is 'gossip': it must be one of"),
        ({"comm_dtype": "int8"}, "comm_dtype is 'int8'"),
        ({"outer_momentum": 1.0}, "momentum 1.0 at least 0 and below 1"),
        ({"outer_learning_rate": 0.0}, "learning rate 0.0 must be above 0"),
        ({"warm_up_steps": 5}, "only average and diloco support a warm-up"),
    ],
)
def test_invalid_numbers_are_rejected(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyncConfig(**numbers)


def test_unsupported_strategy_is_rejected() -> None:
    with pytest.raises(ValueError, match="all_reduce exchanges gradients, but Counter has none"):
        check_strategy(SyncConfig("all_reduce"), Counter())
    with pytest.raises(ValueError, match="warm-up exchanges gradients, but Counter has none"):
        check_strategy(SyncConfig("diloco", warm_up_steps=5), Counter())
    check_strategy(SyncConfig("diloco"), Counter())
    check_strategy(SyncConfig("all_reduce"), classifier())
