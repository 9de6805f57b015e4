"""KServe manifests of an artifact: two InferenceServices, one on Triton and one on ganserve's own server."""

import json
import re
from pathlib import Path

from exporters.package import check_package, write_package
from ganserve.artifact import Artifact

TRITON = "triton.yaml"
GANSERVE = "ganserve.yaml"
IMAGE = "ganserve:latest"
CLAIM = "ganserve"
PORT = 3000


def path_beside(artifact: Path) -> Path:
    """Where the manifests of an artifact go: beside it, since an artifact holds nothing but itself."""
    return artifact.with_name(f"{artifact.name}-kserve")


def check(path: Path, *, replace: bool) -> None:
    """Whether the manifests may be written to `path`.

    Raises:
        ExportError: something is there that must stay.
    """
    check_package(path, holds=lambda file: file in (TRITON, GANSERVE), replace=replace)


def write(artifact: Artifact, path: Path, *, replace: bool = False) -> list[str]:
    """Writes both manifests.

    Args:
        artifact: what they serve.
        path: their directory.
        replace: whether manifests that are there give way.

    Returns:
        The files, relative to `path`.

    Raises:
        ExportError: something is at `path` already, or the disk said no.
    """
    check(path, replace=replace)
    files = {TRITON: triton_yaml(artifact).encode(), GANSERVE: ganserve_yaml(artifact).encode()}
    write_package(path, files, replace=replace)
    return sorted(files)


def triton_yaml(artifact: Artifact) -> str:
    """An InferenceService that serves the model repository of `--triton` on KServe's Triton runtime."""
    return f"""{_head(artifact, "triton")}
# The repository's model runs in Triton's python backend: the runtime's image needs onnxruntime in its Python.
spec:
  predictor:
    model:
      modelFormat:
        name: triton
      protocolVersion: v2
      runtime: kserve-tritonserver
      # The volume, and in it the model repository that `ganserve export --triton` wrote.
      storageUri: {_quote(f"pvc://{CLAIM}/{artifact.path.name}-triton")}
      resources:
        requests: {{cpu: "1", memory: 1Gi}}
        limits: {{cpu: "1", memory: 2Gi}}
"""


def ganserve_yaml(artifact: Artifact) -> str:
    """An InferenceService that serves the artifact on our own image, with the same V2 protocol."""
    return f"""{_head(artifact, "ganserve")}
spec:
  predictor:
    containers:
      - name: kserve-container
        # Made by: bentoml build && bentoml containerize ganserve:latest
        image: {_quote(IMAGE)}
        env:
          # KServe's storage initializer puts the artifact at /mnt/models.
          - name: STORAGE_URI
            value: {_quote(f"pvc://{CLAIM}/{artifact.path.name}")}
          - name: GANSERVE_ARTIFACT
            value: /mnt/models
        ports:
          - name: http1
            containerPort: {PORT}
            protocol: TCP
        # Ready when the golden images came out, and unready first of all when it is to stop.
        readinessProbe:
          httpGet: {{path: /v2/health/ready, port: {PORT}}}
          periodSeconds: 2
        livenessProbe:
          httpGet: {{path: /v2/health/live, port: {PORT}}}
          periodSeconds: 10
        resources:
          requests: {{cpu: "1", memory: 512Mi}}
          limits: {{cpu: "1", memory: 1Gi}}
"""


def _head(artifact: Artifact, suffix: str) -> str:
    manifest = artifact.manifest
    # RFC 1035: a letter first; and short enough for the host names that KServe makes of it.
    name = re.sub(r"[^a-z0-9]+", "-", f"{manifest.name.lower()[:32]}-{suffix}")
    name = name if name[0].isalpha() else f"model-{name}"
    return f"""# Written by ganserve from the artifact {artifact.digest}.
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {_quote(name)}
  annotations:
    ganserve/model: {_quote(manifest.name)}
    ganserve/artifact: {_quote(artifact.digest)}
"""[:-1]


def _quote(text: str) -> str:
    """A YAML scalar that means this very text: JSON's strings are YAML's."""
    return json.dumps(text, ensure_ascii=False)
