"""Files of somebody else's, read once and with care, and their texts, shown with care."""

import os
import stat
from pathlib import Path

from ganserve.errors import GanserveError

_OPEN_FLAGS = ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")  # each where the platform has it


def read_plain(path: Path, *, limit: int, error: type[GanserveError], linked: bool = False) -> bytes:
    """A regular file's bytes. Links are refused: who writes through another name changes what is here.

    Args:
        path: the file.
        limit: how many bytes it may have; no more is read, and none at all of a file that has more.
        error: what is raised.
        linked: whether it may have other names (hard links) all the same.

    Raises:
        GanserveError: `error`: missing, a link of either kind, not a regular file, larger than `limit`.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe waits for somebody to write into it.
        descriptor = os.open(path, os.O_RDONLY | sum(getattr(os, flag, 0) for flag in _OPEN_FLAGS))
    except OSError as err:
        reason = "it is a symbolic link" if path.is_symlink() else err.strerror
        raise error(f"cannot read {path}: {reason}") from err
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)  # os.fdopen, which would, takes no directory
        raise error(f"{path} is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        if status.st_nlink > 1 and not linked:
            raise error(
                f"{path} has {status.st_nlink} names (hard links), one is expected",
                hint="copy its directory with: cp -r",
            )
        if status.st_size > limit:
            raise error(f"{path} has {status.st_size} bytes, at most {limit} are expected")
        return file.read(min(limit, status.st_size) + 1)  # what was not there a moment ago is one byte too many


def printable(text: str) -> str:
    """The text with an escape for each character that a terminal would obey instead of showing it."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
