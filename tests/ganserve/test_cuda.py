from pathlib import Path
from typing import Any

import pytest

from ganserve import cuda


def test_every_option_is_one_that_the_provider_knows() -> None:
    """Each key of the table is a string in the installed CUDA provider's library."""
    library = cuda.provider_library()
    if library is None:
        pytest.skip("this onnxruntime has no CUDA provider")
    assert cuda.unknown_options(library) == []
    assert cuda.unknown_options(library, ["enable_cuda_grph", "use_tf32"]) == ["enable_cuda_grph"]


def test_a_part_of_a_name_is_no_name(tmp_path: Path) -> None:
    """A key that is only a piece of some longer string is unknown."""
    library = tmp_path / "library.so"
    library.write_bytes(b"..\0gpu_mem_limit\0enable_cuda_graph_capture\0")
    assert cuda.unknown_options(library, ["gpu_mem_limit", "mem_limit", "enable_cuda_graph"]) == [
        "mem_limit",
        "enable_cuda_graph",
    ]


def test_options_are_strings_for_onnx_runtime() -> None:
    """The table becomes the flat dictionary of strings that ONNX Runtime takes, the device apart."""
    options = cuda.provider_options()
    assert options["use_tf32"] == "0"
    assert cuda.DEVICE_OPTION not in options
    assert all(isinstance(value, str) for value in options.values())


class _Driver:
    """NVIDIA's driver on a machine with so many devices."""

    def __init__(self, devices: int, status: int = 0) -> None:
        self.devices, self.status = devices, status

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.devices
        return 0


@pytest.mark.parametrize(
    ("devices", "given"),
    [(4, [0, 1, 2, 3]), (8, [0, 1, 2, 3]), (2, [0, 1, 0, 1]), (1, [0, 0, 0, 0]), (0, [0, 0, 0, 0])],
)
def test_each_worker_has_a_device(devices: int, given: list[int]) -> None:
    """Workers have one device each in their order, and share them where there are fewer."""
    assert [cuda.device_of(worker, _Driver(devices)) for worker in (1, 2, 3, 4)] == given


def test_a_driver_without_devices_is_the_sessions_matter() -> None:
    """A driver that finds no device (CUDA_ERROR_NO_DEVICE) does not fail here: the session says what is wrong."""
    assert cuda.device_of(3, _Driver(4, status=100)) == 0
