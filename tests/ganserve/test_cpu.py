import os
from pathlib import Path

import pytest

from ganserve import cpu


@pytest.fixture
def cores(monkeypatch):
    """A machine of eight cores, all ours."""
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    else:
        monkeypatch.setattr(os, "cpu_count", lambda: 8)
    return 8


def _v1(folder: Path, quota: str, period: str = "100000") -> Path:
    (folder / "cpu").mkdir()
    (folder / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (folder / "cpu" / "cpu.cfs_period_us").write_text(period)
    return folder


def _v2(folder: Path, content: str) -> Path:
    (folder / "cpu.max").write_text(content)
    return folder


def test_no_cgroup_is_no_limit(tmp_path, cores):
    """Without a cgroup, the affinity mask counts."""
    assert cpu.quota(tmp_path) == cores


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("max 100000\n", 8.0),
        ("200000 100000\n", 2.0),
        ("50000 100000\n", 0.5),
        ("1600000 100000\n", 8.0),  # more than there are
        ("nonsense\n", 8.0),
        ("", 8.0),
    ],
)
def test_cgroup_v2_quota(tmp_path, cores, content, expected):
    """`cpu.max` limits the cores; "max", more than there are, and what cannot be read do not."""
    assert cpu.quota(_v2(tmp_path, content)) == expected


@pytest.mark.parametrize(("content", "expected"), [("-1\n", 8.0), ("150000\n", 1.5), ("", 8.0), ("0\n", 8.0)])
def test_cgroup_v1_quota(tmp_path, cores, content, expected):
    """`cpu.cfs_quota_us` limits the cores; -1 is no limit."""
    assert cpu.quota(_v1(tmp_path, content)) == expected


@pytest.mark.parametrize(
    ("quota", "workers", "threads"),
    [
        ("max 100000", 1, 8),
        ("max 100000", 3, 2),
        ("max 100000", 100, 1),
        ("250000 100000", 1, 2),
        ("50000 100000", 1, 1),
    ],
)
def test_workers_share_the_quota_in_whole_threads(tmp_path, cores, quota, workers, threads):
    """Workers share the quota, rounded down, never below one thread."""
    assert cpu.threads_per_worker(workers, _v2(tmp_path, quota)) == threads


def test_this_machine_has_a_quota():
    """Here, whatever this machine is, the quota is above 0 and at most its cores."""
    assert 0 < cpu.quota() <= (os.cpu_count() or 1)
