"""Memory that the C library keeps for reuse.

By default, glibc returns large blocks to the system when they are freed. Each training step then allocates
its activations again, and the system clears every page again, which takes a seventh of the CPU time of a step
of the window language model (benchmarks/LOG.md).
"""

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
LARGEST_BLOCK = 1 << 25  # the largest threshold that glibc accepts
MOST_KEPT = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Make the C library reuse freed blocks of up to 32 MB; return whether it supports that (glibc)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGEST_BLOCK) and mallopt(TRIM_THRESHOLD, MOST_KEPT))
