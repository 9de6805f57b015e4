"""BentoML's model store: where `bento:NAME[:VERSION]` in place of an artifact's directory points.

A version is the start of the artifact's digest, so one content has one tag and storing it again changes nothing.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from ganserve.errors import ArtifactError

PREFIX = "bento:"
_VERSION_DIGITS = 16


def is_stored(reference: str | os.PathLike[str]) -> bool:
    """Whether this names a model in the store and not a directory."""
    return os.fspath(reference).startswith(PREFIX)


def resolve(reference: str | os.PathLike[str]) -> Path:
    """The directory of the model that `bento:NAME[:VERSION]` names; without a version, of the latest one stored.

    Raises:
        ArtifactError: no such model; the hint lists those that are there.
    """
    import bentoml  # seconds to import, and few commands need it
    from bentoml.exceptions import BentoMLException

    tag = os.fspath(reference).removeprefix(PREFIX)
    try:
        return Path(bentoml.models.get(tag).path)
    except (BentoMLException, ValueError) as err:
        stored = ", ".join(sorted(f"{PREFIX}{model.tag}" for model in bentoml.models.list()))
        hint = f"the store has {stored}" if stored else "the store is empty: ganserve export --onnx --bentoml NAME"
        raise ArtifactError(f"BentoML's model store has no {tag!r}", hint=hint) from err


def check_name(name: str) -> None:
    """Whether BentoML takes this name; asked before the work.

    Raises:
        ArtifactError: it does not.
    """
    import bentoml
    from bentoml.exceptions import BentoMLException

    try:
        if bentoml.Tag(name, None).name != name:
            raise ValueError("lower-case letters are expected")
    except (BentoMLException, ValueError) as err:
        raise ArtifactError(
            f"{name!r} cannot name a BentoML model: {err}", hint="use lower-case letters, digits, - _ and ."
        ) from err


def save(directory: Path, files: Iterable[str], *, name: str, digest: str, labels: Mapping[str, str]) -> str:
    """Copies an artifact into the store; the same content again gives the tag that is there.

    Args:
        directory: the artifact's.
        files: what to copy of it, the manifest included.
        name: the model's.
        digest: the artifact's, `sha256:...`.
        labels: what BentoML lists beside the model.

    Returns:
        `NAME:VERSION`.

    Raises:
        ArtifactError: a name that BentoML does not take, or the disk said no.
    """
    import bentoml
    from bentoml.exceptions import NotFound

    check_name(name)
    tag = f"{name}:{digest.removeprefix('sha256:')[:_VERSION_DIGITS]}"
    try:
        return str(bentoml.models.get(tag).tag)
    except NotFound:
        pass
    try:
        with bentoml.models.create(tag, labels=dict(labels), metadata={"digest": digest}) as model:
            for file in files:
                shutil.copyfile(directory / file, Path(model.path) / file)
    except OSError as err:
        raise ArtifactError(f"cannot store {tag}: {err}", hint=f"the artifact itself is in {directory}") from err
    return tag
