import warnings

import numpy as np
import pytest
import torch

from exporters.torchscript_export import export_torchscript, torchscript_runner
from exporters.wrapper import ExportedGenerator
from ganserve.errors import ExportError, InferenceError
from tests.exporters.test_wrapper import build


def test_it_is_exported_and_run_without_a_warning() -> None:
    """Users do not read of a deprecation that they can do nothing about."""
    exported = ExportedGenerator(build("mlp", conditional=True), torchscript=True)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        run = torchscript_runner(export_torchscript(exported, {}))
        pixels = run(np.zeros((2, exported.latent_dim), np.float32), np.zeros(2, np.int64))
    assert not shown
    assert pixels.dtype == np.uint8


def test_a_torch_without_torchscript_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The day PyTorch drops TorchScript, that is an error with advice, and not an AttributeError."""
    monkeypatch.delattr(torch.jit, "trace")
    with pytest.raises(ExportError, match="has no TorchScript any more"):
        export_torchscript(ExportedGenerator(build("mlp", conditional=True), torchscript=True), {})


def test_what_is_not_torchscript_is_an_error() -> None:
    """A file of something else is an error of ours in one line, as `ganserve bench --against torchscript` shows it."""
    with pytest.raises(InferenceError, match=r"^generator\.ts cannot be opened: .+") as caught:
        torchscript_runner(b"ONNX, or anything")
    assert "\n" not in str(caught.value)
