import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from ganserve.errors import CheckpointError, ConfigError, RunError
from training import run_dir
from training.config import TrainingConfig, load_recipe
from training.loop import train

MakeConfig = Callable[..., TrainingConfig]


def make_run(runs: Path, name: str, age_s: int) -> Path:
    """A run that was last written to `age_s` ago."""
    run = runs / name
    run.mkdir(parents=True)
    run_dir.write_config(run, load_recipe("quick"))
    run_dir.append_metrics(run, {"step": 1})
    for file in run.iterdir():
        os.utime(file, (1e9 - age_s, 1e9 - age_s))
    return run


def test_runs_are_numbered_by_recipe(tmp_path: Path) -> None:
    """The next run is one more than the largest number, whatever else is in the folder, or one without a folder."""
    assert run_dir.new_run(tmp_path / "runs", "quick").name == "quick-1"
    for name in ("quick-2", "quick-10", "quick-mine", "seed-30", "quick-slow-40"):
        (tmp_path / name).mkdir()
    assert run_dir.new_run(tmp_path, "quick").name == "quick-11"


def test_two_runs_at_once_get_two_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes the directory has the number: one that another process took in between is passed over."""
    numbered, raced = run_dir.new_run, False

    def slow(runs: Path, recipe: str) -> Path:
        nonlocal raced
        run = numbered(runs, recipe)
        if not raced:
            raced = True
            run.mkdir(parents=True)  # by the other process, after this one had looked
        return run

    monkeypatch.setattr(run_dir, "new_run", slow)
    with run_dir.claimed_run(tmp_path / "runs", "quick") as run:
        assert run.name == "quick-2"
        assert run.is_dir()


def test_a_number_is_given_back_unused(tmp_path: Path) -> None:
    """A run that could not start leaves nothing; one that has written something stays; no place is a named error."""
    with pytest.raises(RunError, match="too bad"), run_dir.claimed_run(tmp_path / "runs", "quick"):
        raise RunError("too bad")
    assert list(tmp_path.iterdir()) == []
    with run_dir.claimed_run(tmp_path / "runs", "quick") as run:
        (run / "config.json").touch()
    assert run.is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file cannot be written"), run_dir.claimed_run(tmp_path / "file", "quick"):
        pass


def test_the_newest_run_is_the_one_written_to_last(tmp_path: Path) -> None:
    """Not the one with the last name; a folder that is no run is not considered."""
    make_run(tmp_path, "quick-2", age_s=50)
    newest = make_run(tmp_path, "quick-1", age_s=10)
    (tmp_path / "notes").mkdir()
    assert run_dir.newest_run(tmp_path) == newest
    assert run_dir.resolve_run(None, tmp_path) == newest
    with pytest.raises(RunError, match="there is no run in") as caught:
        run_dir.newest_run(tmp_path / "notes")
    assert caught.value.hint == "ganserve train"


def test_a_run_is_meant_by_name_or_by_path(tmp_path: Path) -> None:
    """A name in the runs folder, or a path; anything else lists the names there are, the newest first."""
    run = make_run(tmp_path / "runs", "quick-1", age_s=0)
    make_run(tmp_path / "runs", "seed-1", age_s=9)
    assert run_dir.resolve_run("quick-1", tmp_path / "runs") == run
    assert run_dir.resolve_run(str(run), tmp_path / "elsewhere") == run
    with pytest.raises(RunError, match="there is no run 'quick-3'") as caught:
        run_dir.resolve_run("quick-3", tmp_path / "runs")
    assert caught.value.hint == "there are quick-1, seed-1"


def measured(
    monkeypatch: pytest.MonkeyPatch, run: Path, fids: dict[int, float | None], images: dict[int, int] | None = None
) -> None:
    """Makes checkpoints of these steps, each intact, with this FID of so many images (5,000 unless told)."""
    for step in fids:
        run_dir.checkpoint_path(run, step).mkdir(parents=True)

    def verify(path: Path) -> SimpleNamespace:
        step = int(path.name.removeprefix("step-"))
        log = load_recipe("quick", [f"log.evaluate_images={(images or {}).get(step, 5000)}"]).log
        metrics = {} if fids[step] is None else {"fid": fids[step]}
        return SimpleNamespace(step=step, metrics=metrics, config=SimpleNamespace(log=log))

    monkeypatch.setattr(run_dir, "verify_checkpoint", verify)


def test_the_best_checkpoint_is_that_of_least_fid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it stands; a resume goes on after the latest all the same."""
    measured(monkeypatch, tmp_path, {10: 3.0, 20: 0.25, 30: 0.5})
    best, why = run_dir.best_checkpoint(tmp_path)
    assert (best.name, why) == ("step-00000020", "best, step 20, FID 0.25 of 5,000 images")
    assert run_dir.latest_checkpoint(tmp_path)[0].name == "step-00000030"


def test_fids_that_were_measured_otherwise_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fewer images it reads higher; and where the latest has none, the latest it is."""
    measured(monkeypatch, tmp_path / "a", {10: 0.1, 20: 0.4, 30: 0.5}, images={10: 50_000})
    assert run_dir.best_checkpoint(tmp_path / "a")[0].name == "step-00000020"
    measured(monkeypatch, tmp_path / "b", {10: 0.1, 20: None}, images={20: 0})
    assert run_dir.best_checkpoint(tmp_path / "b")[1] == "latest, step 20"


def test_the_best_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the latest ones that are kept, however long ago it was."""
    measured(monkeypatch, tmp_path, {10: 3.0, 20: 0.25, 30: 0.5, 40: 0.6, 50: 0.3})
    run_dir.remove_old_checkpoints(tmp_path, 2, newest=run_dir.checkpoint_path(tmp_path, 50))
    assert [path.name for path in run_dir.checkpoints(tmp_path)] == ["step-00000020", "step-00000040", "step-00000050"]


