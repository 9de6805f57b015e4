"""Files and directories that are there whole or not at all.

Everything is written to a temporary neighbour, flushed to the disk, and renamed; then the folder is flushed. A reader
never sees half of anything, and a crash leaves the old state plus, at worst, a hidden neighbour that the next writer of
the same name removes.
"""

import contextlib
import ctypes
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_MARK = ".tmp-"


def write_file(path: Path, content: bytes) -> None:
    """Puts `content` at `path`, replacing what was there.

    Raises:
        OSError: the disk said no; what was at `path` is untouched.
    """
    with open_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write; it appears at `path` when the block ends, and not at all if the block raises."""
    _remove_leftovers(path)
    temporary = _neighbour(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextlib.contextmanager
def directory(path: Path, *, replace: bool = False, durable: bool = True) -> Iterator[Path]:
    """A fresh directory to fill; it appears at `path` when the block ends, and not at all if the block raises.

    Args:
        path: where it goes; its parent is made if needed.
        replace: what is at `path` gives way: the two are exchanged in one step. Where the system cannot do that, there
            are two renames, and a crash between them leaves nothing at `path`.
        durable: whether every file is flushed to the disk before the directory appears. Without it a power cut may
            leave a directory of empty files; a crash of the process never does.

    Raises:
        FileExistsError: something is at `path` and `replace` is false.
        OSError: the disk said no.
    """
    if path.exists() and not replace:
        raise FileExistsError(f"{path} exists")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = _neighbour(path)
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, names in os.walk(temporary) if durable else ():
            for name in names:
                _sync(Path(folder) / name)
            sync_directory(Path(folder))
        if replace and path.exists() and _exchange(temporary, path):
            shutil.rmtree(temporary, ignore_errors=True)  # now the old one: what is left here is only a leftover
        elif replace and path.exists():
            old = _neighbour(path)
            path.rename(old)
            try:
                temporary.rename(path)
            except BaseException:
                old.rename(path)
                raise
            shutil.rmtree(old, ignore_errors=True)  # the new one is in place: what is left here is only a leftover
        else:
            temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(path.parent)


def is_temporary(path: Path) -> bool:
    """Whether `path` is a neighbour that some writer has not finished, or never will."""
    return path.name.startswith(".") and _MARK in path.name


def sync_directory(path: Path) -> None:
    """Flushes a directory's entries to the disk, where the platform has such a thing."""
    if os.name == "posix":
        _sync(path)


def _exchange(left: Path, right: Path) -> bool:
    """Swaps two directories in one step; false, with nothing changed, where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, TypeError, OSError):  # not Linux, or an old C library
        return False
    working_directory, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(working_directory, os.fsencode(left), working_directory, os.fsencode(right), exchange) == 0)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_name(path: Path) -> None:
    """Whether what is written to this path can have its temporary name, which is longer.

    Raises:
        OSError: it cannot.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        _neighbour(path).lstat()


def _neighbour(path: Path) -> Path:
    return path.with_name(f".{path.name}{_MARK}{os.getpid()}-{secrets.token_hex(4)}")


def _remove_leftovers(path: Path) -> None:
    """Removes neighbours of `path` whose writers are dead; a living writer's, and what is not ours, is left alone."""
    pattern = re.compile(re.escape(f".{path.name}{_MARK}") + r"([1-9][0-9]{0,8})-[0-9a-f]{8}")
    for leftover in path.parent.iterdir():
        match = pattern.fullmatch(leftover.name)
        if match is None or _alive(int(match[1])):
            continue
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # there signal 0 is Ctrl-C, not a question
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
