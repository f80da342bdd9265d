"""SplitMix64: counter-based random numbers for compiled loops, without saved state.

Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # the increment of the state


@njit(inline="always")
def mix(x: Any) -> Any:
    """64 random bits from a uint64 state, by a bijection."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_seeds(seed: int, numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return 64 random bits for each number, a function of both arguments, for use outside compiled loops."""
    mix_now = mix.py_func  # Numba would compile `mix` in every process, which takes half a second
    with np.errstate(over="ignore"):
        return mix_now(mix_now(np.uint64(seed % 2**64)) + (numbers + 1).astype(np.uint64) * GOLDEN_GAMMA)


def hash_seed(seed: int, number: int) -> int:
    """Return 64 random bits, a function of both arguments (see `hash_seeds`)."""
    return int(hash_seeds(seed, np.array([number], np.int64))[0])
