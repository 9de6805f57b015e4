"""Artifacts go into BentoML's model store and come back whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ganserve import store
from ganserve.artifact import MANIFEST, PRETRAINED, open_artifact
from ganserve.errors import ArtifactError

_ROUND_TRIP = """
import json, sys
from pathlib import Path
from ganserve import store
from ganserve.artifact import MANIFEST, PRETRAINED, find_artifact, open_artifact
from ganserve.errors import ArtifactError

def refusal(reference):
    try:
        find_artifact(reference)
    except ArtifactError as err:
        return [str(err), err.hint]

empty = refusal("bento:digits")
artifact = open_artifact(PRETRAINED)
files = [MANIFEST, *artifact.manifest.files]
tags = [store.save(PRETRAINED, files, name="digits", digest=artifact.digest, labels={"run": "x"}) for _ in range(2)]
found = []
for reference in ("bento:digits", f"bento:{tags[0]}", Path("bento:digits")):
    again, reason = find_artifact(reference)
    again.verify()
    found.append([again.digest, reason, str(again.path)])
import bentoml
print(json.dumps({"empty": empty, "tags": tags, "found": found, "unknown": refusal("bento:other"),
                  "labels": bentoml.models.get("digits").info.labels, "count": len(bentoml.models.list())}))
"""


@pytest.mark.skipif(not (PRETRAINED / MANIFEST).is_file(), reason="no pretrained artifact")
def test_an_artifact_goes_into_the_store_and_comes_back(tmp_path: Path) -> None:
    """BentoML reads BENTOML_HOME at import, hence the process."""
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "true"}
    done = subprocess.run(
        [sys.executable, "-c", _ROUND_TRIP], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    digest = open_artifact(PRETRAINED).digest
    tag = f"digits:{digest.removeprefix('sha256:')[:16]}"
    assert shown["empty"][1] == "the store is empty: ganserve export --onnx --bentoml NAME"
    assert shown["tags"] == [tag, tag]
    assert shown["count"] == 1
    assert shown["labels"] == {"run": "x"}
    for found_digest, reason, path in shown["found"]:
        assert found_digest == digest
        assert reason == "named, in BentoML's model store"
        assert Path(path).is_relative_to(tmp_path)
    assert shown["unknown"] == ["BentoML's model store has no 'other'", f"the store has bento:{tag}"]


@pytest.mark.parametrize("name", ["Upper", "two words", "a:b", "", "../x"])
def test_a_name_that_bentoml_does_not_take_is_refused(name: str) -> None:
    """Before any work is done."""
    with pytest.raises(ArtifactError, match="cannot name a BentoML model"):
        store.check_name(name)
