"""The artifact: what export writes and serving opens, and the only contract between the two.

A directory with `manifest.json` and the files that it lists. The manifest's own SHA-256 is the artifact's digest: it
pins every file's digest, so equal digests mean equal bytes throughout.
"""

import hashlib
import io
import json
import logging
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ganserve import atomic, onnx_reader, plain, store
from ganserve.errors import ArtifactError, NoArtifactError
from ganserve.latents import SAMPLER

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
ONNX = "generator.onnx"
ONNX_FLOAT16 = "generator.fp16.onnx"
ONNX_IMAGES = "generator.float.onnx"
TORCHSCRIPT = "generator.ts"
GOLDEN = "golden.npz"
SAMPLES = "samples.png"
CARD = "README.md"

MAX_MANIFEST_BYTES = 1 << 20
MAX_FILE_BYTES = 1 << 30  # a generator of 250 M parameters; more is not what this server is for

PRETRAINED = Path(__file__).parent / "pretrained"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]

# No folders in an artifact, so no link can stand in a path's way; nor a drive, a NUL or anything else odd in a name.
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_FAULTS = 5  # of a manifest, in one message


class _Strict(BaseModel):
    """Frozen, no unknown keys, no coercion: what is not exactly right is refused where it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ImageSpec(_Strict):
    """Size of one image, and the range of the network's images before they became pixels."""

    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    channels: Literal[1, 3]
    value_range: tuple[float, float]

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.value_range
        if not low < high:
            raise ValueError(f"value_range must rise, got {low:g} to {high:g}")
        return self


class ModelSpec(_Strict):
    """The generator that was exported."""

    generator: str
    parameters: int = Field(ge=1)
    image: ImageSpec


class LatentSpec(_Strict):
    """What the generator is fed: `dim` normals a row, made from seeds by `sampler` (ganserve.latents)."""

    dim: int = Field(ge=1, le=65536)
    distribution: Literal["normal"] = "normal"
    sampler: str


class TensorSpec(_Strict):
    """One input or output of the graph; a string in `shape` is a dimension that varies."""

    name: str
    dtype: Literal["float32", "int64", "uint8"]
    shape: tuple[str | int, ...]


class Signature(_Strict):
    """The graph's inputs and outputs, the same in every format."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class FileEntry(_Strict):
    """A file's digest and size."""

    sha256: Sha256
    bytes: int = Field(ge=0, le=MAX_FILE_BYTES)


class SourceSpec(_Strict):
    """Where the weights come from."""

    run: str
    checkpoint: str
    recipe: str
    step: int = Field(ge=0)
    images_seen: int = Field(ge=0)
    weights_sha256: Sha256
    dataset: str
    dataset_sha256: Sha256


class ParityResult(_Strict):
    """One format at one batch size against PyTorch on the same latents."""

    format: str
    batch_rows: int = Field(ge=1)
    max_abs_diff: int = Field(ge=0, le=255)
    differing_share: float = Field(ge=0, le=1)
    max_abs_error: float | None = Field(default=None, ge=0)  # of float images, in their own range


class GraphSpec(_Strict):
    """An ONNX file's graph, and what a GPU makes of it: see ganserve.fitness."""

    opset: int = Field(ge=1)
    nodes: int = Field(ge=1)
    compute_islands: int = Field(ge=1)
    newer_kernels: tuple[str, ...]
    channels: tuple[int, ...]
    unaligned_channels: tuple[int, ...]


