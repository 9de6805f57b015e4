from pathlib import Path

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
