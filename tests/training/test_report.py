import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ganserve.cli import app
from ganserve.errors import RunError
from training import run_dir
from training.config import TrainingConfig
from training.loop import train
from training.report import write_report

MakeConfig = Callable[..., TrainingConfig]


class Page(HTMLParser):
    """The tags of a page that name something outside of it, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects what is loaded."""
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Tags are closed in the order they were opened, but for those of table cells."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Collects the text."""
        self.text += data


def test_a_report_has_everything_in_it(make_config: MakeConfig, tmp_path: Path) -> None:
    """Numbers, symptoms, samples of every sheet, curves, checkpoints, settings, commands; and nothing from outside."""
    run = train(make_config("steps=6"), tmp_path / "run").run
    shutil.copy(run / "sheets/step-00000002.png", run / "sheets/step-00000002 (copy).png")  # a user's own
    lines = run_dir.read_metrics(run)
    lines[-1]["health"] = [{"name": "collapse", "what": "all <b>alike</b>", "remedy": "more & other data"}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = write_report(run)
    assert path == run / "report.html"
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    for text in ("6", "diversity", "collapse", "all <b>alike</b>.", "more & other data", "penalty.every_steps"):
        assert text in page.text
    assert "--resume" not in page.text  # it is finished
    assert "ganserve export run --onnx" in page.text
    sheets = json.loads(re.search('id="sheets">(.*?)</script>', html, re.DOTALL)[1])  # type: ignore[index]
    assert [step for step, _ in sheets] == [2, 4, 6]


def test_a_run_that_still_trains_has_a_report(make_config: MakeConfig, tmp_path: Path) -> None:
    """Without checkpoints or sheets too, as long as there is a line; and an older run without gradients."""
    run = train(make_config(), tmp_path / "run").run
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "sheets")
    keep = (
        "step",
        "images_seen",
        "seconds",
        "images_per_s",
        "loss_discriminator",
        "loss_generator",
        "d_real",
        "d_fake",
    )
    line = {key: value for key, value in run_dir.read_metrics(run)[0].items() if key in keep}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    out = tmp_path / "page.html"
    assert write_report(run, out) == out
    text = Page(out.read_text()).text
    assert "ganserve train --run run --resume" in text
    assert "has no checkpoint yet" in text
    assert "Nothing that ganserve looks for was wrong" in text
    (run / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match="has logged nothing yet"):
        write_report(run, out)
    assert "Nothing" in out.read_text()  # what was there stays
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(RunError, match="cannot be written"):
        write_report(run, tmp_path / "no" / "folder" / "page.html")


def test_any_name_is_shown_as_it_is(make_config: MakeConfig, tmp_path: Path) -> None:
    """A run called like a tag adds none, and its commands can be pasted into a shell."""
    run = train(make_config(), tmp_path / "<script>x").run
    page = Page(write_report(run).read_text())
    assert "ganserve export '<script>x' --onnx" in page.text
    assert page.open == []


def test_the_command_says_where_it_is(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest run's, as text with an address that a browser opens, and as JSON."""
    monkeypatch.chdir(tmp_path)
    train(make_config(), tmp_path / "runs" / "quick-1")
    told = CliRunner().invoke(app, ["report"]).stdout
    assert told.strip().endswith((tmp_path / "runs/quick-1/report.html").as_uri())
    told = CliRunner().invoke(app, ["report", "quick-1", "--out", "x.html", "--json"]).stdout
    assert json.loads(told) == {"report": "x.html", "bytes": Path("x.html").stat().st_size}
