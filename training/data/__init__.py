"""Data sets of labelled greyscale images in IDX files: the packaged MNIST, or any folder in the same form."""

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from ganserve.errors import DataError
from training.data.idx import read_idx, read_idx_and_digest

__all__ = ["Dataset", "DatasetFacts", "Split", "load_dataset", "read_idx"]

Split = Literal["train", "test"]

_MNIST = Path(__file__).parent / "mnist"
# SHA-256 of the uncompressed files; training/data/mnist/LICENSE.md says where they are from.
_MNIST_DIGESTS: Final = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_SPLITS: Final = {"train": ("train",), "test": ("t10k", "test")}
_CONTENTS: Final = {"images": 3, "labels": 1}
_MAX_SIDE: Final = 4096  # of what an artifact's manifest can describe: larger images would train and never be served


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """What a checkpoint remembers of its data.

    Attributes:
        name: `mnist`, or the folder's name.
        images: how many there are.
        class_names: what the files call label 0, 1, ...: the values that occur in the train split, in their order.
        height: of every image.
        width: of every image.
        channels: of every image.
        digest: SHA-256 over those of the two files.
    """

    name: str
    images: int
    class_names: tuple[str, ...]
    height: int
    width: int
    channels: int
    digest: str

    @property
    def num_classes(self) -> int:
        """How many classes have images in the train split."""
        return len(self.class_names)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """One split in memory: images uint8 [N, H, W], labels int64 [N] in range(num_classes), N >= 1."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    facts: DatasetFacts

    @property
    def name(self) -> str:
        """`mnist`, or the folder's name."""
        return self.facts.name

    @property
    def num_classes(self) -> int:
        """How many classes have images in the train split."""
        return self.facts.num_classes

    @property
    def digest(self) -> str:
        """SHA-256 over those of the two files."""
        return self.facts.digest


def load_dataset(directory: Path | None, split: Split) -> Dataset:
    """The train or test split of a folder of IDX files; None is the packaged MNIST, digests checked.

    The files are named as MNIST's, Fashion-MNIST's, KMNIST's or EMNIST's are: `train-images-idx3-ubyte`, and so on.
    Their labels may be any numbers (EMNIST's letters are 1 to 26): those of the train split become 0, 1, ... in order,
    in both splits.

    Raises:
        DataError: a file is missing, ambiguous or damaged; the images and labels do not belong together; an image is
            larger than can be served; or the test split has a label that the train split has not.
    """
    folder = _MNIST if directory is None else directory
    images_path, labels_path = (_find(folder, split, content) for content in _CONTENTS)
    images, images_digest = _read(images_path, 3, packaged=directory is None)
    labels, labels_digest = _read(labels_path, 1, packaged=directory is None)
    if len(images) != len(labels):
        raise DataError(f"{images_path} has {len(images):,} images, but {labels_path} has {len(labels):,} labels")
    if images.size == 0:
        raise DataError(f"{images_path} has no pixels: its shape is {list(images.shape)}")
    count, height, width = images.shape
    if max(height, width) > _MAX_SIDE:
        raise DataError(f"{images_path} must have images of up to {_MAX_SIDE} x {_MAX_SIDE}, got {height} x {width}")
    trained_on = labels
    if split != "train":
        trained_on, _ = _read(_find(folder, "train", "labels"), 1, packaged=directory is None)
    values = np.unique(trained_on)
    unknown = np.setdiff1d(labels, values)
    if unknown.size:
        raise DataError(f"{labels_path} has label {unknown[0]}, which no image of the train split has")
    facts = DatasetFacts(
        name="mnist" if directory is None else directory.resolve().name,
        images=count,
        class_names=tuple(map(str, values.tolist())),
        height=height,
        width=width,
        channels=1,
        digest=hashlib.sha256(f"{images_digest} {labels_digest}".encode()).hexdigest(),
    )
    return Dataset(images=images, labels=np.searchsorted(values, labels).astype(np.int64), facts=facts)


def _read(path: Path, dimensions: int, *, packaged: bool) -> tuple[npt.NDArray[np.uint8], str]:
    """The array and its digest, which of a packaged file must be MNIST's."""
    array, digest = read_idx_and_digest(path, dimensions=dimensions)
    if packaged and digest != _MNIST_DIGESTS[path.name.removesuffix(".gz")]:
        raise DataError(
            f"{path} is not MNIST's: its SHA-256 is {digest}", hint="reinstall ganserve: the package is damaged"
        )
    return array, digest


def _find(folder: Path, split: Split, content: str) -> Path:
    """The one file of `folder` that holds the split's images or labels; a plain one rather than its .gz."""
    pattern = re.compile(rf"(.*[-_])?({'|'.join(_SPLITS[split])})-{content}[-.]idx{_CONTENTS[content]}-ubyte(\.gz)?")
    try:
        found = {
            path.name.removesuffix(".gz"): path
            for path in sorted(folder.iterdir(), reverse=True)
            if pattern.fullmatch(path.name)
        }
    except OSError as err:
        raise DataError(
            f"data folder {folder} cannot be read: {err.strerror}", hint="--data takes a folder of IDX files"
        ) from err
    if not found:
        wanted = [f"{_SPLITS[split][0]}-{name}-idx{rank}-ubyte[.gz]" for name, rank in _CONTENTS.items()]
        raise DataError(
            f"{folder} has no {split} {content}: expected {' and '.join(wanted)}, "
            f"found {', '.join(sorted(path.name for path in folder.iterdir())[:8]) or 'nothing'}"
        )
    if len(found) > 1:
        raise DataError(
            f"{folder} has more than one set of {split} {content}: {', '.join(sorted(found))}",
            hint="put each data set in a folder of its own",
        )
    return next(iter(found.values()))
