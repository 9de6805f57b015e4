import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from exporters import build as build_module
from exporters.build import Step, build_artifact
from exporters.parity import probes, pytorch_images, pytorch_pixels
from exporters.torchscript_export import METADATA_FILE
from ganserve import imaging, proof
from ganserve.artifact import CARD, GOLDEN, ONNX, ONNX_FLOAT16, ONNX_IMAGES, SAMPLES, TORCHSCRIPT, open_artifact
from ganserve.engine import Engine
from ganserve.errors import ArtifactError, CheckpointError, ExportError, ParityError
from ganserve.fitness import OPSETS
from ganserve.inspection import inspect_graphs
from ganserve.proof import BATCH_ROWS, LIMITS
from ganserve.verify import verify
from tests.runs import make_checkpoint, write_idx_folder
from training.checkpoint import load_generator


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditional convolutional generator after two steps."""
    return make_checkpoint(tmp_path_factory.mktemp("conditional"))


@pytest.fixture(scope="module")
def artifact_path(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its artifact, with every format."""
    out = tmp_path_factory.mktemp("artifacts") / "digits"
    build_artifact(checkpoint, out, run_name="run", torchscript=True, float16=True, float_output=True)
    return out


VARIANTS = {
    "conv, unconditional": ["conditional=false", "wrong_label_weight=0"],
    "conv without normalisation": ["generator.norm=none"],
    "residual": ["generator.kind=residual", "generator.width=4"],
    "subpixel": ["generator.kind=subpixel"],
    "mlp, conditional": ["generator.kind=mlp", "discriminator.kind=mlp"],
    "mlp, unconditional": ["generator.kind=mlp", "conditional=false", "wrong_label_weight=0"],
}


@pytest.mark.slow
@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_family_is_exported(overrides: list[str], tmp_path: Path) -> None:
    """Each family, conditional or not, normalised or not, trains, exports to every format, and passes parity."""
    checkpoint = make_checkpoint(tmp_path, overrides)
    artifact = build_artifact(
        checkpoint, tmp_path / "artifact", run_name="run", torchscript=True, float16=True, float_output=True
    )
    formats = {(row.format, row.batch_rows) for row in artifact.manifest.parity}
    assert formats == {(format, rows) for format in LIMITS for rows in BATCH_ROWS}
    assert Engine(artifact, device="cpu").provider == "CPUExecutionProvider"
    assert verify(str(artifact.path)).passed
    assert all(facts.multiply_adds for facts in inspect_graphs(artifact))


def test_the_article_recipe_is_exported(tmp_path: Path) -> None:
    """The seed recipe's generator, whose images are in [0, 1], is served as what it is: unconditional, 100 normals."""
    checkpoint = make_checkpoint(tmp_path, recipe="seed")
    manifest = build_artifact(checkpoint, tmp_path / "artifact", run_name="run").manifest
    assert manifest.latent.dim == 100
    assert manifest.labels is None
    assert manifest.model.image.value_range == (0.0, 1.0)


def test_pixels_are_those_of_pytorch(checkpoint: Path, artifact_path: Path) -> None:
    """The engine's pixels of the artifact are PyTorch's, within one grey level on 0.1 % of them, on rows of its own."""
    trained = load_generator(checkpoint)
    rows, labels = probes(trained.network, 300)
    rows = -rows  # other rows than the export compared
    engine = Engine(open_artifact(artifact_path), device="cpu")
    max_abs_diff, share = imaging.difference(engine.run(rows, labels), pytorch_pixels(trained.network, rows, labels))
    assert max_abs_diff <= 1
    assert share <= 1e-3


def test_manifest_tells_the_source(checkpoint: Path, artifact_path: Path) -> None:
    """The manifest names run, checkpoint, weights, data, labels and the metrics of the last step."""
    trained, manifest = load_generator(checkpoint), open_artifact(artifact_path).manifest
    assert manifest.source.run == "run"
    assert manifest.source.checkpoint == checkpoint.name
    assert manifest.source.step == 2
    assert manifest.source.weights_sha256 == trained.digest
    assert manifest.source.dataset_sha256 == trained.dataset.digest
    assert manifest.labels == tuple("0123456789")
    assert manifest.training["loss_generator"] == trained.metrics["loss_generator"]
    assert manifest.name == "data"  # the folder that it was trained on


