"""What export makes of every generator of the registry, beside what plain PyTorch tools make of the same weights.

    python benchmarks/export.py [--only conv] [--batch 1,8,64] [--rounds 9] [--skip compiled] [--write docs/cost.md]

One process, one thread each, contenders in turns. All of them answer latents (and labels) in NumPy with pixels uint8
[N, H, W, C], and are compared before they are timed:

    ours          exporters.onnx_export of exporters.wrapper: what `ganserve export --onnx` writes
    plain         torch.onnx.export of the trained network and the same conversion to pixels, without our wrapper
    plain float   torch.onnx.export of the network alone: images float32 out, and nothing converts them; beside what
                  `ganserve export --float-output` writes, which does the same
    TorchScript   torch.jit.trace and freeze of the network and the conversion
    eager         the network and the conversion, layer by layer
    compiled      torch.compile of the network and the conversion, for this batch size alone

With --layers it times instead every kind of layer that export rewrites, by itself, beside what it was and beside the
transposed convolution that float16 and TorchScript have in its place.

Weights are random, normalisations have seen batches: what a layer costs does not depend on what it has learned.
"""

import argparse
import dataclasses
import logging
import re
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from exporters.onnx_export import OPSET, example_inputs, export_onnx, merge_pads
from exporters.rewrite import rewritten
from exporters.wrapper import ExportedGenerator
from ganserve import imaging, latents
from ganserve.bench import ROUNDS, Labels, Latents, Pixels, Runner, parse_batches, race
from training.config import load_recipe
from training.data.batches import pixels_from_images
from training.models import GENERATORS, Generator
from training.models.base import DoubledConv, ShuffledConv

# Name -> recipe, and what is changed of its generator. conv 24 and 48 cost what subpixel 16 and 32 do.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp 128 (seed)": ("seed", {}),
    "conv 32 (quick)": ("quick", {}),
    "residual 16 (r3gan)": ("r3gan", {}),
    "subpixel 16 (lsgan)": ("lsgan", {}),
    "conv 24": ("quick", {"width": 24}),
    "residual 32, batch norm": ("r3gan", {"norm": "batch", "width": 32}),
    "subpixel 32": ("lsgan", {"width": 32}),
    "conv 48": ("quick", {"width": 48}),
}
OTHERS = ("plain", "plain float", "TorchScript", "eager", "compiled")
OURS_FLOAT = "ours float"  # what "plain float" is compared with; all others are with "ours"
IMAGE_SHAPE = (1, 28, 28)
# Those of the generators above, and wider ones.
LAYERS: dict[str, nn.Conv2d] = {
    "doubled, 32": DoubledConv(32, 16, (14, 14), bias=True),
    "doubled, 16": DoubledConv(16, 16, (28, 28), bias=True),
    "doubled, 64": DoubledConv(64, 32, (14, 14), bias=True),
    "doubled, 32 wide": DoubledConv(32, 32, (28, 28), bias=True),
    "doubled, 64 wide": DoubledConv(64, 64, (28, 28), bias=True),
    "shuffled, 32": ShuffledConv(32, 16, (14, 14), bias=True),
    "shuffled, 64": ShuffledConv(64, 32, (14, 14), bias=True),
    "shuffled, 32 wide": ShuffledConv(32, 32, (28, 28), bias=True),
    "shuffled to one, 16": ShuffledConv(16, 1, (28, 28), bias=True),
    "shuffled to one, 32": ShuffledConv(32, 1, (28, 28), bias=True),
    "convolution to one, 16": nn.Conv2d(16, 1, 3, padding=1),
    "convolution to one, 32": nn.Conv2d(32, 1, 3, padding=1),
}


class AsPixels(nn.Module):
    """A network and the conversion to pixels, as anybody would write it."""

    def __init__(self, network: Generator) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: Tensor, labels: Tensor | None = None) -> Tensor:
        """Pixels uint8 [N, H, W, C]."""
        low, high = self.network.value_range
        images = (self.network(rows, labels) - low) * (255.0 / (high - low))
        return images.round().clamp(0.0, 255.0).to(torch.uint8).permute(0, 2, 3, 1)


