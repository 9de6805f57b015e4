"""Recipes for equal CPU time: FID and images/s side by side, the article's recipe as the baseline.

    python benchmarks/recipes.py [--seconds 60] [--recipes seed,quick,hinge] [--out DIR]

Each recipe trains in this process, one after the other, on one thread. How many steps a recipe can take in its time is
measured first, and its schedules (learning rate, average) are stretched to that many: a recipe is not cut off in the
middle of what it meant to do. FID is of 10,000 images of the checkpoint that `ganserve export` would take.
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from training.checkpoint import load_generator
from training.config import TrainingConfig, list_recipes, load_recipe
from training.evaluate import Reference, load_reference, quick_quality
from training.evaluation.evaluator import Evaluator
from training.evaluation.targets import checkpoint_images
from training.loop import train
from training.run_dir import best_checkpoint

BASELINE = "seed"  # the article's
CALIBRATION_STEPS = 60
IMAGES = 10_000


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a recipe made of its time."""

    steps: int
    cpu_s: float
    images_per_s: float
    parameters: int
    quality: dict[str, float]


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU time of each recipe")
    parser.add_argument(
        "--recipes", default=",".join([BASELINE, *(name for name in list_recipes() if name != BASELINE)])
    )
    parser.add_argument("--out", type=Path, help="keep the runs here")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    evaluator = Evaluator.load()
    reference = load_reference(evaluator)
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.recipes.split(","):
            print(f"training {name} for {arguments.seconds:g} s of CPU time", flush=True)
            folder = arguments.out or Path(scratch)
            outcomes[name] = outcome(load_recipe(name), arguments.seconds, folder, evaluator, reference)
    show(outcomes)


def outcome(
    config: TrainingConfig, seconds: float, folder: Path, evaluator: Evaluator, reference: Reference
) -> Outcome:
    """Trains a recipe for so many seconds of CPU time, and judges it."""
    log = dataclasses.replace(config.log, evaluate_images=0, sheet_every_steps=10**9, checkpoint_every_steps=10**9)
    rate = 0.0
    for steps in (10, CALIBRATION_STEPS):  # the first one warms up
        with tempfile.TemporaryDirectory() as scratch:
            rate = train(dataclasses.replace(config, steps=steps, log=log), Path(scratch) / "run").images_per_s
    steps = max(1, int(rate * seconds / config.images_per_step))
    # The best of four checkpoints, as in a run of a user's.
    log = dataclasses.replace(log, checkpoint_every_steps=max(1, steps // 4), evaluate_images=5000)
    started = time.process_time()
    result = train(dataclasses.replace(config, steps=steps, log=log), folder / config.recipe)
    cpu_s = time.process_time() - started
    checkpoint, _ = best_checkpoint(result.run)
    images = checkpoint_images(checkpoint, reference.train, reference.test, IMAGES, seed=0)
    quality, _ = quick_quality(evaluator, reference, images.pixels, images.labels)
    parameters = sum(one.numel() for one in load_generator(checkpoint).network.parameters())
    return Outcome(steps, cpu_s, result.images_seen / result.seconds, parameters, quality)


def show(outcomes: dict[str, Outcome]) -> None:
    """The table; ratios are to the baseline if it is among the recipes."""
    baseline = outcomes.get(BASELINE)
    columns = (
        "recipe",
        "steps",
        "CPU s",
        "images/s",
        "parameters",
        "FID",
        f"FID of {BASELINE} / FID",
        "labels",
        "diversity",
    )
    table = Table(*columns, title=f"FID of {IMAGES:,} images against the test split; one thread")
    for name, one in outcomes.items():
        fid, accuracy = one.quality["fid"], one.quality.get("label_accuracy")
        table.add_row(
            name,
            f"{one.steps:,}",
            f"{one.cpu_s:.0f}",
            f"{one.images_per_s:,.0f}",
            f"{one.parameters:,}",
            f"{fid:.3f}",
            f"{baseline.quality['fid'] / fid:.1f}" if baseline else "",
            "" if accuracy is None else f"{accuracy:.1%}",
            f"{one.quality['diversity']:.2f}",
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
