"""Schedules: figures computed by hand."""

from functools import partial

import pytest

from lexloom.training.schedules import constant, cosine, linear, warm_up_stable_decay


@pytest.mark.parametrize(
    ("schedule", "figures"),
    [
        (constant, {0: 1, 0.5: 1, 1: 1}),
        (partial(constant, warm_up=0.1), {0: 0.01, 0.05: 0.505, 0.1: 1, 1: 1}),
        (linear, {0: 1, 0.25: 0.75, 1: 0}),
        (partial(linear, warm_up=0.2, final=0.1), {0: 0.01, 0.2: 1, 0.6: 0.55, 1: 0.1}),
        (cosine, {0: 1, 0.5: 0.55, 1: 0.1}),
        (partial(cosine, warm_up=0.5, final=0), {0: 0.01, 0.5: 1, 0.75: 0.5, 1: 0}),
        (warm_up_stable_decay, {0: 0.01, 0.01: 0.505, 0.02: 1, 0.8: 1, 0.9: 0.5, 1: 0}),
    ],
)
def test_figures_by_hand(schedule: partial[float], figures: dict[float, float]) -> None:
    assert {progress: schedule(progress) for progress in figures} == pytest.approx(figures)
