"""95% confidence intervals of accuracies and rank correlations."""

import math

Z = 1.959964  # quantile .975 of the normal distribution

Interval = tuple[float, float]


def accuracy_interval(accuracy: float | None, trials: int) -> Interval | None:
    """Return Wilson's (1927) interval of an accuracy over independent trials; None without trials."""
    if accuracy is None or not trials:
        return None
    shrink = 1 + Z**2 / trials
    middle = (accuracy + Z**2 / (2 * trials)) / shrink
    half = Z / shrink * math.sqrt(accuracy * (1 - accuracy) / trials + Z**2 / (4 * trials**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def correlation_interval(correlation: float | None, pairs: int) -> Interval | None:
    """Return the interval of Spearman's correlation, by Fisher's transformation with the variance of Fieller
    et al. (1957); None if it is undefined.
    """
    if correlation is None or pairs <= 3 or abs(correlation) >= 1:
        return None
    middle, half = math.atanh(correlation), Z * math.sqrt(1.06 / (pairs - 3))
    return math.tanh(middle - half), math.tanh(middle + half)


def format_interval(interval: Interval | None, form: str = ".1%") -> str:
    """Format an interval: `11.3% to 12.5%`."""
    return "–" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"
