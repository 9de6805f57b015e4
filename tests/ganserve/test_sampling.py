import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ganserve import sampling
from ganserve.engine import Engine
from ganserve.errors import ConfigError
from ganserve.latents import draw
from ganserve.sampling import CHUNK_ROWS, Plan, parse_labels, write
from tests.artifacts import make_artifact


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A conditional model of ten classes."""
    return Engine(make_artifact(tmp_path_factory.mktemp("artifacts") / "digits"), device="cpu")


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A model without labels, of another size."""
    path = tmp_path_factory.mktemp("artifacts") / "blobs"
    return Engine(make_artifact(path, num_classes=None, height=9, width=5), device="cpu")


def ignore(rows: int) -> None:
    """Nobody watches."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0-9", tuple(range(10))),
        ("3,7", (3, 7)),
        ("3", (3,)),
        ("0-2, 9", (0, 1, 2, 9)),
        ("balanced", tuple(range(10))),
        (None, None),
    ],
)
def test_labels_are_parsed(text: str | None, expected: tuple[int, ...] | None) -> None:
    """Ranges, lists and `balanced` name classes in the order in which they are repeated."""
    assert parse_labels(text, 10) == expected


@pytest.mark.parametrize("text", ["", "10", "3-", "-3", "5-3", "a", "1,,2", "0-10", "٣", "9" * 400])
def test_wrong_labels_are_refused(text: str) -> None:
    """What names no class of the model is an error that shows what was given."""
    with pytest.raises(ConfigError, match="--labels"):
        parse_labels(text, 10)


def test_labels_need_a_conditional_model() -> None:
    """Labels for a model that takes none are an error, not ignored."""
    with pytest.raises(ConfigError, match="takes no labels"):
        parse_labels("3", None)


def test_npz_holds_the_servers_images(engine: Engine, tmp_path: Path) -> None:
    """Row i of an .npz is the engine's image for (seed, index i) and the drawn label, across chunks."""
    count = CHUNK_ROWS + 5
    write(engine, Plan(count=count, seed=7, labels=None), tmp_path / "x.npz", workers=2, on_rows=ignore)
    with np.load(tmp_path / "x.npz") as data:
        assert set(data.files) == {"pixels", "labels", "seed"}
        assert data["pixels"].dtype == np.uint8
        assert data["pixels"].shape == (count, 28, 28, 1)
        assert data["labels"].dtype == np.int64
        assert int(data["seed"]) == 7
        for index in (0, 1, CHUNK_ROWS - 1, CHUNK_ROWS, count - 1):
            rows, labels = draw(7, 1, 16, 10, start=index)
            assert labels is not None
            assert data["labels"][index] == labels[0]
            np.testing.assert_array_equal(data["pixels"][index], engine.run(rows, labels)[0])


def test_given_labels_are_repeated(engine: Engine, tmp_path: Path) -> None:
    """Given labels are repeated in turn over chunk boundaries, on the same latents as without them."""
    plan = Plan(count=CHUNK_ROWS + 4, seed=1, labels=(3, 7, 1))
    write(engine, plan, tmp_path / "x.npz", on_rows=ignore)
    with np.load(tmp_path / "x.npz") as data:
        np.testing.assert_array_equal(data["labels"], np.resize([3, 7, 1], plan.count))
        rows, _ = draw(1, 1, 16, 10, start=CHUNK_ROWS)
        expected = engine.run(rows, np.array([(3, 7, 1)[CHUNK_ROWS % 3]]))[0]
        np.testing.assert_array_equal(data["pixels"][CHUNK_ROWS], expected)


def test_unconditional_npz_has_no_labels(unconditional: Engine, tmp_path: Path) -> None:
    """A model without labels gives a data set without labels, of its own image size."""
    write(unconditional, Plan(count=3, seed=2**64 - 1, labels=None), tmp_path / "x.npz", on_rows=ignore)
    with np.load(tmp_path / "x.npz") as data:
        assert set(data.files) == {"pixels", "seed"}
        assert data["pixels"].shape == (3, 9, 5, 1)
        assert int(data["seed"]) == 2**64 - 1


def test_workers_change_nothing(engine: Engine, tmp_path: Path) -> None:
    """One worker and three write the same bytes."""
    plan = Plan(count=3 * CHUNK_ROWS + 1, seed=5, labels=None)
    write(engine, plan, tmp_path / "one.npz", workers=1, on_rows=ignore)
    write(engine, plan, tmp_path / "three.npz", workers=3, on_rows=ignore)
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "three.npz") as three:
        for name in one.files:
            np.testing.assert_array_equal(one[name], three[name])


def test_memory_is_constant(engine: Engine, tmp_path: Path) -> None:
    """Four times the images take no more memory: the data set is streamed."""

    def peak(count: int) -> int:
        tracemalloc.start()
        write(engine, Plan(count=count, seed=0, labels=None), tmp_path / f"{count}.npz", on_rows=ignore)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    small, large = peak(8 * CHUNK_ROWS), peak(32 * CHUNK_ROWS)
    assert large < small + CHUNK_ROWS * 28 * 28  # less than one more chunk, where 24 more were written


