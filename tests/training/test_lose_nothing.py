"""Whatever ends a training, a resume ends where it would have ended, to the last bit."""

import errno
import io
import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ganserve import atomic
from ganserve.errors import RunError
from tests.forked import processes
from training import pictures, run_dir
from training.checkpoint import verify_checkpoint
from training.config import TrainingConfig, override
from training.loop import train
from training.progress import SilentProgress

MakeConfig = Callable[..., TrainingConfig]
CLOCK = ("seconds", "images_per_s")  # what two runs of one configuration do not have in common


def without_clock(point: dict[str, Any]) -> dict[str, Any]:
    """A metrics point without what depends on the time of day."""
    return {key: value for key, value in point.items() if key not in CLOCK}


def outcome(run: Path) -> tuple[Any, ...]:
    """Step, digests of weights, average, moments and RNG, and every metrics line: all that is not about time."""
    checkpoint, _ = run_dir.latest_checkpoint(run)
    state = verify_checkpoint(checkpoint)
    metrics = [without_clock(point) for point in run_dir.read_metrics(run)]
    return state.step, state.digests, without_clock(state.metrics), metrics


def temporaries(run: Path) -> list[Path]:
    """What a writer did not finish."""
    return [path for path in run.rglob("*") if atomic.is_temporary(path)]


class DiesAfter(SilentProgress):
    """Ends the process on the spot, so many seconds after training has started.

    SIGALRM's default is SIGKILL's: the kernel ends the process, and no line of it runs any more.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def started(self, *, run: Path, step: int, steps: int) -> None:
        """See `Progress`."""
        signal.setitimer(signal.ITIMER_REAL, self._seconds)


def train_until(config: TrainingConfig, run: Path, resume: bool, *, seconds: float = 0.0, flushes: int = 0) -> None:
    """Trains in a process of its own and dies, after so many seconds or before a flush to the disk: within a write."""
    torch.set_num_threads(1)  # as many as the run that nobody kills has
    pictures.curves_png = lambda *_, **__: b"curves"  # a tenth of a second each, to draw
    if flushes:
        real, left = os.fsync, itertools.count(flushes - 1, -1)

        def dying(descriptor: Any) -> None:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            real(descriptor)

        os.fsync = dying
    train(config, run, device="cpu", resume=resume, progress=DiesAfter(seconds) if seconds else None)


@pytest.mark.slow
def test_twenty_kills_cost_nothing(make_config: MakeConfig, tmp_path: Path) -> None:
    """Killed at twenty random moments, half of them inside a write, a run ends with an uninterrupted one's bits."""
    config = make_config(
        "steps=4000",
        "log.evaluate_images=0",
        "log.checkpoint_every_steps=2",
        "log.sheet_every_steps=50",
        "optimizer.final_lr_share=1",
    )
    run, moments, reached, unfinished = tmp_path / "killed", random.Random(20), [], 0
    for kill in range(20):
        resume = (run / run_dir.CONFIG_FILE).exists()
        inside = kill % 2 == 1
        moment = {"flushes": moments.randint(1, 40)} if inside else {"seconds": moments.uniform(0.02, 0.4)}
        process = processes().Process(target=train_until, args=(config, run, resume), kwargs=moment)
        process.start()
        process.join()
        assert process.exitcode == -(signal.SIGKILL if inside else signal.SIGALRM), f"kill {kill} did not happen"
        unfinished += bool(temporaries(run))
        found = run_dir.checkpoints(run)
        if found:
            reached.append(verify_checkpoint(found[-1]).step)  # what has a checkpoint's name is whole
    assert reached == sorted(reached)  # nothing that was there is gone
    assert 0 < reached[-1] < 4000
    assert unfinished  # before the flush of a file is within a write
    config = override(config, [f"steps={reached[-1] + 3}"])
    train(config, run, device="cpu", resume=True)
    whole = override(config, ["log.checkpoint_every_steps=1000"])
    assert outcome(run) == outcome(train(whole, tmp_path / "whole", device="cpu").run)
    assert temporaries(run) == []


class _File:
    """A file that is full when its writer says so: half of what is written arrives."""

    def __init__(self, file: Any, spend: Callable[[str], bool]) -> None:
        self._file, self._spend = file, spend

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, content: Any) -> int:
        """As a disk does it."""
        if self._spend("write"):
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self._file.write(content))


