"""The processors that this process may use."""

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available_cpus(cgroup: Path = CGROUP) -> int:
    """Return the number of CPUs of this process: of its affinity mask, and at most its control group's quota.

    A container's limit (`docker run --cpus 2`) is a quota, which the affinity mask does not show.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cpus, read_quota(cgroup) or cpus))


def read_quota(cgroup: Path) -> int | None:
    """Return a control group's quota in CPUs, rounded up; None if there is none.

    Version 2 has the file `cpu.max` with "quota period" or "max period", version 1 has a file for each.
    """
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = (
                (cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")
            )
        except OSError:
            return None
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None  # "max", or -1
    return -(-int(quota) // int(period))
