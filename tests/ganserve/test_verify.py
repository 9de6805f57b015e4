"""`ganserve verify`, and hostile artifacts: each is refused by name, where it is verified and where it is served."""

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ganserve import store
from ganserve.artifact import (
    CARD,
    GOLDEN,
    MANIFEST,
    ONNX,
    ONNX_FLOAT16,
    ONNX_IMAGES,
    PRETRAINED,
    TORCHSCRIPT,
    Artifact,
    Golden,
    find_artifact,
    open_artifact,
)
from ganserve.engine import Engine
from ganserve.errors import ArtifactError, GanserveError
from ganserve.verify import Check, Verification, verify
from tests.artifacts import make_artifact, make_graph

ROOT = Path(__file__).parents[2]
RUN_CHECKS = ("golden", "batches", "reruns", "threads", "variety", "labels")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """One small artifact; tests that spoil one take `made`."""
    return make_artifact(tmp_path_factory.mktemp("pristine") / "a", latent_dim=4, num_classes=3, height=8, width=8)


@pytest.fixture
def made(pristine: Artifact, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(pristine.path, tmp_path / "a"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest as JSON."""
    document = json.loads((path / MANIFEST).read_bytes())
    change(document)
    (path / MANIFEST).write_text(json.dumps(document))


def put(path: Path, name: str, content: bytes) -> None:
    """Puts a file into an artifact with the digest that fits: what an attacker would do, who writes manifests too."""
    (path / name).write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    edit(path, lambda document: document["files"].update({name: entry}))


def graph(change: Callable[[onnx.ModelProto], object] = lambda model: None) -> bytes:
    """The fixture's graph, changed."""
    model = onnx.load_from_string(make_graph(4, 3, 8, 8))
    change(model)
    return model.SerializeToString()


def halved(model: onnx.ModelProto) -> None:
    """The same graph with float16 weights, computed in float16 up to the logits."""
    for tensor in model.graph.initializer:
        if tensor.name in ("W", "table"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    nodes = [helper.make_node("Cast", ["latents"], ["half"], to=TensorProto.FLOAT16)]
    for node in model.graph.node:
        node.input[:] = ["half" if name == "latents" else name for name in node.input]
        node.input[:] = ["whole" if node.op_type == "Sigmoid" else name for name in node.input]
        if node.op_type == "Sigmoid":
            nodes.append(helper.make_node("Cast", ["logits"], ["whole"], to=TensorProto.FLOAT))
        nodes.append(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def as_images(model: onnx.ModelProto) -> None:
    """The same graph as one that returns images in [0, 1], [batch, C, H, W]."""
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node][:4]
    del model.graph.node[:]
    model.graph.node.extend([*kept, helper.make_node("Reshape", ["unit", "planes"], ["images"])])
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 1, 8, 8], dtype=np.int64), "planes"))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 8, 8]))


def results(found: Verification, file: str) -> dict[str, str]:
    """Check -> result, of one file."""
    return {check.name: check.result for check in found.checks if check.file == file}


def failures(found: Verification) -> list[Check]:
    """The checks that failed."""
    return [check for check in found.checks if check.result == "fail"]


# What is sound.


def test_a_sound_artifact_passes(pristine: Artifact) -> None:
    """Every check that needs no torch is made and passes; the others are there with their reason."""
    heard: list[Check] = []
    found = verify(str(pristine.path), on_check=heard.append)
    assert found.passed
    assert (found.name, found.digest) == ("mnist", pristine.digest)
    assert tuple(heard) == found.checks
    assert results(found, ONNX) == dict.fromkeys(
        ("digest", "structure", "signature", "opset", "checker", "gpu", "cost", *RUN_CHECKS), "pass"
    ) | {"metadata": "skip", "parity": "skip"}
    assert results(found, GOLDEN) == {"digest": "pass", "shapes": "pass"}
    assert results(found, CARD) == {"digest": "pass"}
    assert results(found, MANIFEST) == {"schema": "pass", "quality": "skip"}
    reasons = {check.name: check.detail for check in found.checks if check.result == "skip"}
    assert reasons["parity"].startswith("needs torch")
    assert reasons["quality"].startswith("needs torch")
    assert reasons["metadata"] == "the file says nothing of itself"