def test_classes_keep_their_names(tmp_path: Path) -> None:
    """Labels that start at 1 and have gaps are served as 0, 1, 2, and keep their names in manifest and graph."""
    folder = write_idx_folder(tmp_path / "letters", num_classes=3)
    for split in ("train", "t10k"):
        path = folder / f"{split}-labels-idx1-ubyte"
        content = bytearray(path.read_bytes())
        content[8:] = bytes((1, 2, 26)[label] for label in content[8:])
        path.write_bytes(content)
    checkpoint = make_checkpoint(tmp_path / "run", [f"data.dir={folder}"])
    artifact = build_artifact(checkpoint, tmp_path / "artifact", run_name="run")
    assert artifact.manifest.labels == ("1", "2", "26")
    model = onnx.load_model_from_string(artifact.read(ONNX))
    assert {entry.key: entry.value for entry in model.metadata_props}["ganserve.labels"] == "1,2,26"


def test_graph_is_portable(artifact_path: Path) -> None:
    """The ONNX file is opset 20 of the standard domain alone, with weights inside and no trace of this machine."""
    content = (artifact_path / ONNX).read_bytes()
    model = onnx.load_model_from_string(content)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    assert {node.domain for node in model.graph.node} == {""}
    assert not {node.op_type for node in model.graph.node} & {"BatchNormalization", "Shape", "If", "Loop"}
    assert not any(node.metadata_props for node in model.graph.node)
    for trace in (b"/site-packages/", b"exporters/", str(Path.cwd()).encode(), b'File "'):
        assert trace not in content
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["ganserve.labels"] == "0,1,2,3,4,5,6,7,8,9"
    assert metadata["ganserve.value_range"] == "-1,1"
    assert "ganserve.dataset_license" not in metadata  # it is known of the packaged MNIST alone


def test_what_was_exported_is_verified(artifact_path: Path) -> None:
    """Every format that was written passes again without torch, what its file says of itself included."""
    found = verify(str(artifact_path))
    assert found.passed, [check for check in found.checks if check.result == "fail"]
    for file in (ONNX, ONNX_FLOAT16, ONNX_IMAGES):
        results = {check.name: check.result for check in found.checks if check.file == file}
        assert results.pop("parity") == "skip"
        assert set(results.values()) == {"pass"}
    needs = {(check.file, check.name) for check in found.checks if check.result == "skip"}
    assert {(TORCHSCRIPT, "images"), (TORCHSCRIPT, "parity")} < needs


def test_two_exports_are_the_same_bytes(checkpoint: Path, artifact_path: Path, tmp_path: Path) -> None:
    """Exporting the same checkpoint again gives the same ONNX files and golden images, byte for byte."""
    again = build_artifact(checkpoint, tmp_path / "again", run_name="run", float16=True, float_output=True)
    for name in (ONNX, ONNX_FLOAT16, ONNX_IMAGES, GOLDEN):
        assert again.read(name) == (artifact_path / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_is_exported(opset: int, checkpoint: Path, tmp_path: Path) -> None:
    """Each opset that is offered is written, passes the whole proof, and gives the images of opset 20."""
    artifact = build_artifact(checkpoint, tmp_path / "artifact", run_name="run", opset=opset, float16=True)
    for name in (ONNX, ONNX_FLOAT16):
        model = onnx.load_model_from_string(artifact.read(name))
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
        assert artifact.manifest.graphs is not None
        assert artifact.manifest.graphs[name].opset == opset


@pytest.mark.parametrize("kind", ["residual", "subpixel", "mlp"])
def test_every_family_has_the_oldest_opset(kind: str, tmp_path: Path) -> None:
    """What torch's converter to older opsets leaves behind, a Resize, is said in the oldest too."""
    overrides = [f"generator.kind={kind}", "generator.width=4"]
    artifact = build_artifact(make_checkpoint(tmp_path, overrides), tmp_path / "a", run_name="run", opset=OPSETS[0])
    model = onnx.load_model_from_string(artifact.read(ONNX))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSETS[0])]


@pytest.mark.parametrize("opset", [16, 27])
def test_other_opsets_are_refused(opset: int, checkpoint: Path, tmp_path: Path) -> None:
    """An opset that no test has run is refused before the work."""
    with pytest.raises(ExportError, match=f"opset must be 17 to 26, got {opset}"):
        build_artifact(checkpoint, tmp_path / "artifact", run_name="run", opset=opset)
    assert not (tmp_path / "artifact").exists()


