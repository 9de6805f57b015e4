from pathlib import Path

import pytest

from ganserve import doctor
from tests.artifacts import make_artifact


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def find(report: doctor.Report, name: str) -> doctor.Check:
    """The check of that name."""
    return next(check for check in report.checks if check.name == name)


def test_no_artifact_is_a_warning() -> None:
    """Before anything was exported the doctor warns, says what to type, and is not ill."""
    report = doctor.examine()
    check = find(report, "artifact")
    assert check.status == "warn"
    assert check.hint is not None
    assert "ganserve train" in check.hint
    assert report.healthy


def test_artifact_is_the_one_that_would_be_served(elsewhere: Path) -> None:
    """The doctor names the artifact and digest that `bentoml serve` would choose."""
    artifact = make_artifact(elsewhere / "artifacts" / "digits")
    check = find(doctor.examine(), "artifact")
    assert check.status == "ok"
    assert "artifacts/digits" in check.detail
    assert artifact.digest in check.detail


def test_damaged_artifact_is_a_failure(elsewhere: Path) -> None:
    """A changed byte in the artifact makes the doctor fail, and names the file."""
    make_artifact(elsewhere / "artifacts" / "digits")
    graph = elsewhere / "artifacts" / "digits" / "generator.onnx"
    content = bytearray(graph.read_bytes())
    content[-1] ^= 1
    graph.write_bytes(content)
    report = doctor.examine()
    assert not report.healthy
    assert "generator.onnx" in find(report, "artifact").detail


def test_provider_has_made_a_session() -> None:
    """The CPU provider is reported as working, because a session was made with it."""
    assert "CPUExecutionProvider" in find(doctor.examine(), "providers").detail


def test_both_wheels_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both wheels of ONNX Runtime side by side are a failure with the command that mends it."""
    installed = {"onnxruntime": "1.31.0", "onnxruntime-gpu": "1.31.1"}
    monkeypatch.setattr(doctor, "_version", installed.get)
    check = find(doctor.examine(), "onnxruntime")
    assert check.status == "fail"
    assert check.hint is not None
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in check.hint


def test_wrong_setting_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt GANSERVE_ variable is a failure that names the right one."""
    monkeypatch.setenv("GANSERVE_DEVISE", "cpu")
    report = doctor.examine()
    assert not report.healthy
    check = find(report, "settings")
    assert "GANSERVE_DEVISE" in check.detail
    assert check.hint is not None
    assert "GANSERVE_DEVICE" in check.hint


def test_more_threads_than_cores_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers times threads above the quota is a warning: they would wait for each other."""
    monkeypatch.setattr(doctor.cpu, "quota", lambda: 2.0)
    monkeypatch.setenv("GANSERVE_WORKERS", "2")
    monkeypatch.setenv("GANSERVE_THREADS", "2")
    check = find(doctor.examine(), "threads")
    assert check.status == "warn"
    assert "2 workers" in check.detail


def test_settings_say_where_they_are_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting is listed with its value, and whether the environment gave it."""
    monkeypatch.setenv("GANSERVE_MAX_BATCH_ROWS", "64")
    listed = doctor.examine().to_dict()["settings"]
    assert listed["GANSERVE_MAX_BATCH_ROWS"] == {"value": "64", "from_environment": True}
    assert listed["GANSERVE_DEVICE"] == {"value": "auto", "from_environment": False}