class Manifest(_Strict):
    """`manifest.json`, schema version 1."""

    schema_version: Literal[1] = 1
    name: Name
    model: ModelSpec
    signature: Signature
    latent: LatentSpec
    labels: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=65536)
    files: Mapping[str, FileEntry]
    source: SourceSpec
    training: Mapping[str, float]
    parity: tuple[ParityResult, ...]
    graphs: Mapping[str, GraphSpec] | None = None
    quality: Mapping[str, Mapping[str, float]] | None = None
    created_at: AwareDatetime
    versions: Mapping[str, str]

    @property
    def num_classes(self) -> int | None:
        """How many labels the model takes; None when it takes none."""
        return None if self.labels is None else len(self.labels)

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """[H, W, C] of one image."""
        image = self.model.image
        return image.height, image.width, image.channels

    @model_validator(mode="after")
    def _check(self) -> Self:
        for path in self.files:
            if not _FILE_NAME.fullmatch(path):
                raise ValueError(f"files must lie in the artifact's own directory and have plain names, got {path!r}")
            if path == MANIFEST:
                raise ValueError(f"{MANIFEST} cannot list itself")
        for required in (ONNX, GOLDEN):
            if required not in self.files:
                raise ValueError(f"files must list {required}")
        if self.signature != signature_of(self.latent.dim, self.num_classes, self.pixel_shape):
            raise ValueError("signature contradicts latent, labels or model.image")
        return self


def signature_of(latent_dim: int, num_classes: int | None, pixel_shape: tuple[int, int, int]) -> Signature:
    """The signature of every generator that ganserve exports."""
    inputs = [TensorSpec(name="latents", dtype="float32", shape=("batch", latent_dim))]
    if num_classes is not None:
        inputs.append(TensorSpec(name="labels", dtype="int64", shape=("batch",)))
    output = TensorSpec(name="pixels", dtype="uint8", shape=("batch", *pixel_shape))
    return Signature(inputs=tuple(inputs), outputs=(output,))


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Fixed latents (and labels) and the exact pixels that the exported graph gave for them at export.

    Shapes: latents float32 [N, latent_dim]; labels int64 [N] or None; pixels uint8 [N, H, W, C].
    """

    latents: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64] | None
    pixels: npt.NDArray[np.uint8]

    def to_bytes(self) -> bytes:
        """An uncompressed .npz."""
        arrays: dict[str, npt.NDArray[Any]] = {"latents": self.latents, "pixels": self.pixels}
        if self.labels is not None:
            arrays["labels"] = self.labels
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name, array in sorted(arrays.items()):
                # A fixed time stamp: the same golden images are the same bytes.
                member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                content = io.BytesIO()
                np.lib.format.write_array(content, array, allow_pickle=False)
                archive.writestr(member, content.getvalue())
        return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An artifact directory whose manifest has been read and is well-formed. Files are checked as they are read."""

    path: Path
    manifest: Manifest
    digest: str

    def read(self, name: str) -> bytes:
        """The bytes of a listed file, verified: use these bytes, never the path again.

        Raises:
            ArtifactError: not listed, missing, a link, or not the bytes that the manifest pins.
        """
        entry = self.manifest.files.get(name)
        if entry is None:
            raise ArtifactError(
                f"{self.path} has no {name}; it has {', '.join(sorted(self.manifest.files))}",
                hint="export it again with that format",
            )
        content = _read_plain(self.path / name, limit=entry.bytes)
        found = hashlib.sha256(content).hexdigest()
        if len(content) != entry.bytes or found != entry.sha256:
            raise ArtifactError(
                f"{self.path / name} is not what was exported: "
                f"expected {entry.bytes} bytes with sha256 {entry.sha256}, found {len(content)} with {found}",
                hint="the file was changed or damaged: export again, or restore the artifact",
            )
        return content

    def read_onnx(self, name: str) -> tuple[bytes, onnx_reader.Model]:
        """The bytes of a listed ONNX file, fit for ONNX Runtime to open, and what is in them.

        Raises:
            ArtifactError: as of `read`; or not ONNX, or more than a generator (see `onnx_reader.read_model`), or of
                another precision than the file's name says.
        """
        content = self.read(name)
        model = onnx_reader.read_model(content, str(self.path / name))
        expected = "float16" if name == ONNX_FLOAT16 else "float32"
        if model.precision != expected:
            raise ArtifactError(f"{self.path / name} must have {expected} weights, got {model.precision}")
        return content, model

    def read_golden(self) -> Golden:
        """The golden images, with the shapes that the manifest promises.

        Raises:
            ArtifactError: damaged, or of other shapes.
        """
        content = self.read(GOLDEN)
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                members = archive.infolist()
                if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                    raise ArtifactError(f"{self.path / GOLDEN} is compressed; golden images are stored plain")
                names = [member.filename for member in members]
                if len(set(names)) < len(names):  # one reader takes the first, another the last
                    raise ArtifactError(f"{self.path / GOLDEN} has a member twice")
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                latents, pixels = arrays["latents"], arrays["pixels"]
                labels = arrays.get("labels")
            for array in (latents, pixels, *(() if labels is None else (labels,))):
                if not isinstance(array, np.ndarray):  # NumPy gives a member that it does not know as bytes
                    raise ValueError("a member is not an npy array")
        except ArtifactError:
            raise
        except Exception as err:  # zipfile and NumPy fail in many ways on a hostile file
            raise ArtifactError(f"{self.path / GOLDEN} cannot be read: {err}") from err
        count = latents.shape[0] if latents.ndim else 0
        manifest = self.manifest
        fits = (
            count > 0
            and latents.dtype == np.float32
            and latents.shape == (count, manifest.latent.dim)
            and pixels.dtype == np.uint8
            and pixels.shape == (count, *manifest.pixel_shape)
            and (labels is None) == (manifest.num_classes is None)
            and (labels is None or (labels.dtype == np.int64 and labels.shape == (count,)))
        )
        if not fits:
            raise ArtifactError(f"{self.path / GOLDEN} does not have the shapes of the manifest")
        return Golden(latents=latents, labels=labels, pixels=pixels)

    def verify(self) -> None:
        """Reads every listed file once and checks its digest.

        Raises:
            ArtifactError: the first file that is not what the manifest pins.
        """
        for name in self.manifest.files:
            self.read(name)


