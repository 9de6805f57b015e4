import datetime
import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ganserve import artifact as artifact_module
from ganserve import imaging, latents
from ganserve.artifact import (
    CARD,
    GOLDEN,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    ONNX,
    Artifact,
    Golden,
    check_target,
    entries,
    find_artifact,
    open_artifact,
    signature_of,
    write_artifact,
)
from ganserve.engine import Engine
from ganserve.errors import ArtifactError, NoArtifactError
from tests.artifacts import make_artifact

_GOLDEN_V1 = Path(__file__).parents[1] / "golden" / "artifact-v1"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """One small artifact; tests that spoil one take `made`."""
    return make_artifact(tmp_path_factory.mktemp("pristine") / "a", latent_dim=4, num_classes=3, height=8, width=8)


@pytest.fixture
def made(pristine, tmp_path):
    """A copy of it to spoil."""
    return Path(shutil.copytree(pristine.path, tmp_path / "a"))


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the manifest as JSON."""
    document = json.loads((path / MANIFEST).read_bytes())
    change(document)
    (path / MANIFEST).write_text(json.dumps(document))


def _put(path: Path, name: str, content: bytes) -> Artifact:
    """Puts a file into an artifact with the digest that fits: damage that no digest catches."""
    (path / name).write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    _edit(path, lambda document: document["files"].update({name: entry}))
    return open_artifact(path)


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=True)
    return stream.getvalue()


def _npz(members: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


# The golden artifact of schema version 1.


def test_golden_v1_is_readable_for_ever():
    """The version-1 artifact in tests/golden opens, is the one that was committed, and all its files verify."""
    artifact = open_artifact(_GOLDEN_V1)
    assert artifact.digest == "sha256:b4d4c347b468d9474ab9b0a5a9044b191536e07335f185c6cb8317adfdb62c94"
    artifact.verify()
    manifest = artifact.manifest
    assert (manifest.schema_version, manifest.name, manifest.num_classes) == (1, "golden-v1", 3)
    assert (manifest.latent.dim, manifest.pixel_shape) == (4, (8, 8, 1))
    assert manifest.quality == {"generator.onnx": {"fid": 1.5}}
    assert manifest.created_at == datetime.datetime(2026, 1, 1, 12, 30, tzinfo=datetime.UTC)


def test_golden_v1_is_reproduced():
    """The engine makes its golden images from seed 1, so neither the graph's meaning nor the latents' has moved."""
    artifact = open_artifact(_GOLDEN_V1)
    golden = artifact.read_golden()
    rows, labels = latents.draw(1, 16, 4, 3)
    assert labels.tolist() == golden.labels.tolist()
    max_abs_diff, share = imaging.difference(Engine(artifact, device="cpu").run(rows, labels), golden.pixels)
    assert max_abs_diff <= 1
    assert share <= 0.001


# Round trip.


def test_what_is_written_is_read(tmp_path):
    """Manifest, files and golden images come back as they were given."""
    written = make_artifact(tmp_path / "a", latent_dim=4, num_classes=3, height=8, width=8)
    read = open_artifact(tmp_path / "a")
    assert read.manifest == written.manifest
    assert sorted(path.name for path in read.path.iterdir()) == sorted([MANIFEST, ONNX, GOLDEN, CARD])
    assert read.read(CARD) == b"# A generator made by hand\n"
    golden = read.read_golden()
    assert golden.latents.tobytes() == latents.draw(1, 16, 4, 3)[0].tobytes()
    assert golden.pixels.shape == (16, 8, 8, 1)
    read.verify()


def test_unconditional_artifact_has_no_labels(tmp_path):
    """Without classes, manifest, signature and golden images speak of no labels."""
    artifact = make_artifact(tmp_path / "a", num_classes=None)
    assert artifact.manifest.num_classes is None
    assert [spec.name for spec in artifact.manifest.signature.inputs] == ["latents"]
    assert artifact.read_golden().labels is None


def test_digest_is_that_of_the_manifest(made):
    """The artifact's digest is its manifest's SHA-256, and pins every file through it."""
    content = (made / MANIFEST).read_bytes()
    assert open_artifact(made).digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    before = open_artifact(made).digest
    assert _put(made, CARD, b"changed").digest != before


def test_same_golden_images_are_the_same_bytes():
    """Golden files carry no time stamp."""
    arrays = Golden(
        latents=np.zeros((2, 4), np.float32), labels=np.zeros(2, np.int64), pixels=np.zeros((2, 8, 8, 1), np.uint8)
    )
    assert arrays.to_bytes() == arrays.to_bytes()
    with np.load(io.BytesIO(arrays.to_bytes())) as read:
        assert sorted(read.files) == ["labels", "latents", "pixels"]


# Writing.


def test_existing_artifact_is_not_replaced_unasked(made, pristine):
    """Writing where an artifact is needs `replace`."""
    files = {name: pristine.read(name) for name in pristine.manifest.files}
    with pytest.raises(ArtifactError, match="exists already") as caught:
        write_artifact(made, pristine.manifest, files)
    assert "--force" in caught.value.hint
    changed = {**files, CARD: b"new"}
    manifest = pristine.manifest.model_copy(update={"files": entries(changed)})
    assert write_artifact(made, manifest, changed, replace=True).read(CARD) == b"new"


def test_what_is_not_an_artifact_is_never_replaced(tmp_path, pristine):
    """`replace` does not remove somebody's folder that only has the name."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_bytes(b"")
    files = {name: pristine.read(name) for name in pristine.manifest.files}
    with pytest.raises(ArtifactError, match="is not an artifact and will not be replaced"):
        write_artifact(tmp_path / "thesis", pristine.manifest, files, replace=True)
    assert (tmp_path / "thesis" / "chapter").exists()


