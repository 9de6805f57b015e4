"""One HTML page that shows how a run went: it has everything in it, and asks nothing of any network."""

import base64
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import jinja2

from ganserve import atomic
from ganserve.errors import CheckpointError, RunError
from training import pictures, run_dir
from training.checkpoint import checkpoint_step
from training.config import TrainingConfig, to_dict
from training.health import episodes

REPORT_FILE: Final = "report.html"
_MOST_SHEETS: Final = 40  # about 60 KB each
_JUDGED: Final = ("fid", "label_accuracy", "diversity", "class_distance")


def write_report(run: Path, out: Path | None = None) -> Path:
    """Writes the page; where a run still trains, of what there is so far.

    Args:
        run: the run's directory.
        out: the page's file; None is `report.html` in the run.

    Raises:
        RunError: it is no run, has logged nothing yet, or the page cannot be written.
        ConfigError: the run is of another version of ganserve.
    """
    config = run_dir.load_config(run)
    metrics = run_dir.read_metrics(run)
    if not metrics:
        raise RunError(f"run {run} has logged nothing yet", hint=f"it logs every {config.log.every_steps} steps")
    target = out or run / REPORT_FILE
    page = _template().render(**_facts(run, config, metrics))
    with run_dir.writing(target):
        atomic.write_file(target, page.encode())
    return target


def _facts(run: Path, config: TrainingConfig, metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    last = metrics[-1]
    best: tuple[Path | None, str]
    try:
        best = run_dir.best_checkpoint(run)
    except (RunError, CheckpointError) as err:
        best = None, str(err)
    kept = {checkpoint_step(path.name) for path in run_dir.checkpoints(run)}
    name = shlex.quote(run_dir.printable(run.resolve().name))
    going_on = [f"ganserve train --run {name} --resume"] if last["step"] < config.steps else []
    return {
        "name": run_dir.printable(run.resolve().name),
        "config": config,
        "last": last,
        "images_per_s": last["images_seen"] / last["seconds"] if last["seconds"] else 0.0,
        "best_step": checkpoint_step(best[0].name) if best[0] else None,
        "best": best[1],
        "episodes": episodes(metrics),
        "curves": _picture(pictures.curves_png(metrics, title="")),
        "gradients": _picture(pictures.gradients_png(metrics)),
        "class_shares": _picture(pictures.class_shares_png(metrics)),
        "judged": [point for point in metrics if any(name in point for name in _JUDGED)],
        "judged_names": [name for name in _JUDGED if any(name in point for point in metrics)],
        "kept": kept,
        "sheets": _sheets(run),
        "settings": _settings(to_dict(config)),
        "commands": [*going_on, f"ganserve export {name} --onnx", f"ganserve evaluate {name}", "bentoml serve"],
    }


def _sheets(run: Path) -> list[tuple[int, str]]:
    """Step and picture of the sample sheets, evenly over the run if there are many, first and last among them."""
    found = run_dir.sheets(run)
    if len(found) > _MOST_SHEETS:
        found = [found[round(i * (len(found) - 1) / (_MOST_SHEETS - 1))] for i in range(_MOST_SHEETS)]
    return [(step, _picture(path.read_bytes()) or "") for step, path in found]


def _settings(mapping: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in mapping.items():
        rows += _settings(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return rows


def _picture(png: bytes | None) -> str | None:
    return None if png is None else "data:image/png;base64," + base64.b64encode(png).decode()


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html.j2")
