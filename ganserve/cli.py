"""The command line: parse, call one function, show one result. Heavy imports are inside the commands."""

import contextlib
import dataclasses
import io
import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperCommand

from ganserve import __version__
from ganserve.errors import ConfigError, GanserveError
from ganserve.plain import printable

app = typer.Typer(
    name="ganserve",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)

RUNS = Path("runs")
ARTIFACTS = Path("artifacts")

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")]
ArtifactArgument = Annotated[
    Path | None,
    typer.Argument(
        help="Artifact directory. Default: the newest in artifacts/.", envvar="GANSERVE_ARTIFACT", show_default=False
    ),
]


def main() -> NoReturn:
    """The `ganserve` command: errors of ours become a message, a hint and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no tick shows a question mark
    debug = "--debug" in sys.argv[1:]
    if debug:  # wherever it stands: people append it to the command that failed
        sys.argv[1:] = ["--debug", *(argument for argument in sys.argv[1:] if argument != "--debug")]
    try:
        app()
    except GanserveError as err:
        if debug:
            raise
        # It may quote a file of somebody else's.
        print("error: " + "\n".join(printable(line) for line in str(err).splitlines()), file=sys.stderr)
        if err.hint:
            print(f"hint: {err.hint}", file=sys.stderr)
    except ModuleNotFoundError as err:
        if debug or err.name not in ("torch", "onnx", "onnxscript", "safetensors", "matplotlib"):
            raise
        print(f"error: {err.name} is not installed: this is a serving-only installation", file=sys.stderr)
        print("hint: pip install 'ganserve[train]'", file=sys.stderr)
    sys.exit(1)


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the log.")] = False,
) -> None:
    """Train a GAN, export it with proof, serve it.

    **ganserve train** → runs/   **ganserve export** → artifacts/   **bentoml serve** → http://127.0.0.1:3000
    """
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it narrates its font search at debug


class _TrainCommand(TyperCommand):
    """Its help ends with the recipes that there are."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # click's types, of a click that typer brings or not
        from training.config import list_recipes

        examples, recipes = self.epilog, (f"`{name}` — {text}" for name, text in list_recipes().items())
        self.epilog = "\n\n".join([examples or "", "Recipes:", *recipes])
        super().format_help(ctx, formatter)
        self.epilog = examples


@contextlib.contextmanager
def _ctrl_c_ends_at_once() -> Iterator[None]:
    """While torch is imported: C extensions swallow a KeyboardInterrupt, or make another error of it."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # somebody, like nohup, decided otherwise
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@app.command(
    cls=_TrainCommand,
    epilog="Examples:\n\n"
    "`ganserve train` — readable digits in about a minute\n\n"
    "`ganserve train --recipe seed --set objective=bce` — the article's recipe, as its code states it\n\n"
    "`ganserve train --data fashion/ --run fashion` — any folder of IDX files\n\n"
    "`ganserve train --run quick-1 --resume` — go on where a run stopped",
)
def train(
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A recipe's name (--help lists them) or the path of a .toml. Default: quick.", show_default=False
        ),
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="The run's name in runs/, or a path. Default: RECIPE-N.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A folder of IDX files. Default: the packaged MNIST.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one value of the recipe; may be repeated."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Shorthand for --set steps=N.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Shorthand for --set seed=N.", show_default=False)] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: CUDA where it works.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with --run, or with the newest run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved run and write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a generator on MNIST or any IDX data set.

    Writes checkpoints, metrics, sample sheets and curves to runs/NAME. Ctrl-C saves a checkpoint first.
    """
    with _started_together():
        code = _train(recipe, run, data, overrides, steps, seed, device, resume, dry_run, as_json)
    if code:
        raise typer.Exit(code)