def test_where_nothing_can_be_made_is_told_before_the_work(tmp_path, monkeypatch):
    """A file in the way, a link that leads nowhere and a read-only folder are found without writing anything."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match="file is not a directory"):
        check_target(tmp_path / "file" / "deep" / "digits", replace=True)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="exists already"):
        check_target(tmp_path / "link", replace=False)
    with pytest.raises(ArtifactError, match="is not an artifact"):
        check_target(tmp_path / "link", replace=True)
    check_target(tmp_path / "deep" / "digits", replace=False)
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)  # root may write anywhere
    with pytest.raises(ArtifactError, match="is read-only here"):
        check_target(tmp_path / "deep" / "digits", replace=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_nothing_is_written_into_an_artifact(made, pristine):
    """An artifact holds nothing but itself: with another one inside it could not be replaced any more."""
    for inside in (made / "other", made / "deep" / "other"):
        with pytest.raises(ArtifactError, match="is an artifact, which holds nothing but itself"):
            check_target(inside, replace=False)
    check_target(made, replace=True)


def test_name_that_no_disk_takes_is_an_error(tmp_path):
    """A name beyond what a file may have is an error of ours, before the work."""
    with pytest.raises(ArtifactError, match=r"cannot write .*: File name too long"):
        check_target(tmp_path / ("x" * 300), replace=False)
    with pytest.raises(ArtifactError, match=r"cannot write .*: File name too long"):
        check_target(tmp_path / ("x" * 250), replace=False)  # its temporary neighbour has a longer name


def test_full_disk_leaves_nothing(tmp_path, pristine, monkeypatch):
    """When the disk is full, there is no artifact and no half of one."""

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    files = {name: pristine.read(name) for name in pristine.manifest.files}
    with pytest.raises(ArtifactError, match=r"cannot write .*No space left"):
        write_artifact(tmp_path / "a", pristine.manifest, files)
    assert not list(tmp_path.iterdir())


# Damage to files.


@pytest.mark.parametrize("name", [MANIFEST, ONNX, GOLDEN])
def test_hard_link_is_refused(made, tmp_path, name):
    """A file that has a second name elsewhere could be changed through it, so it is not read; a copy is."""
    os.link(made / name, tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=rf"{name} has 2 names \(hard links\)"):
        open_artifact(made).verify()
    open_artifact(Path(shutil.copytree(made, tmp_path / "copy"))).verify()


def test_installer_may_link_the_pretrained_artifact(made, tmp_path, monkeypatch):
    """An installer such as uv hard-links packages into its cache: the artifact that ships with ganserve still opens."""
    monkeypatch.setattr(artifact_module, "PRETRAINED", made)
    for path in list(made.iterdir()):
        os.link(path, tmp_path / path.name)
    find_artifact(root=tmp_path / "none")[0].verify()


@pytest.mark.parametrize("name", [ONNX, GOLDEN, CARD])
def test_one_flipped_bit_is_found(made, name):
    """A single flipped bit in any listed file is named, with both digests."""
    content = bytearray((made / name).read_bytes())
    content[len(content) // 2] ^= 1
    (made / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name} is not what was exported: expected .* found .*") as caught:
        open_artifact(made).verify()
    assert caught.value.hint is not None


def test_truncated_file_is_found(made):
    """A file that lost its last byte is not read."""
    (made / ONNX).write_bytes((made / ONNX).read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=f"{ONNX} is not what was exported"):
        open_artifact(made).read(ONNX)


def test_grown_file_is_not_even_read(made):
    """A file with more bytes than the manifest says is refused by its size."""
    with (made / ONNX).open("ab") as file:
        file.write(b"x" * 10)
    with pytest.raises(ArtifactError, match=r"has \d+ bytes, at most \d+ are expected"):
        open_artifact(made).read(ONNX)


def test_missing_file_is_named(made):
    """A listed file that is not there is named."""
    (made / GOLDEN).unlink()
    with pytest.raises(ArtifactError, match=f"cannot read .*{GOLDEN}: No such file"):
        open_artifact(made).verify()


def test_unlisted_file_is_not_read(made):
    """A file beside the listed ones is none of the artifact's."""
    (made / "extra.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"has no extra\.onnx; it has README\.md, generator\.onnx, golden\.npz"):
        open_artifact(made).read("extra.onnx")


def test_symbolic_link_is_refused(made, tmp_path):
    """A link is refused even when it points at the right bytes."""
    (made / ONNX).rename(tmp_path / "elsewhere")
    (made / ONNX).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="it is a symbolic link"):
        open_artifact(made).read(ONNX)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", [ONNX, MANIFEST])
