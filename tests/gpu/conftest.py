"""What only a GPU can show. Everywhere else these tests are skipped, with the reason."""

import pytest

from ganserve.engine import cuda_obstacle


@pytest.fixture(scope="session", autouse=True)
def _gpu() -> None:
    """Skips what needs ONNX Runtime's CUDA provider where it cannot work."""
    obstacle = cuda_obstacle()
    if obstacle is not None:
        pytest.skip(f"no CUDA: {obstacle}")