@contextlib.contextmanager
def _started_together() -> Iterator[None]:
    """Joins the others where torchrun started several processes; otherwise nothing, and no torch is imported for it."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    from training import distributed

    with distributed.joined():
        if distributed.rank():
            logging.getLogger().setLevel(logging.ERROR)  # rank 0 warns
        yield


def _train(
    recipe: str | None,
    run: str | None,
    data: Path | None,
    overrides: list[str] | None,
    steps: int | None,
    seed: int | None,
    device: str,
    resume: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """What `train` does; the exit code. Of several processes rank 0 names the run, and alone says anything."""
    from training.config import DataConfig, load_recipe, override

    changes = list(overrides or [])
    changes += [f"steps={steps}"] if steps is not None else []
    changes += [f"seed={seed}"] if seed is not None else []
    if resume and recipe is not None:
        raise ConfigError("--resume goes on with a run's own recipe", hint="leave --recipe out")
    if not resume:
        config = load_recipe(recipe or "quick", changes)  # before torch is imported: a typo answers at once

    with _ctrl_c_ends_at_once():
        from training import distributed
        from training.loop import train as run_training
        from training.plan import plan
        from training.progress import make_progress
        from training.run_dir import claimed_run, load_config, new_run, resolve_run

    speaks = distributed.rank() == 0
    if resume:
        path = distributed.first_says(lambda: resolve_run(run, RUNS))
        config = override(load_config(path), changes)
    elif run is not None:
        path = Path(run) if "/" in run else RUNS / run
    else:
        path = new_run(RUNS, config.recipe)
    folder = data if data is not None else config.data.dir
    if folder is not None:  # absolute: the run may be resumed from another directory
        config = dataclasses.replace(config, data=DataConfig(dir=str(Path(folder).resolve())))
    if config.log.evaluator is not None:
        log = dataclasses.replace(config.log, evaluator=str(Path(config.log.evaluator).resolve()))
        config = dataclasses.replace(config, log=log)
    if dry_run:
        planned = distributed.first_says(lambda: plan(config, path, device=device, resume=resume))
        if speaks:
            print(json.dumps(planned.to_dict(), indent=2) if as_json else planned)
        return 0
    named = resume or run is not None or not speaks
    with contextlib.nullcontext(path) if named else claimed_run(RUNS, config.recipe) as claimed:
        path = distributed.first_says(lambda: claimed)
        if not as_json and speaks:
            print(f"{'resuming' if resume else 'training'} {path} with recipe {config.recipe}", file=sys.stderr)
        progress = make_progress() if speaks else None
        result = run_training(config, path, device=device, resume=resume, progress=progress)
    exit_code = 0 if result.interrupted_by is None else 128 + result.interrupted_by
    if not speaks:
        return exit_code
    name = shlex.quote(run or path.name)
    if as_json:
        print(json.dumps(result.to_dict()))
    else:
        print(f"{path}: step {result.steps:,}, {result.images_seen:,} images in {result.seconds:.0f} s", end="")
        print(f" ({result.images_per_s:,.0f} images/s)" if result.images_per_s else " (nothing left to do)")
        for episode in result.health:
            when = f"{episode['first_step']:,} to {episode['last_step']:,}"
            print(f"health, steps {when}: {episode['what']}; try {episode['remedy']}")
    if exit_code:
        count = distributed.size()
        command = "ganserve" if count == 1 else f"torchrun --nproc-per-node={count} -m -- ganserve"
        print(f"interrupted; go on with: {command} train --run {name} --resume", file=sys.stderr)
        return exit_code
    if not as_json:
        print(f"look: ganserve report {name}")
        print(f"next: ganserve export {name} --onnx")
    return 0


@app.command(
    epilog="Examples:\n\n"
    "`ganserve export --onnx` — the newest run\n\n"
    "`ganserve export quick-1 --onnx --torchscript --out artifacts/digits`\n\n"
    "`ganserve export quick-1 --fp16` — for a GPU\n\n"
    "`ganserve export quick-1 --checkpoint step-00001000 --onnx`"
)
def export(
    run: Annotated[
        str | None, typer.Argument(help="A run's name or path. Default: the newest in runs/.", show_default=False)
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="ONNX, the format that serves. Always included.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Add ONNX in float16: GANSERVE_PRECISION=float16.")] = False,
    float_output: Annotated[
        bool, typer.Option("--float-output", help="Add ONNX that returns float32 images, for other programs.")
    ] = False,
    torchscript: Annotated[bool, typer.Option("--torchscript", help="Add TorchScript, for LibTorch.")] = False,
    triton: Annotated[
        bool, typer.Option("--triton", help="Add OUT-triton/, a model repository for NVIDIA Triton.")
    ] = False,
    kserve: Annotated[
        bool, typer.Option("--kserve", help="Add OUT-kserve/, InferenceServices for KServe, and --triton.")
    ] = False,
    opset: Annotated[
        int | None, typer.Option(help="Opset of the ONNX files, 17 to 26. Default: 20.", show_default=False)
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="A checkpoint's name in the run. Default: the best.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The artifact's directory. Default: artifacts/RUN.", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name when served. Default: the data set's.", show_default=False)
    ] = None,
    bentoml: Annotated[
        str | None,
        typer.Option(help="Also store it as this BentoML model: bento:NAME.", metavar="NAME", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an artifact that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Export a run's generator, and prove that what was written computes what PyTorch computes.

    The artifact appears only when every written file has been run and compared; otherwise nothing does.
    """
    from rich.console import Console

    from exporters import kserve as kserve_package
    from exporters import triton as triton_package
    from exporters.build import Step, build_artifact
    from exporters.onnx_export import OPSET
    from ganserve import store
    from ganserve.artifact import MANIFEST
    from training.run_dir import best_checkpoint, named_checkpoint, resolve_run

    console = Console(stderr=True, highlight=False)

    def show(step: Step) -> None:
        console.print("[green]✓[/]", end=" ")
        console.print(f"{step.name:<12} {step.detail}", markup=False, soft_wrap=True)

    if bentoml is not None:  # before the work
        store.check_name(bentoml)
    path = resolve_run(run, RUNS)
    source, reason = (named_checkpoint(path, checkpoint), "named") if checkpoint else best_checkpoint(path)
    run_name = path.resolve().name
    target = out or ARTIFACTS / run_name
    packages: list[Any] = [triton_package] * (triton or kserve) + [kserve_package] * kserve
    for package in packages:  # before the work: nothing is written where something must stay
        package.check(package.path_beside(target), replace=force)
    if not as_json:
        which = "named" if run else "the newest run"
        console.print(f"exporting {path} ({which}), checkpoint: {reason}", markup=False, soft_wrap=True)
        if not (onnx or fp16 or float_output or torchscript or triton or kserve):
            console.print("no format was named: --onnx is the default")
    with console.status("exporting and proving"):
        artifact = build_artifact(
            source,
            target,
            run_name=run_name,
            name=name,
            opset=OPSET if opset is None else opset,
            float16=fp16,
            float_output=float_output,
            torchscript=torchscript,
            replace=force,
            on_step=(lambda step: None) if as_json else show,
        )
    written: dict[str, list[str]] = {}
    for package in packages:
        place = package.path_beside(artifact.path)
        written[str(place)] = package.write(artifact, place, replace=force)
        if not as_json:
            show(Step("write", f"{place} ({', '.join(written[str(place)])})"))
    for package in (triton_package, kserve_package):
        place = package.path_beside(artifact.path)
        if package not in packages and place.exists():
            console.print(f"{place} stays as it is, made of an earlier artifact", markup=False, soft_wrap=True)
    tag = None
    if bentoml is not None:
        tag = store.save(
            artifact.path,
            [MANIFEST, *artifact.manifest.files],
            name=bentoml,
            digest=artifact.digest,
            labels={"model": artifact.manifest.name, "run": run_name},
        )
        if not as_json:
            show(Step("bentoml", f"{store.PREFIX}{tag}"))
    if as_json:
        print(json.dumps(_export_summary(artifact, path, source) | {"packages": written, "bentoml": tag}))
        return
    print(f"{artifact.path} {artifact.digest}")
    # Without a bentofile.yaml here BentoML has to be told which service.
    serve = "bentoml serve" if Path("bentofile.yaml").exists() else "bentoml serve ganserve.service:GanServe"
    print(f"next: {serve}" if out is None else f"next: GANSERVE_ARTIFACT={shlex.quote(str(target))} {serve}")


