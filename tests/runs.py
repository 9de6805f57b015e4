"""Small checkpoints made through the training package itself: a few steps on a few images."""

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from training.config import load_recipe
from training.loop import train
from training.run_dir import best_checkpoint


def write_idx_folder(
    folder: Path, *, height: int = 28, width: int = 28, num_classes: int = 10, images: int = 64
) -> Path:
    """A folder of IDX files with random blobs, in MNIST's form."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for split in ("train", "t10k"):
        pixels = generator.integers(0, 256, size=(images, height, width), dtype=np.uint8)
        labels = (np.arange(images) % num_classes).astype(np.uint8)
        header = struct.pack(">BBBBIII", 0, 0, 8, 3, images, height, width)
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(
            struct.pack(">BBBBI", 0, 0, 8, 1, images) + labels.tobytes()
        )
    return folder


def make_checkpoint(root: Path, overrides: Sequence[str] = (), *, recipe: str = "quick", steps: int = 2) -> Path:
    """The checkpoint of a run of a few steps; all files lie under `root`."""
    data = write_idx_folder(root / "data")
    tiny = [
        "batch_size=8",
        "generator.width=8",
        "discriminator.width=8",
        f"data.dir={data}",
        f"steps={steps}",
        "log.evaluate_images=0",
    ]
    config = load_recipe(recipe, [*tiny, *overrides])
    result = train(config, root / "run", device="cpu")
    return best_checkpoint(result.run)[0]