class Disk:
    """Counts what is asked of the disk below a directory, and fails the `failing`-th time, from 1, of one kind."""

    KINDS = ("write", "fsync", "rename", "mkdir")

    def __init__(self, root: Path, kind: str, failing: int, patch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self._root, self._kind, self._failing = str(root), kind, failing
        real_open = io.open

        def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            made = real_open(file, mode, *arguments, **options)
            return _File(made, self._spend) if mode != "r" and self._below(file) else made

        patch.setattr(io, "open", opened)
        for kind_of, name, code in (
            ("fsync", "fsync", errno.EIO),
            ("rename", "rename", errno.EROFS),
            ("rename", "replace", errno.EROFS),
            ("mkdir", "mkdir", errno.EACCES),
        ):
            patch.setattr(os, name, self._wrapped(getattr(os, name), kind_of, code))

    def _below(self, path: Any) -> bool:
        return str(path).startswith(self._root) and not str(path).endswith(".lock")

    def _spend(self, kind: str) -> bool:
        self.calls += kind == self._kind
        return kind == self._kind and self.calls == self._failing

    def _wrapped(self, real: Callable[..., Any], kind: str, code: int) -> Callable[..., Any]:
        def call(what: Any, *arguments: Any, **options: Any) -> Any:
            ours = isinstance(what, int) or self._below(what)  # fsync gets a descriptor
            if ours and self._spend(kind):
                raise OSError(code, os.strerror(code))
            return real(what, *arguments, **options)

        return call


class Steps(SilentProgress):
    """Remembers the last step."""

    def __init__(self) -> None:
        self.last = 0

    def stepped(self, step: int) -> None:
        """See `Progress`."""
        self.last = step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "least", "reason"),
    [
        ("write", 25, "No space left on device"),
        ("fsync", 25, "Input/output error"),
        ("rename", 8, "Read-only file system"),
        ("mkdir", 4, "Permission denied"),
    ],
)
def test_every_operation_on_the_disk_may_fail(
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    least: int,
    reason: str,
) -> None:
    """The error is named, nothing half-written stays, the newest or the last but one checkpoint is there, and resumes.

    Each write, flush, rename and new folder of a run with three checkpoints fails once.
    """
    monkeypatch.setattr(pictures, "curves_png", lambda *_, **__: b"curves")  # a tenth of a second each, to draw
    config = make_config("steps=6", "log.keep_checkpoints=2")
    whole = outcome(train(config, tmp_path / "whole").run)
    for failing in range(1, 1000):
        run, steps = tmp_path / f"run-{failing}", Steps()
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(run, kind, failing, patch)
            try:
                train(config, run, progress=steps)
            except RunError as err:
                assert f"{run} cannot be written: {reason}" in str(err)  # noqa: PT017  # the last round raises nothing
                assert err.hint is not None  # noqa: PT017
            else:
                if disk.calls < failing:
                    break
                assert kind == "mkdir"  # of a folder that is there already: nobody minds
        assert temporaries(run) == []
        due = steps.last // 2 * 2  # the newest checkpoint that there can be
        if due > 2:
            assert verify_checkpoint(run_dir.latest_checkpoint(run)[0]).step in (due, due - 2)
        train(config, run, resume=(run / run_dir.CONFIG_FILE).exists())
        assert outcome(run) == whole
    assert failing > least  # that many were tried


def test_what_a_killed_writer_left_is_removed_at_the_next_start(make_config: MakeConfig, tmp_path: Path) -> None:
    """Also of a name that is never written again, and though the writer's process number is in use by another."""
    run = train(make_config("steps=2"), tmp_path / "run").run
    left = [
        run / "checkpoints" / f".step-00000003.tmp-{os.getpid()}-0123abcd",
        run / "sheets" / f".step-00000003.png.tmp-{os.getpid()}-0123abcd",
    ]
    left[0].mkdir()
    (left[0] / "generator.safetensors").write_bytes(b"half")
    left[1].write_bytes(b"half")
    keep = run / "sheets" / ".nobody-else.txt"
    keep.touch()
    train(make_config(), run, resume=True)
    assert temporaries(run) == []
    assert keep.exists()


def test_two_trainings_never_write_to_one_run(make_config: MakeConfig, tmp_path: Path) -> None:
    """The second one is refused while the first one's process lives, and goes on once it is gone."""
    config = make_config("steps=100000", "log.checkpoint_every_steps=100000", "log.sheet_every_steps=100000")
    first = processes().Process(target=train, args=(config, tmp_path / "run"), kwargs={"device": "cpu"})
    first.start()
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / run_dir.METRICS_FILE).exists():
            assert first.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(RunError, match="is being written by another process"):
            train(config, tmp_path / "run", resume=True)
    finally:
        first.kill()
        first.join()
    assert train(make_config(*["steps=3"]), tmp_path / "run", resume=True).steps == 3