@app.command(
    epilog="Examples:\n\n"
    "`ganserve sample --n 100 --labels 0-9 --out sheet.png`\n\n"
    "`ganserve sample --n 1000000 --labels balanced --out digits.npz`\n\n"
    "`ganserve sample --n 500 --labels 3,7 --out threes-and-sevens/`"
)
def sample(
    artifact: ArtifactArgument = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, max=10**9, help="How many images.")] = 100,
    labels: Annotated[
        str | None,
        typer.Option(help="0-9, 3,7 or balanced, repeated in turn. Default: drawn from the seed.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Image i is the server's for (seed, index i).")] = 0,
    truncation: Annotated[float, typer.Option(min=0.0, max=2.0, help="Below 1: more typical, less varied.")] = 1.0,
    out: Annotated[Path, typer.Option(help="X.png: a sheet; X.npz: a data set; else a folder of PNGs.")] = Path(
        "samples.png"
    ),
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: CUDA where it works.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make images with an artifact, through the engine that serves it.

    An .npz holds `pixels` uint8 [N, H, W, C], `labels` int64 [N] and `seed`; it is streamed in constant memory.
    """
    import time

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ganserve import cpu, sampling
    from ganserve.artifact import find_artifact
    from ganserve.engine import CPU, Engine

    found, reason = find_artifact(artifact)
    plan = sampling.Plan(
        count=n, seed=seed, labels=sampling.parse_labels(labels, found.manifest.num_classes), truncation=truncation
    )
    # Many calls on one thread each beat few calls on many threads: digits are small.
    engine = Engine(found, device=device, threads=1)
    workers = cpu.threads_per_worker() if engine.provider == CPU else 1
    console = Console(stderr=True, highlight=False)
    if not as_json:
        console.print(f"{found.path} ({reason}), {engine.provider}, seed {seed}", markup=False, soft_wrap=True)
    started = time.monotonic()
    with Progress(
        TextColumn("sampling"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=n)
        sampling.write(engine, plan, out, workers=workers, replace=force, on_rows=lambda rows: bar.advance(task, rows))
    seconds = time.monotonic() - started
    if as_json:
        print(json.dumps({"out": str(out), "n": n, "seed": seed, "seconds": round(seconds, 3), "digest": found.digest}))
    else:
        print(f"{out}: {n:,} images in {seconds:.2f} s ({n / seconds:,.0f} images/s)")


@app.command(
    epilog="Examples:\n\n"
    "`ganserve evaluate quick-1` — a run's best checkpoint\n\n"
    "`ganserve evaluate artifacts/quick-1` — an artifact, through ONNX Runtime; so is `bento:NAME`\n\n"
    "`ganserve evaluate digits.npz` — what `ganserve sample --out digits.npz` wrote; a folder of PNGs too"
)
def evaluate(
    target: Annotated[
        str | None,
        typer.Argument(help="A run, checkpoint, artifact, .npz or folder of PNGs. Default: the newest run."),
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, max=10**6, help="How many images.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Of the latents and labels, or of the draw.")] = 0,
    data: Annotated[
        Path | None, typer.Option(help="A folder of IDX files. Default: the packaged MNIST.", show_default=False)
    ] = None,
    evaluator: Annotated[
        Path | None, typer.Option(help="Made by train-evaluator. Default: the packaged one.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how good generated images are, beside what real images of the train split score.

    Labels that are not given by the target are as frequent as in the test split.
    """
    from rich.console import Console

    from ganserve import tables
    from ganserve.judged import find_images
    from training import evaluate as evaluation
    from training.evaluation.evaluator import Evaluator

    judge = Evaluator.load(evaluator)
    console = Console(stderr=True, highlight=False)
    with console.status("reading the data set"):
        reference = evaluation.load_reference(judge, data)
    with console.status("making images"):
        images = find_images(target, judge, reference, n, seed, runs=RUNS)
    evaluation.check_images(judge, images.pixels, images.labels)
    with tables.stages(console) as report:
        found = evaluation.quality(judge, reference, images.pixels, images.labels, report=report)
        real = evaluation.real_quality(judge, reference, len(images.pixels), report=report)
    if as_json:
        about = {"target": images.source, "n": len(images.pixels), "seed": seed, "data": reference.test.name}
        print(json.dumps(about | {"quality": found, "real": real}))
        return
    print(f"{images.source}: {len(images.pixels):,} images beside the test split of {reference.test.name}")
    Console(highlight=False).print(tables.of_quality(evaluation.told(found, real, judge.facts.class_names)))


