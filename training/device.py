"""Where training runs, and on how many threads."""

import math
from pathlib import Path

import torch

from ganserve.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where torch can use it, and the CPU elsewhere.

    Raises:
        ConfigError: not auto, cpu or cuda; or CUDA is asked for and torch has none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        built = "torch sees no GPU" if torch.version.cuda else "this torch is built for the CPU only"
        raise ConfigError(f"device cuda was requested, but {built}", hint="use --device auto")
    return torch.device("cpu" if name == "cpu" or not torch.cuda.is_available() else "cuda")


def use_available_cpus() -> int:
    """Sets torch's threads to what this process may use, and returns their number.

    torch starts from OMP_NUM_THREADS or the affinity mask; it does not know the cgroup's quota, and threads beyond it
    only wait for each other.
    """
    threads = torch.get_num_threads()
    quota = cpu_quota()
    if quota is not None and quota < threads:
        threads = max(1, math.floor(quota))
        torch.set_num_threads(threads)
    return threads


def cpu_quota(cgroup: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPUs that the container's cgroup (version 2 or 1) grants; None without a limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = (
                (cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")
            )
        except OSError:
            return None
    if quota in ("max", "-1"):
        return None
    return int(quota) / int(period)
