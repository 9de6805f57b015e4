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

from ganserve import __version__, cpu
from ganserve.artifact import find_artifact
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
    checks = [*_versions()]
    try:
        settings = Settings.from_env()
    except ConfigError as err:
        # What depends on the settings is left out: with other settings it would be about another server.
        checks += [*_providers("auto"), Check(name="settings", status="fail", detail=str(err), hint=err.hint), _port()]
        values = {name: os.environ.get(f"{PREFIX}{name.upper()}", "") for name in Settings.model_fields}
    else:
        ok = Check(name="settings", status="ok", detail=f"{PREFIX}* variables are valid")
        checks += [*_providers(settings.device), ok, _threads(settings), _artifact(settings), _port()]
        values = {name: _shown(getattr(settings, name)) for name in Settings.model_fields}
    listed = tuple(
        (
            f"{PREFIX}{name.upper()}",
            "********" if name == "token" and value else value,
            f"{PREFIX}{name.upper()}" in os.environ,
        )
        for name, value in values.items()
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


def _providers(device: str) -> Iterator[Check]:
    """A provider that the wheel was built with may not work here: only a session tells."""
    try:
        import onnxruntime  # here, because a broken installation of it is what a doctor is called for

        from ganserve.engine import CUDA, cuda_obstacle, open_session
    except Exception as err:  # a damaged extension module fails in many ways
        hint = "pip install --force-reinstall onnxruntime-gpu"
        yield Check(name="onnxruntime", status="fail", detail=f"cannot be imported: {err}", hint=hint)
        return
    working: list[str] = []
    obstacles: dict[str, str] = {}
    for provider in onnxruntime.get_available_providers():
        obstacle = cuda_obstacle() if provider in (CUDA, "TensorrtExecutionProvider") else None
        if obstacle is None:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            try:
                session = open_session(_IDENTITY, options, provider)
                if session.get_providers()[0] != provider:
                    obstacle = "the session fell back to another provider: its libraries do not load"
            except Exception as err:  # ONNX Runtime raises its own unrelated classes
                obstacle = str(err).splitlines()[0]
        if obstacle is None:
            working.append(provider)
        else:
            obstacles[provider] = obstacle
    yield Check(
        name="providers",
        status="ok" if working else "fail",
        detail=f"sessions work with {', '.join(working) or 'nothing'}",
        hint=None if working else "pip install --force-reinstall onnxruntime-gpu",
    )
    for provider, obstacle in obstacles.items():
        asked_for = provider == CUDA and device == "cuda"
        yield Check(
            name=provider.removesuffix("ExecutionProvider").lower(),
            status="fail" if asked_for else "ok",
            detail=f"not usable here: {obstacle}",
            hint=f"install the NVIDIA driver and ganserve[cuda], or set {PREFIX}DEVICE=auto" if asked_for else None,
        )


def _threads(settings: Settings) -> Check:
    quota = cpu.quota()
    threads = settings.threads or cpu.threads_per_worker(settings.workers)
    total = threads * settings.workers
    detail = (
        f"workers x threads = {settings.workers} x {threads} on a quota of {quota:g} of {os.cpu_count()} cores "
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
    text = os.environ.get("BENTOML_PORT", "3000")
    port = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else -1
    if not 0 <= port < 65536:
        return Check(name="port", status="fail", detail=f"BENTOML_PORT must be a port number, got {text[:64]!r}")
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


def _shown(value: object) -> str:
    return "" if value is None else str(value)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
