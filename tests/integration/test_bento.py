"""`bentoml build` and what it built, served where there is neither a network nor torch.

BENTO_VENV names an environment that has `pip install .` alone and does both; without it this one does, which is told
that it has no torch.
"""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ganserve.artifact import open_artifact
from ganserve.engine import Engine
from ganserve.latents import draw
from tests.artifacts import make_artifact

ROOT = Path(__file__).parents[2]
BENTOML = Path(os.environ.get("BENTO_VENV", sys.prefix)) / "bin" / "bentoml"

BARRED = ("torch", "onnx", "onnxscript", "training", "exporters")
NO_TRAINING_STACK = f"""
import sys


class Barred:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BARRED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Barred())
"""


def isolated() -> bool:
    """Whether this system lets us have a network of our own."""
    try:
        return subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not isolated(), reason="needs unshare(1) and user namespaces, to cut the network")
def test_a_bento_carries_its_artifact_and_serves_alone(tmp_path: Path) -> None:
    """Built from a project, served from elsewhere: no network, no torch, and the pixels of the artifact in it."""
    project = tmp_path / "project"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "ganserve", project / "ganserve", ignore=ignored)
    for name in ("bentofile.yaml", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    artifact = make_artifact(project / "artifacts" / "chosen", name="chosen")
    bars = tmp_path / "bars"
    bars.mkdir()
    (bars / "sitecustomize.py").write_text(NO_TRAINING_STACK)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GANSERVE_", "BENTOML_"))}
    environment = {
        **inherited,
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(tmp_path / "home"),
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "prometheus"),
        "PYTHONPATH": str(bars),
    }
    built = subprocess.run(
        [BENTOML, "build", "--output", "tag"], cwd=project, env=environment, capture_output=True, text=True, timeout=120
    )
    assert built.returncode == 0, built.stderr
    (source,) = (tmp_path / "home" / "bentos" / "ganserve").glob("*/src")
    for name in ("manifest.json", *artifact.manifest.files):
        assert (source / "artifacts" / "chosen" / name).read_bytes() == (artifact.path / name).read_bytes()
    assert {path.name for path in source.iterdir()}.isdisjoint({"training", "exporters", "tests", "runs"})
    shutil.rmtree(project)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    served = subprocess.run(
        ["unshare", "-rn", sys.executable, ROOT / "tests" / "integration" / "offline.py", BENTOML],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert served.returncode == 0, served.stderr
    found = json.loads(served.stdout)
    assert found["interfaces"] == ["lo"], found["log"]
    assert found["libraries"] == []
    assert found["model"]["digest"] == artifact.digest
    assert found["exit"] == 0
    rows, _ = draw(0, 1, artifact.manifest.latent.dim, artifact.manifest.num_classes)
    engine = Engine(open_artifact(source / "artifacts" / "chosen"), device="cpu", max_batch_rows=1)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["image"]))))
    np.testing.assert_array_equal(image, engine.run(rows, np.array([7]))[0, :, :, 0])
