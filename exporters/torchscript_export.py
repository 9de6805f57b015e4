"""TorchScript: traced and frozen, for C++ and LibTorch users. It is code: the server never loads it."""

import io
import json
import warnings
from collections.abc import Mapping

import numpy as np
import torch

from exporters.onnx_export import example_inputs
from exporters.wrapper import ExportedGenerator
from ganserve.artifact import TORCHSCRIPT
from ganserve.errors import ExportError, InferenceError
from ganserve.proof import Labels, Latents, Pixels, Runner

METADATA_FILE = "ganserve.json"


def export_torchscript(generator: ExportedGenerator, metadata: Mapping[str, str]) -> bytes:
    """The generator as a TorchScript archive with the signature of the ONNX model.

    `torch.jit.optimize_for_inference` is left out on purpose: its result is fit for the building machine's CPU only.

    Args:
        generator: in evaluation mode.
        metadata: goes into the archive's extra file `ganserve.json`.

    Raises:
        ExportError: the generator cannot be traced, or this PyTorch has no TorchScript any more.
    """
    if not hasattr(torch.jit, "trace"):  # deprecated since 2.5; no release is named in which it goes
        raise ExportError(
            f"PyTorch {torch.__version__} has no TorchScript any more",
            hint="leave out --torchscript: ONNX is what serves",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; as long as LibTorch reads it, people need it
        try:
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]  # torch.jit is untyped
                generator.eval(), example_inputs(generator), check_trace=False
            )
            frozen = torch.jit.freeze(traced)
            buffer = io.BytesIO()
            extra = {METADATA_FILE: json.dumps(dict(metadata), sort_keys=True)}
            torch.jit.save(frozen, buffer, _extra_files=extra)
        except RuntimeError as err:
            raise ExportError(f"torch.jit cannot trace this generator: {err}") from err
    return buffer.getvalue()


def load_torchscript(content: bytes) -> torch.jit.ScriptModule:
    """Loads what `export_torchscript` made. TorchScript is code: only ever call this on bytes that you made.

    Raises:
        InferenceError: it is not TorchScript.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        try:
            return torch.jit.load(io.BytesIO(content))  # type: ignore[no-untyped-call, no-any-return]
        except RuntimeError as err:
            reason = str(err).partition("\n")[0]
            raise InferenceError(f"{TORCHSCRIPT} cannot be opened: {reason}") from err


def torchscript_runner(content: bytes) -> Runner:
    """What runs a batch through a file of `export_torchscript`, under the same warning as `load_torchscript`."""
    module = load_torchscript(content)

    @torch.no_grad()
    def run(rows: Latents, labels: Labels | None) -> Pixels:
        inputs = [torch.from_numpy(rows)] + ([] if labels is None else [torch.from_numpy(labels)])
        try:
            return np.asarray(module(*inputs).numpy())
        except RuntimeError as err:
            raise InferenceError(f"{TORCHSCRIPT} fails on {len(rows)} rows: {err}") from err

    return run