def test_every_onnx_format_is_run(made: Path) -> None:
    """float16 and float images are opened, run and compared as float32 is; TorchScript is not."""
    put(made, ONNX_FLOAT16, graph(halved))
    put(made, ONNX_IMAGES, graph(as_images))
    put(made, TORCHSCRIPT, b"code")
    found = verify(str(made))
    assert found.passed, failures(found)
    for file in (ONNX_FLOAT16, ONNX_IMAGES):
        assert {results(found, file)[name] for name in ("structure", "signature", *RUN_CHECKS)} == {"pass"}
    assert results(found, TORCHSCRIPT) == {"digest": "pass", "images": "skip", "parity": "skip"}
    moved = next(check for check in found.checks if (check.file, check.name) == (ONNX_FLOAT16, "golden"))
    assert moved.figures["max_abs_diff"] == 1  # it is another arithmetic


def test_an_unconditional_model_has_no_labels_to_check(tmp_path: Path) -> None:
    """Without labels that check is skipped and says so; the others are made."""
    made = make_artifact(tmp_path / "a", latent_dim=4, num_classes=None, height=8, width=8)
    found = verify(str(made.path))
    assert found.passed
    assert results(found, ONNX)["labels"] == "skip"
    assert results(found, ONNX)["batches"] == "pass"


def test_the_packaged_artifact_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ships is what was exported, here too, and what its file says of itself agrees with its manifest."""
    monkeypatch.chdir(tmp_path)
    found = verify()
    assert found.path == str(PRETRAINED)
    assert found.passed, failures(found)
    assert {result for name, result in results(found, ONNX).items() if name != "parity"} == {"pass"}


def test_a_stored_artifact_is_verified(pristine: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bento:NAME` is verified where BentoML keeps it."""
    monkeypatch.setattr(store, "resolve", lambda reference: pristine.path)
    assert verify("bento:digits").digest == pristine.digest


def test_without_onnx_its_checker_is_skipped(pristine: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """A serving installation has no onnx: its checker is named as not asked, and the rest is made."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    found = verify(str(pristine.path))
    assert found.passed
    assert results(found, ONNX)["checker"] == "skip"
    assert results(found, ONNX)["golden"] == "pass"


def test_no_torch_is_imported(pristine: Artifact) -> None:
    """Verifying loads neither torch nor what trains and exports."""
    script = (
        f"from ganserve.verify import verify\nassert verify({str(pristine.path)!r}).passed\n"
        "import sys\nprint({'torch', 'training', 'exporters'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr


def test_nothing_there_is_an_error_with_advice(tmp_path: Path) -> None:
    """A name that leads nowhere is not an artifact that failed: it is an error, and says what to type."""
    for name in ("nowhere", "x" * 5000):
        with pytest.raises(ArtifactError, match=r"is not an artifact directory|cannot read"):
            verify(str(tmp_path / name))
    with pytest.raises(ArtifactError, match=r"has no manifest\.json") as caught:
        verify(str(tmp_path))
    assert caught.value.hint == "make an artifact with: ganserve export --onnx"


# What is false, with digests that fit.


def changed_weights(model: onnx.ModelProto) -> None:
    """Another generator of the same shapes."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "W")
    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), "W"))


def metadata(key: str, value: str) -> Callable[[onnx.ModelProto], object]:
    """A statement of the file about itself."""
    return lambda model: helper.set_model_props(model, {key: value})


def island(model: onnx.ModelProto) -> None:
    """A node that nothing connects with the others."""
    model.graph.node.append(helper.make_node("Relu", ["scale"], ["alone"]))


def waiting(model: onnx.ModelProto) -> None:
    """A shape that the CPU has to look at."""
    model.graph.node.append(helper.make_node("Shape", ["latents"], ["size"]))


def without_factor(model: onnx.ModelProto) -> None:
    """A product that has one factor."""
    del model.graph.node[0].input[1:]


def with_gap(model: onnx.ModelProto) -> None:
    """A product whose second factor comes third."""
    model.graph.node[0].input.insert(1, "")