def test_sheet_has_a_column_for_each_label(engine: Engine, tmp_path: Path) -> None:
    """A sheet of given labels puts each in a column of its own; its cells are the engine's images."""
    write(engine, Plan(count=6, seed=3, labels=(4, 8, 2)), tmp_path / "x.png", on_rows=ignore)
    sheet = np.asarray(Image.open(tmp_path / "x.png"))
    assert sheet.shape == (2 * 30 + 2, 3 * 30 + 2)
    rows, _ = draw(3, 6, 16, 10)
    expected = engine.run(rows, np.array([4, 8, 2, 4, 8, 2]))
    np.testing.assert_array_equal(sheet[32:60, 62:90], expected[5, :, :, 0])


def test_sheet_has_a_limit(engine: Engine, tmp_path: Path) -> None:
    """More images than a picture can show are an error that says what to write instead."""
    with pytest.raises(ConfigError, match="at most 10,000 images") as caught:
        write(engine, Plan(count=10_001, seed=0, labels=None), tmp_path / "x.png", on_rows=ignore)
    assert caught.value.hint is not None
    assert "npz" in caught.value.hint


def test_folder_holds_one_png_an_image(engine: Engine, tmp_path: Path) -> None:
    """A folder gets a PNG for each image, named by its index and label."""
    write(engine, Plan(count=3, seed=9, labels=(5, 6)), tmp_path / "pngs", on_rows=ignore)
    assert sorted(path.name for path in (tmp_path / "pngs").iterdir()) == [
        "00000000-5.png",
        "00000001-6.png",
        "00000002-5.png",
    ]
    rows, _ = draw(9, 3, 16, 10)
    expected = engine.run(rows, np.array([5, 6, 5]))[2, :, :, 0]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "pngs" / "00000002-5.png")), expected)


def test_existing_folder_is_kept(engine: Engine, tmp_path: Path) -> None:
    """A folder that is there is not written into."""
    (tmp_path / "pngs").mkdir()
    (tmp_path / "pngs" / "mine").touch()
    with pytest.raises(ConfigError, match="exists already"):
        write(engine, Plan(count=3, seed=0, labels=None), tmp_path / "pngs", on_rows=ignore)
    assert [path.name for path in (tmp_path / "pngs").iterdir()] == ["mine"]


@pytest.mark.parametrize("out", ["x.npz", "x.png", "pngs"])
def test_failure_leaves_nothing(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    """If the session fails half-way, there is no file and no folder, half or whole."""

    def fail(start: int) -> None:
        raise RuntimeError("the machine is on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        write(engine, Plan(count=3 * CHUNK_ROWS, seed=0, labels=None), tmp_path / out, on_rows=fail)
    assert list(tmp_path.iterdir()) == []


def test_missing_directories_are_made(engine: Engine, tmp_path: Path) -> None:
    """An --out in a directory that is not there makes it; where it cannot, the error names the file."""
    plan = Plan(count=1, seed=0, labels=None)
    write(engine, plan, tmp_path / "new" / "x.npz", on_rows=ignore)
    assert (tmp_path / "new" / "x.npz").is_file()
    with pytest.raises(ConfigError, match=r"cannot write .*x\.npz/y\.npz"):
        write(engine, plan, tmp_path / "new" / "x.npz" / "y.npz", on_rows=ignore)


def test_files_are_replaced_only_when_asked(engine: Engine, tmp_path: Path) -> None:
    """A data set that is there stays, unless it was to be replaced; and that is known before the work."""
    out = tmp_path / "x.npz"
    out.write_bytes(b"hours of work")
    heard: list[int] = []
    plan = Plan(count=1, seed=0, labels=None)
    with pytest.raises(ConfigError, match="exists already") as caught:
        write(engine, plan, out, on_rows=heard.append)
    assert caught.value.hint is not None
    assert "--force" in caught.value.hint
    assert (out.read_bytes(), heard) == (b"hours of work", [])
    write(engine, plan, out, replace=True, on_rows=heard.append)
    assert heard == [1]
    with pytest.raises(ConfigError, match="never replaced"):
        write(engine, plan, tmp_path, replace=True, on_rows=heard.append)


def test_unknown_suffix_is_refused(engine: Engine, tmp_path: Path) -> None:
    """An --out of a kind that is not written is an error that names those that are."""
    with pytest.raises(ConfigError, match=r"\.png, a \.npz or a folder"):
        write(engine, Plan(count=1, seed=0, labels=None), tmp_path / "x.jpg", on_rows=ignore)


def test_rows_are_counted(engine: Engine, tmp_path: Path) -> None:
    """Whoever shows progress hears of every row once."""
    heard: list[int] = []
    write(engine, Plan(count=CHUNK_ROWS + 1, seed=0, labels=None), tmp_path / "x.npz", on_rows=heard.append)
    assert heard == [CHUNK_ROWS, 1]


def test_chunks_do_not_run_away(engine: Engine, tmp_path: Path) -> None:
    """No more chunks are made ahead of a slow writer than there are workers, plus one."""
    made: list[int] = []

    class Counting:
        manifest = engine.manifest

        def run(self, latents: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
            made.append(len(latents))
            return engine.run(latents, labels)

    chunks = sampling._chunks(Counting(), Plan(count=50 * CHUNK_ROWS, seed=0, labels=None), 2, ignore, as_png=False)  # type: ignore[arg-type]  # all that it needs of an engine
    next(chunks)
    assert len(made) <= 4  # the one taken, and three ahead of it
    chunks.close()
