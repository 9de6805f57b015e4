"""What an image costs and what it is worth: artifacts by microseconds and FID, as a table and a picture.

    python benchmarks/front.py ARTIFACT... [--out docs/front.png] [--rounds 5]

FID is the one in each manifest, of 10,000 images through the very file that is timed (`ganserve export` measures it).
Microseconds are the engine's on one thread at its cheapest batch, the least of some rounds that are interleaved. An
artifact is on the front if none is both cheaper and better.
"""

import argparse
import time
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ganserve.artifact import ONNX, Artifact, find_artifact
from ganserve.engine import Engine
from ganserve.proof import probes

BATCHES = (8, 16, 32, 64, 256)
SPAN_S = 0.1  # how long one batch size is timed in one round


def main() -> None:
    """Prints one table, and draws it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="a PNG")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    artifacts = {path.name: find_artifact(path)[0] for path in arguments.artifacts}
    fids = {name: fid(artifact) for name, artifact in artifacts.items()}
    engines = {name: Engine(artifact, device="cpu", threads=1) for name, artifact in artifacts.items()}
    costs = dict.fromkeys(artifacts, float("inf"))
    for _ in range(arguments.rounds):
        for name, engine in engines.items():
            costs[name] = min(costs[name], microseconds(engine, artifacts[name]))
    front = [one for one in costs if not any(costs[o] < costs[one] and fids[o] < fids[one] for o in costs)]
    dearest = max(costs.values())
    table = Table("artifact", "generator", "parameters", "us an image", "x the dearest's speed", "FID", "on the front")
    for name in sorted(costs, key=lambda name: costs[name]):
        model = artifacts[name].manifest.model
        speed = f"{dearest / costs[name]:.1f}"
        on_front = "yes" if name in front else ""
        table.add_row(
            name, model.generator, f"{model.parameters:,}", f"{costs[name]:.1f}", speed, f"{fids[name]:.3f}", on_front
        )
    Console(width=120).print(table)
    if arguments.out:
        draw(arguments.out, costs, fids, front)


def fid(artifact: Artifact) -> float:
    """What the manifest says."""
    quality = artifact.manifest.quality
    if quality is None:
        raise SystemExit(f"{artifact.path} has no FID in its manifest: export it with its evaluator")
    return quality[ONNX]["fid"]


def microseconds(engine: Engine, artifact: Artifact) -> float:
    """An image's cost at the batch where it is least."""
    found = []
    for batch in BATCHES:
        rows, labels = probes(artifact.manifest.latent.dim, artifact.manifest.num_classes, batch)
        engine.run(rows, labels)
        until = time.perf_counter() + SPAN_S
        while (started := time.perf_counter()) < until:
            engine.run(rows, labels)
            found.append((time.perf_counter() - started) / batch * 1e6)
    return min(found)


def draw(out: Path, costs: dict[str, float], fids: dict[str, float], front: list[str]) -> None:
    """A point for each, and a line along the front."""
    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name in costs:
        axes.scatter(costs[name], fids[name], color="tab:blue" if name in front else "0.6", zorder=3)
        axes.annotate(name, (costs[name], fids[name]), textcoords="offset points", xytext=(6, 4), fontsize=9)
    along = sorted(front, key=lambda name: costs[name])
    axes.plot([costs[name] for name in along], [fids[name] for name in along], color="tab:blue", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="us an image, ONNX Runtime on one core", ylabel="FID of 10,000 images")
    axes.margins(x=0.12)  # room for the names
    axes.grid(alpha=0.3, which="both")
    FigureCanvasAgg(figure).print_png(str(out))


if __name__ == "__main__":
    main()