def test_without_fid_the_latest_intact_checkpoint_is_the_best(
    make_config: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged one is named in the log and the one before it is used; with none intact, that is the error."""
    run = train(make_config(), tmp_path / "run").run
    older, newer = run_dir.checkpoints(run)
    assert run_dir.best_checkpoint(run) == (newer, "latest, step 4")
    (newer / "discriminator.safetensors").write_bytes(b"damage")
    assert run_dir.best_checkpoint(run) == (older, "latest, step 2, 1 damaged skipped")
    assert "step-00000004 is damaged: discriminator.safetensors" in caplog.text
    (older / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no intact checkpoint; the latest: .*step-00000004"):
        run_dir.best_checkpoint(run)


def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    """The hint is the command that makes one."""
    run = make_run(tmp_path, "quick-1", age_s=0)
    with pytest.raises(RunError, match="quick-1 has no checkpoint yet") as caught:
        run_dir.best_checkpoint(run)
    assert caught.value.hint == "ganserve train --run quick-1 --resume"
    with pytest.raises(RunError) as caught:
        run_dir.best_checkpoint(make_run(tmp_path, "my run", age_s=0))
    assert caught.value.hint == "ganserve train --run 'my run' --resume"


def test_unfinished_checkpoints_are_not_seen(tmp_path: Path) -> None:
    """What a killed writer left under a temporary name is no checkpoint."""
    (tmp_path / "checkpoints" / ".step-00000002.tmp-1-ab").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000001").mkdir()
    assert [path.name for path in run_dir.checkpoints(tmp_path)] == ["step-00000001"]


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    """Also beyond the eight digits that their names are padded to."""
    for step in (100_000_000, 99_999_999, 1_000_000_000):
        run_dir.checkpoint_path(tmp_path, step).mkdir(parents=True)
    assert [path.name for path in run_dir.checkpoints(tmp_path)] == [
        "step-99999999",
        "step-100000000",
        "step-1000000000",
    ]


def test_the_newest_checkpoint_is_never_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was just written stays, whatever steps are beside it; the rest of `keep` are the latest of the others."""
    measured(monkeypatch, tmp_path, {10: None, 20: None, 30: None, 40: None})
    newest = run_dir.checkpoint_path(tmp_path, 20)
    run_dir.remove_old_checkpoints(tmp_path, 9, newest=newest)
    assert len(run_dir.checkpoints(tmp_path)) == 4
    run_dir.remove_old_checkpoints(tmp_path, 2, newest=newest)
    assert [path.name for path in run_dir.checkpoints(tmp_path)] == ["step-00000020", "step-00000040"]
    latest = run_dir.checkpoint_path(tmp_path, 40)
    run_dir.remove_old_checkpoints(tmp_path, 1, newest=latest)
    assert run_dir.checkpoints(tmp_path) == [latest]


def test_metrics_are_cut_back_to_a_step(tmp_path: Path) -> None:
    """Lines after the step go, and so does a last line that a killed run left half written."""
    for step in (1, 2, 3):
        run_dir.append_metrics(tmp_path, {"step": step, "loss": 0.1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    run_dir.cut_metrics(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.1}\n{"step": 2, "loss": 0.1}\n'
    assert run_dir.read_metrics(tmp_path / "nowhere") == []


def test_lines_of_metrics_that_are_no_points_are_left_out(tmp_path: Path) -> None:
    """Bytes that are no text, values that are no objects, and objects without a step: what a damaged disk may give."""
    lines = [b'{"step": 1, "loss": 0.1}', b"\xff\xfe", b"\0\0", b"5", b'{"loss": 1}', b'{"step": null}', b'{"step": 2}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert [point["step"] for point in run_dir.read_metrics(tmp_path)] == [1, 2]
    run_dir.cut_metrics(tmp_path, 1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.1}\n'


def test_a_run_has_one_writer(tmp_path: Path) -> None:
    """A second one is refused while the first is at work, and welcome afterwards."""
    with (
        run_dir.locked(tmp_path),
        pytest.raises(RunError, match="is being written by another process"),
        run_dir.locked(tmp_path),
    ):
        pass
    with run_dir.locked(tmp_path):
        pass


def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Missing, not JSON, or of another version: each says which file."""
    with pytest.raises(RunError, match=r"is not a run: it has no config.json"):
        run_dir.load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config.json cannot be read"):
        run_dir.load_config(tmp_path)
    for content, message in (
        ('{"recipe": "x", "new_key": 1}', "there is no setting 'new_key'"),
        ("[]", "a configuration is a group of settings, got list"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ConfigError, match=rf"config\.json: {message}"):
            run_dir.load_config(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(RunError, match=r"config\.json cannot be read"):
        run_dir.load_config(tmp_path)


def test_a_checkpoint_is_found_by_its_name(tmp_path: Path) -> None:
    """A checkpoint that was named is that one; another name is an error that lists those there are."""
    (tmp_path / "checkpoints" / "step-00000500").mkdir(parents=True)
    assert run_dir.named_checkpoint(tmp_path, "step-00000500").name == "step-00000500"
    with pytest.raises(RunError, match="no checkpoint 'step-500'") as caught:
        run_dir.named_checkpoint(tmp_path, "step-500")
    with pytest.raises(RunError, match="has no checkpoint"):  # another run's, through this one
        run_dir.named_checkpoint(tmp_path, "../checkpoints/step-00000500")
    assert caught.value.hint == "there are step-00000500"