def main() -> None:
    """Prints two tables in Markdown, and writes them into a page that has marks for them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="models whose name begins so")
    parser.add_argument("--batch", default="1,8,64")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--skip", nargs="*", default=[], choices=OTHERS, help="compiled takes most of the time")
    parser.add_argument("--layers", action="store_true", help="layers by themselves, instead of generators")
    parser.add_argument(
        "--write", type=Path, help="a page with <!-- speed --> and <!-- cost --> (or <!-- layers -->) marks"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch's own deprecations in three compilers
    for logger in ("torch.onnx", "onnxscript", "torch.export"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    batches = parse_batches(arguments.batch)
    if arguments.layers:
        finish({"layers": layer_table(batches, arguments.rounds)}, arguments.write)
        return

    speed = [
        f"| model | batch | ours, us/image | {' | '.join(OTHERS)} |",
        "| --- | ---: | ---: |" + " ---: |" * len(OTHERS),
    ]
    cost = [
        "| model | parameters | M multiply-adds, trained | exported | "
        f"{' | '.join(f'us/image, batch {rows}' for rows in batches)} | G multiply-adds/s |",
        "| --- | ---: | ---: | ---: |" + " ---: |" * (len(batches) + 1),
    ]
    for name, (recipe, changes) in MODELS.items():
        if not name.startswith(arguments.only):
            continue
        network = build(recipe, changes)
        exported = ExportedGenerator(network).eval()
        runners = {key: make for key, make in contenders(network, exported).items() if key not in arguments.skip}
        us: list[float] = []
        for batch_rows in batches:
            medians, ratios = compare(network, runners, batch_rows, arguments.rounds)
            us.append(medians["ours"] / batch_rows * 1e6)
            row = " | ".join(f"{ratios[other]:.2f}" if other in ratios else "-" for other in OTHERS)
            speed.append(f"| {name} | {batch_rows} | {us[-1]:.1f} | {row} |")
            print(speed[-1], flush=True)
        trained_macs, exported_macs = multiply_adds(network, network), multiply_adds(exported, network)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        cost.append(
            f"| {name} | {parameters:,} | {trained_macs / 1e6:.2f} | {exported_macs / 1e6:.2f} | "
            f"{' | '.join(f'{value:.1f}' for value in us)} | {exported_macs / min(us) / 1e3:.0f} |"
        )
        print(cost[-1], flush=True)
    finish({"speed": speed, "cost": cost}, arguments.write)


def finish(tables: dict[str, list[str]], page: Path | None) -> None:
    """Prints tables, and writes each between the marks that a page has for it."""
    for table in tables.values():
        print("\n".join(["", *table]))
    if page is None:
        return
    text = page.read_text(encoding="utf-8")
    for mark, table in tables.items():
        body = "\n".join(table)
        text, found = re.subn(
            rf"(<!-- {mark} -->\n\n).*?(\n\n<!-- /{mark} -->)", rf"\g<1>{body}\g<2>", text, flags=re.DOTALL
        )
        assert found == 1, f"{page} has no place for the table of {mark}"
    page.write_text(text, encoding="utf-8")


def layer_table(batches: tuple[int, ...], rounds: int) -> list[str]:
    """A row for each layer and batch: what is exported, and how many times as long the others take."""
    table = [
        "| layer | channels | image | batch | exported, us/image | as trained | transposed |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    torch.manual_seed(0)
    for name, layer in LAYERS.items():
        size = tuple(layer.size) if isinstance(layer, DoubledConv | ShuffledConv) else (28, 28)
        before = (layer.in_channels, *(size if type(layer) is nn.Conv2d else (size[0] // 2, size[1] // 2)))
        twins = {
            "exported": rewritten(layer),
            "as trained": layer,
            "transposed": rewritten(layer, 1 << 20, windows=False),
        }
        runners = {key: layer_runner(twin, before) for key, twin in twins.items() if twin is not None}
        for rows in batches:
            hidden = torch.randn(rows, *before).numpy()
            for run in runners.values():
                np.testing.assert_allclose(run(hidden, None), runners["as trained"](hidden, None), rtol=0, atol=1e-4)
            calls = race(runners, (hidden, None), rounds=rounds)
            ours = statistics.median(second for span in calls["exported"] for second in span)
            trained, turned = (ratio(calls[other], calls["exported"]) for other in ("as trained", "transposed"))
            after = layer.out_channels // (4 if isinstance(layer, ShuffledConv) else 1)
            table.append(
                f"| {name.partition(',')[0]} | {layer.in_channels} to {after} | {size[0]} x {size[1]} | {rows} | "
                f"{ours / rows * 1e6:.1f} | {trained:.2f} | {turned:.2f} |"
            )
            print(table[-1], flush=True)
    return table


def layer_runner(layer: nn.Module, before: tuple[int, ...]) -> Runner:
    """A layer by itself in ONNX Runtime: hidden float32 [N, C, H, W] to the same."""
    program = torch.onnx.export(
        layer.eval(),
        (torch.zeros(2, *before),),
        input_names=["latents"],
        dynamic_shapes=[{0: torch.export.Dim("batch", min=1, max=1 << 20)}],
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    merge_pads(model.graph)
    return session(bytes(model.SerializeToString()))


def ratio(theirs: list[list[float]], ours: list[list[float]]) -> float:
    """How many times as long theirs take: the median over rounds of the ratio of their medians."""
    return statistics.median(
        statistics.median(their) / statistics.median(our) for their, our in zip(theirs, ours, strict=True)
    )


def build(recipe: str, changes: dict[str, Any]) -> Generator:
    """A generator of random weights, in evaluation mode, whose normalisations have seen a few batches."""
    config = load_recipe(recipe)
    torch.manual_seed(0)
    kind = {**dataclasses.asdict(config.generator), **changes}
    generator = dataclasses.replace(config.generator, **kind)
    num_classes = 10 if config.conditional else None
    network = GENERATORS[generator.kind](generator, image_shape=IMAGE_SHAPE, num_classes=num_classes)
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.randn(64, network.latent_dim), None if num_classes is None else torch.arange(64) % 10)
    return network.eval()


def contenders(network: Generator, exported: ExportedGenerator) -> dict[str, Callable[[int], Runner]]:
    """Name -> what makes a runner for a batch size; only a compiled network needs to know it."""
    as_pixels = AsPixels(network).eval()
    example = example_inputs(exported)
    traced = torch.jit.freeze(torch.jit.trace(as_pixels, example, check_trace=False))
    ours, ours_float = (
        session(export_onnx(ExportedGenerator(network, pixels=pixels).eval(), {})) for pixels in (True, False)
    )
    plain, plain_float = session(plain_onnx(as_pixels, exported)), session(plain_onnx(network, exported))

    def compiled(batch_rows: int) -> Runner:
        torch.compiler.reset()
        return torch_runner(torch.compile(as_pixels, dynamic=False))

    return {
        "ours": lambda batch_rows: ours,
        OURS_FLOAT: lambda batch_rows: ours_float,
        "plain": lambda batch_rows: plain,
        "plain float": lambda batch_rows: plain_float,
        "TorchScript": lambda batch_rows: torch_runner(traced),
        "eager": lambda batch_rows: torch_runner(as_pixels),
        "compiled": compiled,
    }


def plain_onnx(module: nn.Module, exported: ExportedGenerator) -> bytes:
    """What torch.onnx.export makes of a module by itself, with a dynamic batch."""
    names = ["latents"] if exported.num_classes is None else ["latents", "labels"]
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    program = torch.onnx.export(
        module,
        example_inputs(exported),
        input_names=names,
        dynamic_shapes=[{0: batch} for _ in names],
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


def session(graph: bytes) -> Runner:
    """A session as the engine has it on a CPU, with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    opened = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(rows: Latents, labels: Labels | None) -> Pixels:
        return np.asarray(opened.run(None, {"latents": rows} | ({} if labels is None else {"labels": labels}))[0])

    return run


