"""Exports end in `write_artifact`. However it ends, an artifact is whole, or it is not there."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ganserve import atomic
from ganserve.artifact import PRETRAINED, open_artifact, write_artifact
from tests.forked import processes

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL")

NAMES = ("old", "new")


def write(out: Path, name: str) -> None:
    """The packaged artifact under another name, in place of what is there."""
    packaged = open_artifact(PRETRAINED)
    files = {file: (PRETRAINED / file).read_bytes() for file in packaged.manifest.files}
    write_artifact(out, packaged.manifest.model_copy(update={"name": name}), files, replace=True)


def die_at(moment: int, out: Path) -> None:
    """Writes `new`, and dies before the `moment`-th thing that it asks of the disk."""
    calls = 0

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    for name in ("fsync", "rename", "mkdir", "rmdir", "unlink"):
        setattr(os, name, dying(getattr(os, name)))
    atomic._exchange = dying(atomic._exchange)
    Path.write_bytes = dying(Path.write_bytes)  # type: ignore[method-assign]
    write(out, "new")


def write_often(out: Path, name: str, times: int) -> None:
    """Again and again."""
    for _ in range(times):
        write(out, name)


def test_an_export_killed_at_any_moment_leaves_the_old_artifact_or_the_new_one(tmp_path: Path) -> None:
    """Before each thing that it asks of the disk; the next export removes what the dead one left."""
    out = tmp_path / "artifact"
    found: list[str] = []
    for moment in range(1, 1000):
        write(out, "old")
        assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
        process = processes().Process(target=die_at, args=(moment, out))
        process.start()
        process.join()
        artifact = open_artifact(out)
        artifact.verify()
        found.append(artifact.manifest.name)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert len(found) > 15  # so many moments there are
    assert found == sorted(found, reverse=True)  # "old" up to the exchange, "new" from then on
    assert set(found[:-1]) == set(NAMES)


def test_an_export_killed_where_nothing_was_leaves_nothing_or_all(tmp_path: Path) -> None:
    """A first export has no old artifact to leave."""
    for moment in range(1, 1000):
        out = tmp_path / str(moment) / "artifact"
        process = processes().Process(target=die_at, args=(moment, out))
        process.start()
        process.join()
        if out.exists():
            open_artifact(out).verify()
        if process.exitcode == 0:
            assert out.exists()
            break


def test_two_exports_at_once_do_not_mix(tmp_path: Path) -> None:
    """Both succeed, whoever is last has the place, what is there is whole all the time, and nothing else is left."""
    out = tmp_path / "artifact"
    write(out, "old")
    writers = [processes().Process(target=write_often, args=(out, name, 25)) for name in NAMES]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(open_artifact(out).manifest.name)
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen <= set(NAMES)
    open_artifact(out).verify()
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
