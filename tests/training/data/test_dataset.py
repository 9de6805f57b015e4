import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from ganserve.errors import DataError
from training import data
from training.data import load_dataset

MakeData = Callable[..., Path]


def test_mnist_is_in_the_package() -> None:
    """Without a folder there is the complete MNIST: 60,000 and 10,000 digits, with the published class counts."""
    train, test = load_dataset(None, "train"), load_dataset(None, "test")
    assert train.images.shape == (60000, 28, 28)
    assert test.images.shape == (10000, 28, 28)
    assert (train.name, train.num_classes) == ("mnist", 10)
    assert np.bincount(train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_a_changed_package_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packaged files are compared with the published digests whenever they are read."""
    monkeypatch.setitem(data._MNIST_DIGESTS, "t10k-labels-idx1-ubyte", "0" * 64)
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz is not MNIST's"):
        load_dataset(None, "test")


def test_any_folder_of_the_form_is_a_data_set(make_data: MakeData) -> None:
    """Size and classes come from the files; the name from the folder."""
    dataset = load_dataset(make_data(images=30, height=29, width=31, classes=5, name="letters"), "test")
    assert (dataset.name, dataset.num_classes) == ("letters", 5)
    assert dataset.images.shape == (30, 29, 31)
    assert dataset.labels.dtype == np.int64
    assert (dataset.facts.images, dataset.facts.height, dataset.facts.width, dataset.facts.channels) == (30, 29, 31, 1)


def test_the_digest_is_of_the_content(make_data: MakeData) -> None:
    """One changed label gives another digest; another name or compression does not."""
    folder = make_data()
    before = load_dataset(folder, "train").digest
    labels = folder / "train-labels-idx1-ubyte"
    content = labels.read_bytes()
    (folder / "emnist-train-labels-idx1-ubyte").write_bytes(content)
    labels.unlink()
    assert load_dataset(folder, "train").digest == before
    (folder / "emnist-train-labels-idx1-ubyte").write_bytes(content[:-1] + b"\1")
    assert load_dataset(folder, "train").digest != before


def test_a_missing_file_is_named_with_what_is_expected(make_data: MakeData, tmp_path: Path) -> None:
    """The error lists the names that are looked for, and what the folder has instead."""
    folder = make_data()
    (folder / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="has no train labels") as caught:
        load_dataset(folder, "train")
    assert "train-images-idx3-ubyte[.gz] and train-labels-idx1-ubyte[.gz]" in str(caught.value)
    assert "t10k-labels-idx1-ubyte" in str(caught.value)
    with pytest.raises(DataError, match=r"data folder .*nowhere cannot be read"):
        load_dataset(tmp_path / "nowhere", "train")


def test_two_data_sets_in_one_folder_are_not_guessed_between(make_data: MakeData) -> None:
    """EMNIST comes as many sets in one folder: the error lists them."""
    folder = make_data()
    (folder / "emnist-letters-train-images-idx3-ubyte.gz").write_bytes(b"")
    with pytest.raises(DataError, match="more than one set of train images: emnist-letters-train"):
        load_dataset(folder, "train")


def test_images_and_labels_must_belong_together(
    make_data: MakeData, as_idx: Callable[[npt.NDArray[np.uint8]], bytes]
) -> None:
    """Different counts, or no pixels at all, are refused with the counts."""
    folder = make_data(images=40)
    (folder / "train-labels-idx1-ubyte").write_bytes(as_idx(np.zeros(39, dtype=np.uint8)))
    with pytest.raises(DataError, match=r"has 40 images, but .* has 39 labels"):
        load_dataset(folder, "train")
    (folder / "train-images-idx3-ubyte.gz").write_bytes(as_idx(np.zeros((0, 28, 28), dtype=np.uint8)))
    (folder / "train-labels-idx1-ubyte").write_bytes(as_idx(np.zeros(0, dtype=np.uint8)))
    with pytest.raises(DataError, match=r"has no pixels: its shape is \[0, 28, 28\]"):
        load_dataset(folder, "train")


def test_labels_are_numbered_by_the_classes_that_there_are(
    make_data: MakeData, as_idx: Callable[[npt.NDArray[np.uint8]], bytes]
) -> None:
    """Labels 1, 26 and 7 become 0, 2 and 1, named after what they were; the test split follows the train split."""
    folder = make_data(images=4)
    (folder / "train-labels-idx1-ubyte").write_bytes(as_idx(np.array([1, 26, 7, 26], dtype=np.uint8)))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(as_idx(np.array([7, 7, 26, 7], dtype=np.uint8)))
    train, test = load_dataset(folder, "train"), load_dataset(folder, "test")
    assert train.facts.class_names == test.facts.class_names == ("1", "7", "26")
    assert train.num_classes == test.num_classes == 3
    assert train.labels.tolist() == [0, 2, 1, 2]
    assert test.labels.tolist() == [1, 1, 2, 1]
    assert train.labels.dtype == np.int64
    (folder / "t10k-labels-idx1-ubyte").write_bytes(as_idx(np.array([7, 7, 8, 7], dtype=np.uint8)))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte has label 8, which no image of the train split has"):
        load_dataset(folder, "test")


@pytest.mark.parametrize("size", [(1, 4097), (4097, 1)])
def test_images_too_large_to_serve_are_refused(make_data: MakeData, size: tuple[int, int]) -> None:
    """A side above 4096 fits no manifest: it is an error before a run is trained on it. 4096 is welcome."""
    height, width = size
    with pytest.raises(DataError, match=f"up to 4096 x 4096, got {height} x {width}"):
        load_dataset(make_data(images=3, height=height, width=width, classes=1), "train")
    assert load_dataset(make_data(images=3, height=1, width=4096, name="wide"), "train").facts.width == 4096


def test_what_is_no_regular_file_is_refused(make_data: MakeData) -> None:
    """A named pipe or a directory under a data file's name is an error that says so, at once."""
    file = make_data() / "train-labels-idx1-ubyte"
    file.unlink()
    for make in (os.mkfifo, os.mkdir):
        make(file)
        with pytest.raises(DataError, match="train-labels-idx1-ubyte cannot be read: it is not a regular file"):
            load_dataset(file.parent, "train")
        file.unlink() if make is os.mkfifo else file.rmdir()
