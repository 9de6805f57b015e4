"""The training loop, from a configuration to a run directory."""

import contextlib
import dataclasses
import logging
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ganserve.errors import ConfigError, RunError, TrainingError
from training import distributed, run_dir
from training.checkpoint import environment, restore_checkpoint, verify_checkpoint
from training.config import TrainingConfig, differences
from training.data import Dataset, load_dataset
from training.device import check_precision, repeatable, resolve_device, use_available_cpus
from training.health import episodes
from training.judge import Judge, find_evaluator
from training.progress import Progress, SilentProgress
from training.record import Record
from training.state import TrainingState, new_state
from training.tensorboard import check_installed
from training.turns import Turns

logger = logging.getLogger(__name__)

_CHANGEABLE_ON_RESUME = ("steps", "log.", "data.dir")  # the data set itself must be the same: its digest is compared


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a call of `train` came to.

    Attributes:
        run: its directory.
        checkpoint: the latest one.
        steps: where the run is now.
        images_seen: real images, over the whole run.
        seconds: of training, over the whole run.
        images_per_s: over this call.
        metrics: of the last step.
        health: what went wrong on the way (`training.health.episodes`), over the whole run.
        interrupted_by: the signal's number if SIGINT or SIGTERM ended the call early; the run can be resumed.
    """

    run: Path
    checkpoint: Path
    steps: int
    images_seen: int
    seconds: float
    images_per_s: float
    metrics: dict[str, float]
    health: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    interrupted_by: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self) | {"run": str(self.run), "checkpoint": str(self.checkpoint)}


def train(
    config: TrainingConfig, run: Path, *, device: str = "auto", resume: bool = False, progress: Progress | None = None
) -> TrainingResult:
    """Trains until `config.steps`, or until SIGINT or SIGTERM; then there is a checkpoint of where it ended.

    Inside `training.distributed.joined`, the processes train together: all call this, and rank 0 writes.

    Args:
        config: the run's. A resumed run takes other `steps` and other `log` settings; anything else must be as it was.
        run: the run's directory, made if needed.
        device: auto, cpu or cuda.
        resume: go on after the latest intact checkpoint, to the very bits of a run that was never interrupted (on one
            machine, device and number of threads). A finished run stays as it is.
        progress: what to tell of the way.

    Raises:
        ConfigError: the device cannot be had, or the configuration does not fit the data, or asks for what is not
            installed.
        EvaluationError: `log.evaluator` was made for other data, or cannot be read.
        DataError: the data set is missing or damaged.
        RunError: the run exists, or not, or belongs to another configuration, or is in use, or cannot be written.
        CheckpointError: none of the checkpoints is intact.
        TrainingDivergedError: a loss, gradient or weight is not finite; the latest checkpoint stays.
        TrainingError: there is not enough memory, or torch.compile cannot compile what it should.
    """
    progress = progress or SilentProgress()
    target = resolve_device(device)
    check_precision(config.precision, target)
    threads = use_available_cpus()
    writes = distributed.rank() == 0
    with _enough_memory(target), _compilable(), repeatable(target), run_dir.writing(run):
        dataset = load_dataset(None if config.data.dir is None else Path(config.data.dir), "train")
        _check_fit(config, dataset)
        with _claimed(run, config, resume=resume) if writes else contextlib.nullcontext():
            judge = Judge(config, dataset, target) if config.log.evaluate_images and writes else None
            state = new_state(config, dataset.facts, target)
            finished = _resume(run, state, config, dataset) if resume else None
            if finished is not None:
                return finished
            if writes:
                run_dir.write_config(run, config)
            logger.info("training run=%s device=%s threads=%d step=%d", run, target, threads, state.step)
            try:
                progress.started(run=run, step=state.step, steps=config.steps)
                return _loop(config, run, state, dataset, target, progress, judge)
            finally:
                progress.finished()


@contextlib.contextmanager
def _claimed(run: Path, config: TrainingConfig, *, resume: bool) -> Iterator[None]:
    """The run's directory is there, fits, and is written by this process alone."""
    _check_run(run, config, resume=resume)
    (run / "sheets").mkdir(parents=True, exist_ok=True)
    with run_dir.locked(run):
        _check_run(run, config, resume=resume)  # again: another process may have been here before the lock
        run_dir.remove_leftovers(run)
        yield