def test_named_pipe_is_refused_at_once(made, name):
    """A named pipe is refused; opening it does not wait for a writer."""
    (made / name).unlink()
    os.mkfifo(made / name)
    with pytest.raises(ArtifactError, match="is not a regular file"):
        open_artifact(made).read(name)


def test_directory_in_place_of_a_file_is_refused(made):
    """A directory with a file's name is not a file."""
    (made / ONNX).unlink()
    (made / ONNX).mkdir()
    with pytest.raises(ArtifactError, match="is not a regular file"):
        open_artifact(made).read(ONNX)


# Bad manifests.


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a/b",
        "./x",
        "a//b",
        "..",
        ".",
        "",
        "a\\b",
        "C:x",
        "x\0y",
        ".hidden",
        "x\n",
        "é",
        "x" * 200,
    ],
)
def test_path_that_could_leave_the_artifact_is_refused(made, path):
    """A file's path is one plain name: nothing absolute, nothing above, no folder that might be a link."""
    _edit(made, lambda document: document["files"].update({path: {"sha256": "0" * 64, "bytes": 1}}))
    with pytest.raises(ArtifactError, match="files must lie in the artifact's own directory"):
        open_artifact(made)


def test_manifest_cannot_list_itself(made):
    """No file can hold its own digest."""
    _edit(made, lambda document: document["files"].update({MANIFEST: {"sha256": "0" * 64, "bytes": 1}}))
    with pytest.raises(ArtifactError, match="cannot list itself"):
        open_artifact(made)


