"""Directories that are made of an artifact for other platforms: written whole or not at all, replaced only if ours."""

from collections.abc import Callable, Mapping
from pathlib import Path

from ganserve import atomic
from ganserve.errors import ExportError


def check_package(path: Path, *, holds: Callable[[str], bool], replace: bool) -> None:
    """Whether a directory may be written to `path`; whoever has work before writing asks first.

    Args:
        path: the directory.
        holds: whether a file of this path inside it is one that such a directory has: nothing else is ever deleted.
        replace: whether one that is there gives way.

    Raises:
        ExportError: something is there that must stay.
    """
    try:
        if not (path.exists() or path.is_symlink()):
            return
    except OSError as err:
        raise ExportError(f"cannot write {str(path)[:256]}: {err.strerror}", hint="choose another --out") from err
    if not replace:
        raise ExportError(f"{path} exists already", hint="pass --force to replace it, or --out for another place")
    foreign = path if path.is_symlink() or not path.is_dir() else _foreign(path, holds)
    if foreign is not None:
        raise ExportError(
            f"{foreign} was not written by an export, so {path} will not be replaced",
            hint="move it away, or choose another --out",
        )


def write_package(path: Path, files: Mapping[str, bytes], *, replace: bool) -> None:
    """Writes the whole directory, or nothing.

    Args:
        path: checked with `check_package`.
        files: path inside it -> content.
        replace: whether a directory that is there gives way.

    Raises:
        ExportError: the disk said no.
    """
    try:
        with atomic.directory(path, replace=replace) as temporary:
            for name, content in files.items():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                (temporary / name).write_bytes(content)
    except OSError as err:
        raise ExportError(f"cannot write {path}: {err}", hint="make room, or choose another --out") from err


def _foreign(path: Path, holds: Callable[[str], bool]) -> Path | None:
    """The first thing in a directory that is neither a folder nor a plain file that such a directory has."""
    for entry in sorted(path.rglob("*")):
        plain = not entry.is_symlink()
        if not (plain and (entry.is_dir() or (entry.is_file() and holds(entry.relative_to(path).as_posix())))):
            return entry
    return None