def check_start(config: TrainingConfig, run: Path, dataset: Dataset, *, resume: bool) -> None:
    """Refuses what `train` would refuse, and writes nothing.

    Raises:
        ConfigError: the configuration does not fit the data, or asks for what is not installed.
        EvaluationError: `log.evaluator` was made for other data, or cannot be read.
        RunError: the run exists, or not, or belongs to another configuration or to other data.
        CheckpointError: none of the checkpoints is intact.
    """
    _check_fit(config, dataset)
    _check_run(run, config, resume=resume)
    if resume:
        _checkpoint_to_resume(run, dataset)


def _check_fit(config: TrainingConfig, dataset: Dataset) -> None:
    """A configuration must not ask for what is not there, nor for a batch that cannot be shared."""
    distributed.check_batch(config.batch_size)
    if config.wrong_label_weight and dataset.num_classes < 2:
        raise ConfigError(
            f"wrong_label_weight is {config.wrong_label_weight}, but {dataset.name} has one class only",
            hint="set wrong_label_weight=0",
        )
    if distributed.rank():
        return  # what follows is used by whoever writes the run
    if config.log.tensorboard:
        check_installed()
    if config.log.evaluate_images and config.log.evaluator is not None:
        find_evaluator(config.log.evaluator, dataset.name, dataset.digest)


def _loop(
    config: TrainingConfig,
    run: Path,
    state: TrainingState,
    dataset: Dataset,
    device: torch.device,
    progress: Progress,
    judge: Judge | None,
) -> TrainingResult:
    turns = Turns(config, state, dataset, device)
    writes = distributed.rank() == 0
    record = Record(config, run, state, dataset, device, progress, judge) if writes else None
    first_step, seconds_before, started = state.step + 1, state.seconds, time.monotonic()
    with contextlib.closing(record) if record else contextlib.nullcontext(), _signals() as received:
        for step in range(first_step, config.steps + 1):
            quantities = turns.take(step)
            state.step = step
            progress.stepped(step)
            interrupted_by = distributed.largest(received.number or 0) or None  # all of them end at one step
            last = step == config.steps or interrupted_by is not None
            if record:
                record.stepped(quantities, last=last)
            if last:
                break
    seconds = time.monotonic() - started
    return TrainingResult(
        run=run,
        checkpoint=run_dir.checkpoint_path(run, state.step),
        steps=state.step,
        images_seen=state.step * config.images_per_step,
        seconds=round(seconds_before + seconds, 3),
        images_per_s=round((state.step - first_step + 1) * config.images_per_step / seconds, 1),
        metrics=record.point if record else {},
        health=episodes(run_dir.read_metrics(run)) if record else [],
        interrupted_by=interrupted_by if state.step < config.steps else None,
    )


def _check_run(run: Path, config: TrainingConfig, *, resume: bool) -> None:
    """A new run must not exist; one to resume must, and be of this configuration."""
    if resume:
        changed = {
            key: values
            for key, values in differences(run_dir.load_config(run), config).items()
            if not key.startswith(_CHANGEABLE_ON_RESUME)
        }
        if changed:
            listed = ", ".join(f"{key} was {old} and is {new}" for key, (old, new) in list(changed.items())[:4])
            listed += f", and {len(changed) - 4} more" if len(changed) > 4 else ""
            raise RunError(
                f"run {run} belongs to another configuration: {listed}",
                hint="resume it as it was started, or start another with --run",
            )
        return
    if (run / run_dir.CONFIG_FILE).exists():
        raise RunError(f"run {run} exists already", hint="--resume goes on with it; --run NAME starts another")
    if run.is_dir() and any(entry.name not in (".lock", "sheets") for entry in run.iterdir()):
        raise RunError(f"{run} is not a run and not empty", hint="use --run NAME for another directory")


