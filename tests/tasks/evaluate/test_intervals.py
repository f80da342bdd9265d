"""Confidence intervals: Wilson's against scipy, and those of rank correlations by hand."""

import pytest
from scipy.stats import binomtest

from lexloom.tasks.evaluate.intervals import accuracy_interval, correlation_interval, format_interval


@pytest.mark.parametrize(("correct", "trials"), [(0, 10), (3, 10), (10, 10), (1217, 10_211)])
def test_the_interval_of_an_accuracy_is_wilsons(correct: int, trials: int) -> None:
    expected = binomtest(correct, trials).proportion_ci(method="wilson")
    assert accuracy_interval(correct / trials, trials) == pytest.approx(
        (expected.low, expected.high), abs=1e-7
    )


def test_the_interval_of_a_correlation_is_fishers_with_fiellers_variance() -> None:
    # atanh(.3217) = .33354; 1.959964 * sqrt(1.06 / 297) = .11709; tanh(.21645), tanh(.45063)
    assert correlation_interval(0.3217, 300) == pytest.approx((0.21313, 0.42243), abs=1e-4)


def test_what_has_no_interval_is_shown_as_a_dash() -> None:
    assert accuracy_interval(None, 5) is accuracy_interval(0.5, 0) is None
    assert correlation_interval(None, 9) is correlation_interval(0.5, 3) is None
    assert correlation_interval(1.0, 9) is None
    assert format_interval(None) == "–"
    assert format_interval((0.1131, 0.1254)) == "11.3% to 12.5%"