@app.command(
    epilog="Examples:\n\n`ganserve report` — of the newest run\n\n`ganserve report quick-1 --out quick.html`",
)
def report(
    run: Annotated[
        str | None, typer.Argument(help="A run's name or path. Default: the newest in runs/.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The page's file. Default: report.html in the run.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one self-contained HTML page of a run: curves, FID, samples, what went wrong, and what to try.

    Also of a run that still trains.
    """
    from training.report import write_report
    from training.run_dir import resolve_run

    path = write_report(resolve_run(run, RUNS), out)
    if as_json:
        print(json.dumps({"report": str(path), "bytes": path.stat().st_size}))
    else:
        print(f"{path} ({path.stat().st_size / 1e6:.1f} MB): {path.resolve().as_uri()}")


@app.command(
    name="train-evaluator", epilog="Example: `ganserve train-evaluator --data fashion/ --out fashion.safetensors`"
)
def train_evaluator(
    out: Annotated[Path, typer.Option(help="A .safetensors file; its .json goes beside it.")],
    data: Annotated[
        Path | None, typer.Option(help="A folder of IDX files. Default: the packaged MNIST.", show_default=False)
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the train split.")] = 5,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of weights, order and shifts.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train the classifier that `evaluate` compares images by: minutes on one core."""
    from rich.console import Console

    from ganserve import tables
    from training.evaluate import train_evaluator as make
    from training.evaluation.classifier import ClassifierRecipe

    if out.suffix != ".safetensors" or not out.parent.is_dir():
        raise ConfigError(f"--out must be a .safetensors file in a folder that exists, got {out}")
    if not force and (out.exists() or out.with_suffix(".json").exists()):
        raise ConfigError(f"{out} or its .json exists already", hint="pass --force to replace them")
    with tables.stages(Console(stderr=True, highlight=False)) as report:
        made = make(data, ClassifierRecipe(seed=seed, epochs=epochs), report=report)
    try:
        made.save(out)
    except OSError as err:
        raise ConfigError(f"cannot write {out}: {err.strerror or err}", hint="choose another --out") from err
    if as_json:
        facts = {"test_accuracy": made.facts.test_accuracy, "real": dict(made.facts.real)}
        print(json.dumps({"out": str(out), "data": made.facts.dataset} | facts))
        return
    print(f"{out}: recognises {made.facts.test_accuracy:.2%} of the test split of {made.facts.dataset}")
    named = "" if data is None else f" --data {shlex.quote(str(data))}"
    print(f"next: ganserve evaluate RUN{named} --evaluator {shlex.quote(str(out))}")


@app.command(epilog="Example: `ganserve inspect artifacts/quick-1 --json`")
def inspect(artifact: ArtifactArgument = None, as_json: JsonOption = False) -> None:
    """Show what an artifact is, where it is from, what was proven, and what an image costs on this machine.

    Every file's digest is checked. `ganserve verify` proves the rest again.
    """
    from rich.console import Console

    from ganserve import tables
    from ganserve.artifact import find_artifact
    from ganserve.inspection import inspect_graphs

    found, reason = find_artifact(artifact)
    found.verify()
    graphs = inspect_graphs(found)
    if as_json:
        about = {"graphs": [dataclasses.asdict(facts) for facts in graphs]}
        print(json.dumps(_summary(found) | about | {"manifest": found.manifest.model_dump(mode="json")}, indent=2))
        return
    print(f"{found.path} ({reason}): every file is what was exported")
    for key, value in tables.artifact_lines(found):
        print(f"{key:<10} {value}")
    console = Console(highlight=False)
    console.print(tables.of_graphs(graphs))
    for facts in graphs:
        for note in facts.notes:
            console.print(f"note: {printable(note)}", markup=False, soft_wrap=True)
    console.print(tables.of_parity(found.manifest.parity))


@app.command(
    epilog="Examples:\n\n"
    "`ganserve verify` — what would be served\n\n"
    "`ganserve verify artifacts/quick-1 --json`\n\n"
    "`ganserve verify bento:mnist` — from BentoML's model store"
)
def verify(artifact: ArtifactArgument = None, as_json: JsonOption = False) -> None:
    """Prove an artifact again on this machine: every check of export that needs no torch.

    Checks that cannot be made here are listed with the reason. Exit code 1 if one fails.
    """
    from rich.console import Console
    from rich.markup import escape

    from ganserve import tables
    from ganserve.verify import verify as verify_artifact

    console = Console(stderr=True, highlight=False)
    with console.status("verifying") as status:
        found = verify_artifact(
            None if artifact is None else str(artifact),
            on_check=lambda check: status.update(f"verifying {escape(check.file)}"),
        )
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        print(f"{found.path} ({found.reason}) {found.digest or ''}".rstrip())
        Console(highlight=False).print(tables.of_checks(found.checks))
        passed, failed, skipped = (found.count(result) for result in ("pass", "fail", "skip"))
        print(f"{passed} checks passed, {failed} failed, {skipped} could not be made here, in {found.seconds:.1f} s")
    if not found.passed:
        raise typer.Exit(1)


@app.command(
    epilog="Examples:\n\n"
    "`ganserve bench` — what would be served, in each of its ONNX formats\n\n"
    "`ganserve bench artifacts/quick-1 --against torch,torchscript`\n\n"
    "`ganserve bench --batch 1,32 --threads 2 --json`\n\n"
    "`ganserve bench --device cuda` — the GPU beside one core"
)
def bench(
    artifact: ArtifactArgument = None,
    batch: Annotated[str, typer.Option(help="Batch sizes; each is run in one piece.")] = "1,8,64,256",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Of each contender.")] = 1,
    against: Annotated[
        str | None,
        typer.Option(
            help="Also torch (the checkpoint in runs/ that it was made of), torchscript (its generator.ts, which is "
            "code), or both with a comma.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="auto: the CPU, and CUDA too where it works.")
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Time an artifact's formats beside each other: latency, images a second, memory, difference.

    They take turns, so the ratios hold on a busy machine; absolute times are its own.
    """
    from rich.console import Console

    from ganserve import bench as benchmark
    from ganserve import tables
    from ganserve.artifact import ONNX, TORCHSCRIPT, find_artifact

    found, reason = find_artifact(artifact)
    batches = benchmark.parse_batches(batch)
    on_cuda = benchmark.cuda_formats(found, device, batches)
    contenders = benchmark.formats(found) | on_cuda | _torch_contenders(found, against)
    console = Console(stderr=True, highlight=False)
    with console.status("") as status:
        rows = benchmark.measure(
            found,
            contenders,
            batches=batches,
            threads=threads,
            unweighed=on_cuda,
            on_stage=lambda stage: status.update(stage),
        )
    about = f"CPU{' and CUDA' if on_cuda else ''}, {threads} thread{'s' if threads > 1 else ''}"
    about += f", {benchmark.ROUNDS} interleaved rounds"
    if as_json:
        facts = {"threads": threads, "rounds": benchmark.ROUNDS, "rows": [dataclasses.asdict(row) for row in rows]}
        print(json.dumps(_summary(found) | facts))
        return
    print(f"{found.path} ({reason}): {about}")
    Console(highlight=False).print(tables.of_speed(rows))
    print(f"speed: beside {ONNX}; +MB: peak memory added; differs: grey levels from {ONNX}, in how many pixels")
    if TORCHSCRIPT in found.manifest.files and TORCHSCRIPT not in contenders:
        print(f"left out: {TORCHSCRIPT}, which needs torch: ganserve bench --against torchscript", file=sys.stderr)


def _torch_contenders(artifact: Any, against: str | None) -> dict[str, Any]:
    """What `bench --against` names, by the name that its rows have."""
    names = [] if against is None else [name.strip() for name in against.split(",")]
    unknown = sorted(set(names) - {"torch", "torchscript"})
    if unknown:
        raise ConfigError(
            f"--against takes torch and torchscript, got {', '.join(map(repr, unknown))}",
            hint="--against torch,torchscript",
        )
    if not names:
        return {}
    from exporters import rivals
    from ganserve.artifact import TORCHSCRIPT

    found: dict[str, Any] = {}
    if "torch" in names:
        found["PyTorch, eager"] = rivals.Eager(rivals.find_checkpoint(artifact, RUNS).resolve())
    if "torchscript" in names:
        artifact.read(TORCHSCRIPT)  # an artifact that has none is an error before anything is timed
        found[TORCHSCRIPT] = rivals.open_torchscript
    return found


@app.command(epilog="Example: `ganserve doctor --json`")
def doctor(as_json: JsonOption = False) -> None:
    """Find out what works on this machine: versions, providers, threads, settings, and what would be served.

    Exit code 1 if something is broken.
    """
    from rich.console import Console

    from ganserve.doctor import examine

    report = examine()
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        console = Console(highlight=False)
        marks = {"ok": "[green]✓[/]", "warn": "[yellow]![/]", "fail": "[red]✗[/]"}
        for check in report.checks:
            console.print(f"{marks[check.status]} {check.name:<12} ", end="")
            console.print(check.detail, markup=False, soft_wrap=True)
            if check.hint:
                console.print(f"  {'':<12} hint: {check.hint}", markup=False, soft_wrap=True)
        console.print()
        for name, value, given in report.settings:
            console.print(f"  {name}={value}{'' if given else '  (default)'}", markup=False, soft_wrap=True)
    if not report.healthy:
        raise typer.Exit(1)


def _summary(artifact: Any) -> dict[str, Any]:
    return {"path": str(artifact.path), "name": artifact.manifest.name, "digest": artifact.digest}


def _export_summary(artifact: Any, run: Path, checkpoint: Path) -> dict[str, Any]:
    """What `export --json` prints of an artifact: each format with its size and its worst difference from PyTorch."""
    manifest = artifact.manifest
    formats = [
        {
            "file": file,
            "bytes": manifest.files[file].bytes,
            "max_abs_diff": max(row.max_abs_diff for row in rows),
            "differing_share": max(row.differing_share for row in rows),
            "batches": [row.batch_rows for row in rows],
        }
        for file in dict.fromkeys(row.format for row in manifest.parity)
        if (rows := [row for row in manifest.parity if row.format == file])
    ]
    graphs = {file: spec.model_dump(mode="json") for file, spec in (manifest.graphs or {}).items()}
    return _summary(artifact) | {
        "run": str(run),
        "checkpoint": str(checkpoint),
        "formats": formats,
        "graphs": graphs,
    }
