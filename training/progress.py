"""The one place that shows how training goes: a live line on a terminal, plain lines elsewhere, on stderr."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBar


class Progress(Protocol):
    """What the loop tells, in numbers."""

    def started(self, *, run: Path, step: int, steps: int) -> None:
        """Training goes on after `step`, up to `steps`."""

    def stepped(self, step: int) -> None:
        """A step is done."""

    def logged(self, point: Mapping[str, float]) -> None:
        """A line of metrics.jsonl."""

    def warned(self, text: str) -> None:
        """Something has gone wrong with the run, in one line (`training.health`)."""

    def wrote(self, what: str, path: Path) -> None:
        """A sheet or a checkpoint is on the disk."""

    def finished(self) -> None:
        """There is nothing more to show, however training ended."""


class SilentProgress:
    """Shows nothing."""

    def started(self, *, run: Path, step: int, steps: int) -> None:
        """See `Progress`."""

    def stepped(self, step: int) -> None:
        """See `Progress`."""

    def logged(self, point: Mapping[str, float]) -> None:
        """See `Progress`."""

    def warned(self, text: str) -> None:
        """See `Progress`."""

    def wrote(self, what: str, path: Path) -> None:
        """See `Progress`."""

    def finished(self) -> None:
        """See `Progress`."""


class PlainProgress(SilentProgress):
    """A line for every logged point and every written sheet or checkpoint."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._steps = 0

    def started(self, *, run: Path, step: int, steps: int) -> None:
        """See `Progress`."""
        self._steps = steps
        self._say(f"run {run}: step {step} of {steps}")

    def logged(self, point: Mapping[str, float]) -> None:
        """See `Progress`."""
        done = int(point["step"])
        images_left = (self._steps - done) * (point["images_seen"] / done)
        rate = point["images_per_s"]  # rounded: 0 where an image takes half a minute
        eta = f"{images_left / rate:.0f} s" if rate else "unknown"
        self._say(f"step {done}/{self._steps}  {rate:,.0f} images/s  eta {eta}  {_players(point)}")

    def warned(self, text: str) -> None:
        """See `Progress`."""
        self._say(f"health: {text}")

    def wrote(self, what: str, path: Path) -> None:
        """See `Progress`."""
        self._say(f"{what} {path}")

    def _say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class LiveProgress(SilentProgress):
    """One line that moves, with the latest sheet beside it."""

    def __init__(self, console: Console) -> None:
        self._bar = RichBar(
            TextColumn("{task.description}", style="bold", markup=False),  # a run may be called [/x]
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[sheet]}", style="dim", markup=False),
            console=console,
            refresh_per_second=4,  # each refresh takes a few milliseconds from two cores that have work to do
        )
        self._task = self._bar.add_task("", total=None, numbers="", sheet="")

    def started(self, *, run: Path, step: int, steps: int) -> None:
        """See `Progress`."""
        self._bar.update(self._task, description=run.name, completed=step, total=steps)
        self._bar.start()

    def stepped(self, step: int) -> None:
        """See `Progress`."""
        self._bar.update(self._task, completed=step)

    def logged(self, point: Mapping[str, float]) -> None:
        """See `Progress`."""
        self._bar.update(self._task, numbers=f"{point['images_per_s']:,.0f} images/s  {_players(point)}")

    def warned(self, text: str) -> None:
        """See `Progress`."""
        self._bar.console.print(f"health: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    def wrote(self, what: str, path: Path) -> None:
        """See `Progress`."""
        if what == "sheet":
            self._bar.update(self._task, sheet=str(path))

    def finished(self) -> None:
        """See `Progress`."""
        self._bar.stop()


def make_progress(stream: TextIO | None = None) -> Progress:
    """Live on a terminal, plain elsewhere; `stream` is stderr unless given."""
    stream = stream or sys.stderr
    return LiveProgress(Console(file=stream)) if stream.isatty() else PlainProgress(stream)


def _players(point: Mapping[str, float]) -> str:
    players = (
        f"loss D {point['loss_discriminator']:.3f} G {point['loss_generator']:.3f}  "
        f"D(real) {point['d_real']:.2f} D(fake) {point['d_fake']:.2f}"
    )
    return f"{players}  FID {point['fid']:.3g}" if "fid" in point else players