def open_artifact(path: Path) -> Artifact:
    """The artifact in a directory, its manifest parsed and checked.

    Raises:
        ArtifactError: no directory, no manifest, or a manifest that is not of a schema version this ganserve reads.
    """
    try:
        is_directory, has_manifest = path.is_dir(), (path / MANIFEST).exists()
    except OSError as err:  # no permission, or no path at all
        raise ArtifactError(f"cannot read {str(path)[:256]}: {err.strerror}") from err
    if not is_directory:
        raise ArtifactError(f"{path} is not an artifact directory", hint="make one with: ganserve export --onnx")
    if not has_manifest:
        raise ArtifactError(f"{path} has no {MANIFEST}", hint="make an artifact with: ganserve export --onnx")
    content = _read_plain(path / MANIFEST, limit=MAX_MANIFEST_BYTES)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as err:
        raise ArtifactError(f"{path / MANIFEST} is not JSON: {err}") from err
    version = document.get("schema_version") if isinstance(document, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:  # to Python true and 1.0 are 1, and to JSON not
        raise ArtifactError(
            f"{path / MANIFEST} has schema_version {version!r}; this ganserve reads {SCHEMA_VERSION}",
            hint="upgrade ganserve, or export again",
        )
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as err:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'manifest'}: {fault['msg']}" for fault in err.errors()[:_MAX_FAULTS]
        )
        raise ArtifactError(f"{path / MANIFEST} is not a valid manifest: {faults}") from err
    if manifest.latent.sampler != SAMPLER:
        raise ArtifactError(
            f"{path / MANIFEST} has seeds drawn by {manifest.latent.sampler!r}; this ganserve draws by {SAMPLER!r}, "
            "and one seed would not give one image",
            hint="upgrade ganserve, or export again",
        )
    return Artifact(path=path, manifest=manifest, digest=f"sha256:{hashlib.sha256(content).hexdigest()}")


