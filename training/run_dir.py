"""A run's directory: what is in it, which run or checkpoint is meant, and who may write.

runs/<name>/
  config.json     the resolved configuration
  metrics.jsonl   one JSON object a line
  sheets/         step-00000500.png, ...: the same latents at every step
  curves.png
  checkpoints/    step-00000500/, ...
"""

import contextlib
import json
import logging
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

from ganserve import atomic
from ganserve.errors import CheckpointError, ConfigError, RunError
from training.checkpoint import CheckpointState, checkpoint_name, checkpoint_step, verify_checkpoint
from training.config import TrainingConfig, from_dict, to_dict

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

logger = logging.getLogger(__name__)

CONFIG_FILE: Final = "config.json"
METRICS_FILE: Final = "metrics.jsonl"
CURVES_FILE: Final = "curves.png"
FID: Final = "fid"  # the metric that says which checkpoint is best
_CHECKPOINT = re.compile(r"step-\d{8,}")


def new_run(runs: Path, recipe: str) -> Path:
    """Where the next run of a recipe goes: `<recipe>-<n>`, n one more than the largest there is."""
    taken = [
        int(path.name.removeprefix(f"{recipe}-"))
        for path in runs.glob(f"{recipe}-*")
        if path.name.removeprefix(f"{recipe}-").isdecimal()
    ]
    return runs / f"{recipe}-{max(taken, default=0) + 1}"


@contextlib.contextmanager
def claimed_run(runs: Path, recipe: str) -> Iterator[Path]:
    """The directory of `new_run`, made for this process alone; it is gone after the block if nothing is in it.

    Raises:
        RunError: it cannot be made.
    """
    runs_existed = runs.exists()
    with writing(runs):
        while True:
            run = new_run(runs, recipe)
            try:
                run.mkdir(parents=True)
                break
            except FileExistsError:
                if not run.exists():
                    raise  # otherwise another process was faster
    try:
        yield run
    finally:
        with contextlib.suppress(OSError):
            run.rmdir()
            if not runs_existed:
                runs.rmdir()


@contextlib.contextmanager
def writing(run: Path) -> Iterator[None]:
    """What the system says of a run's files becomes an error that names the run.

    Raises:
        RunError: an OSError left the block.
    """
    try:
        yield
    except OSError as err:
        raise RunError(
            f"{run} cannot be written: {err.strerror or err}", hint="free some space, or use --run elsewhere"
        ) from err


def printable(name: str) -> str:
    """`name` with escapes for what cannot be shown: control characters, and bytes that are no UTF-8."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in name)


def list_runs(runs: Path) -> list[Path]:
    """Every run in a folder, the one written to last at the end."""
    found = [path.parent for path in runs.glob(f"*/{CONFIG_FILE}") if not atomic.is_temporary(path.parent)]
    return sorted(found, key=_last_written)


def newest_run(runs: Path) -> Path:
    """The run that was written to last.

    Raises:
        RunError: there is none.
    """
    found = list_runs(runs)
    if not found:
        raise RunError(f"there is no run in {runs}", hint="ganserve train")
    return found[-1]


def resolve_run(run: str | None, runs: Path) -> Path:
    """The run that is meant: a name in `runs`, a path, or None for the newest.

    Raises:
        RunError: there is no such run; the hint lists those there are.
    """
    if run is None:
        return newest_run(runs)
    for candidate in (runs / run, Path(run)):
        if (candidate / CONFIG_FILE).is_file():
            return candidate
    names = [path.name for path in list_runs(runs)]
    hint = f"there are {', '.join(names[::-1][:8])}" if names else "there are none yet: ganserve train"
    raise RunError(f"there is no run {run!r} in {runs}", hint=hint)


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoint directories, oldest first, damaged or not."""
    found = [path for path in (run / "checkpoints").glob("step-*") if _CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=lambda path: checkpoint_step(path.name))


def latest_checkpoint(run: Path) -> tuple[Path, str]:
    """The checkpoint to resume, and why: the latest that is intact. Damaged ones are named in the log.

    Raises:
        RunError: the run has no checkpoint.
        CheckpointError: it has, and none is intact.
    """
    intact, damaged = _intact_checkpoints(run)
    path, state = intact[0]
    return path, f"latest, step {state.step}" + (f", {damaged} damaged skipped" if damaged else "")


def best_checkpoint(run: Path) -> tuple[Path, str]:
    """The checkpoint to take, and why: of least FID if that was measured, otherwise the latest that is intact.

    Checkpoints whose FID was measured otherwise than the latest one's, of another number of images or by another
    evaluator, are not compared with it.

    Raises:
        RunError: the run has no checkpoint.
        CheckpointError: it has, and none is intact.
    """
    intact, damaged = _intact_checkpoints(run)
    measured = _comparable(intact)
    if not measured:
        path, state = intact[0]
        why = f"latest, step {state.step}"
    else:
        path, state = min(measured, key=lambda one: one[1].metrics[FID])
        images = state.config.log.evaluate_images
        why = f"best, step {state.step}, FID {state.metrics[FID]:.4g} of {images:,} images"
    return path, why + (f", {damaged} damaged skipped" if damaged else "")


def _comparable(intact: list[tuple[Path, CheckpointState]]) -> list[tuple[Path, CheckpointState]]:
    """Those whose FID can be compared with that of the first, which is the latest."""
    log = intact[0][1].config.log
    same = (log.evaluate_images, log.evaluator)
    return [
        (path, state)
        for path, state in intact
        if FID in state.metrics and (state.config.log.evaluate_images, state.config.log.evaluator) == same
    ]


