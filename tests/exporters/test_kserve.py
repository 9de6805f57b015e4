import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # bentoml brings it

from exporters import kserve, triton
from ganserve.artifact import Artifact
from ganserve.errors import ExportError
from ganserve.settings import Settings
from tests.artifacts import make_artifact


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """A small artifact, with a name that Kubernetes does not take."""
    return make_artifact(tmp_path / "My_run", name="Digits_v1.2")


def documents(artifact: Artifact) -> dict[str, dict[str, Any]]:
    """Both manifests, parsed."""
    place = kserve.path_beside(artifact.path)
    return {file: yaml.safe_load((place / file).read_text()) for file in kserve.write(artifact, place)}


def test_both_are_inference_services(artifact: Artifact) -> None:
    """Each manifest is an InferenceService with a name that Kubernetes takes, and tells which artifact it serves."""
    found = documents(artifact)
    assert set(found) == {"ganserve.yaml", "triton.yaml"}
    for document in found.values():
        assert (document["apiVersion"], document["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
        assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", document["metadata"]["name"])  # RFC 1035
        assert document["metadata"]["annotations"]["ganserve/artifact"] == artifact.digest
    assert len({document["metadata"]["name"] for document in found.values()}) == 2


def test_triton_serves_the_repository(artifact: Artifact) -> None:
    """The Triton service speaks V2 and loads the directory that `--triton` writes."""
    model = documents(artifact)["triton.yaml"]["spec"]["predictor"]["model"]
    assert model["modelFormat"] == {"name": "triton"}
    assert model["protocolVersion"] == "v2"
    assert model["storageUri"] == f"pvc://ganserve/{triton.path_beside(artifact.path).name}"
    assert {"requests", "limits"} <= model["resources"].keys()


def test_our_own_container_serves_the_artifact(artifact: Artifact) -> None:
    """The other one runs our image on the artifact that KServe fetches, with settings that the server has."""
    (container,) = documents(artifact)["ganserve.yaml"]["spec"]["predictor"]["containers"]
    assert container["name"] == "kserve-container"
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment["STORAGE_URI"] == "pvc://ganserve/My_run"
    assert Settings.from_env(environment).artifact == "/mnt/models"
    (port,) = container["ports"]
    assert port["containerPort"] == container["readinessProbe"]["httpGet"]["port"] == 3000
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"


@pytest.mark.parametrize("name", ["7", "a" * 64, "true", "A-"])
def test_any_model_name_makes_a_service_name(name: str, tmp_path: Path) -> None:
    """Names that are numbers, long, YAML's own words or end in a hyphen are still names of services, and strings."""
    for document in documents(make_artifact(tmp_path / "made", name=name)).values():
        found = document["metadata"]["name"]
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", found)
        assert document["metadata"]["annotations"]["ganserve/model"] == name


def test_only_manifests_are_replaced(artifact: Artifact) -> None:
    """Manifests are replaced when that was asked for; a directory with anything else in it is not."""
    place = kserve.path_beside(artifact.path)
    kserve.write(artifact, place)
    with pytest.raises(ExportError, match="exists already"):
        kserve.write(artifact, place)
    kserve.write(artifact, place, replace=True)
    (place / "secret.yaml").write_text("precious")
    with pytest.raises(ExportError, match=r"secret\.yaml was not written by an export"):
        kserve.write(artifact, place, replace=True)
