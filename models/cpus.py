"""The processors that this process may use."""

import os


def available_cpus() -> int:
    """Return the number of CPUs in this process's affinity mask, or all CPUs where there is none (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
