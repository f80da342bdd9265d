"""Synchronisation strategies against figures by hand; replicas are equal after every flush."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lexloom.training.sync.collectives import WeightedMean, sum_over_workers
from lexloom.training.sync.config import SyncConfig, check_strategy, make_synchronisation
from lexloom.training.sync.delta_sum import DeltaSum
from lexloom.training.sync.strategies import Average, DiLoCo, Synchronisation
from tests.training.toy import Counter, classifier, on_processes

ROWS, WIDTH, STEPS, PERIOD = 50, 8, 7, 3
FREQUENT = 6


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


def moves(rank: int, step: int) -> Tensor:
    """The update of worker `rank` in `step`: a few rows change, most do not."""
    generator = torch.Generator().manual_seed(100 * rank + step)
    dense = torch.zeros(ROWS, WIDTH)
    rows = torch.randint(0, ROWS // 2, (4,), generator=generator)
    dense[rows] = torch.randn(4, WIDTH, generator=generator)
    return dense


def delta_sums(rank: int, world_size: int) -> dict[str, Tensor]:
    table, rarely = torch.ones(ROWS, WIDTH), torch.ones(ROWS, WIDTH)
    sync = begun(SyncConfig("delta_sum", period=PERIOD), world_size, table)
    config = SyncConfig("delta_sum", period=1, frequent_rows=FREQUENT, rare_period=STEPS + 1)
    rare_sync = begun(config, world_size, rarely)
    for step in range(1, STEPS + 1):
        for replica, strategy in ((table, sync), (rarely, rare_sync)):
            replica += moves(rank, step)
            strategy.after_step(step, 1, world_size)
    before = rarely.clone()
    sync.flush()
    rare_sync.flush()
    sent = sync.bytes_sent
    sync.flush()  # nothing moved since: nothing is sent
    assert sync.bytes_sent == sent
    return {"table": table, "sent": torch.tensor(sent), "before": before, "after": rarely}


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


def capped(rank: int, world_size: int) -> dict[str, Tensor]:
    """Row 0 is changed equally by all, row 1 by worker 0, row 2 in opposite directions, row 3 by none."""
    found = {}
    for cap in (2.0, 3.0):
        for frequent in (0, 4):
            table = torch.zeros(4, 2)
            config = SyncConfig("delta_sum", period=1, rare_period=2, frequent_rows=frequent, cap=cap)
            sync = begun(config, world_size, table)
            table[0] += torch.tensor([3.0, 4.0])
            if rank == 0:
                table[1] += 5.0
            table[2] += torch.tensor([1.0, -1.0])[rank % 2]
            sync.after_step(1 if frequent else 2, 1, world_size)
            found[f"capped {cap} {frequent}"] = table
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
    parts = (delta_sums, dense_ones, warmed_up, optimizer_states, many_tensors)
    return results(2, tmp_path_factory.mktemp("two"), *parts)


def test_sum_of_deltas_equals_the_dense_sum(two: list[dict[str, Tensor]]) -> None:
    agreed = torch.ones(ROWS, WIDTH)
    for start in range(1, STEPS + 1, PERIOD):
        replicas = [agreed.clone(), agreed.clone()]
        for step in range(start, min(start + PERIOD, STEPS + 1)):
            for rank, replica in enumerate(replicas):
                replica += moves(rank, step)
        agreed = agreed + ((replicas[0] - agreed) + (replicas[1] - agreed))
    assert torch.equal(two[0]["table"], agreed)
    assert torch.equal(two[1]["table"], agreed)
    whole_tables = 3 * ROWS * WIDTH * 4
    assert 0 < int(two[0]["sent"]) < whole_tables


def test_frequent_rows_are_exchanged_more_often(two: list[dict[str, Tensor]]) -> None:
    first, second = two
    assert torch.equal(first["before"][:FREQUENT], second["before"][:FREQUENT])
    assert not torch.equal(first["before"][FREQUENT:], second["before"][FREQUENT:])
    assert torch.equal(first["after"], second["after"])
    total = 1 + sum(moves(rank, step) for rank in (0, 1) for step in range(1, STEPS + 1))
    assert torch.allclose(first["after"], torch.as_tensor(total), atol=1e-5)


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
    found = results(3, tmp_path, delta_sums, dense_ones, warmed_up, capped)
    for name in found[0].keys() - {"before", "sent"}:
        for first, second in pairwise(found):
            assert torch.equal(first[name], second[name]), name
    for frequent in (0, 4):
        # three equal moves go as far as two of them; what one worker moved, or what cancels, is left alone
        expected = torch.tensor([[6.0, 8.0], [5.0, 5.0], [1.0, 1.0], [0.0, 0.0]])
        assert torch.allclose(found[0][f"capped 2.0 {frequent}"], expected)
        expected[0] = torch.tensor([9.0, 12.0])  # no more workers than the cap: the plain sum
        assert torch.equal(found[0][f"capped 3.0 {frequent}"], expected)


def test_single_worker_sends_nothing() -> None:
    table = torch.ones(1, 1)
    for strategy in ("all_reduce", "average", "delta_sum"):
        sync = begun(SyncConfig(strategy), 1, table)  # type: ignore[arg-type]
        table += 1.0
        sync.after_step(1, 1, 1)
        sync.flush()
        assert (sync.bytes_sent, sync.seconds) == (0, 0.0)
    assert table.item() == 4.0
    sync = begun(SyncConfig("diloco"), 1, table)
    table += 1.0
    sync.after_step(1, 1, 1)
    assert table.item() == pytest.approx(4 + 0.7 * 1.9)
    assert sync.bytes_sent == 0


def test_configuration_selects_the_strategy() -> None:
    kinds = {
        strategy: type(make_synchronisation(SyncConfig(strategy), 2)).__name__
        for strategy in ("average", "diloco")
    }  # type: ignore[arg-type]
    assert kinds == {"average": Average.__name__, "diloco": DiLoCo.__name__}
    delta_sum = make_synchronisation(SyncConfig("delta_sum", period=2, frequent_rows=5, rare_period=8), 2)
    assert isinstance(delta_sum, DeltaSum)
    assert (delta_sum.period, delta_sum.frequent_rows, delta_sum.rare_period) == (2, 5, 8)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"period": 0}, "period is 0: it must be at least 1"),
        ({"strategy": "delta_sum", "rare_period": 0}, "rare_period is 0"),
        ({"strategy": "gossip"}, "strategy is 'gossip': it must be one of"),
        ({"comm_dtype": "int8"}, "comm_dtype is 'int8'"),
        ({"outer_momentum": 1.0}, "momentum 1.0 at least 0 and below 1"),
        ({"outer_learning_rate": 0.0}, "learning rate 0.0 must be above 0"),
        ({"cap": 0.5}, "cap is 0.5: it must be at least 1"),
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
    with pytest.raises(ValueError, match=r"rows of matrices, but 0 has the shape \(3,\)"):
        begun(SyncConfig("delta_sum"), 2, torch.zeros(3))
