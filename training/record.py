"""What a run writes while it trains: metrics, sheets, curves and checkpoints, each when it is due."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganserve import atomic
from training import pictures, run_dir
from training.checkpoint import save_checkpoint
from training.config import TrainingConfig
from training.data import Dataset
from training.health import Watch, check_weights, diagnose, layer_gradients
from training.judge import Judge, Judgement
from training.progress import Progress
from training.state import TrainingState
from training.tensorboard import TensorBoard


class Record:
    """Writes a run's directory.

    Attributes:
        point: the metrics of the newest step that something was due at.
        checkpoint: the newest one's directory.
    """

    def __init__(
        self,
        config: TrainingConfig,
        run: Path,
        state: TrainingState,
        dataset: Dataset,
        device: torch.device,
        progress: Progress,
        judge: Judge | None,
    ) -> None:
        self.point: dict[str, float] = {}
        self.checkpoint = run_dir.checkpoint_path(run, state.step)
        self._config = config
        self._run = run
        self._state = state
        self._dataset = dataset
        self._device = device
        self._progress = progress
        self._watch = Watch(device, state.recent)
        self._judge = judge
        self._shown: set[str] = set()  # names of symptoms: each is said once, and the result has them all
        self._board = TensorBoard(run, step=state.step) if config.log.tensorboard else None
        self._sheet_latents, self._sheet_labels = pictures.sheet_inputs(
            config.seed, config.generator.latent_dim, state.generator.num_classes, device
        )
        self._seconds_before = state.seconds
        self._started = self._logged_at = time.monotonic()
        self._logged_step = state.step

    def stepped(self, quantities: Mapping[str, Tensor], *, last: bool) -> None:
        """Takes what the newest step reported, float32 scalars, and writes what is due; at the last step, everything.

        Raises:
            TrainingDivergedError: a quantity or a weight is not finite; nothing is written of it.
            OSError: the disk said no.
        """
        step, log = self._state.step, self._config.log
        self._watch.observe(step, quantities)
        log_due, sheet_due, checkpoint_due = (
            last or step % every == 0 for every in (log.every_steps, log.sheet_every_steps, log.checkpoint_every_steps)
        )
        due = log_due or sheet_due or checkpoint_due
        if not (due or self._device.type == "cpu"):
            return  # a GPU is not asked how it went until somebody wants to know
        values = self._watch.read()
        if not due:
            return
        self._measure(values)
        if sheet_due or checkpoint_due:
            check_weights(step, self._state.networks)
        judged = None
        if checkpoint_due and self._judge is not None:
            judged = self._judge(self._state.shown_generator)
            self.point |= judged.values
        if log_due or checkpoint_due:
            self._log(judged)
        if sheet_due:
            self._write_sheet()
        if checkpoint_due:
            self._write_checkpoint()
        if log_due or checkpoint_due:
            self._logged_at, self._logged_step = time.monotonic(), step

    def close(self) -> None:
        """The loop is over, however it ended."""
        if self._board is not None:
            self._board.close()

    def _log(self, judged: Judgement | None) -> None:
        state = self._state
        gradients = {
            player: layer_gradients(network)
            for player, network in (("generator", state.generator), ("discriminator", state.discriminator))
        }
        symptoms = diagnose(
            self._config,
            step=state.step,
            window=self._watch.window(),
            gradients=gradients,
            judged=judged.values if judged else {},
            class_shares=judged.class_shares if judged else None,
        )
        line: dict[str, Any] = {**self.point, "gradients": gradients}
        if judged and judged.class_shares:
            line["class_shares"] = judged.class_shares
        if symptoms:
            line["health"] = [dataclasses.asdict(one) for one in symptoms]
        run_dir.append_metrics(self._run, line)
        if self._board is not None:
            self._board.logged(line)
        self._progress.logged(self.point)
        for symptom in symptoms:
            if symptom.name not in self._shown:
                self._progress.warned(str(symptom))
                self._shown.add(symptom.name)

    def _measure(self, values: Mapping[str, float]) -> None:
        config, step, now = self._config, self._state.step, time.monotonic()
        self._state.seconds = self._seconds_before + now - self._started
        images_per_s = (step - self._logged_step) * config.images_per_step / (now - self._logged_at)
        self.point = {
            "step": step,
            "images_seen": step * config.images_per_step,
            "seconds": round(self._state.seconds, 3),
            "images_per_s": round(images_per_s, 1),
            "lr": self._state.generator_optimizer.param_groups[0]["lr"],
            **values,
        }

    def _write_sheet(self) -> None:
        sheet = run_dir.sheet_path(self._run, self._state.step)
        png = pictures.sheet_png(self._state.shown_generator, self._sheet_latents, self._sheet_labels)
        atomic.write_file(sheet, png)
        if self._board is not None:
            self._board.wrote_sheet(sheet, self._state.step)
        self._progress.wrote("sheet", sheet)

    def _write_checkpoint(self) -> None:
        run, config = self._run, self._config
        self.checkpoint = run_dir.checkpoint_path(run, self._state.step)
        self._state.recent = self._watch.recent()
        save_checkpoint(self.checkpoint, self._state, config=config, dataset=self._dataset.facts, metrics=self.point)
        run_dir.remove_old_checkpoints(run, config.log.keep_checkpoints, newest=self.checkpoint)
        curves = pictures.curves_png(run_dir.read_metrics(run), title=run.name)
        atomic.write_file(run / run_dir.CURVES_FILE, curves)
        self._progress.wrote("checkpoint", self.checkpoint)
