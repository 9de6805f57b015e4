"""How many cores this process may really use."""

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def quota(cgroup: Path = _CGROUP) -> float:
    """Cores this process may use, not fewer than a fraction above 0: the least of affinity mask and cgroup quota.

    A container on a 64-core machine with a quota of 2 sees 64 cores everywhere but here; 64 threads on it stall
    each other.

    Args:
        cgroup: the mount point; cgroup v2 (`cpu.max`) and v1 (`cpu.cfs_quota_us`) are read.
    """
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for limit in (_quota_v2(cgroup / "cpu.max"), _quota_v1(cgroup / "cpu")):
        if limit is not None:
            cores = min(cores, limit)
    return cores


def threads_per_worker(workers: int = 1, cgroup: Path = _CGROUP) -> int:
    """Whole threads for one of `workers` processes that share the quota, at least 1."""
    return max(1, math.floor(quota(cgroup) / workers))


def _quota_v2(path: Path) -> float | None:
    try:
        allowed, period = path.read_text().split()
        return None if allowed == "max" else int(allowed) / int(period)
    except (OSError, ValueError):
        return None  # no such cgroup: no limit


def _quota_v1(folder: Path) -> float | None:
    try:
        allowed = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return None if allowed <= 0 else allowed / period
    except (OSError, ValueError):
        return None  # no such cgroup: no limit
