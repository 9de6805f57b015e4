import pytest
import torch

from ganserve.errors import ConfigError
from training import device
from training.device import resolve_device, use_available_cpus


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


def test_threads_stay_within_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota below the number of threads lowers it, to one at least; a larger one changes nothing."""
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr(device.cpu, "quota", lambda _: 1000.0)
        assert use_available_cpus() == before
        monkeypatch.setattr(device.cpu, "quota", lambda _: 0.5)
        assert use_available_cpus() == 1 == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
