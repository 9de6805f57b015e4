"""A small MLP generator, untrained, as an artifact: the cheapest model that still looks like one.

With it a benchmark times servers, not convolutions.
"""

import datetime
import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from ganserve import latents
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

WIDTHS = (100, 128, 128, 784)  # the article's latent, two hidden layers, a digit's pixels
SHAPE = (28, 28, 1)


def mlp_artifact(path: Path) -> Artifact:
    """Writes an artifact named "mlp" to `path`: latents only, no labels."""
    graph = _graph()
    rows, _ = latents.draw(1, 16, WIDTHS[0], None)
    pixels = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, {"latents": rows})[0]
    files = {
        ONNX: graph,
        GOLDEN: Golden(latents=rows, labels=None, pixels=pixels).to_bytes(),
        CARD: b"# An untrained MLP, for benchmarks\n",
    }
    height, width, channels = SHAPE
    manifest = Manifest(
        name="mlp",
        model=ModelSpec(
            generator="mlp",
            parameters=sum((before + 1) * after for before, after in itertools.pairwise(WIDTHS)),
            image=ImageSpec(height=height, width=width, channels=channels, value_range=(0.0, 1.0)),
        ),
        signature=signature_of(WIDTHS[0], None, SHAPE),
        latent=LatentSpec(dim=WIDTHS[0], sampler=latents.SAMPLER),
        labels=None,
        files=entries(files),
        source=SourceSpec(
            run="benchmark",
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
        created_at=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        versions={"onnx": onnx.__version__},
    )
    return write_artifact(path, manifest, files)


def _graph() -> bytes:
    """The generator: round(255 * sigmoid(a ReLU network of the latents))."""
    generator = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}
    nodes, values = [], "latents"
    for layer, (before, after) in enumerate(itertools.pairwise(WIDTHS)):
        weights[f"w{layer}"] = generator.normal(scale=np.sqrt(2 / before), size=(before, after)).astype(np.float32)
        weights[f"b{layer}"] = np.zeros(after, np.float32)
        nodes.append(helper.make_node("Gemm", [values, f"w{layer}", f"b{layer}"], [f"linear{layer}"]))
        values = f"linear{layer}"
        if after != WIDTHS[-1]:
            nodes.append(helper.make_node("Relu", [values], [f"relu{layer}"]))
            values = f"relu{layer}"
    weights["scale"] = np.array(255, np.float32)
    weights["shape"] = np.array([-1, *SHAPE], np.int64)
    nodes += [
        helper.make_node("Sigmoid", [values], ["unit"]),
        helper.make_node("Mul", ["unit", "scale"], ["grey"]),
        helper.make_node("Round", ["grey"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("Reshape", ["bytes", "shape"], ["pixels"]),
    ]
    given = helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["batch", WIDTHS[0]])
    output = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", *SHAPE])
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "generator", [given], [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()
