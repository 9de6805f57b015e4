"""What the command line shows of a result: tables, lines, and a bar while one waits."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ganserve import imaging
from ganserve.artifact import ONNX, Artifact, ParityResult
from ganserve.plain import printable

if TYPE_CHECKING:  # each command imports its own
    from ganserve.bench import Row
    from ganserve.inspection import GraphFacts
    from ganserve.verify import Check


@contextlib.contextmanager
def stages(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for the stage that `report(stage, done, total)` was last told of."""
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console, transient=True
    ) as bar:
        task = bar.add_task("", total=None)

        def report(stage: str, done: int, total: int) -> None:
            if bar.tasks[0].description != stage:
                bar.reset(task, description=stage, total=total)
            bar.update(task, completed=done)

        yield report


def of_quality(metrics: Iterable[tuple[str, float, float | None, str, str]]) -> Table:
    """`evaluate`: name, value, that of real images, verdict and meaning of every metric."""
    table = Table("metric", "value", "real images", "verdict", "what it is")
    for name, value, real, verdict, meaning in metrics:
        table.add_row(name, f"{value:.4g}", "-" if real is None else f"{real:.4g}", verdict, meaning)
    return table


def of_checks(checks: Sequence["Check"]) -> Table:
    """`verify`: a row for each check, its file named once."""
    marks = {"pass": "[green]✓[/]", "fail": "[red]✗ fails[/]", "skip": "[yellow]- skipped[/]"}
    table = Table("file", "check", "result", "figure")
    for index, check in enumerate(checks):
        repeated = index > 0 and checks[index - 1].file == check.file
        detail = "\n".join(printable(line) for line in check.detail.splitlines())
        table.add_row("" if repeated else escape(check.file), check.name, marks[check.result], escape(detail))
    return table


def of_speed(rows: Sequence["Row"]) -> Table:
    """`bench`: a section for each batch size, within 80 columns."""
    table = Table(box=SIMPLE_HEAD)
    for heading in ("batch", "format", "p50 ms", "images/s", "speed", "+MB", "differs"):
        table.add_column(heading, justify="left" if heading == "format" else "right", no_wrap=True)
    for row in rows:
        if row.format == ONNX and row.batch_rows != rows[0].batch_rows:
            table.add_section()
        table.add_row(
            str(row.batch_rows),
            row.format,
            _three_digits(row.p50_ms),
            f"{row.images_per_s:,.0f}",
            f"{_three_digits(row.speedup)} x",
            "-" if row.memory_bytes is None else f"{row.memory_bytes / 1e6:.1f}",
            f"{row.max_abs_diff} in {100 * row.differing_share:.2g}%" if row.max_abs_diff else "-",
        )
    return table


def _three_digits(value: float) -> str:
    """0.118, 3.53, 31.5 and 1,044: a column of times or ratios, as narrow as it can be read."""
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"


def artifact_lines(artifact: Artifact) -> list[tuple[str, str]]:
    """What `inspect` tells, a line each: digests are for copying, so nothing is folded into a table."""
    manifest = artifact.manifest
    image, source = manifest.model.image, manifest.source
    lines = [
        ("name", manifest.name),
        ("digest", artifact.digest),
        ("created", manifest.created_at.isoformat(timespec="seconds")),
        ("generator", f"{manifest.model.generator}, {manifest.model.parameters:,} parameters"),
        ("images", f"{image.height} x {image.width} x {image.channels} uint8"),
        ("latents", f"{manifest.latent.dim} normals, {manifest.latent.sampler}"),
        ("labels", "none" if manifest.labels is None else ", ".join(manifest.labels)),
        ("source", f"run {source.run}, {source.checkpoint}, recipe {source.recipe}, data {source.dataset}"),
        *(
            ("file", f"{name}  {entry.bytes:,} bytes  sha256:{entry.sha256}")
            for name, entry in sorted(manifest.files.items())
        ),
        *(("training", f"{key} = {value:.6g}") for key, value in sorted(manifest.training.items())),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items()))),
    ]
    return [(key, printable(value)) for key, value in lines]


def of_graphs(graphs: Sequence["GraphFacts"]) -> Table:
    """`inspect`: what each ONNX file holds and costs."""
    columns = ("format", "bytes", "nodes", "multiply-\nadds", "us/image\nat batch")
    table = Table(*columns, title="an image's cost on this CPU, 1 thread")
    table.columns[0].no_wrap = True  # half a name is no name
    table.columns[0].min_width = max((len(facts.file) for facts in graphs), default=0)
    for facts in graphs:
        operators = ", ".join(f"{count} {name}" for name, count in facts.operators.items())
        times = "\n".join(f"{rows:>3}: {time:,.1f}" for rows, time in (facts.us_per_image or {}).items())
        table.add_row(
            facts.file,
            f"{facts.bytes:,}",
            escape(printable(f"{sum(facts.operators.values())}: {operators}")),
            "-" if facts.multiply_adds is None else f"{facts.multiply_adds:,}",
            times or "-",
        )
    return table


def of_parity(rows: Sequence[ParityResult]) -> Table:
    """`inspect`: how far each format was from PyTorch, batch by batch."""
    table = Table("format", "batch", "worst difference", "pixels that differ", title="parity with PyTorch")
    for row in rows:
        levels = imaging.levels(row.max_abs_diff)
        table.add_row(escape(printable(row.format)), str(row.batch_rows), levels, f"{row.differing_share:.4%}")
    return table