def _resume(run: Path, state: TrainingState, config: TrainingConfig, dataset: Dataset) -> TrainingResult | None:
    """Brings `state` to the latest intact checkpoint; a result if there is nothing left to do."""
    writes = distributed.rank() == 0
    found = distributed.first_says(lambda: _checkpoint_to_resume(run, dataset))
    if found is None:
        logger.warning("run %s has no checkpoint yet: starting at step 0", run)
        if writes:
            run_dir.cut_metrics(run, 0)
        return None
    checkpoint, why = found
    saved = restore_checkpoint(checkpoint, state)
    logger.info("resuming run=%s checkpoint=%s (%s)", run, checkpoint.name, why)
    here = environment(state.rng.device)
    changed = [
        f"{key} {saved.environment.get(key)} -> {value}"
        for key, value in here.items()
        if saved.environment.get(key) != value
    ]
    if changed:
        logger.warning("resuming elsewhere, so not to the last bit: %s", ", ".join(changed))
    if state.step >= config.steps:
        return TrainingResult(
            run=run,
            checkpoint=checkpoint,
            steps=state.step,
            images_seen=saved.images_seen,
            seconds=round(saved.seconds, 3),
            images_per_s=0.0,
            metrics=saved.metrics,
            health=episodes(run_dir.read_metrics(run)),
        )
    if writes:
        run_dir.cut_metrics(run, state.step)
        run_dir.remove_later_checkpoints(run, state.step)
    return None


def _checkpoint_to_resume(run: Path, dataset: Dataset) -> tuple[Path, str] | None:
    """The latest intact checkpoint and why it is taken, None if there is none yet; it must be of these data."""
    if not run_dir.checkpoints(run):
        return None
    checkpoint, why = run_dir.latest_checkpoint(run)
    trained_on = verify_checkpoint(checkpoint).dataset  # before its weights meet networks made for other data
    if trained_on.digest != dataset.digest:
        raise RunError(
            f"run {run} was trained on {trained_on.name} (digest {trained_on.digest[:12]}…), "
            f"not on this {dataset.name} (digest {dataset.digest[:12]}…)",
            hint="resume it with the data it was started with, or start another with --run",
        )
    return checkpoint, why


@contextlib.contextmanager
def _enough_memory(device: torch.device) -> Iterator[None]:
    """Names what an allocator says; torch has a class for it on GPUs only, and a bare RuntimeError on the CPU."""
    try:
        yield
    except (MemoryError, RuntimeError) as err:
        if not isinstance(err, MemoryError | torch.OutOfMemoryError) and not re.search(
            "can't allocate memory|not enough memory|bad_alloc", str(err)
        ):
            raise
        amount = re.search(r"tried to allocate ([\d.]+ \w+)", str(err), re.IGNORECASE)
        raise TrainingError(
            f"there is not enough memory on {device}" + (f" for {amount[1]} more" if amount else ""),
            hint="lower batch_size, generator.width or discriminator.width",
        ) from err


@contextlib.contextmanager
def _compilable() -> Iterator[None]:
    """Names what torch.compile says: its errors are of many private classes."""
    try:
        yield
    except RuntimeError as err:
        if not type(err).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        why = " ".join(str(err).split("\n\n")[0].split())  # what comes after is for whoever debugs the compiler
        raise TrainingError(f"torch.compile cannot compile this: {why}", hint="set compile=false") from err


@dataclasses.dataclass
class _Received:
    number: int | None = None


@contextlib.contextmanager
def _signals() -> Iterator[_Received]:
    """Notes the first SIGINT or SIGTERM instead of dying of it; the second does what it always did.

    Of several processes none dies of the second either: their launcher passes on what it gets, and kills in the end.
    """
    received = _Received()
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python delivers signals to the main thread only
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: FrameType | None) -> None:
        received.number = number
        if distributed.size() > 1:
            return
        for one, handler in before.items():
            signal.signal(one, handler or signal.SIG_DFL)

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
