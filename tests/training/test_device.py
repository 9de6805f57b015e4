from pathlib import Path

import pytest
import torch

from ganserve.errors import ConfigError
from training import device
from training.device import cpu_quota, resolve_device, use_available_cpus


def test_auto_takes_what_there_is() -> None:
    """CUDA where torch can use it, and the CPU elsewhere."""
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_what_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA without a GPU is an error with the reason, never a silent CPU run; so is another name."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device cuda was requested, but") as caught:
        resolve_device("cuda")
    assert caught.value.hint == "use --device auto"
    with pytest.raises(ConfigError, match="must be auto, cpu or cuda, got 'gpu'"):
        resolve_device("gpu")


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_container_quota_is_read(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    """Both versions of the cgroup file system say how many CPUs there are, or that there is no limit."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == quota


def test_threads_stay_within_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota below the number of threads lowers it, to one at least; a larger one changes nothing."""
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr(device, "cpu_quota", lambda: 1000.0)
        assert use_available_cpus() == before
        monkeypatch.setattr(device, "cpu_quota", lambda: 0.5)
        assert use_available_cpus() == 1 == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
