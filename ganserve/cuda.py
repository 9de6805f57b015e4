"""The CUDA provider's options, one table, and a check that the provider knows their names.

ONNX Runtime looks at these names only where there is a GPU: elsewhere a misspelt one passes in silence. They are
strings in the provider's own library, which the wheel carries also where no GPU is.
"""

import ctypes
import mmap
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime


class Option(NamedTuple):
    """A value, and what it is good for."""

    value: str
    why: str


OPTIONS = {
    "cudnn_conv_algo_search": Option("HEURISTIC", "an exhaustive search costs 0.6 s for every new shape"),
    "use_tf32": Option("0", "ten bits of mantissa move more than the grey level that golden images allow"),
    "enable_cuda_graph": Option("1", "one launch a batch; needs the fixed buffers of the engine's buckets"),
}
DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
DEVICE_OPTION = "device_id"  # its value is the engine's caller's


def provider_options() -> dict[str, str]:
    """The table as ONNX Runtime takes it."""
    return {key: option.value for key, option in OPTIONS.items()}


def device_of(worker: int, driver: Any = None) -> int:
    """The device of a worker: the first has the first, and where there are fewer devices than workers they share.

    Args:
        worker: its number, from 1.
        driver: NVIDIA's; by default this machine's. It counts the devices that `CUDA_VISIBLE_DEVICES` leaves.
    """
    driver = driver or ctypes.CDLL(DRIVER)
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0  # the session will say what is wrong with it
    return (worker - 1) % max(1, count.value)


def provider_library() -> Path | None:
    """The CUDA provider's library in the installed onnxruntime; None where the wheel has none."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    names = ("libonnxruntime_providers_cuda.so", "onnxruntime_providers_cuda.dll")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def unknown_options(library: Path, keys: Iterable[str] = (DEVICE_OPTION, *OPTIONS)) -> list[str]:
    """Those of `keys` that are no string of the library's: the provider cannot know them."""
    # 280 MB, but mapped: only what is searched is read, 0.15 s for ten keys.
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return [key for key in keys if content.find(b"\0" + key.encode() + b"\0") < 0]
