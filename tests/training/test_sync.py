"""`delta_sum`: exactly the dense sum of moves; replicas are equal after every flush."""

from pathlib import Path

import pytest
import torch

from tests.training.toy import on_processes
from training.sync import Alone, DeltaSum, sum_over_workers

ROWS, WIDTH, STEPS, PERIOD = 50, 8, 7, 3


def moves(rank: int, step: int) -> torch.Tensor:
    """What worker `rank` adds to its table in `step`: a few rows move, most do not."""
    generator = torch.Generator().manual_seed(100 * rank + step)
    dense = torch.zeros(ROWS, WIDTH)
    rows = torch.randint(0, ROWS // 2, (4,), generator=generator)
    dense[rows] = torch.randn(4, WIDTH, generator=generator)
    return dense


def synchronise(rank: int, world_size: int, folder: str) -> None:
    table = torch.ones(ROWS, WIDTH)
    sync = DeltaSum(PERIOD)
    sync.setup({"table": table})
    for step in range(1, STEPS + 1):
        table += moves(rank, step)
        sync.after_step(step)
    sync.flush()
    sent = sync.bytes_sent
    sync.flush()  # nothing moved since: nothing is sent
    assert sync.bytes_sent == sent
    assert sum_over_workers([rank, 1.0], world_size) == [sum(range(world_size)), world_size]
    torch.save({"table": table, "bytes": torch.tensor(sent)}, Path(folder) / f"{rank}.pt")


def test_the_sum_of_moves_is_exactly_the_dense_one(tmp_path: Path) -> None:
    on_processes(2, synchronise, str(tmp_path))
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    agreed = torch.ones(ROWS, WIDTH)
    for start in range(1, STEPS + 1, PERIOD):
        replicas = [agreed.clone(), agreed.clone()]
        for step in range(start, min(start + PERIOD, STEPS + 1)):
            for rank, replica in enumerate(replicas):
                replica += moves(rank, step)
        agreed = agreed + ((replicas[0] - agreed) + (replicas[1] - agreed))
    assert torch.equal(results[0]["table"], agreed)
    assert torch.equal(results[1]["table"], agreed)
    whole_tables = 3 * ROWS * WIDTH * 4
    assert 0 < int(results[0]["bytes"]) < whole_tables


def test_three_workers_agree_too(tmp_path: Path) -> None:
    on_processes(3, synchronise, str(tmp_path))
    tables = [torch.load(tmp_path / f"{rank}.pt", weights_only=True)["table"] for rank in range(3)]
    assert torch.equal(tables[0], tables[1])
    assert torch.equal(tables[0], tables[2])


FREQUENT = 6


def synchronise_rarely(rank: int, world_size: int, folder: str) -> None:
    table = torch.ones(ROWS, WIDTH)
    sync = DeltaSum(1, frequent_rows=FREQUENT, rare_period=STEPS + 1)
    sync.setup({"table": table})
    for step in range(1, STEPS + 1):
        table += moves(rank, step)
        sync.after_step(step)
    before = table.clone()
    sync.flush()
    torch.save({"before": before, "after": table}, Path(folder) / f"{rank}.pt")


def test_frequent_rows_travel_more_often_and_none_is_lost(tmp_path: Path) -> None:
    on_processes(2, synchronise_rarely, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first["before"][:FREQUENT], second["before"][:FREQUENT])
    assert not torch.equal(first["before"][FREQUENT:], second["before"][FREQUENT:])
    assert torch.equal(first["after"], second["after"])
    total = 1 + sum(moves(rank, step) for rank in (0, 1) for step in range(1, STEPS + 1))
    assert torch.allclose(first["after"], torch.as_tensor(total), atol=1e-5)


def test_a_period_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="period is 0 steps"):
        DeltaSum(0)


def test_one_worker_has_nothing_to_send() -> None:
    sync = Alone()
    sync.setup({"table": torch.ones(1, 1)})
    sync.after_step(1)
    sync.flush()
    assert (sync.bytes_sent, sync.seconds) == (0, 0.0)
