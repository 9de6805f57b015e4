"""ONNX: one file, standard operators, dynamic batch, nothing of the machine that built it."""

import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import torch

from exporters.wrapper import ExportedGenerator
from ganserve.errors import ExportError
from ganserve.fitness import OPSETS

OPSET = 20  # the newest whose operators can be counted on to have CUDA kernels: see ganserve.fitness
_MAX_BATCH_ROWS = 1 << 20  # a bound that torch.export needs to see; the graph has no trace of it


def export_onnx(generator: ExportedGenerator, metadata: Mapping[str, str], opset: int = OPSET) -> bytes:
    """The generator as an ONNX model.

    Args:
        generator: in evaluation mode.
        metadata: goes into the file's `metadata_props`.
        opset: one of `OPSETS`.

    Returns:
        A serialized model: inputs `latents` float32 [batch, latent_dim] and, if conditional, `labels` int64 [batch];
        output `pixels` uint8 [batch, H, W, C], or `images` float32 [batch, C, H, W] where the generator returns
        those; that opset of the standard domain, weights inside. The same generator gives the same bytes.

    Raises:
        ExportError: no such opset, or the exporter failed, or what it wrote is not that.
    """
    check_opset(opset)
    batch = torch.export.Dim("batch", min=1, max=_MAX_BATCH_ROWS)
    shapes: dict[str, dict[int, torch.export.Dim]] = {"latents": {0: batch}}
    example = example_inputs(generator)
    if generator.num_classes is not None:
        shapes["labels"] = {0: batch}
    with warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript", "torch.export"):
        warnings.simplefilter("ignore")  # torch's own deprecations inside its exporter; nothing a user can act on
        try:
            program = torch.onnx.export(
                generator.eval(),
                example,
                input_names=list(shapes),
                output_names=["pixels" if generator.pixels else "images"],
                dynamic_shapes=shapes,
                opset_version=opset,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except Exception as err:  # torch's exporter raises anything from its many stages
            raise ExportError(f"torch.onnx cannot export this generator: {err}") from err
    assert program is not None  # None is the legacy exporter's return value
    model = program.model_proto
    _lower_resizes(model, opset)
    merge_pads(model.graph)
    _take_labels_as_they_are(model.graph)
    _clean(model, metadata)
    _check(model, opset)
    return bytes(model.SerializeToString(deterministic=True))


def check_opset(opset: int) -> None:
    """Whether an opset is one that was tested.

    Raises:
        ExportError: it is not.
    """
    if opset not in OPSETS:
        raise ExportError(
            f"opset must be {OPSETS[0]} to {OPSETS[-1]}, got {opset}", hint=f"--opset {OPSET} runs everywhere"
        )


def example_inputs(generator: ExportedGenerator) -> tuple[torch.Tensor, ...]:
    """Inputs to trace with: a batch of two, because of one dimension exporters make a constant."""
    latents = torch.zeros(2, generator.latent_dim)
    return (latents,) if generator.num_classes is None else (latents, torch.zeros(2, dtype=torch.int64))


def _lower_resizes(model: onnx.ModelProto, opset: int) -> None:
    """Says in opset 17 what torch's converter leaves in 18: a Resize whose newer attributes are at their defaults."""
    (standard,) = (entry for entry in model.opset_import if entry.domain == "")
    newer = {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"}
    if (opset, standard.version) != (17, 18):
        return
    for node in model.graph.node:
        if onnx.defs.get_schema(node.op_type, 18, node.domain).since_version < 18:
            continue
        values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type != "Resize" or "axes" in values or any(values.get(key, at) != at for key, at in newer.items()):
            return  # what is left in 18 is refused when it is checked
        kept = [attribute for attribute in node.attribute if attribute.name not in newer]
        del node.attribute[:]
        node.attribute.extend(kept)
    standard.version = 17


def _clean(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Removes what the exporter noted for its own developers, this machine's paths among it."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    _keep_shapes(model.graph)
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    model.graph.name = "generator"
    model.producer_name, model.producer_version = "ganserve", ""
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))


def _keep_shapes(graph: onnx.GraphProto) -> None:
    """Leaves of what the exporter noted of the values between nodes their types and shapes alone.

    Behind a Reshape ONNX Runtime cannot tell that the batch is still the batch. Told so, it adds a residual block's
    shortcut within the convolution: 7 % of that generator's time.
    """
    made = {name for node in graph.node for name in node.output} - {value.name for value in graph.output}
    known = [onnx.ValueInfoProto(name=value.name, type=value.type) for value in graph.value_info if value.name in made]
    del graph.value_info[:]
    graph.value_info.extend(known)


def _take_labels_as_they_are(graph: onnx.GraphProto) -> None:
    """Removes the Reshape to one dimension that torch puts before looking up rows by labels: they have no other."""
    shapes = {
        tensor.name: onnx.numpy_helper.to_array(tensor).tolist() for tensor in graph.initializer if tensor.dims == [1]
    }
    for flattening in [node for node in graph.node if node.op_type == "Reshape" and node.input[0] == "labels"]:
        if shapes.get(flattening.input[1]) != [-1]:
            continue
        for node in graph.node:
            node.input[:] = ["labels" if name == flattening.output[0] else name for name in node.input]
        graph.node.remove(flattening)
    _drop_unused(graph)


def merge_pads(graph: onnx.GraphProto) -> None:
    """Makes zeros around an image a convolution's own padding, which torch has for both sides alike only.

    A Pad that is anything else stays, and no exported graph may have one.
    """
    numbers = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    uses = Counter(name for node in graph.node for name in node.input)
    for node in list(graph.node):
        pad = makers.get(node.input[0]) if node.op_type == "Conv" else None
        if pad is None or pad.op_type != "Pad" or uses[pad.output[0]] != 1:
            continue
        modes = [attribute.s for attribute in pad.attribute if attribute.name == "mode"]
        added = numbers.get(pad.input[1])
        filled = numbers.get(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else np.zeros(())
        if modes not in ([], [b"constant"]) or (len(pad.input) > 3 and pad.input[3]):
            continue
        if added is None or filled is None or filled != 0 or len(added) != 8 or any(added[[0, 1, 4, 5]]):
            continue
        (pads,) = (attribute for attribute in node.attribute if attribute.name == "pads")
        pads.ints[:] = (np.asarray(pads.ints) + added[[2, 3, 6, 7]]).tolist()
        node.input[0] = pad.input[0]
        graph.node.remove(pad)
    _drop_unused(graph)


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _check(model: onnx.ModelProto, opset: int) -> None:
    """What serving relies on, whatever the exporter did.

    Raises:
        ExportError: a foreign domain, another opset, external data, or an invalid graph.
    """
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    foreign = {node.domain for node in model.graph.node} - {""}
    if foreign or opsets != {"": opset} or model.functions:
        raise ExportError(f"expected opset {opset} of the standard domain alone, got {opsets} and nodes of {foreign}")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise ExportError("weights are outside the file")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        raise ExportError(f"the exported graph is not valid ONNX: {err}") from err


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Mutes loggers below errors while the block lasts: the exporter narrates its stages."""
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
