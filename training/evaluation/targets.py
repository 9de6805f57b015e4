"""What is to be judged, as pixels and labels: a checkpoint's images, an .npz, or a folder of PNGs."""

import dataclasses
import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ganserve import latents
from ganserve.errors import EvaluationError
from training.checkpoint import load_generator
from training.data import Dataset
from training.evaluation.classifier import Labels, Pixels
from training.models import Generator
from training.pictures import render

_CHUNK_ROWS = 250
_PNG = re.compile(r"(?:.*-)?(\d+)-(\d+)\.png")  # as `ganserve sample` names them: the image's index and its label


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Images:
    """Pixels uint8 [N, H, W, C]; the labels int64 [N] they were made for, if known; and in words what they are."""

    pixels: Pixels
    labels: Labels | None
    source: str


def labels_like(test: Dataset, count: int, seed: int) -> Labels:
    """Labels as frequent as in the test split, int64 [count]: each of its labels once before any comes again."""
    order = np.random.default_rng(seed).permutation(len(test.labels))
    return np.asarray(test.labels[order[np.arange(count) % len(order)]])


def checkpoint_images(checkpoint: Path, train: Dataset, test: Dataset, count: int, seed: int) -> Images:
    """Images of a checkpoint's generator: latents of `seed`, labels of `labels_like`.

    It may have been trained on other images of the same classes, a part of `train` for example; `source` says so.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        EvaluationError: it was trained on classes that the data set does not have.
    """
    trained = load_generator(checkpoint)
    network = trained.network
    if network.num_classes not in (None, test.num_classes):
        raise EvaluationError(
            f"{checkpoint} makes {network.num_classes} classes, and {test.name} has {test.num_classes}",
            hint="pass --data DIR and --evaluator FILE of the data it was trained on",
        )
    labels = None if network.num_classes is None else labels_like(test, count, seed)
    pixels = draw_images(network, labels, count, seed, device=torch.device("cpu"))
    data = trained.dataset
    elsewhere = (
        "" if data.digest == train.digest else f", trained on other data ({data.name}, digest {data.digest[:12]}…)"
    )
    return Images(pixels=pixels, labels=labels, source=f"{checkpoint}, seed {seed}{elsewhere}")


def draw_images(network: Generator, labels: Labels | None, count: int, seed: int, *, device: torch.device) -> Pixels:
    """The pixels uint8 [count, H, W, C] that a generator on `device` makes of the latents of `seed`."""
    rows, _ = latents.draw(seed, count, network.latent_dim)
    pixels = [
        render(
            network,
            torch.from_numpy(rows[start : start + _CHUNK_ROWS]).to(device),
            None if labels is None else torch.from_numpy(labels[start : start + _CHUNK_ROWS]).to(device),
        )
        for start in range(0, count, _CHUNK_ROWS)
    ]
    return np.concatenate(pixels)


def read_npz(path: Path, count: int, seed: int) -> Images:
    """`pixels` and, if there are any, `labels` of an .npz; `count` of them drawn by `seed` if there are more.

    Raises:
        EvaluationError: it cannot be read, or does not hold them.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            pixels = archive["pixels"]
            labels = archive["labels"].astype(np.int64, casting="same_kind") if "labels" in archive else None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as err:
        raise EvaluationError(
            f"{path} must be an .npz with pixels uint8 [N, H, W, C] and maybe labels int64 [N]: {err}",
            hint="ganserve sample --out digits.npz writes one",
        ) from err
    if pixels.ndim != 4 or (labels is not None and labels.shape != pixels.shape[:1]):
        shapes = f"{list(pixels.shape)}" + ("" if labels is None else f" and labels {list(labels.shape)}")
        raise EvaluationError(f"{path} must hold pixels [N, H, W, C] and a label for each, got {shapes}")
    rows = _drawn(len(pixels), count, seed)
    return Images(pixels=pixels[rows], labels=None if labels is None else labels[rows], source=str(path))


def read_folder(path: Path, count: int, seed: int, *, channels: int) -> Images:
    """The PNGs of a folder; labels are known if every name ends in one, as `ganserve sample` writes them.

    Raises:
        EvaluationError: there are none, one is damaged, or they are of several sizes.
    """
    found = sorted(path.glob("*.png"))
    if not found:
        raise EvaluationError(f"{path} has no .png", hint="ganserve sample --out digits/ writes a folder of them")
    chosen = [found[row] for row in _drawn(len(found), count, seed)]
    images = []
    for file in chosen:
        try:
            with Image.open(file) as image:
                images.append(np.asarray(image.convert("L" if channels == 1 else "RGB")))
        except (OSError, ValueError, SyntaxError) as err:
            raise EvaluationError(f"{file} is not a PNG that can be read: {err}") from err
        if images[-1].shape != images[0].shape:
            raise EvaluationError(f"{file} is {images[-1].shape[:2]}, and {chosen[0]} is {images[0].shape[:2]}")
    names = [_PNG.fullmatch(file.name) for file in chosen]
    labels = np.array([int(name[2]) for name in names if name is not None], dtype=np.int64)
    pixels = np.stack(images).reshape(len(images), *images[0].shape[:2], channels)
    return Images(pixels=pixels, labels=labels if len(labels) == len(chosen) else None, source=str(path))


def _drawn(available: int, count: int, seed: int) -> Labels:
    """Which rows: all in their order, or `count` of them by `seed`."""
    if available <= count:
        return np.arange(available)
    return np.sort(np.random.default_rng(seed).permutation(available)[:count])
