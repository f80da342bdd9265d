"""Limits: the first one reached, its name, and early stopping."""

import pytest

from lexloom.training.stopping import Score, Stopping, best_score, count_evaluations_without_improvement


def scores(*losses: float) -> list[Score]:
    return [
        Score(step=10 * number, epoch=number, examples=100 * number, seconds=1.0 * number, loss=loss)
        for number, loss in enumerate(losses, 1)
    ]


def test_time_share_is_between_0_and_1() -> None:
    limits = Stopping(max_epochs=1, max_seconds=20)
    assert [limits.time_share(seconds) for seconds in (0, 5, 20, 30)] == [0, 0.25, 1, 1]
    assert Stopping(max_epochs=1).time_share(1e9) == 0


def test_first_reached_limit_is_returned() -> None:
    limits = Stopping(max_epochs=2, max_steps=50, max_seconds=9.0)
    assert limits.reached(epochs=1, steps=49, seconds=8.9) is None
    assert limits.reached(epochs=2, steps=49, seconds=8.9) == "max_epochs"
    assert limits.reached(epochs=1, steps=50, seconds=8.9) == "max_steps"
    assert limits.reached(epochs=1, steps=49, seconds=9.0) == "max_seconds"


def test_patience_counts_evaluations_without_improvement() -> None:
    assert count_evaluations_without_improvement([], 0.0) == 0
    assert count_evaluations_without_improvement(scores(3.0, 2.0, 2.0, 2.5), 0.0) == 2
    assert count_evaluations_without_improvement(scores(3.0, 2.0, 1.95, 1.92), 0.1) == 2
    assert count_evaluations_without_improvement(scores(3.0, 2.0, 1.95, 1.85), 0.1) == 0  # small gains add up
    limits = Stopping(max_epochs=9, patience=2)
    assert limits.check_patience(scores(3.0, 2.0, 2.0)) is None
    assert limits.check_patience(scores(3.0, 2.0, 2.0, 2.5)) == "patience"
    assert Stopping(max_epochs=9).check_patience(scores(1.0, 2.0, 3.0)) is None


def test_best_score_is_the_first_with_the_lowest_loss() -> None:
    assert best_score([]) is None
    found = best_score(scores(3.0, 2.0, 2.0, 2.5))
    assert found is not None
    assert found["step"] == 20


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "set max_epochs or max_steps"),
        ({"max_seconds": 5.0}, "set max_epochs or max_steps"),
        ({"max_epochs": 0}, "max_epochs is 0: it must be above 0"),
        ({"max_steps": 1, "max_seconds": -1.0}, "max_seconds is -1.0"),
        ({"max_steps": 1, "patience": 0}, "patience is 0"),
        ({"max_steps": 1, "min_delta": float("nan")}, "min_delta is nan"),
    ],
)
def test_invalid_limits_are_rejected(limits: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stopping(**limits)  # type: ignore[arg-type]