def test_float16_has_the_signature_of_float32(artifact_path: Path) -> None:
    """The float16 graph takes and returns what the float32 one does, in less space, and computes in float16."""
    kept, half = (onnx.load(artifact_path / name) for name in (ONNX, ONNX_FLOAT16))
    assert list(half.graph.input) == list(kept.graph.input)
    assert list(half.graph.output) == list(kept.graph.output)
    assert (artifact_path / ONNX_FLOAT16).stat().st_size < 0.6 * (artifact_path / ONNX).stat().st_size
    floats = {tensor.data_type for tensor in half.graph.initializer if len(tensor.dims) > 1}
    assert floats == {onnx.TensorProto.FLOAT16}


def test_float16_is_served_by_the_engine(artifact_path: Path) -> None:
    """The engine runs the float16 graph when asked to, and on a CPU only then."""
    artifact = open_artifact(artifact_path)
    golden = artifact.read_golden()
    half = Engine(artifact, device="cpu", precision="float16")
    assert half.precision == "float16"
    max_abs_diff, share = imaging.difference(half.run(golden.latents, golden.labels), golden.pixels)
    assert max_abs_diff <= LIMITS[ONNX_FLOAT16].max_abs_diff
    assert 0 < share <= LIMITS[ONNX_FLOAT16].differing_share  # 0 would be float32 under another name
    assert Engine(artifact, device="cpu").precision == "float32"


def test_float_images_are_those_of_pytorch(checkpoint: Path, artifact_path: Path) -> None:
    """The graph that returns images returns float32 in the network's own range and layout."""
    network = load_generator(checkpoint).network
    rows, labels = probes(network, 100)
    session = onnxruntime.InferenceSession(artifact_path / ONNX_IMAGES, providers=["CPUExecutionProvider"])
    images = session.run(["images"], {"latents": rows, "labels": labels})[0]
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, pytorch_images(network, rows, labels), rtol=0, atol=1e-4)
    rows = [row for row in open_artifact(artifact_path).manifest.parity if row.format == ONNX_IMAGES]
    assert all(row.max_abs_error is not None and row.max_abs_error <= 1e-4 for row in rows)


def test_manifest_tells_what_a_gpu_makes_of_the_graphs(artifact_path: Path) -> None:
    """Every ONNX file's opset, nodes, islands and channels are in the manifest."""
    graphs = open_artifact(artifact_path).manifest.graphs
    assert graphs is not None
    assert set(graphs) == {ONNX, ONNX_FLOAT16, ONNX_IMAGES}
    # latents 64 -> 7 x 7 x 16, 16 -> 8 channels, 8 -> 1
    assert graphs[ONNX].channels == (64, 784, 16, 8, 8, 1)
    assert graphs[ONNX].unaligned_channels == (1,)
    assert {(spec.compute_islands, spec.newer_kernels) for spec in graphs.values()} == {(1, ())}


def test_golden_images_are_exact(artifact_path: Path) -> None:
    """On the machine that exported it, the engine gives the golden images to the last bit."""
    artifact = open_artifact(artifact_path)
    golden = artifact.read_golden()
    pixels = Engine(artifact, device="cpu").run(golden.latents, golden.labels)
    np.testing.assert_array_equal(pixels, golden.pixels)


def test_artifact_shows_itself(artifact_path: Path) -> None:
    """The artifact has a proof sheet with a row for each format and each difference, and a card with the signature."""
    sheet = Image.open(io.BytesIO((artifact_path / SAMPLES).read_bytes()))
    cell = 2 * (28 + 2)  # images at twice their size, with their gap
    assert sheet.height >= 9 * cell  # PyTorch, each of four formats, and its difference
    assert sheet.width >= 10 * cell
    card = (artifact_path / CARD).read_text()
    assert "uint8 [batch, 28, 28, 1]" in card
    assert card.count("| generator.ts |") == len(BATCH_ROWS)