@pytest.mark.parametrize("required", [ONNX, GOLDEN])
def test_required_files_are_listed(made, required):
    """The graph and its golden images are what makes an artifact servable."""
    _edit(made, lambda document: document["files"].pop(required))
    with pytest.raises(ArtifactError, match=f"files must list {required}"):
        open_artifact(made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(colour="red"), "colour: Extra inputs are not permitted"),
        (lambda d: d["model"].update(depth=3), "model.depth: Extra inputs"),
        (lambda d: d.pop("latent"), "latent: Field required"),
        (lambda d: d.update(name="../x"), "name: String should match pattern"),
        (lambda d: d["latent"].update(dim="4"), "latent.dim: Input should be a valid integer"),
        (lambda d: d["latent"].update(dim=True), "latent.dim: Input should be a valid integer"),
        (lambda d: d["latent"].update(dim=0), "latent.dim: Input should be greater than or equal to 1"),
        (lambda d: d["latent"].update(dim=10**400), "is not"),
        (lambda d: d["latent"].update(dim=5), "signature contradicts"),
        (lambda d: d.update(labels=None), "signature contradicts"),
        (lambda d: d["model"]["image"].update(height=9), "signature contradicts"),
        (lambda d: d["model"]["image"].update(channels=2), "model.image.channels"),
        (lambda d: d["model"]["image"].update(value_range=[0.0, 0.0]), "value_range must rise, got 0 to 0"),
        (lambda d: d["model"]["image"].update(value_range=[1.0, -1.0]), "value_range must rise, got 1 to -1"),
        (lambda d: d["signature"]["outputs"].clear(), "signature contradicts"),
        (lambda d: d["files"][ONNX].update(sha256="xyz"), "files.generator.onnx.sha256"),
        (lambda d: d["files"][ONNX].update(bytes=-1), "files.generator.onnx.bytes"),
        (lambda d: d["files"][ONNX].update(bytes=2**40), "files.generator.onnx.bytes"),
        (lambda d: d.update(created_at="2026-01-01T00:00:00"), "created_at: Input should have timezone info"),
        (lambda d: d["training"].update(loss=float("nan")), "is not"),
        (lambda d: d["latent"].update(sampler="mt19937/1"), "seeds drawn by 'mt19937/1'"),
    ],
)
def test_wrong_manifest_is_refused_with_the_place(made, change, message):
    """A manifest that is not exactly right is refused, and the message names the key."""
    _edit(made, change)
    with pytest.raises(ArtifactError, match=message):
        open_artifact(made)


def test_thousands_of_faults_are_a_short_message(made):
    """A manifest that is wrong in 10,000 places does not fill the log."""
    _edit(made, lambda document: document.update({f"x{index}": 1 for index in range(10_000)}))
    with pytest.raises(ArtifactError, match="x0: Extra inputs") as caught:
        open_artifact(made)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("version", [2, 0, -1, "1", None, [], 10**30, True, 1.0])
def test_other_schema_versions_are_refused_with_advice(made, version):
    """A manifest of another schema version says which, and what to do, whatever else it holds."""
    (made / MANIFEST).write_text(json.dumps({"schema_version": version, "all": "different"}))
    with pytest.raises(ArtifactError, match=r"has schema_version .*; this ganserve reads 1") as caught:
        open_artifact(made)
    assert caught.value.hint == "upgrade ganserve, or export again"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"\x00" * 100, "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a":' * 100_000, "is not JSON"),
        (b"9" * 10_000, "is not JSON"),
        (b"[]", "has schema_version None"),
        (b'"text"', "has schema_version None"),
        (b"null", "has schema_version None"),
        (b'{"schema_version": 1}', "is not a valid manifest"),
    ],
)
def test_what_is_no_manifest_is_refused(made, content, message):
    """Broken, nested or foreign JSON is an error of ours, not a crash."""
    (made / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        open_artifact(made)


def test_utf16_manifest_is_refused(made):
    """A manifest is UTF-8, though Python's JSON would read others."""
    (made / MANIFEST).write_bytes((made / MANIFEST).read_text().encode("utf-16"))
    with pytest.raises(ArtifactError, match="is not a valid manifest"):
        open_artifact(made)


def test_oversize_manifest_is_not_read(made):
    """A manifest above a megabyte is refused by its size."""
    with (made / MANIFEST).open("ab") as file:
        file.write(b" " * MAX_MANIFEST_BYTES)
    with pytest.raises(ArtifactError, match=f"at most {MAX_MANIFEST_BYTES} are expected"):
        open_artifact(made)


def test_linked_manifest_is_refused(made, tmp_path):
    """The manifest is no link either."""
    (made / MANIFEST).rename(tmp_path / "m")
    (made / MANIFEST).symlink_to(tmp_path / "m")
    with pytest.raises(ArtifactError, match="it is a symbolic link"):
        open_artifact(made)


@pytest.mark.parametrize(("name", "message"), [("nowhere", "is not an artifact directory"), ("x" * 300, "cannot read")])
def test_no_directory_is_said(tmp_path, name, message):
    """A path that is no directory, or cannot be one, is refused."""
    with pytest.raises(ArtifactError, match=message):
        open_artifact(tmp_path / name)


def test_empty_directory_is_no_artifact(tmp_path):
    """A directory without a manifest says how to make one."""
    with pytest.raises(ArtifactError, match=r"has no manifest\.json") as caught:
        open_artifact(tmp_path)
    assert "ganserve export" in caught.value.hint


# Bad golden images, with digests that fit.


def _golden(**changes: np.ndarray | None) -> bytes:
    """Golden images of the fixture's shapes, with changes; None leaves an array out."""
    arrays: dict[str, np.ndarray | None] = {
        "latents": np.zeros((2, 4), np.float32),
        "labels": np.zeros(2, np.int64),
        "pixels": np.zeros((2, 8, 8, 1), np.uint8),
    }
    arrays.update(changes)
    return _npz({f"{name}.npy": _npy(array) for name, array in arrays.items() if array is not None})


def test_golden_helper_makes_readable_files(made):
    """The tests below fail for the reason they name: unchanged, their file is read."""
    assert len(_put(made, GOLDEN, _golden()).read_golden().latents) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"latents": np.zeros((2, 5), np.float32)},
        {"latents": np.zeros((3, 4), np.float32)},
        {"latents": np.zeros((2, 4), np.float64)},
        {"latents": np.zeros((2, 4), ">f4")},
        {
            "latents": np.zeros((0, 4), np.float32),
            "labels": np.zeros(0, np.int64),
            "pixels": np.zeros((0, 8, 8, 1), "u1"),
        },
        {"latents": np.float32(1.0)},
        {"labels": None},
        {"labels": np.zeros(3, np.int64)},
        {"labels": np.zeros(2, np.int32)},
        {"labels": np.zeros((2, 1), np.int64)},
        {"pixels": np.zeros((2, 8, 8), np.uint8)},
        {"pixels": np.zeros((2, 8, 8, 3), np.uint8)},
        {"pixels": np.zeros((2, 8, 8, 1), np.int8)},
    ],
)
def test_golden_of_other_shapes_is_refused(made, changes):
    """Golden arrays of another shape, type or count than the manifest's are refused."""
    artifact = _put(made, GOLDEN, _golden(**changes))
    with pytest.raises(ArtifactError, match="does not have the shapes of the manifest"):
        artifact.read_golden()