def torch_runner(module: Callable[..., Tensor]) -> Runner:
    """A torch callable on NumPy's arrays."""

    @torch.inference_mode()
    def run(rows: Latents, labels: Labels | None) -> Pixels:
        inputs = [torch.from_numpy(rows)] + ([] if labels is None else [torch.from_numpy(labels)])
        return np.asarray(module(*inputs).numpy())

    return run


def compare(
    network: Generator, made: dict[str, Callable[[int], Runner]], batch_rows: int, rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds a call of each contender, and how many times as long as ours, or as `OURS_FLOAT`, it takes."""
    given = latents.draw(1, batch_rows, network.latent_dim, network.num_classes)
    runners: dict[str, Runner] = {}
    for name, make in made.items():
        try:
            runners[name] = make(batch_rows)
            found = runners[name](*given)
        except Exception as err:  # torch.compile needs a C++ compiler, and says so in many ways
            if name != "compiled":
                raise
            runners.pop(name, None)
            print(f"left out: torch.compile: {type(err).__name__}: {str(err).splitlines()[0]}")
            continue
        if found.dtype == np.float32:
            found = np.asarray(pixels_from_images(torch.from_numpy(found), network.value_range).numpy())
        max_abs_diff, _ = imaging.difference(found, runners["ours"](*given))
        assert max_abs_diff <= 1, f"{name} computes something else"
    calls = race(runners, given, rounds=rounds)
    medians = {name: statistics.median(second for span in spans for second in span) for name, spans in calls.items()}
    ratios = {
        name: ratio(spans, calls[OURS_FLOAT if name == "plain float" else "ours"]) for name, spans in calls.items()
    }
    return medians, ratios


def multiply_adds(module: nn.Module, network: Generator) -> int:
    """Those of the products and convolutions for one image; look-ups and what is done to each value are not counted."""
    counted = 0

    def count(layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal counted
        assert isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
        # Each output of a convolution reads a kernel's worth of inputs; each input of a transposed one makes as much.
        values = given[0].numel() if isinstance(layer, nn.ConvTranspose2d) else out.numel()
        counted += values * (layer.weight.numel() // layer.weight.shape[0])

    hooks = [
        layer.register_forward_hook(count)
        for layer in module.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    ]
    label = None if network.num_classes is None else torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        module(torch.zeros(1, network.latent_dim), label)
    for hook in hooks:
        hook.remove()
    return counted


if __name__ == "__main__":
    main()
