"""SplitMix64, the random numbers of compiled loops: a function of where one is, so that nothing has a state.

Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
"""

from typing import Any

import numpy as np
from numba import njit

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # from one state to the next


@njit(inline="always")
def mix(x: Any) -> Any:
    """64 random bits of a state, uint64: a bijection that scatters its argument."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
