"""The engine against PyTorch: microseconds an image, one thread each, interleaved rounds in one run.

    python benchmarks/engine.py [ARTIFACT] [--rounds 5]

The artifact's run must still be in runs/: eager PyTorch runs the checkpoint that the artifact was made of. Answers are
compared before anything is timed.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from exporters.parity import probes, pytorch_pixels
from exporters.torchscript_export import load_torchscript
from ganserve import imaging
from ganserve.artifact import TORCHSCRIPT, find_artifact
from ganserve.engine import Engine
from ganserve.proof import Labels, Latents, Pixels
from training.checkpoint import load_generator

BATCHES = (1, 8, 32, 64, 256)
SPAN_S = 0.2  # how long one contender is timed in one round


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    artifact, reason = find_artifact(arguments.artifact)
    source = artifact.manifest.source
    checkpoint = Path("runs") / source.run / "checkpoints" / source.checkpoint
    network = load_generator(checkpoint).network
    engine = Engine(artifact, device="cpu", threads=1)
    contenders: dict[str, Callable[[Latents, Labels | None], Pixels]] = {
        "engine": engine.run,
        "eager PyTorch": lambda rows, labels: pytorch_pixels(network, rows, labels),
    }
    if TORCHSCRIPT in artifact.manifest.files:
        module = load_torchscript(artifact.read(TORCHSCRIPT))

        @torch.no_grad()
        def torchscript(rows: Latents, labels: Labels | None) -> Pixels:
            inputs = [torch.from_numpy(rows)] + ([] if labels is None else [torch.from_numpy(labels)])
            return np.asarray(module(*inputs).numpy())

        contenders["TorchScript"] = torchscript

    rows, labels = probes(network, max(BATCHES))
    expected = engine.run(rows, labels)
    for name, run in contenders.items():
        max_abs_diff, _ = imaging.difference(run(rows, labels), expected)
        assert max_abs_diff <= 1, f"{name} computes something else"

    others = [name for name in contenders if name != "engine"]
    table = Table("batch", *(f"{name} us/image" for name in contenders), *(f"{name} / engine" for name in others))
    for batch in BATCHES:
        given = rows[:batch], None if labels is None else labels[:batch]
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(arguments.rounds):
            for name, run in contenders.items():
                times[name].append(per_call_s(run, given) / batch * 1e6)
        medians = {name: statistics.median(values) for name, values in times.items()}
        ratios = [f"{medians[name] / medians['engine']:.2f}" for name in others]
        table.add_row(str(batch), *(f"{median:.1f}" for median in medians.values()), *ratios)
    console = Console()
    console.print(f"{artifact.path} ({reason}), median of {arguments.rounds} rounds")
    console.print(table)


def per_call_s(run: Callable[[Latents, Labels | None], Pixels], given: tuple[Latents, Labels | None]) -> float:
    """Mean seconds a call over `SPAN_S`, after one call that is not counted."""
    run(*given)
    calls = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < SPAN_S:
        run(*given)
        calls += 1
    return elapsed / calls


if __name__ == "__main__":
    main()