FALSE = {
    "weights of another": (changed_weights, "golden", "golden images differ by up to"),
    "a statement": (metadata("ganserve.labels", "0,1"), "metadata", "ganserve.labels is '0,1', the manifest says"),
    "weights' digest": (metadata("ganserve.weights_sha256", "f" * 64), "metadata", "ganserve.weights_sha256 is 'ffff"),
    "an output": (
        lambda model: setattr(model.graph.output[0].type.tensor_type.shape.dim[1], "dim_value", 9),
        "signature",
        r"the graph's outputs are pixels uint8 \[batch, 9, 8, 1\]; expected pixels uint8 \[batch, 8, 8, 1\]",
    ),
    "an old opset": (
        lambda model: setattr(model.opset_import[0], "version", 12),
        "opset",
        "opset must be 17 to 26, got 12",
    ),
    "an opset below all": (lambda model: setattr(model.opset_import[0], "version", -5), "opset", "got -5"),
    "half a product": (without_factor, "cost", "the inputs of MatMul do not fit together"),
    "a product with a gap": (with_gap, "cost", "the inputs of MatMul do not fit together"),
    "two islands": (island, "gpu", "falls apart into 2 islands"),
    "a host operator": (waiting, "gpu", "Shape need the CPU between kernels"),
    "a node from nowhere": (
        lambda model: model.graph.node[0].input.__setitem__(0, "nowhere"),
        "checker",
        "is not valid ONNX",
    ),
}


@pytest.mark.parametrize(("change", "name", "message"), FALSE.values(), ids=FALSE.keys())
def test_false_graphs_fail_by_name(
    made: Path, change: Callable[[onnx.ModelProto], object], name: str, message: str
) -> None:
    """A graph that is not what its artifact says fails the check that says so, whatever its digest."""
    put(made, ONNX, graph(change))
    found = verify(str(made))
    (fault,) = (check for check in failures(found) if check.name == name)
    assert fault.file == ONNX
    assert re.search(message, fault.detail), fault.detail


def test_a_failure_has_its_numbers(made: Path, pristine: Artifact) -> None:
    """Golden images of another artifact fail with the difference, as text and as numbers, and nothing more is run."""
    golden = pristine.read_golden()
    other = Golden(latents=golden.latents, labels=golden.labels, pixels=255 - golden.pixels)
    put(made, GOLDEN, other.to_bytes())
    found = verify(str(made))
    assert not found.passed
    (fault,) = failures(found)
    assert (fault.file, fault.name) == (ONNX, "golden")
    assert fault.figures["max_abs_diff"] == 255
    assert fault.figures["differing_share"] > 0.9
    assert results(found, ONNX)["batches"] == "skip"
    assert results(found, CARD) == {"digest": "pass"}  # the other files are still looked at


def test_labels_that_do_nothing_fail(made: Path) -> None:
    """A table whose rows are the same gives the same digit for every label."""

    def same(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "table")
        rows = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.repeat(rows[:1], len(rows), axis=0), "table"))

    content = graph(same)
    put(made, ONNX, content)
    put(made, GOLDEN, replayed(made, content))
    (fault,) = failures(verify(str(made)))
    assert fault.name == "labels"
    assert "labels 0 and 1 give the same 16 images" in fault.detail


def test_one_image_for_all_fails(made: Path) -> None:
    """Weights of zero give an image for each label and no other: that fails as variety, or as saturation."""

    def white(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == "table":
                rows = numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array(np.where(rows > 0, 1000, -1000).astype(np.float32), "table"))

    content = graph(white)
    put(made, ONNX, content)
    put(made, GOLDEN, replayed(made, content))
    (fault,) = failures(verify(str(made)))
    assert fault.name == "variety"
    assert "100.00% of the pixels are 0 or 255" in fault.detail


def replayed(made: Path, content: bytes) -> bytes:
    """Golden images that this graph gives."""
    golden = open_artifact(made).read_golden()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    pixels = session.run(None, {"latents": golden.latents, "labels": golden.labels})[0]
    return Golden(latents=golden.latents, labels=golden.labels, pixels=pixels).to_bytes()


def test_a_record_beyond_the_limits_fails(made: Path) -> None:
    """A manifest that admits to too large a difference from PyTorch is not one that the export wrote."""
    row = {"format": ONNX, "batch_rows": 1, "max_abs_diff": 9, "differing_share": 0.5}
    edit(made, lambda document: document.update(parity=[row]))
    (fault,) = failures(verify(str(made)))
    assert (fault.name, fault.figures["max_abs_diff"]) == ("parity", 9)


def test_each_figure_of_a_record_is_compared(made: Path) -> None:
    """Grey levels of one batch do not hide the pixels of another; float images have a limit of their own."""
    rows = [
        {"format": ONNX, "batch_rows": 1, "max_abs_diff": 1, "differing_share": 0.0001},
        {"format": ONNX, "batch_rows": 2, "max_abs_diff": 0, "differing_share": 0.5},
    ]
    edit(made, lambda document: document.update(parity=rows))
    (fault,) = failures(verify(str(made)))
    assert (fault.file, fault.name, fault.figures["differing_share"]) == (ONNX, "parity", 0.5)
    put(made, ONNX_IMAGES, graph(as_images))
    rows = [{"format": ONNX_IMAGES, "batch_rows": 1, "max_abs_diff": 0, "differing_share": 0.0, "max_abs_error": 0.1}]
    edit(made, lambda document: document.update(parity=rows))
    (fault,) = failures(verify(str(made)))
    assert (fault.file, fault.name, fault.figures["max_abs_error"]) == (ONNX_IMAGES, "parity", 0.1)


