import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ganserve import atomic

_REPOSITORY = Path(atomic.__file__).parents[1]


class Boom(Exception):
    """What a writer's own code may raise."""


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _failing(monkeypatch: pytest.MonkeyPatch, function: str, nth: int) -> None:
    """Makes the nth call of an `os` function fail as a full disk does."""
    real, calls = getattr(os, function), 0

    def broken(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(28, "No space left on device")
        return real(*arguments, **options)

    monkeypatch.setattr(os, function, broken)


@pytest.fixture(scope="module")
def dead_pid():
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def _fill(path: Path, *, boom: bool = False) -> None:
    """Replaces a directory by one with two files, or gives up after the first."""
    with atomic.directory(path, replace=True) as folder:
        (folder / "a").write_bytes(b"")
        if boom:
            raise Boom
        (folder / "b").write_bytes(b"")


def _write_half(path: Path) -> None:
    with atomic.open_file(path) as file:
        file.write(b"half")
        raise Boom


def test_file_appears_whole(tmp_path):
    """A written file has its content and no neighbours."""
    atomic.write_file(tmp_path / "a.json", b"{}")
    assert (tmp_path / "a.json").read_bytes() == b"{}"
    assert _names(tmp_path) == ["a.json"]


def test_file_replaces_the_old_one(tmp_path):
    """Writing again replaces the content."""
    atomic.write_file(tmp_path / "a", b"old, and longer")
    atomic.write_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_file_is_not_there_before_the_block_ends(tmp_path):
    """While a file is written, a reader sees the old one."""
    (tmp_path / "a").write_bytes(b"old")
    with atomic.open_file(tmp_path / "a") as file:
        file.write(b"new")
        file.flush()
        assert (tmp_path / "a").read_bytes() == b"old"
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("old", [None, b"old"])
def test_error_while_writing_a_file_changes_nothing(tmp_path, old):
    """A writer that raises leaves what was there, and no neighbour."""
    if old is not None:
        (tmp_path / "a").write_bytes(old)
    before = _names(tmp_path)
    with pytest.raises(Boom):
        _write_half(tmp_path / "a")
    assert _names(tmp_path) == before
    assert old is None or (tmp_path / "a").read_bytes() == old


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_disk_error_leaves_the_old_file(tmp_path, monkeypatch, function):
    """A flush or rename that fails is reported, and the old file stays."""
    (tmp_path / "a").write_bytes(b"old")
    _failing(monkeypatch, function, 1)
    with pytest.raises(OSError, match="No space left"):
        atomic.write_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert _names(tmp_path) == ["a"]


def test_file_is_flushed_before_its_rename_and_the_folder_after(tmp_path, monkeypatch):
    """The order that survives a power cut: content, rename, folder."""
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        status = os.fstat(descriptor)
        steps.append("folder" if stat.S_ISDIR(status.st_mode) else f"{status.st_size} bytes")
        real_fsync(descriptor)

    def replace(*arguments):
        steps.append("rename")
        real_replace(*arguments)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    atomic.write_file(tmp_path / "a", b"new")
    assert steps == ["3 bytes", "rename", "folder"]


def test_missing_parent_is_an_error(tmp_path):
    """A file is not written into a folder that does not exist."""
    with pytest.raises(FileNotFoundError):
        atomic.write_file(tmp_path / "nowhere" / "a", b"")


def test_directory_appears_whole(tmp_path):
    """A filled directory appears under its name with all it holds, and its parents are made."""
    with atomic.directory(tmp_path / "deep" / "d") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_bytes(b"1")
        assert not (tmp_path / "deep" / "d").exists()
        assert atomic.is_temporary(folder)
    assert (tmp_path / "deep" / "d" / "sub" / "x").read_bytes() == b"1"
    assert _names(tmp_path / "deep") == ["d"]


def test_directory_does_not_replace_unasked(tmp_path):
    """What is at the place stays unless replacing was asked for."""
    (tmp_path / "d").mkdir()
    with pytest.raises(FileExistsError, match="d exists"), atomic.directory(tmp_path / "d"):
        pass


def test_directory_replaces_when_asked(tmp_path):
    """With `replace`, nothing of the old directory is left in the new one, or beside it."""
    with atomic.directory(tmp_path / "d") as folder:
        (folder / "old").write_bytes(b"")
    with atomic.directory(tmp_path / "d", replace=True) as folder:
        (folder / "new").write_bytes(b"")
        assert _names(tmp_path / "d") == ["old"]
    assert _names(tmp_path / "d") == ["new"]
    assert _names(tmp_path) == ["d"]


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_replacing_takes_one_step(tmp_path, monkeypatch):
    """Where the system can exchange two directories, there is no moment without one of them."""
    with atomic.directory(tmp_path / "d") as folder:
        (folder / "old").write_bytes(b"")
    _failing(monkeypatch, "rename", 1)
    _fill(tmp_path / "d")
    assert "old" not in _names(tmp_path / "d")
    assert _names(tmp_path) == ["d"]


@pytest.mark.parametrize("exists", [False, True])
def test_error_while_filling_changes_nothing(tmp_path, exists):
    """A writer that raises in the middle leaves the old directory, or none, and no neighbour."""
    if exists:
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "old").write_bytes(b"")
    before = _names(tmp_path)
    with pytest.raises(Boom):
        _fill(tmp_path / "d", boom=True)
    assert _names(tmp_path) == before
    assert not exists or _names(tmp_path / "d") == ["old"]


