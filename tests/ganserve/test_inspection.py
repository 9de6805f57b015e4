import json
from pathlib import Path

import pytest

from ganserve.artifact import MANIFEST, ONNX, PRETRAINED, open_artifact
from ganserve.errors import ArtifactError
from ganserve.inspection import inspect_graphs
from tests.artifacts import make_artifact
from tests.ganserve.test_cli import run


def test_a_graph_is_counted_and_timed() -> None:
    """Nodes by operator, multiply-adds, bytes and microseconds an image of the packaged artifact's one graph."""
    (facts,) = inspect_graphs(open_artifact(PRETRAINED))
    assert facts.file == ONNX
    assert facts.bytes == (PRETRAINED / ONNX).stat().st_size
    assert 0 < facts.bytes - facts.weight_bytes < 10_000
    assert sum(facts.operators.values()) == 24
    assert facts.operators["ConvTranspose"] == 2
    assert facts.multiply_adds == 2_885_120
    assert facts.us_per_image is not None
    assert facts.us_per_image.keys() == {1, 16, 64}
    assert all(time > 0 for time in facts.us_per_image.values())
    assert facts.notes == ()


def test_what_does_not_run_is_not_timed(tmp_path: Path) -> None:
    """An artifact whose golden images do not come out is still shown, and says why it has no times."""
    (facts,) = inspect_graphs(make_artifact(tmp_path / "a", spoil_golden=True))
    assert facts.us_per_image is None
    assert facts.multiply_adds == 16 * 784
    (note,) = facts.notes
    assert note.startswith(f"{ONNX} was not timed: golden images differ")


def test_what_is_not_a_graph_is_an_error(tmp_path: Path) -> None:
    """A damaged file is not inspected."""
    made = make_artifact(tmp_path / "a")
    with (made.path / ONNX).open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match="at most"):
        inspect_graphs(made)


def test_texts_of_an_artifact_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    """Markup, and what a terminal takes for a command, are characters like others to `ganserve inspect`."""
    made = make_artifact(tmp_path / "a").path
    document = json.loads((made / MANIFEST).read_bytes())
    document["source"]["run"] = "\x1b[2J[/bold]\nname       other"
    document["parity"] = [{"format": "[/bold]\x07", "batch_rows": 1, "max_abs_diff": 0, "differing_share": 0.0}]
    (made / MANIFEST).write_text(json.dumps(document))
    done = run("inspect", str(made), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "\x07" not in done.stdout
    assert "run \\x1b[2J[/bold]\\nname       other" in done.stdout
    assert "[/bold]\\x07" in done.stdout
    document["\x1b[2J"] = 1
    (made / MANIFEST).write_text(json.dumps(document))
    refused = run("inspect", str(made), cwd=tmp_path)
    assert refused.returncode == 1
    assert "\x1b" not in refused.stderr
    assert "\\x1b[2J: Extra inputs are not permitted" in refused.stderr