def test_graphs_of_the_manifest_are_compared(made: Path) -> None:
    """What the manifest says of the graph must be what the graph is."""
    spec = {
        "opset": 20,
        "nodes": 99,
        "compute_islands": 1,
        "newer_kernels": [],
        "channels": [4, 64],
        "unaligned_channels": [4],
    }
    edit(made, lambda document: document.update(graphs={ONNX: spec}))
    (fault,) = failures(verify(str(made)))
    assert (fault.name, "nodes=99" in fault.detail) == ("gpu", True)
    spec["nodes"] = 8
    edit(made, lambda document: document.update(graphs={ONNX: spec}))
    assert verify(str(made)).passed


# Hostile artifacts: the same error where they are verified and where they would be served.


def flip(made: Path) -> None:
    """One bit of the weights."""
    content = bytearray((made / ONNX).read_bytes())
    content[-200] ^= 1
    (made / ONNX).write_bytes(content)


def sparse(size: int, *, honest: bool) -> Callable[[Path], None]:
    """A file of nothing, with a size; `honest` manifests say it."""

    def spoil(made: Path) -> None:
        with (made / ONNX).open("r+b") as file:
            file.truncate(size)
        if honest:
            edit(made, lambda document: document["files"][ONNX].update(bytes=size))

    return spoil


def swap(made: Path) -> None:
    """The float16 file under float32's name."""
    put(made, ONNX, graph(halved))


def other_golden(made: Path) -> None:
    """The golden images of an artifact with other weights."""
    content = graph(changed_weights)
    put(made, GOLDEN, replayed(made, content))


def listed(name: str) -> Callable[[Path], None]:
    """A file of this name in the manifest."""
    entry = {"sha256": "0" * 64, "bytes": 1}
    return lambda made: edit(made, lambda document: document["files"].update({name: entry}))


def symbolic(made: Path) -> None:
    """The graph is elsewhere."""
    (made / ONNX).rename(made.parent / "elsewhere")
    (made / ONNX).symlink_to(made.parent / "elsewhere")


def with_graph(content: bytes) -> Callable[[Path], None]:
    """Another graph, with the digest that fits."""
    return lambda made: put(made, ONNX, content)


def outside(model: onnx.ModelProto) -> None:
    """Weights that are in another file."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def huge(model: onnx.ModelProto) -> None:
    """A weight that claims 2^40 numbers."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.dims[:] = [1 << 40]


def custom(model: onnx.ModelProto) -> None:
    """An operator of somebody's own."""
    model.graph.node[0].domain = "evil.example"
    model.opset_import.append(helper.make_opsetid("evil.example", 1))


def expanding(model: onnx.ModelProto) -> None:
    """A row plus a column: half a megabyte of constants that ONNX Runtime makes 16 GiB of as it loads them."""
    for name, shape in (("row", (1, 1 << 16)), ("column", (1 << 16, 1))):
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(shape, dtype=np.float32), name))
    first = [
        helper.make_node("Add", ["row", "column"], ["matrix"]),
        helper.make_node("MatMul", ["row", "matrix"], ["long"]),
        helper.make_node("MatMul", ["long", "column"], ["number"]),
    ]
    rest = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    rest[0].output[0] = "product"
    rest.insert(1, helper.make_node("Add", ["product", "number"], ["linear"]))
    del model.graph.node[:]
    model.graph.node.extend([*first, *rest])