def _intact_checkpoints(run: Path) -> tuple[list[tuple[Path, CheckpointState]], int]:
    """Every intact checkpoint with what it says, the latest first, and how many are damaged; those are logged."""
    found = checkpoints(run)
    if not found:
        hint = f"ganserve train --run {shlex.quote(run.name)} --resume"
        raise RunError(f"run {run} has no checkpoint yet", hint=hint)
    intact: list[tuple[Path, CheckpointState]] = []
    damage: list[CheckpointError] = []
    for path in reversed(found):
        try:
            intact.append((path, verify_checkpoint(path)))
        except CheckpointError as err:
            damage.append(err)
            logger.warning("damaged checkpoint skipped: %s", err)
    if not intact:
        raise CheckpointError(f"run {run} has no intact checkpoint; the latest: {damage[0]}") from damage[0]
    return intact, len(damage)


def named_checkpoint(run: Path, name: str) -> Path:
    """The checkpoint of that name.

    Raises:
        RunError: there is none; the hint lists those there are.
    """
    names = [found.name for found in checkpoints(run)]
    if name not in names:
        raise RunError(f"run {run} has no checkpoint {name!r}", hint=f"there are {', '.join(names) or 'none yet'}")
    return run / "checkpoints" / name


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return run / "checkpoints" / checkpoint_name(step)


def sheet_path(run: Path, step: int) -> Path:
    """Where the sample sheet of a step is."""
    return run / "sheets" / f"{checkpoint_name(step)}.png"


def sheets(run: Path) -> list[tuple[int, Path]]:
    """The step and the file of every sample sheet, oldest first; pictures of other names are somebody's own."""
    found = [path for path in (run / "sheets").glob("step-*.png") if _CHECKPOINT.fullmatch(path.stem)]
    return sorted((checkpoint_step(path.stem), path) for path in found)


def remove_old_checkpoints(run: Path, keep: int, *, newest: Path) -> None:
    """Removes all but `newest`, whatever its step, the latest `keep - 1` of the others, and the best."""
    others = [path for path in checkpoints(run) if path != newest]
    surplus = others[: max(0, len(others) - (keep - 1))]
    if surplus:
        best, _ = best_checkpoint(run)  # none is damaged but by others' hands: one has just been written
        for path in surplus:
            if path != best:
                shutil.rmtree(path)


def remove_later_checkpoints(run: Path, step: int) -> None:
    """Removes the checkpoints of the steps after `step`: they are about to be made again."""
    for path in checkpoints(run):
        if checkpoint_step(path.name) > step:
            shutil.rmtree(path)


def remove_leftovers(run: Path) -> None:
    """Removes what earlier processes that were killed did not finish writing; the caller holds the run's lock.

    A writer removes the leftovers of the name that it writes, and a checkpoint's may never come again: one of the step
    where SIGTERM found the run.
    """
    for folder in (run, run / "sheets", run / "checkpoints"):
        for path in filter(atomic.is_temporary, folder.iterdir() if folder.is_dir() else ()):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def write_config(run: Path, config: TrainingConfig) -> None:
    """Saves the resolved configuration."""
    atomic.write_file(run / CONFIG_FILE, (json.dumps(to_dict(config), indent=2) + "\n").encode())


def load_config(run: Path) -> TrainingConfig:
    """The configuration that a run was started with.

    Raises:
        RunError: it is missing or not readable.
        ConfigError: it is of another version of ganserve; the message names the file and the key.
    """
    path = run / CONFIG_FILE
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as err:
        raise RunError(f"{run} is not a run: it has no {CONFIG_FILE}") from err
    except ConfigError as err:
        raise ConfigError(f"{path}: {err}", hint=err.hint) from err
    except (OSError, ValueError, RecursionError) as err:
        raise RunError(f"{path} cannot be read: {err}") from err


def append_metrics(run: Path, point: Mapping[str, Any]) -> None:
    """Adds one line to metrics.jsonl."""
    with (run / METRICS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(point) + "\n")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Every whole line of metrics.jsonl: a run that was killed, or a disk that lost power, may leave others."""
    points = []
    try:
        for line in (run / METRICS_FILE).read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                point = json.loads(line)
                if isinstance(point, dict) and isinstance(point.get("step"), int):
                    points.append(point)
    except FileNotFoundError:
        return []
    return points


def cut_metrics(run: Path, step: int) -> None:
    """Removes what metrics.jsonl says of the steps after `step`: they are about to be made again."""
    kept = [point for point in read_metrics(run) if point["step"] <= step]
    atomic.write_file(run / METRICS_FILE, "".join(json.dumps(point) + "\n" for point in kept).encode())


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """The run belongs to this process alone while the block lasts; the system lets go of it however the process ends.

    Raises:
        RunError: another process is writing to the run.
    """
    with (run / ".lock").open("a") as file:
        try:
            _lock(file)
        except OSError as err:
            raise RunError(
                f"run {run} is being written by another process", hint="wait for it, or use another --run"
            ) from err
        yield


def _lock(file: IO[str]) -> None:
    if sys.platform == "win32":
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _last_written(run: Path) -> float:
    return max((run / name).stat().st_mtime for name in (CONFIG_FILE, METRICS_FILE) if (run / name).exists())
