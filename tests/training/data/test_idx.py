import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from ganserve.errors import DataError
from training.data import read_idx

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
AsIdx = Callable[[npt.NDArray[np.uint8]], bytes]


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_an_array_is_read_as_it_was_written(tmp_path: Path, as_idx: AsIdx, pack: Callable[[bytes], bytes]) -> None:
    """Plain and gzipped files are told apart by their content, whatever they are called."""
    path = tmp_path / "any-name"
    path.write_bytes(pack(as_idx(ARRAY)))
    read = read_idx(path, dimensions=3)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, ARRAY)


HEADER = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4])
BODY = ARRAY.tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an IDX file"),
        (b"\0\0\x08", "is not an IDX file"),
        (b"\x89PNG" + HEADER[4:] + BODY, "is not an IDX file.*got '89 50 4e 47'"),
        (b"\0\0\x0d" + HEADER[3:] + BODY * 4, r"must hold unsigned bytes \(type 0x08\), got type 0x0d \(float32\)"),
        (b"\0\0\x77" + HEADER[3:] + BODY, r"got type 0x77 \(unknown\)"),
        (b"\0\0\x08\x01\0\0\0\x18" + BODY, "must have 3 dimensions, got 1"),
        (b"\0\0\x08\0", "must have 3 dimensions, got 0"),
        (HEADER[:10], "is truncated: it ends within its header of 16 bytes"),
        (HEADER + BODY[:-1], r"is truncated: shape \[2, 3, 4\] takes 24 bytes, got 23"),
        (HEADER + BODY + b"\0", "goes on after its 24 bytes"),
        (HEADER[:4] + b"\xff" * 12 + BODY, "is truncated"),
        (gzip.compress(HEADER + BODY, mtime=0)[:-12], "is a damaged gzip file"),
        (gzip.compress(HEADER + BODY, mtime=0)[:-8] + bytes(8), "is a damaged gzip file"),
        (b"\x1f\x8b" + bytes(30), "is a damaged gzip file"),
    ],
)
def test_a_hostile_file_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    """Whatever is wrong with a file, the error names it, says what is required and what was found."""
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, dimensions=3)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    """What is not a file is a DataError too."""
    with pytest.raises(DataError, match="does not exist"):
        read_idx(tmp_path / "none")
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path)
