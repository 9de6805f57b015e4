"""IDX, the file format of MNIST and its relatives (http://yann.lecun.com/exdb/mnist/, "THE IDX FILE FORMAT")."""

import gzip
import hashlib
import math
import stat
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ganserve.errors import DataError

_UNSIGNED_BYTE = 0x08
_TYPES = {0x08: "unsigned byte", 0x09: "signed byte", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
_GZIP_MAGIC = b"\x1f\x8b"
_PIECE_BYTES = 1 << 24


def read_idx(path: Path, *, dimensions: int | None = None) -> npt.NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, gzipped or plain (told by its content, not by its name).

    Args:
        path: the file.
        dimensions: how many there must be (3 for images, 1 for labels); None takes any.

    Returns:
        uint8, in the shape that the file states.

    Raises:
        DataError: the file is missing, unreadable, not a regular file, not IDX, of another type or rank, or not as long
            as it states.
    """
    return read_idx_and_digest(path, dimensions=dimensions)[0]


def read_idx_and_digest(path: Path, *, dimensions: int | None = None) -> tuple[npt.NDArray[np.uint8], str]:
    """As `read_idx`, and the SHA-256 of the uncompressed bytes."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # asked first: opening a named pipe waits for its other end
            raise DataError(f"{path} cannot be read: it is not a regular file")
        with path.open("rb") as raw:
            compressed = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            if not compressed:
                return _read(path, raw, dimensions)
            with gzip.open(raw) as file:
                return _read(path, file, dimensions)  # type: ignore[arg-type]  # GzipFile reads like any binary file
    except FileNotFoundError as err:
        raise DataError(f"{path} does not exist") from err
    except (EOFError, zlib.error, gzip.BadGzipFile) as err:
        raise DataError(f"{path} is a damaged gzip file: {err}") from err
    except OSError as err:
        raise DataError(f"{path} cannot be read: {err.strerror or err}") from err


def _read(path: Path, file: BinaryIO, dimensions: int | None) -> tuple[npt.NDArray[np.uint8], str]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise DataError(
            f"{path} is not an IDX file: it must begin with two zero bytes, a type and a rank, got {magic.hex(' ')!r}"
        )
    kind, rank = magic[2], magic[3]
    if kind != _UNSIGNED_BYTE:
        raise DataError(
            f"{path} must hold unsigned bytes (type 0x08), got type 0x{kind:02x} ({_TYPES.get(kind, 'unknown')})"
        )
    if rank == 0 or (dimensions is not None and rank != dimensions):
        raise DataError(f"{path} must have {dimensions or 'some'} dimensions, got {rank}")
    header = file.read(4 * rank)
    if len(header) < 4 * rank:
        raise DataError(f"{path} is truncated: it ends within its header of {4 + 4 * rank} bytes")
    shape = struct.unpack(f">{rank}I", header)
    size = math.prod(shape)
    body = bytearray()  # in pieces: memory is for what is there, not for what a header promises
    while len(body) < size and (piece := file.read(min(size - len(body), _PIECE_BYTES))):
        body += piece
    if len(body) < size:
        raise DataError(f"{path} is truncated: shape {list(shape)} takes {size:,} bytes, got {len(body):,}")
    if file.read(1):  # also makes gzip check its CRC
        raise DataError(f"{path} goes on after its {size:,} bytes of shape {list(shape)}")
    digest = hashlib.sha256(magic + header)
    digest.update(body)
    return np.frombuffer(body, dtype=np.uint8).reshape(shape), digest.hexdigest()
