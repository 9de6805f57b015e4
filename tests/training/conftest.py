import gzip
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from training.config import TrainingConfig, load_recipe


def idx_bytes(array: npt.NDArray[np.uint8]) -> bytes:
    """The array as an IDX file of unsigned bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(autouse=True)
def _same_every_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test starts from the same random numbers; one thread, because four-channel networks have no use for two.

    And on the CPU, whatever there is: what a GPU is needed for is tested in tests/gpu.
    """
    torch.manual_seed(0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def as_idx() -> Callable[[npt.NDArray[np.uint8]], bytes]:
    """An array's bytes as an IDX file."""
    return idx_bytes


@pytest.fixture
def make_data(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder of IDX files: `images` random ones of `height` x `width`, class i brighter in column i."""

    def make(*, images: int = 40, height: int = 8, width: int = 8, classes: int = 3, name: str = "digits") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        rng = np.random.default_rng(0)
        for split in ("train", "t10k"):
            pixels = rng.integers(0, 100, (images, height, width), dtype=np.uint8)
            labels = (np.arange(images) % classes).astype(np.uint8)
            pixels[np.arange(images), :, np.arange(images) % classes % width] += 155
            (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(pixels)))
            (folder / f"{split}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
        return folder

    return make


@pytest.fixture
def make_config(make_data: Callable[..., Path]) -> Callable[..., TrainingConfig]:
    """The `quick` recipe (or another) made tiny: four channels, four latents, eight images a step, small data."""
    folder = None

    def make(*overrides: str, recipe: str = "quick") -> TrainingConfig:
        nonlocal folder
        folder = folder or make_data()
        tiny = [
            f"data.dir={folder}",
            "steps=4",
            "batch_size=8",
            "generator.latent_dim=4",
            "generator.width=4",
            "discriminator.width=4",
            "penalty.every_steps=2",
            "log.every_steps=1",
            "log.sheet_every_steps=2",
            "log.checkpoint_every_steps=2",
            "log.evaluate_images=256",
        ]
        return load_recipe(recipe, [*tiny, *overrides])

    return make
