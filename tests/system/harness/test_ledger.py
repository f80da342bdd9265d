"""The soak's ledger believes a run that resumed as it should, and notices one that did not.

The run: two epochs of two steps on two workers; worker 0 learns from rows 0, 1 and 4, 5, worker 1 from the
others. Both die in the second epoch, worker 1 a step behind, and go on from a checkpoint after the first.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.system.harness.ledger import Ledger, Page, Position, check_coverage, pages, settle

ROWS = {"a": [0, 1], "b": [4, 5], "c": [2, 3], "d": [6, 7]}


def page(worker: int, begun: Position, *taken: tuple[int, int, str]) -> Page:
    return Page(worker, 0, begun, [((epoch, step), batch) for epoch, step, batch in taken])


BEFORE = [
    page(0, (0, 0), (0, 0, "a"), (0, 1, "b"), (1, 0, "b"), (1, 1, "a")),
    page(1, (0, 0), (0, 0, "c"), (0, 1, "d"), (1, 0, "d")),
]
AFTER = [page(0, (1, 0), (1, 0, "b"), (1, 1, "a")), page(1, (1, 0), (1, 0, "d"), (1, 1, "c"))]


def taken_again(folder: Path, found: list[Page], rows: dict[str, list[int]] = ROWS) -> int:
    for batch, numbers in rows.items():
        np.array(numbers, np.int32).tofile(folder / f"{batch}.rows")
    account = settle(found)
    check_coverage(account, folder, rows=8, epochs=2, workers=2)
    assert account.steps == 4
    return account.again


def test_batches_after_the_checkpoint_count_as_taken_again(tmp_path: Path) -> None:
    assert taken_again(tmp_path, [*BEFORE, *AFTER]) == 3


def test_going_on_from_an_older_checkpoint_takes_more_again(tmp_path: Path) -> None:
    older = [
        page(0, (0, 1), (0, 1, "b"), (1, 0, "b"), (1, 1, "a")),
        page(1, (0, 1), (0, 1, "d"), (1, 0, "d"), (1, 1, "c")),
    ]
    assert taken_again(tmp_path, [*BEFORE, *older]) == 5


@pytest.mark.parametrize(
    ("resumed", "what"),
    [
        (page(0, (1, 0), (1, 1, "a")), "left .1, 0. and took .1, 1."),
        (page(0, (1, 0), (0, 1, "b"), (1, 0, "b"), (1, 1, "a")), "left .1, 0. and took .0, 1."),
        (page(0, (1, 0), (1, 0, "b"), (1, 0, "b"), (1, 1, "a")), "took .1, 0. after .1, 0."),
        (page(0, (1, 0), (1, 0, "a"), (1, 1, "b")), "with another batch"),
        (page(0, (1, 0), (1, 0, "b")), "never again"),
    ],
    ids=["leaves a step out", "goes back too far", "takes one twice", "takes others", "ends early"],
)
def test_a_worker_that_resumes_wrongly_is_noticed(tmp_path: Path, resumed: Page, what: str) -> None:
    with pytest.raises(AssertionError, match=what):
        taken_again(tmp_path, [*BEFORE, resumed, AFTER[1]])


def test_a_step_without_one_of_the_workers_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not taken by every worker"):
        taken_again(tmp_path, [*BEFORE, AFTER[0], page(1, (1, 0), (1, 0, "d"))])


def test_a_run_that_deals_an_example_twice_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"epoch 0: 2 rows not taken once, row \[2\]"):
        taken_again(tmp_path, [*BEFORE, *AFTER], {**ROWS, "c": [3, 3]})


def test_a_page_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Each process opens one, with the place of the newest checkpoint on disk at its head."""
    checkpoints, folder = tmp_path / "checkpoints", tmp_path / "ledger"
    batch = {"row": np.array([5, 7], np.int32)}
    Ledger(folder, checkpoints, 0.0)(0, 0, 1, batch)
    (checkpoints / "step-0000000003").mkdir(parents=True)
    (checkpoints / "step-0000000003" / "state.json").write_text('{"epoch": 1, "step_in_epoch": 2}')
    second = Ledger(folder, checkpoints, 0.0)
    second(1, 2, 0, batch)
    second(1, 3, 0, {"row": batch["row"] + 1})
    found = pages(folder)
    assert [each.worker for each in found] == [1, 0]
    assert [each.begun for each in found] == [(0, 0), (1, 2)]
    assert [[place for place, _ in each.taken] for each in found] == [[(0, 0)], [(1, 2), (1, 3)]]
    digest = found[0].taken[0][1]
    assert found[1].taken[0][1] == digest != found[1].taken[1][1]
    assert np.fromfile(folder / f"{digest}.rows", np.int32).tolist() == [5, 7]
