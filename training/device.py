"""Where training runs, on how many threads, and with which of a GPU's kernels."""

import contextlib
import os
from collections.abc import Iterator

import torch

from ganserve import cpu
from ganserve.errors import ConfigError
from training import distributed


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where torch can use it, and the CPU elsewhere; of several processes each gets a GPU of its own.

    Raises:
        ConfigError: not auto, cpu or cuda; or CUDA is asked for and torch has none, or not enough.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        built = "torch sees no GPU" if torch.version.cuda else "this torch is built for the CPU only"
        raise ConfigError(f"device cuda was requested, but {built}", hint="use --device auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if distributed.size() > 1:
        distributed.choose_gpu()
    return torch.device("cuda")


def check_precision(precision: str, device: torch.device) -> None:
    """Refuses what the device would only imitate.

    Raises:
        ConfigError: bfloat16 on a GPU that does not have it.
    """
    if (
        precision == "bfloat16"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise ConfigError(
            f"precision is bfloat16, which {torch.cuda.get_device_name(device)} does not have",
            hint="set precision=float32",
        )


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Has a GPU add in the same order every time, while the block lasts: resuming is exact there too.

    A CPU does so anyway. An operation that has no such kernel warns once and is not repeatable.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fastest = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False  # it times kernels, and takes another one every time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = fastest


def use_available_cpus() -> int:
    """Sets torch's threads to what this process may use, and returns their number.

    torch starts from OMP_NUM_THREADS or the affinity mask; it does not know the cgroup's quota, and threads beyond it
    only wait for each other.
    """
    threads = min(torch.get_num_threads(), cpu.threads_per_worker())
    torch.set_num_threads(threads)
    return threads
