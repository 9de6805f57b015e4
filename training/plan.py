"""What a training run would be, without writing anything: `--dry-run`. What it prints is a recipe."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training import distributed
from training.config import TrainingConfig, to_dict
from training.data import DatasetFacts, load_dataset
from training.device import check_precision, resolve_device, use_available_cpus
from training.loop import check_start
from training.run_dir import printable, writing
from training.state import build_discriminator, build_generator


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """A run before it starts: what it learns from, how large its players are, and where it goes."""

    config: TrainingConfig
    dataset: DatasetFacts
    run: Path
    device: str
    threads: int
    processes: int
    generator_parameters: int
    discriminator_parameters: int

    @property
    def epochs(self) -> float:
        """How often the run sees each image."""
        return self.config.steps * self.config.images_per_step / self.dataset.images

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return plain | {
            "config": to_dict(self.config),
            "dataset": dataclasses.asdict(self.dataset) | {"num_classes": self.dataset.num_classes},
            "run": str(self.run),
            "epochs": round(self.epochs, 3),
        }

    def __str__(self) -> str:
        data, config = self.dataset, self.config
        facts = [
            f"run            {self.run}",
            f"data           {data.name}: {data.images:,} images of {data.height} x {data.width}, "
            f"{data.num_classes} classes, digest {data.digest[:12]}",
            f"generator      {config.generator.kind}, {self.generator_parameters:,} parameters",
            f"discriminator  {config.discriminator.kind}, {self.discriminator_parameters:,} parameters",
            f"length         {config.steps:,} steps of {config.images_per_step} images: {self.epochs:.2f} epochs",
            f"device         {self.device}, {self.threads} threads"
            + (f" in each of {self.processes} processes" if self.processes > 1 else ""),
        ]
        return "\n".join([*(f"# {printable(fact)}" for fact in facts), "", *_toml(to_dict(config))])


def plan(config: TrainingConfig, run: Path, *, device: str = "auto", resume: bool = False) -> TrainingPlan:
    """What `training.loop.train` would do with the same arguments; what it would refuse is refused.

    Raises:
        ConfigError: the device cannot be had, or the configuration does not fit the data, or asks for what is not
            installed.
        EvaluationError: `log.evaluator` was made for other data, or cannot be read.
        DataError: the data set is missing or damaged.
        RunError: the run exists, or not, or belongs to another configuration or to other data.
        CheckpointError: none of the checkpoints is intact.
    """
    target = resolve_device(device)
    check_precision(config.precision, target)
    with writing(run):
        dataset = load_dataset(None if config.data.dir is None else Path(config.data.dir), "train")
        check_start(config, run, dataset, resume=resume)
    facts = dataset.facts
    with torch.device("meta"):  # sizes without memory
        generator, discriminator = build_generator(config, facts), build_discriminator(config, facts)
    return TrainingPlan(
        config=config,
        dataset=facts,
        run=run,
        device=target.type,
        threads=use_available_cpus(),
        processes=distributed.size(),
        generator_parameters=_parameters(generator),
        discriminator_parameters=_parameters(discriminator),
    )


def _parameters(network: nn.Module) -> int:
    return sum(one.numel() for one in network.parameters())


def _toml(mapping: dict[str, Any]) -> list[str]:
    """The configuration as a recipe: what it prints can be saved and trained."""
    lines = [f"{key} = {_toml_value(value)}" for key, value in mapping.items() if not isinstance(value, dict | None)]
    for key, group in mapping.items():
        if isinstance(group, dict):
            lines += ["", f"[{key}]", *_toml(group)]
    return lines


def _toml_value(value: bool | int | float | str) -> str:
    if isinstance(value, str):  # JSON's escapes are TOML's; only DEL is none of JSON's
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
