"""Learning-rate schedules: a factor of the base learning rate as a function of progress, from 0 to 1.

Schedules are functions of progress only, so restarts and the number of workers do not affect them. Bind their
options with `functools.partial`. Over the first `warm_up` share of the run the factor rises linearly from
0.01, so that the first step has an effect.
"""

import math

INITIAL_FACTOR = 0.01


def constant(progress: float, *, warm_up: float = 0.0) -> float:
    """Constant 1 after the warm-up."""
    return warm_up_factor(progress, warm_up)


def linear(progress: float, *, warm_up: float = 0.0, final: float = 0.0) -> float:
    """Linear decay from 1 to `final`."""
    return warm_up_factor(progress, warm_up) * (1 - (1 - final) * elapsed_share(progress, warm_up, 1.0))


def cosine(progress: float, *, warm_up: float = 0.0, final: float = 0.1) -> float:
    """Half-cosine decay from 1 to `final`. (Loshchilov and Hutter 2017, "SGDR", without restarts)"""
    fall = (1 - math.cos(math.pi * elapsed_share(progress, warm_up, 1.0))) / 2
    return warm_up_factor(progress, warm_up) * (1 - (1 - final) * fall)


def warm_up_stable_decay(
    progress: float, *, warm_up: float = 0.02, decay: float = 0.2, final: float = 0.0
) -> float:
    """Constant 1, then linear decay to `final` over the last `decay` share. (Hu et al. 2024, "MiniCPM")"""
    return warm_up_factor(progress, warm_up) * (1 - (1 - final) * elapsed_share(progress, 1 - decay, 1.0))


def warm_up_factor(progress: float, until: float) -> float:
    return 1.0 if progress >= until else INITIAL_FACTOR + (1 - INITIAL_FACTOR) * progress / until


def elapsed_share(progress: float, start: float, end: float) -> float:
    """The share of the interval from `start` to `end` that `progress` has passed, 0 to 1."""
    return min(max((progress - start) / (end - start), 0.0), 1.0) if end > start else float(progress >= end)
