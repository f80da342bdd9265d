"""Learning-rate schedules: the share of the base rate in force at a progress of 0 to 1 through the run.

Functions of progress and of nothing else, so that neither a restart nor another number of workers moves them.
Bind their options with `functools.partial`. Over the first `warm_up` of the run each rises linearly, from a
hundredth, so that the first step is not wasted.
"""

import math

FIRST = 0.01


def constant(progress: float, *, warm_up: float = 0.0) -> float:
    """1 after the warm-up."""
    return rise(progress, warm_up)


def linear(progress: float, *, warm_up: float = 0.0, final: float = 0.0) -> float:
    """From 1 straight down to `final`."""
    return rise(progress, warm_up) * (1 - (1 - final) * share(progress, warm_up, 1.0))


def cosine(progress: float, *, warm_up: float = 0.0, final: float = 0.1) -> float:
    """From 1 down to `final` along half a cosine. (Loshchilov and Hutter 2017, "SGDR", without restarts)"""
    fall = (1 - math.cos(math.pi * share(progress, warm_up, 1.0))) / 2
    return rise(progress, warm_up) * (1 - (1 - final) * fall)


def warm_up_stable_decay(
    progress: float, *, warm_up: float = 0.02, decay: float = 0.2, final: float = 0.0
) -> float:
    """1 until the last `decay` of the run, then straight down to `final`. (Hu et al. 2024, "MiniCPM")"""
    return rise(progress, warm_up) * (1 - (1 - final) * share(progress, 1 - decay, 1.0))


def rise(progress: float, until: float) -> float:
    return 1.0 if progress >= until else FIRST + (1 - FIRST) * progress / until


def share(progress: float, start: float, end: float) -> float:
    """How far `progress` is from `start` to `end`: 0 before, 1 after."""
    return min(max((progress - start) / (end - start), 0.0), 1.0) if end > start else float(progress >= end)
