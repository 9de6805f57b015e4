import sys
from pathlib import Path

import pytest

from ganserve import artifact, doctor, engine
from tests.artifacts import make_artifact


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def find(report: doctor.Report, name: str) -> doctor.Check:
    """The check of that name."""
    return next(check for check in report.checks if check.name == name)


def test_the_pretrained_artifact_is_there_from_the_start() -> None:
    """Before anything was exported the doctor names the artifact that ships with ganserve."""
    check = find(doctor.examine(), "artifact")
    assert check.status == "ok"
    assert "ships with ganserve" in check.detail


def test_no_artifact_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is none at all the doctor warns, says what to type, and is not ill."""
    monkeypatch.setattr(artifact, "PRETRAINED", tmp_path / "none")
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
    assert "2 x 2" in check.detail


def test_settings_say_where_they_are_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting is listed with its value, and whether the environment gave it."""
    monkeypatch.setenv("GANSERVE_MAX_BATCH_ROWS", "64")
    listed = doctor.examine().to_dict()["settings"]
    assert listed["GANSERVE_MAX_BATCH_ROWS"] == {"value": "64", "from_environment": True}
    assert listed["GANSERVE_DEVICE"] == {"value": "auto", "from_environment": False}


def test_broken_runtime_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """An onnxruntime that cannot be imported is a failure with the command that mends it, not a traceback."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    report = doctor.examine()
    check = find(report, "onnxruntime")
    assert check.status == "fail"
    assert check.hint is not None
    assert "--force-reinstall" in check.hint


def test_cuda_that_was_asked_for_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With GANSERVE_DEVICE=cuda the server would refuse to start without it, so the doctor fails too."""
    monkeypatch.setenv("GANSERVE_DEVICE", "cuda")
    monkeypatch.setattr(engine, "cuda_obstacle", lambda: "libcuda.so.1 is not on this machine")
    report = doctor.examine()
    assert find(report, "cuda").status == "fail"
    monkeypatch.setenv("GANSERVE_DEVICE", "auto")
    assert find(doctor.examine(), "cuda").status == "ok"


@pytest.mark.parametrize("port", ["abc", "", "99999", "-1", "٣"])
def test_nonsense_port_is_told(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    """A BENTOML_PORT that is no port is a failure that shows it."""
    monkeypatch.setenv("BENTOML_PORT", port)
    check = find(doctor.examine(), "port")
    assert check.status == "fail"
    assert repr(port) in check.detail


def test_wrong_settings_do_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one wrong setting, the others are shown as they are given, and nothing is told of another server."""
    monkeypatch.setenv("GANSERVE_WORKERS", "0")
    monkeypatch.setenv("GANSERVE_ARTIFACT", "/x")
    report = doctor.examine()
    shown = report.to_dict()["settings"]
    assert shown["GANSERVE_WORKERS"] == {"value": "0", "from_environment": True}
    assert shown["GANSERVE_ARTIFACT"] == {"value": "/x", "from_environment": True}
    assert "artifact" not in {check.name for check in report.checks}


def test_token_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token is not printed, right or wrong."""
    for workers in ("1", "0"):
        monkeypatch.setenv("GANSERVE_WORKERS", workers)
        monkeypatch.setenv("GANSERVE_TOKEN", "correct-horse-battery")
        assert "horse" not in str(doctor.examine().to_dict())