def test_card_code_runs(artifact_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model card's Python example runs as it is printed and gives ten images."""
    code = (artifact_path / CARD).read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(artifact_path)
    names: dict[str, np.ndarray] = {}
    exec(code, names)
    assert names["pixels"].shape == (10, 28, 28, 1)
    assert names["pixels"].dtype == np.uint8


def test_torchscript_carries_metadata(checkpoint: Path, artifact_path: Path) -> None:
    """The TorchScript archive says which weights it was made of."""
    with zipfile.ZipFile(artifact_path / TORCHSCRIPT) as archive:
        member = next(name for name in archive.namelist() if name.endswith(METADATA_FILE))
        metadata = json.loads(archive.read(member))
    assert metadata["ganserve.weights_sha256"] == load_generator(checkpoint).digest


def test_steps_are_told(checkpoint: Path, tmp_path: Path) -> None:
    """Whoever shows progress hears of each step with its figures."""
    steps: list[Step] = []
    build_artifact(checkpoint, tmp_path / "artifact", run_name="run", on_step=steps.append)
    assert [step.name for step in steps] == ["load", "onnx", "gpu", "parity", "write"]
    assert f"PyTorch on {proof.PROBES} images at batches 1, 2, 3, 17, 64, 256" in steps[3].detail


def test_wrong_graph_leaves_no_artifact(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that computes something else is a ParityError with the numbers, and nothing is written."""
    right = build_module.export_onnx

    def wrong(*args: object) -> bytes:
        model = onnx.load_model_from_string(right(*args))  # type: ignore[arg-type]  # passed on as they came
        weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
        array = onnx.numpy_helper.to_array(weight) * 1.01
        weight.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), weight.name))
        return bytes(model.SerializeToString())

    monkeypatch.setattr(build_module, "export_onnx", wrong)
    with pytest.raises(ParityError, match="does not compute what PyTorch computes") as caught:
        build_artifact(checkpoint, tmp_path / "artifact", run_name="run")
    assert caught.value.max_abs_diff >= 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("proof_name", "fault"),
    [
        ("prove", ""),
        ("prove_labels", ""),
        ("prove_images", ""),
        ("prove_same", "images depend on the number of threads"),
        ("prove_same", "golden images are not replayed"),
    ],
)
def test_each_proof_stops_an_export(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proof_name: str, fault: str
) -> None:
    """Every proof is asked, and one that fails leaves no artifact whatever the others say."""
    right = getattr(build_module, proof_name)

    def failing(*arguments: object) -> object:
        if fault and arguments[-1] != fault:
            return right(*arguments)
        raise ParityError("not so", format=ONNX, batch_rows=1, max_abs_diff=0, differing_share=0.0)

    monkeypatch.setattr(build_module, proof_name, failing)
    with pytest.raises(ParityError, match="not so"):
        build_artifact(checkpoint, tmp_path / "artifact", run_name="run", float_output=True)
    assert list(tmp_path.iterdir()) == []


def test_existing_artifact_is_kept(artifact_path: Path, checkpoint: Path) -> None:
    """An artifact is replaced only when that was asked for."""
    before = open_artifact(artifact_path).digest
    with pytest.raises(ArtifactError, match="exists already"):
        build_artifact(checkpoint, artifact_path, run_name="run")
    assert open_artifact(artifact_path).digest == before


def test_only_artifacts_are_replaced(artifact_path: Path, checkpoint: Path, tmp_path: Path) -> None:
    """--force replaces an artifact, damaged or not, and nothing that has anything else in it."""
    web = tmp_path / "web"
    (web / "src").mkdir(parents=True)
    (web / "manifest.json").write_text('{"name": "PWA"}')
    (web / "src" / "important.txt").write_text("precious")
    with pytest.raises(ArtifactError, match="not an artifact and will not be replaced"):
        build_artifact(checkpoint, web, run_name="run", replace=True)
    assert (web / "src" / "important.txt").read_text() == "precious"

    mine = tmp_path / "mine"
    shutil.copytree(artifact_path, mine)
    (mine / ONNX).write_bytes(b"damaged")
    (mine / "notes.txt").write_text("precious")
    with pytest.raises(ArtifactError, match="not an artifact and will not be replaced"):
        build_artifact(checkpoint, mine, run_name="run", replace=True)
    (mine / "notes.txt").unlink()
    build_artifact(checkpoint, mine, run_name="run", replace=True).verify()


def test_names_are_checked_before_the_work(checkpoint: Path, tmp_path: Path) -> None:
    """A name that no URL would like is an error with an example; one made of a data set's is always good."""
    with pytest.raises(ExportError, match="up to 64 letters") as caught:
        build_artifact(checkpoint, tmp_path / "artifact", run_name="run", name="bad name")
    assert caught.value.hint == "--name digits"
    names = {"mnist": "mnist", "my data": "my-data", "_x": "x", "数字": "digits", "a" * 80: "a" * 64}
    assert {dataset: build_module.default_name(dataset) for dataset in names} == names


def test_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    """A checkpoint with a flipped byte is not exported."""
    checkpoint = make_checkpoint(tmp_path / "run")
    weights = checkpoint / "generator_ema.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"generator_ema\.safetensors"):
        build_artifact(checkpoint, tmp_path / "artifact", run_name="run")


def test_golden_latents_are_stored_plain(artifact_path: Path) -> None:
    """Golden images are stored uncompressed: loading them cannot inflate into more than their bytes."""
    with zipfile.ZipFile(artifact_path / GOLDEN) as archive:
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