class Evil:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        """Ends the process that loads it."""
        return os._exit, (3,)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit": (flip, r"generator\.onnx is not what was exported: expected .* found"),
    "truncated": (lambda made: os.truncate(made / ONNX, 1000), r"is not what was exported: .* found 1000 with"),
    "float16 as float32": (swap, r"generator\.onnx must have float32 weights, got float16"),
    "golden of another": (other_golden, r"golden images differ by up to \d+ grey levels"),
    "absolute path": (listed("/etc/passwd"), "files must lie in the artifact's own directory"),
    "path above": (listed("../../secret"), "files must lie in the artifact's own directory"),
    "symbolic link": (symbolic, "it is a symbolic link"),
    "hard link": (lambda made: os.link(made / ONNX, made.parent / "twin"), r"has 2 names \(hard links\)"),
    "external data": (with_graph(graph(outside)), "holds external data: weights outside the file"),
    "huge weights": (with_graph(graph(huge)), "claims 4,398,046,511,104 bytes and holds 0"),
    "custom operator": (with_graph(graph(custom)), "standard domain alone is expected"),
    "16 GiB of constants": (
        with_graph(graph(expanding)),
        r"generator\.onnx works out 4,295,.* numbers for an image, at most 1,048,576 are expected",
    ),
    "TorchScript": (with_graph(b"PK\x03\x04" + bytes(500)), "it is a zip archive, as TorchScript is"),
    "pickle": (with_graph(pickle.dumps(Evil())), "it is a Python pickle"),
    "ONNX Runtime's format": (with_graph(b"\x12\x06xxORTM" + graph()), "it is in ONNX Runtime's own format"),
    "future schema": (
        lambda made: edit(made, lambda document: document.update(schema_version=2)),
        "has schema_version 2; this ganserve reads 1",
    ),
    "10 GB, claimed": (
        lambda made: edit(made, lambda document: document["files"][ONNX].update(bytes=10 << 30)),
        r"files\.generator\.onnx\.bytes: Input should be less than or equal to 1073741824",
    ),
    "10 GB, on disk": (sparse(10 << 30, honest=False), r"has 10737418240 bytes, at most \d+ are expected"),
    "1 GiB, claimed and not there": (
        lambda made: edit(made, lambda document: document["files"][ONNX].update(bytes=1 << 30)),
        r"expected 1073741824 bytes with sha256",
    ),
}


def serve(made: Path) -> None:
    """What a server does at start."""
    Engine(find_artifact(made)[0], device="cpu", max_batch_rows=4)


@pytest.mark.parametrize(("spoil", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_artifacts_are_neither_verified_nor_served(
    made: Path, spoil: Callable[[Path], object], message: str
) -> None:
    """Each is one named error, with little memory, to `verify` and to the server alike."""
    spoil(made)
    tracemalloc.start()
    try:
        with pytest.raises(GanserveError, match=message):
            serve(made)
        found = verify(str(made))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 << 20
    assert not found.passed
    assert found.to_dict()["passed"] is False
    assert any(re.search(message, check.detail) for check in failures(found)), failures(found)


def test_a_large_file_of_nothing_is_refused_by_its_digest(made: Path) -> None:
    """A file that grew, with a manifest that says so, is still not the bytes that were exported."""
    sparse(64 << 20, honest=True)(made)
    with pytest.raises(GanserveError, match="is not what was exported"):
        serve(made)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc what the process uses")
def test_ten_gigabytes_take_no_memory(made: Path) -> None:
    """A process that may take 256 MB more than its libraries refuses a file of ten gigabytes with a message."""
    sparse(10 << 30, honest=False)(made)
    script = (
        "import resource\nfrom ganserve.verify import verify\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), resource.RLIM_INFINITY))\n"
        f"print([check.detail for check in verify({str(made)!r}).checks if check.result == 'fail'])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "has 10737418240 bytes, at most" in done.stdout, done.stderr


# The command.


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`ganserve verify` as a user runs it."""
    return subprocess.run(
        [sys.executable, "-m", "ganserve", "verify", *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "160", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_command_prints_a_table_or_json(pristine: Artifact) -> None:
    """A sound artifact is exit code 0, with every check in the table and in the JSON."""
    shown = command(str(pristine.path), cwd=ROOT)
    assert shown.returncode == 0, shown.stderr
    assert pristine.digest in shown.stdout
    for text in ("structure", "batches", "needs torch", "17 checks passed, 0 failed, 3 could not be made here"):
        assert text in shown.stdout
    document = json.loads(command(str(pristine.path), "--json", cwd=ROOT).stdout)
    assert document["passed"] is True
    assert {"file", "name", "result", "detail", "figures"} == set(document["checks"][0])


def test_the_command_fails_with_the_numbers(made: Path) -> None:
    """A failure is exit code 1, and the table has its figures."""
    other_golden(made)
    shown = command(str(made), cwd=ROOT)
    assert shown.returncode == 1
    assert "✗ fails" in shown.stdout
    assert "grey levels" in shown.stdout
    document = json.loads(command(str(made), "--json", cwd=ROOT).stdout)
    assert document["passed"] is False
