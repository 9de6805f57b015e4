"""Small artifacts made by hand, without torch: an affine map of the latent and a table row of the label, squashed."""

import datetime
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from ganserve import latents as latents_module
from ganserve.artifact import (
    CARD,
    GOLDEN,
    ONNX,
    Artifact,
    Golden,
    ImageSpec,
    LatentSpec,
    Manifest,
    ModelSpec,
    SourceSpec,
    entries,
    signature_of,
    write_artifact,
)


def make_graph(latent_dim: int, num_classes: int | None, height: int, width: int, *, seed: int = 0) -> bytes:
    """An ONNX generator: pixels = round(255 * sigmoid(latents @ W + table[labels]))."""
    generator = np.random.default_rng(seed)
    size = height * width
    weights = {"W": (generator.normal(size=(latent_dim, size)) / np.sqrt(latent_dim)).astype(np.float32)}
    nodes = [helper.make_node("MatMul", ["latents", "W"], ["linear"])]
    inputs = [helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["batch", latent_dim])]
    logits = "linear"
    if num_classes is not None:
        weights["table"] = generator.normal(scale=2.0, size=(num_classes, size)).astype(np.float32)
        inputs.append(helper.make_tensor_value_info("labels", TensorProto.INT64, ["batch"]))
        nodes += [
            helper.make_node("Gather", ["table", "labels"], ["rows"]),
            helper.make_node("Add", ["linear", "rows"], ["logits"]),
        ]
        logits = "logits"
    weights["scale"] = np.array(255, dtype=np.float32)
    nodes += [
        helper.make_node("Sigmoid", [logits], ["unit"]),
        helper.make_node("Mul", ["unit", "scale"], ["grey"]),
        helper.make_node("Round", ["grey"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("Reshape", ["bytes", "shape"], ["pixels"]),
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([-1, height, width, 1], dtype=np.int64), "shape"))
    output = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", height, width, 1])
    graph = helper.make_graph(nodes, "generator", inputs, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def make_artifact(
    path: Path,
    *,
    name: str = "mnist",
    latent_dim: int = 16,
    num_classes: int | None = 10,
    height: int = 28,
    width: int = 28,
    created_at: datetime.datetime | None = None,
    spoil_golden: bool = False,
) -> Artifact:
    """Writes a whole artifact around `make_graph`."""
    graph = make_graph(latent_dim, num_classes, height, width)
    rows, labels = latents_module.draw(1, 16, latent_dim, num_classes)
    feeds = {"latents": rows} | ({} if labels is None else {"labels": labels})
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    pixels = session.run(None, feeds)[0]
    if spoil_golden:
        pixels = 255 - pixels
    files = {
        ONNX: graph,
        GOLDEN: Golden(latents=rows, labels=labels, pixels=pixels).to_bytes(),
        CARD: b"# A generator made by hand\n",
    }
    manifest = Manifest(
        name=name,
        model=ModelSpec(
            generator="affine",
            parameters=latent_dim * height * width,
            image=ImageSpec(height=height, width=width, channels=1, value_range=(0.0, 1.0)),
        ),
        signature=signature_of(latent_dim, num_classes, (height, width, 1)),
        latent=LatentSpec(dim=latent_dim, sampler=latents_module.SAMPLER),
        labels=None if num_classes is None else tuple(map(str, range(num_classes))),
        files=entries(files),
        source=SourceSpec(
            run="by-hand",
            checkpoint="step-00000000",
            recipe="none",
            step=0,
            images_seen=0,
            weights_sha256="0" * 64,
            dataset="mnist",
            dataset_sha256="0" * 64,
        ),
        training={},
        parity=(),
        created_at=created_at or datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        versions={"onnx": onnx.__version__},
    )
    return write_artifact(path, manifest, files)