@pytest.mark.parametrize(
    ("function", "nth"),
    [
        ("fsync", 1),  # of a file
        ("fsync", 3),  # of the directory itself
        ("rename", 1),  # the old one out of the way
        ("rename", 2),  # the new one into its place
    ],
)
def test_disk_error_leaves_the_old_directory(tmp_path, monkeypatch, function, nth):
    """Whichever flush or rename fails, the old directory is at its place afterwards, and nothing beside it."""
    monkeypatch.setattr(atomic, "_exchange", lambda left, right: False)  # as on systems that need two renames
    with atomic.directory(tmp_path / "d") as folder:
        (folder / "old").write_bytes(b"")
    _failing(monkeypatch, function, nth)
    with pytest.raises(OSError, match="No space left"):
        _fill(tmp_path / "d")
    assert _names(tmp_path / "d") == ["old"]
    assert _names(tmp_path) == ["d"]


def test_killed_writer_leaves_the_old_directory(tmp_path):
    """A kill -9 in the middle leaves the old directory; the next writer of that name removes what the dead one left."""
    with atomic.directory(tmp_path / "d") as folder:
        (folder / "old").write_bytes(b"")
    script = (
        "import os, pathlib, sys; from ganserve import atomic\n"
        "with atomic.directory(pathlib.Path(sys.argv[1]), replace=True) as folder:\n"
        "    (folder / 'half').write_bytes(b''); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, tmp_path / "d"], cwd=_REPOSITORY).returncode == -9
    assert _names(tmp_path / "d") == ["old"]
    assert len(_names(tmp_path)) == 2
    with atomic.directory(tmp_path / "d", replace=True):
        pass
    assert _names(tmp_path) == ["d"]


@pytest.mark.parametrize("write", ["file", "directory"])
def test_leftovers_of_the_dead_go_and_others_stay(tmp_path, dead_pid, write):
    """A dead writer's leftover is removed, file or folder; a living one's, another name's and a stranger's stay."""
    (tmp_path / f".x.tmp-{dead_pid}-0123abcd").mkdir()
    (tmp_path / f".x.tmp-{dead_pid}-0123abcd" / "half").write_bytes(b"")
    (tmp_path / f".x.tmp-{dead_pid}-4567abcd").write_bytes(b"half")
    kept = [
        f".x.tmp-{os.getpid()}-0123abcd",  # alive
        f".xx.tmp-{dead_pid}-0123abcd",  # another's neighbour
        ".x.tmp-notes",  # not ours
        f".x.tmp-{10**30}-0123abcd",  # no process id at all
        f".x.tmp-{dead_pid}-backup",
    ]
    for name in kept:
        (tmp_path / name).write_bytes(b"")
    if write == "file":
        atomic.write_file(tmp_path / "x", b"")
    else:
        with atomic.directory(tmp_path / "x"):
            pass
    assert _names(tmp_path) == sorted([*kept, "x"])


def test_leftovers_of_a_name_with_wildcards(tmp_path, dead_pid):
    """A name such as run[1] means itself, not a pattern."""
    (tmp_path / f".run[1].tmp-{dead_pid}-0123abcd").mkdir()
    (tmp_path / f".run1.tmp-{dead_pid}-0123abcd").mkdir()
    with atomic.directory(tmp_path / "run[1]"):
        pass
    assert _names(tmp_path) == sorted([f".run1.tmp-{dead_pid}-0123abcd", "run[1]"])


def test_leftover_link_is_removed_and_its_target_kept(tmp_path, dead_pid):
    """A link that stands where a leftover would is removed; what it points at is not ours."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_bytes(b"")
    (tmp_path / f".x.tmp-{dead_pid}-0123abcd").symlink_to(tmp_path / "elsewhere")
    atomic.write_file(tmp_path / "x", b"")
    assert _names(tmp_path) == ["elsewhere", "x"]
    assert _names(tmp_path / "elsewhere") == ["precious"]


@pytest.mark.parametrize(
    ("name", "temporary"), [(".d.tmp-12-ab", True), ("d", False), (".hidden", False), ("d.tmp-1", False)]
)
def test_what_is_temporary(name, temporary):
    """Only hidden neighbours are temporary, not every hidden or oddly named thing."""
    assert atomic.is_temporary(Path("somewhere") / name) is temporary