def write_artifact(path: Path, manifest: Manifest, files: Mapping[str, bytes], *, replace: bool = False) -> Artifact:
    """Writes a whole artifact, or nothing.

    Args:
        path: the directory to make.
        manifest: its `files` must be `entries(files)`.
        files: name to content.
        replace: whether an artifact that is there gives way.

    Raises:
        ArtifactError: something is at `path` already, or the disk said no.
    """
    assert manifest.files == entries(files), "the manifest lists other files than are written"
    check_target(path, replace=replace)
    try:
        with atomic.directory(path, replace=replace) as temporary:
            for name, content in files.items():
                (temporary / name).write_bytes(content)
            (temporary / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as err:
        raise ArtifactError(
            f"cannot write {path}: {err}", hint="nothing was written; make room, or choose another --out"
        ) from err
    return open_artifact(path)


def check_target(path: Path, *, replace: bool) -> None:
    """Whether an artifact may be written to `path`; whoever has hours of work before writing asks first.

    Raises:
        ArtifactError: something is there that must stay, or nothing can be made there.
    """
    try:
        there = path.exists() or path.is_symlink()  # a link that leads nowhere is there too
        atomic.check_name(path)
    except OSError as err:
        raise ArtifactError(f"cannot write {str(path)[:256]}: {err.strerror}", hint="choose another --out") from err
    if there and not replace:
        raise ArtifactError(f"{path} exists already", hint="pass --force to replace it, or --out for another place")
    if there and not _is_ours(path):
        raise ArtifactError(f"{path} is not an artifact and will not be replaced", hint="choose another --out")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise ArtifactError(f"cannot write {path}: {above} is not a directory", hint="choose another --out")
    if _listed(above) is not None:
        raise ArtifactError(
            f"cannot write {path}: {above} is an artifact, which holds nothing but itself", hint="choose another --out"
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise ArtifactError(f"cannot write {path}: {above} is read-only here", hint="choose another --out")


def entries(files: Mapping[str, bytes]) -> dict[str, FileEntry]:
    """The manifest's `files` for these contents."""
    return {
        name: FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
        for name, content in files.items()
    }


def find_artifact(explicit: str | os.PathLike[str] | None = None, *, root: Path | None = None) -> tuple[Artifact, str]:
    """The artifact to use, and in words why that one.

    Args:
        explicit: a directory or `bento:NAME[:VERSION]` that somebody named (`GANSERVE_ARTIFACT`, a command's argument);
            nothing else is tried.
        root: where artifacts lie, by default `artifacts/` in the working directory; the newest by `created_at` is
            taken, and if there is none, the one that ships with ganserve.

    Raises:
        NoArtifactError: there is none.
        ArtifactError: the chosen one is broken. A broken artifact is never passed over in silence.
    """
    if explicit is not None:
        if store.is_stored(explicit):
            return open_artifact(store.resolve(explicit)), "named, in BentoML's model store"
        return open_artifact(Path(explicit)), "named"
    root = Path("artifacts") if root is None else root
    candidates = sorted(root.iterdir()) if root.is_dir() else []
    found = [
        open_artifact(candidate)
        for candidate in candidates
        if (candidate / MANIFEST).is_file() and not atomic.is_temporary(candidate)
    ]
    if found:
        newest = max(found, key=lambda artifact: artifact.manifest.created_at)
        return newest, f"the newest of {len(found)} in {root}/" if len(found) > 1 else f"the only one in {root}/"
    if (PRETRAINED / MANIFEST).is_file():
        return open_artifact(PRETRAINED), "the pretrained one that ships with ganserve"
    raise NoArtifactError(
        f"no artifact: {root.absolute()} has none",
        hint="make one with: ganserve train && ganserve export --onnx",
    )


def _is_ours(path: Path) -> bool:
    """Whether a directory holds an artifact, damaged or not, and nothing else: only that may be deleted."""
    if path.is_symlink() or not path.is_dir():
        return False
    listed = _listed(path)
    return listed is not None and all(entry.name in listed and not entry.is_dir() for entry in path.iterdir())


def _listed(path: Path) -> set[str] | None:
    """The files of the artifact in a directory, damaged or not; None where there is none."""
    try:
        document = json.loads(_read_plain(path / MANIFEST, limit=MAX_MANIFEST_BYTES))
        ours = {"schema_version", "signature", "latent"} <= document.keys()
        return {MANIFEST, *document["files"]} if ours else None
    except (ArtifactError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _read_plain(path: Path, *, limit: int) -> bytes:
    # Of the packaged artifact links are an installer's doing: uv links files from its cache.
    return plain.read_plain(path, limit=limit, error=ArtifactError, linked=path.parent == PRETRAINED)