def test_golden_labels_of_an_unconditional_model_are_refused(tmp_path):
    """A model without labels has no golden labels."""
    made = make_artifact(tmp_path / "a", latent_dim=4, num_classes=None, height=8, width=8)
    artifact = _put(made.path, GOLDEN, _golden())
    with pytest.raises(ArtifactError, match="does not have the shapes"):
        artifact.read_golden()


def test_compressed_golden_is_refused(made):
    """A zip bomb is refused before anything is inflated."""
    bomb = _npz({"latents.npy": b"\0" * (64 << 20)}, compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 1 << 20
    artifact = _put(made, GOLDEN, bomb)
    with pytest.raises(ArtifactError, match="is compressed"):
        artifact.read_golden()


def test_golden_members_are_there_once(made):
    """A zip archive can hold two members of one name, and readers differ in which they take."""
    content = io.BytesIO((made / GOLDEN).read_bytes())
    with zipfile.ZipFile(content, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("latents.npy", archive.read("latents.npy"))
    artifact = _put(made, GOLDEN, content.getvalue())
    with pytest.raises(ArtifactError, match=r"golden\.npz has a member twice"):
        artifact.read_golden()


def test_pickled_golden_is_refused_and_not_run(made, tmp_path):
    """An array of objects is a pickle: it is refused, and its code does not run."""

    class Evil:
        def __reduce__(self):
            return (Path.write_bytes, (tmp_path / "owned", b""))

    evil = np.empty(2, dtype=object)
    evil[0] = Evil()
    artifact = _put(made, GOLDEN, _golden(latents=evil))
    with pytest.raises(ArtifactError, match="cannot be read: Object arrays"):
        artifact.read_golden()
    assert not (tmp_path / "owned").exists()


def _header(text: str) -> bytes:
    """An npy file that is nothing but this header."""
    body = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 not a zip",
        _npz({}),
        _npz({"latents.npy": b"not npy", "pixels.npy": b"", "labels.npy": b""}),
        _npz({"latents.npy": _header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000, 4)}")}),
        _npz({"latents.npy": _header("(" * 9000)}),
        _npz({"latents.npy": _header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}")}),
    ],
    ids=["empty", "no zip", "no members", "no npy", "4 PB", "nested header", "negative shape"],
)
def test_unreadable_golden_is_refused(made, content):
    """Whatever is wrong with the file, it is an error of ours, and nothing huge is allocated."""
    artifact = _put(made, GOLDEN, content)
    with pytest.raises(ArtifactError, match="cannot be read"):
        artifact.read_golden()


# Which artifact.


def _at(path: Path, day: int) -> Artifact:
    return make_artifact(
        path,
        latent_dim=2,
        num_classes=None,
        height=2,
        width=2,
        created_at=datetime.datetime(2026, 1, day, tzinfo=datetime.UTC),
    )


def test_named_artifact_is_taken_and_nothing_else(tmp_path):
    """A named directory is the one; when it is none, the newest is not taken in its place."""
    _at(tmp_path / "artifacts" / "new", 2)
    old = _at(tmp_path / "old", 1)
    assert find_artifact(tmp_path / "old", root=tmp_path / "artifacts") == (old, "named")
    with pytest.raises(ArtifactError, match="nowhere is not an artifact directory"):
        find_artifact(tmp_path / "nowhere", root=tmp_path / "artifacts")


def test_newest_is_by_creation_not_by_name_or_file_time(tmp_path):
    """The newest by the manifest's own `created_at` is taken, and the reason says among how many."""
    newest = _at(tmp_path / "b", 3)
    _at(tmp_path / "a", 1)
    _at(tmp_path / "c", 2)
    found, reason = find_artifact(root=tmp_path)
    assert found.path == newest.path
    assert reason == f"the newest of 3 in {tmp_path}/"


def test_only_one_says_so(tmp_path):
    """With one artifact the reason says that it is the only one."""
    _at(tmp_path / "a", 1)
    assert find_artifact(root=tmp_path)[1] == f"the only one in {tmp_path}/"


def test_neighbours_and_strangers_are_passed_over(tmp_path):
    """An unfinished neighbour, a folder without a manifest and a file are not candidates."""
    good = _at(tmp_path / "good", 1)
    _at(tmp_path / "x", 2)
    (tmp_path / "x").rename(tmp_path / f".x.tmp-{os.getpid()}-0123abcd")
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").write_bytes(b"")
    assert find_artifact(root=tmp_path)[0].path == good.path


def test_broken_artifact_is_an_error(tmp_path):
    """A broken artifact among good ones is never passed over in silence: it may be the one that was meant."""
    _at(tmp_path / "good", 1)
    _at(tmp_path / "broken", 2)
    (tmp_path / "broken" / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match=r"broken/manifest\.json is not JSON"):
        find_artifact(root=tmp_path)


@pytest.mark.parametrize("exists", [False, True])
def test_no_artifact_says_what_to_type(tmp_path, monkeypatch, exists):
    """With no artifact anywhere the error says where it looked and how to make one."""
    monkeypatch.setattr(artifact_module, "PRETRAINED", tmp_path / "none")
    root = tmp_path / "artifacts"
    if exists:
        root.mkdir()
    with pytest.raises(NoArtifactError, match=f"no artifact: {root} has none") as caught:
        find_artifact(root=root)
    assert "ganserve train" in caught.value.hint


def test_pretrained_is_the_last_resort(tmp_path, monkeypatch):
    """The artifact that ships with ganserve is taken when there is no other, and only then."""
    pretrained = _at(tmp_path / "shipped", 9)
    monkeypatch.setattr(artifact_module, "PRETRAINED", pretrained.path)
    found, reason = find_artifact(root=tmp_path / "artifacts")
    assert found.path == pretrained.path
    assert "ships with ganserve" in reason
    _at(tmp_path / "artifacts" / "own", 1)
    assert find_artifact(root=tmp_path / "artifacts")[0].path == tmp_path / "artifacts" / "own"


def test_working_directory_is_where_it_looks(tmp_path, monkeypatch):
    """Without a root it is artifacts/ in the working directory."""
    _at(tmp_path / "artifacts" / "a", 1)
    monkeypatch.chdir(tmp_path)
    assert find_artifact()[0].path == Path("artifacts/a")


def test_signature_names_what_varies():
    """The signature has one varying dimension, the batch, and labels only with classes."""
    conditional = signature_of(64, 10, (28, 28, 1))
    assert [(spec.name, spec.dtype, spec.shape) for spec in (*conditional.inputs, *conditional.outputs)] == [
        ("latents", "float32", ("batch", 64)),
        ("labels", "int64", ("batch",)),
        ("pixels", "uint8", ("batch", 28, 28, 1)),
    ]
    assert [spec.name for spec in signature_of(64, None, (28, 28, 1)).inputs] == ["latents"]
