"""What this machine can do for ganserve, found out by trying."""

import base64
import importlib.metadata
import os
import platform
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import onnxruntime

from ganserve import __version__, cpu
from ganserve.artifact import find_artifact
from ganserve.engine import CUDA, cuda_obstacle
from ganserve.errors import ArtifactError, ConfigError, NoArtifactError
from ganserve.settings import PREFIX, Settings

Status = Literal["ok", "warn", "fail"]

_PACKAGES = ("numpy", "onnxruntime-gpu", "onnxruntime", "bentoml", "uvicorn", "uvloop", "httptools", "torch", "onnx")
# ONNX Runtime's wheels hold the same module: two of them overwrite each other's files.
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
# `y = Identity(x)`, float32 [1], opset 13: enough to make a session anywhere.
_IDENTITY = base64.b64decode(
    "CAcSADo3ChAKAXgSAXkiCElkZW50aXR5EgFnWg8KAXgSCgoICAESBAoCCAFiDwoBeRIKCggIARIECgIIAUIECgAQDQ=="
)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding: `fail` means that ganserve cannot do its job, `warn` that it will not do it as it might."""

    name: str
    status: Status
    detail: str
    hint: str | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that was found; `healthy` decides the exit code."""

    checks: tuple[Check, ...]
    settings: tuple[tuple[str, str, bool], ...]

    @property
    def healthy(self) -> bool:
        """Whether no check failed."""
        return all(check.status != "fail" for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "healthy": self.healthy,
            "checks": [asdict(check) for check in self.checks],
            "settings": {name: {"value": value, "from_environment": given} for name, value, given in self.settings},
        }


def examine() -> Report:
    """Looks at versions, providers, threads, settings and the artifact."""
    checks = [*_versions(), *_providers()]
    try:
        settings = Settings.from_env()
        checks.append(Check(name="settings", status="ok", detail=f"{PREFIX}* variables are valid"))
    except ConfigError as err:
        checks.append(Check(name="settings", status="fail", detail=str(err), hint=err.hint))
        settings = Settings()
    checks += [_threads(settings), _artifact(settings), _port()]
    listed = tuple(
        (f"{PREFIX}{name.upper()}", str(getattr(settings, name)), f"{PREFIX}{name.upper()}" in os.environ)
        for name in Settings.model_fields
    )
    return Report(checks=tuple(checks), settings=listed)


def _versions() -> Iterator[Check]:
    python = platform.python_version()
    yield Check(name="python", status="ok", detail=f"{python}, ganserve {__version__}, {platform.platform()}")
    installed = {name: version for name in _PACKAGES if (version := _version(name)) is not None}
    yield Check(name="packages", status="ok", detail=", ".join(f"{name} {v}" for name, v in installed.items()))
    runtimes = [name for name in _RUNTIMES if _version(name) is not None]
    if len(runtimes) > 1:
        yield Check(
            name="onnxruntime",
            status="fail",
            detail=f"{' and '.join(runtimes)} are both installed: they overwrite each other's files",
            hint=f"pip uninstall -y {' '.join(runtimes)} && pip install --force-reinstall ganserve",
        )
    missing = [name for name in ("torch", "onnx", "onnxscript", "safetensors") if _version(name) is None]
    if missing:
        yield Check(
            name="training",
            status="warn",
            detail=f"{', '.join(missing)} not installed: this machine serves, it does not train or export",
            hint="pip install 'ganserve[train]'",
        )


def _providers() -> Iterator[Check]:
    """A provider that the wheel was built with may not work here: only a session tells."""
    working: list[str] = []
    for provider in onnxruntime.get_available_providers():
        obstacle = cuda_obstacle() if provider in (CUDA, "TensorrtExecutionProvider") else None
        if obstacle is None:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            try:
                session = onnxruntime.InferenceSession(_IDENTITY, options, providers=[provider])
                if session.get_providers()[0] != provider:
                    obstacle = "the session fell back to another provider: its libraries do not load"
            except Exception as err:  # ONNX Runtime raises its own unrelated classes
                obstacle = str(err).splitlines()[0]
        if obstacle is None:
            working.append(provider)
        else:
            yield Check(name=provider, status="ok", detail=f"built in, not usable here: {obstacle}")
    yield Check(
        name="providers",
        status="ok" if working else "fail",
        detail=f"sessions work with {', '.join(working) or 'nothing'}",
        hint=None if working else "pip install --force-reinstall onnxruntime-gpu",
    )


def _threads(settings: Settings) -> Check:
    quota = cpu.quota()
    threads = settings.threads or cpu.threads_per_worker(settings.workers)
    total = threads * settings.workers
    detail = (
        f"{settings.workers} workers x {threads} threads on a quota of {quota:g} of {os.cpu_count()} cores "
        f"(OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')})"
    )
    if total > max(1.0, quota):
        return Check(
            name="threads",
            status="warn",
            detail=f"{detail}: more threads than cores, they will wait for each other",
            hint=f"lower {PREFIX}WORKERS or {PREFIX}THREADS",
        )
    return Check(name="threads", status="ok", detail=detail)


def _artifact(settings: Settings) -> Check:
    try:
        artifact, reason = find_artifact(settings.artifact)
        artifact.verify()
    except NoArtifactError as err:  # where everybody starts
        return Check(name="artifact", status="warn", detail=str(err), hint=err.hint)
    except ArtifactError as err:
        return Check(name="artifact", status="fail", detail=str(err), hint=err.hint)
    detail = f"{artifact.path} ({reason}), {artifact.digest}, all digests match"
    return Check(name="artifact", status="ok", detail=detail)


def _port() -> Check:
    port = int(os.environ.get("BENTOML_PORT", "3000"))
    with socket.socket() as probe:
        if sys.platform != "win32":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT is no obstacle
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as err:
            return Check(
                name="port",
                status="warn",
                detail=f"127.0.0.1:{port} is taken: {err.strerror}",
                hint="bentoml serve --port 3001",
            )
    return Check(name="port", status="ok", detail=f"127.0.0.1:{port} is free")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
