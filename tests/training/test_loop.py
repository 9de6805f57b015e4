import errno
import json
import math
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo import lookup_backend

from ganserve import atomic
from ganserve.errors import CheckpointError, ConfigError, DataError, RunError, TrainingDivergedError, TrainingError
from training import loop, losses, run_dir, turns
from training.checkpoint import load_generator, verify_checkpoint
from training.config import TrainingConfig, list_recipes, override, to_dict
from training.data import load_dataset
from training.loop import train
from training.losses import Objective
from training.progress import SilentProgress
from training.state import new_state

MakeConfig = Callable[..., TrainingConfig]
CLOCK = ("seconds", "images_per_s")  # what two runs of one configuration do not have in common


class At(SilentProgress):
    """Does something when a step is done."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self.step, self.act = step, act

    def stepped(self, step: int) -> None:
        """See `Progress`."""
        if step == self.step:
            self.act()


def without_clock(point: Mapping[str, Any]) -> dict[str, Any]:
    """A metrics point without what depends on the time of day."""
    return {key: value for key, value in point.items() if key not in CLOCK}


def outcome(run: Path) -> tuple[Any, ...]:
    """Everything that a run leaves behind which is not about time: digests of weights, moments and RNG, and metrics."""
    checkpoint, _ = run_dir.latest_checkpoint(run)
    state = verify_checkpoint(checkpoint)
    sheets = {path.name: path.read_bytes() for path in (run / "sheets").iterdir()}
    metrics = [without_clock(point) for point in run_dir.read_metrics(run)]
    return state.step, state.digests, without_clock(state.metrics), metrics, sheets


@pytest.mark.parametrize("recipe", list_recipes())
def test_a_run_leaves_what_it_promises(make_config: MakeConfig, tmp_path: Path, recipe: str) -> None:
    """Configuration, a metrics line a log step, sheets, curves, checkpoints; and a generator that loads."""
    config = make_config("log.every_steps=2", recipe=recipe)
    result = train(config, tmp_path / "run")
    run = result.run
    assert json.loads((run / "config.json").read_text()) == to_dict(config)
    points = run_dir.read_metrics(run)
    assert [point["step"] for point in points] == [2, 4]
    numbers = [{key: value for key, value in point.items() if isinstance(value, int | float)} for point in points]
    assert all(math.isfinite(value) for point in numbers for value in point.values())
    assert all(point["gradients"]["generator"] and point["gradients"]["discriminator"] for point in points)
    assert sorted(path.name for path in (run / "sheets").iterdir()) == ["step-00000002.png", "step-00000004.png"]
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in run_dir.checkpoints(run)] == ["step-00000002", "step-00000004"]
    assert (result.steps, result.images_seen, result.interrupted_by) == (4, 4 * config.images_per_step, None)
    assert result.metrics == numbers[-1] == load_generator(result.checkpoint).metrics
    assert json.loads(json.dumps(result.to_dict()))["checkpoint"] == str(result.checkpoint)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["optimizer.kind=rmsprop", "reuse_fakes=false", "first_player=generator"],
        ["generator.kind=mlp", "discriminator.kind=mlp", "ema.half_life_images=0"],
        [
            "discriminator.norm=spectral",
            "discriminator.minibatch_deviation=true",
            "discriminator.activation=prelu",
            "generator.activation=prelu",
            *[f"augment.{change}=0.3" for change in ("brightness", "contrast", "translation", "cutout")],
        ],
        [
            "generator.kind=residual",
            "discriminator.kind=residual",
            "discriminator_steps=3",
            "penalty.gradient=1",
            "optimizer.kind=adamw",
        ],
        ["generator.kind=subpixel", "objective=rpgan", "penalty.r2=1", "optimizer.discriminator_lr_share=2"],
        ["precision=bfloat16", "discriminator.minibatch_deviation=true"],
        ["precision=float16", "penalty.every_steps=1"],  # whose first scale is too large: it has to be resumed as well
    ],
    ids=["quick", "rmsprop", "mlp", "spectral", "critic", "pairs", "bfloat16", "float16"],
)
def test_four_steps_are_two_and_two(make_config: MakeConfig, tmp_path: Path, overrides: list[str]) -> None:
    """An interrupted and resumed run ends with the bits of one that was not: weights, moments, RNG, metrics, sheets."""
    config = make_config(*overrides)
    whole = train(config, tmp_path / "whole")
    half = train(config, tmp_path / "half", progress=At(2, lambda: signal.raise_signal(signal.SIGINT)))
    assert (half.steps, half.interrupted_by) == (2, signal.SIGINT)
    torch.manual_seed(12345)
    torch.rand(7)
    resumed = train(config, tmp_path / "half", resume=True)
    assert (resumed.steps, resumed.interrupted_by) == (4, None)
    assert outcome(whole.run) == outcome(resumed.run)


def test_sigterm_ends_with_a_checkpoint_of_the_last_step(make_config: MakeConfig, tmp_path: Path) -> None:
    """An odd step is saved too, handlers are put back, and a resume goes on from there."""
    before = signal.getsignal(signal.SIGTERM)
    result = train(make_config(), tmp_path / "run", progress=At(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert result.interrupted_by == signal.SIGTERM
    assert result.checkpoint.name == "step-00000003"
    assert signal.getsignal(signal.SIGTERM) is before
    assert train(make_config(), result.run, resume=True).steps == 4


def test_old_checkpoints_make_room(make_config: MakeConfig, tmp_path: Path) -> None:
    """The last `keep_checkpoints` stay."""
    run = train(make_config("log.checkpoint_every_steps=1", "log.keep_checkpoints=2"), tmp_path / "run").run
    assert [path.name for path in run_dir.checkpoints(run)] == ["step-00000003", "step-00000004"]


def test_a_damaged_checkpoint_is_skipped_on_resume(make_config: MakeConfig, tmp_path: Path) -> None:
    """Resuming goes back to the one before, and ends where it should; with none intact it refuses."""
    config = make_config()
    whole = outcome(train(config, tmp_path / "run").run)
    older, newer = run_dir.checkpoints(tmp_path / "run")
    (newer / "generator.safetensors").write_bytes(b"damage")
    train(config, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == whole
    for checkpoint in (older, newer):
        (checkpoint / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        train(config, tmp_path / "run", resume=True)


def test_what_a_resume_leaves_behind_is_not_in_its_way(make_config: MakeConfig, tmp_path: Path) -> None:
    """Damaged checkpoints after the one that is resumed are removed, so none of them outlives the next one written."""
    every = ("log.checkpoint_every_steps=2", "log.keep_checkpoints=9")
    run = train(make_config("steps=8", *every), tmp_path / "run").run
    for checkpoint in run_dir.checkpoints(run)[2:]:
        (checkpoint / "generator.safetensors").write_bytes(b"damage")
    result = train(make_config("steps=5", "log.keep_checkpoints=1"), run, resume=True)
    assert run_dir.checkpoints(run) == [result.checkpoint]
    assert result.checkpoint.name == "step-00000005"
    assert run_dir.best_checkpoint(run)[1] == "latest, step 5"


def test_a_finished_run_stays_as_it_is(make_config: MakeConfig, tmp_path: Path) -> None:
    """Resuming it trains nothing; with more steps it goes on."""
    config = make_config()
    train(config, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    result = train(config, tmp_path / "run", resume=True)
    assert (result.steps, result.checkpoint.name) == (4, "step-00000004")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert train(make_config("steps=5"), tmp_path / "run", resume=True).steps == 5


def test_a_run_is_not_overwritten(make_config: MakeConfig, tmp_path: Path) -> None:
    """An existing run needs --resume, and a folder with anything else in it is not taken."""
    train(make_config(), tmp_path / "run")
    with pytest.raises(RunError, match="exists already") as caught:
        train(make_config(), tmp_path / "run")
    assert caught.value.hint is not None
    assert "--resume" in caught.value.hint
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(RunError, match="is not a run and not empty"):
        train(make_config(), tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


def test_a_run_is_resumed_as_it_was_started(
    make_config: MakeConfig, make_data: Callable[..., Path], tmp_path: Path
) -> None:
    """Another configuration is refused with what differs; so are other data; and what was never started."""
    train(make_config("steps=2"), tmp_path / "run")
    with pytest.raises(RunError, match=r"belongs to another configuration: optimizer.lr was 0.00\d+ and is 0.5"):
        train(make_config("optimizer.lr=0.5"), tmp_path / "run", resume=True)
    for name, facts in {"other": {"images": 50}, "more": {"classes": 5}, "larger": {"width": 9}}.items():
        other = make_data(name=name, **facts)
        with pytest.raises(RunError, match=rf"was trained on digits .* not on this {name}"):
            train(make_config(f"data.dir={other}"), tmp_path / "run", resume=True)
    with pytest.raises(RunError, match="is not a run"):
        train(make_config(), tmp_path / "nowhere", resume=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_run_in_use_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    """Two trainings never write to one run."""
    train(make_config("steps=2"), tmp_path / "run")
    with run_dir.locked(tmp_path / "run"), pytest.raises(RunError, match="is being written by another process"):
        train(make_config(), tmp_path / "run", resume=True)


def test_divergence_stops_the_run_and_keeps_the_last_checkpoint(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is not finite at step 3 ends the run there; the checkpoint of step 2 is the latest and is intact."""
    good = losses.OBJECTIVES["ns"]
    calls = 0

    def generator_loss(logits: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return logits * math.nan if calls == 3 else good.generator(logits)

    monkeypatch.setitem(losses.OBJECTIVES, "ns", Objective(good.real, good.fake, generator_loss))
    with pytest.raises(TrainingDivergedError, match="diverged at step 3: loss_generator is nan") as caught:
        train(make_config(), tmp_path / "run")
    assert (caught.value.step, caught.value.quantity) == (3, "loss_generator")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("start another run with a lower optimizer.lr")  # a resume would refuse it
    assert run_dir.best_checkpoint(tmp_path / "run")[1] == "latest, step 2"
    assert [point["step"] for point in run_dir.read_metrics(tmp_path / "run")] == [1, 2]


@pytest.mark.parametrize("step", [1, 4])
def test_spoilt_weights_are_not_saved(make_config: MakeConfig, tmp_path: Path, step: int) -> None:
    """An update that made a weight infinite leaves every quantity of its step finite: the checkpoint is refused."""
    config = make_config("log.checkpoint_every_steps=1", "log.keep_checkpoints=9")
    weights: list[torch.Tensor] = []

    def spoil() -> None:
        with torch.no_grad():
            weights[0][0, 0] = math.inf

    def capture(*arguments: Any) -> Any:
        state = new_state(*arguments)
        weights.append(state.generator.get_parameter("input.latent.weight"))
        return state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "new_state", capture)
        with pytest.raises(TrainingDivergedError, match=rf"step {step}: generator\.input\.latent\.weight is inf"):
            train(config, tmp_path / "run", progress=At(step, spoil))
    assert len(run_dir.checkpoints(tmp_path / "run")) == step - 1


def test_an_optimizer_that_divides_by_nothing_is_noticed(make_config: MakeConfig, tmp_path: Path) -> None:
    """With an epsilon that float32 does not know, a weight without a gradient becomes 0/0 in the very first update."""
    with pytest.raises(TrainingDivergedError, match=r"step 1: generator\..* is nan"):
        train(make_config("optimizer.eps=1e-300", "steps=1", "batch_size=2"), tmp_path / "run")
    assert run_dir.checkpoints(tmp_path / "run") == []


def test_too_little_memory_is_a_named_error(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch and NumPy say of it becomes ours, with what to lower; any other RuntimeError stays a bug."""
    for allocate in (lambda *_: torch.empty(2**60), lambda *_: np.empty(2**50)):
        monkeypatch.setattr(loop, "new_state", allocate)
        with pytest.raises(TrainingError, match="there is not enough memory on cpu") as caught:
            train(make_config(), tmp_path / "run", device="cpu")
        assert caught.value.hint is not None
        assert "batch_size" in caught.value.hint

    def bug(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(loop, "new_state", bug)
    with pytest.raises(RuntimeError, match="mat1"):
        train(make_config(), tmp_path / "run")


@pytest.mark.parametrize("failing", range(1, 40, 6))
def test_a_full_disk_is_a_named_error_and_loses_nothing(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Whichever flush fails, the error says why, and the run resumes to the same bits once there is room."""
    config = make_config()
    whole = outcome(train(config, tmp_path / "whole").run)
    sync, calls = atomic._sync, 0

    def full(path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(path)

    monkeypatch.setattr(atomic, "_sync", full)
    error = None
    try:
        train(config, tmp_path / "run")
    except RunError as err:
        error = err
    assert (error is not None) == (calls >= failing)  # a run may have fewer flushes than `failing`
    assert error is None or "cannot be written: No space left on device" in str(error)
    monkeypatch.setattr(atomic, "_sync", sync)
    train(config, tmp_path / "run", resume=(tmp_path / "run" / "config.json").exists())
    assert outcome(tmp_path / "run") == whole


def test_a_place_that_cannot_be_written_is_a_named_error(make_config: MakeConfig, tmp_path: Path) -> None:
    """The run's path leads through a file."""
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written: Not a directory"):
        train(make_config(), tmp_path / "file" / "run")


def test_nothing_is_made_for_a_run_that_cannot_start(make_config: MakeConfig, tmp_path: Path) -> None:
    """Bad data, a configuration that does not fit them, or a device that is not there leave no directory behind."""
    with pytest.raises(DataError):
        train(make_config(f"data.dir={tmp_path}/none"), tmp_path / "run")
    with pytest.raises(ConfigError, match="device"):
        train(make_config(), tmp_path / "run", device="tpu")
    assert not (tmp_path / "run").exists()


def test_one_class_has_no_wrong_labels(make_config: MakeConfig, make_data: Callable[..., Path], tmp_path: Path) -> None:
    """The configuration is refused with the setting to change; without the term such data train."""
    ones = make_data(classes=1, name="ones")
    with pytest.raises(ConfigError, match=r"wrong_label_weight is 0\.3, but ones has one class only"):
        train(make_config(f"data.dir={ones}"), tmp_path / "run")
    assert train(make_config(f"data.dir={ones}", "wrong_label_weight=0"), tmp_path / "run").steps == 4


def test_images_of_any_size_train(make_config: MakeConfig, make_data: Callable[..., Path], tmp_path: Path) -> None:
    """Odd, unequal and larger than MNIST's."""
    for height, width in ((29, 31), (32, 32)):
        folder = make_data(height=height, width=width, name=f"size-{height}")
        result = train(make_config(f"data.dir={folder}", "steps=1"), tmp_path / f"run-{height}")
        assert load_generator(result.checkpoint).network(torch.randn(1, 4), torch.tensor([0])).shape == (
            1,
            1,
            height,
            width,
        )


@pytest.fixture
def steps_taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Every call of a player's step in a run: who, and with which arguments."""
    taken: list[tuple[str, dict[str, Any]]] = []
    for name in ("discriminator_step", "generator_step"):
        original = getattr(turns, name)

        def noted(*networks: Any, _name: str = name, _original: Callable[..., Any] = original, **arguments: Any) -> Any:
            taken.append((_name.removesuffix("_step"), arguments))
            return _original(*networks, **arguments)

        monkeypatch.setattr(turns, name, noted)
    return taken


def test_the_discriminator_may_take_more_steps(
    make_config: MakeConfig, tmp_path: Path, steps_taken: list[tuple[str, dict[str, Any]]]
) -> None:
    """Each of its updates has images and fakes of its own, lazy penalties count its updates, and so does the clock."""
    config = make_config("discriminator_steps=3", "steps=2", "penalty.r1=2", "penalty.every_steps=2")
    result = train(config, tmp_path / "run")
    assert [player for player, _ in steps_taken] == 2 * (["discriminator"] * 3 + ["generator"])
    updates = [arguments for player, arguments in steps_taken if player == "discriminator"]
    assert [arguments["r1_weight"] for arguments in updates] == [0, 2, 0, 2, 0, 2]
    for name in ("real_images", "fake_images"):
        assert len({arguments[name].detach().numpy().tobytes() for arguments in updates}) == 6
    assert steps_taken[3][1]["fake_images"] is updates[2]["fake_images"]
    assert result.images_seen == verify_checkpoint(result.checkpoint).images_seen == 2 * 3 * 8


@pytest.mark.parametrize("paired", [["objective=rpgan"], ["penalty.gradient=1"]], ids=["rpgan", "gradient"])
def test_what_is_compared_is_of_one_class(
    make_config: MakeConfig, tmp_path: Path, steps_taken: list[tuple[str, dict[str, Any]]], paired: list[str]
) -> None:
    """With pairs a fake has its real image's label in both players' steps; without, labels are drawn apart."""
    for name, overrides, same in (("pairs", paired, True), ("plain", [], False)):
        train(make_config(*overrides), tmp_path / name)
        equal = [torch.equal(one["real_labels"], one["fake_labels"]) for _, one in steps_taken]
        assert len(equal) == 8
        assert all(equal) if same else not any(equal)
        steps_taken.clear()


def test_both_players_are_shown_augmented_images(
    make_config: MakeConfig, tmp_path: Path, steps_taken: list[tuple[str, dict[str, Any]]]
) -> None:
    """With a cutout, no step of either player sees an image, real or fake, that has no grey in it."""
    train(make_config("augment.cutout=0.9"), tmp_path / "run")
    assert len(steps_taken) == 8
    for _, arguments in steps_taken:
        for name in ("real_images", "fake_images"):
            assert (arguments[name] == 0).flatten(1).any(dim=1).all()


def test_the_players_may_learn_at_two_rates(make_config: MakeConfig, tmp_path: Path) -> None:
    """With a share of next to nothing the discriminator stays where it started, and the generator does not."""
    config = make_config("optimizer.discriminator_lr_share=1e-12")
    moved = {}
    for steps in (1, 4):
        run = train(override(config, [f"steps={steps}"]), tmp_path / str(steps)).run
        digests = verify_checkpoint(run_dir.best_checkpoint(run)[0]).digests
        moved[steps] = digests["discriminator.safetensors"], digests["generator.safetensors"]
    state = new_state(config, load_dataset(Path(config.data.dir or ""), "train").facts, torch.device("cpu"))
    saved = load_file(run_dir.best_checkpoint(tmp_path / "4")[0] / "discriminator.safetensors")
    for name, tensor in state.discriminator.state_dict().items():
        torch.testing.assert_close(saved[name], tensor, rtol=0, atol=1e-9)
    assert moved[1][1] != moved[4][1]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_of_the_products_alone(make_config: MakeConfig, tmp_path: Path, precision: str) -> None:
    """Convolutions compute in 16 bits; weights and moments are float32, and the losses those of a float32 run."""
    config = make_config(f"precision={precision}")
    seen: list[torch.dtype] = []

    def note(_module: object, _inputs: object, output: torch.Tensor) -> None:
        seen.append(output.dtype)

    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, given, output: note(module, given, output) if isinstance(module, torch.nn.Conv2d) else None
    )
    try:
        result = train(config, tmp_path / "run")
    finally:
        handle.remove()
    assert set(seen) == {getattr(torch, precision)}
    for file in result.checkpoint.glob("[!r]*.safetensors"):
        assert {one.dtype for one in load_file(file).values()} <= {torch.float32, torch.int64}
    plain = train(make_config(), tmp_path / "plain").metrics
    assert result.metrics["loss_discriminator"] == pytest.approx(plain["loss_discriminator"], rel=0.1)


# torch's own, while it traces; elsewhere it keeps it to itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_networks_learn_the_same(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both networks are compiled, steps with a gradient penalty go round that, and the losses are the same."""
    compiled: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        compiled.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)  # all of torch.compile but the C++ compiler

    monkeypatch.setattr(turns, "COMPILER", backend)
    plain = train(make_config(), tmp_path / "plain").metrics
    assert compiled == []
    metrics = train(make_config("compile=true"), tmp_path / "run").metrics
    assert len(compiled) >= 3  # the generator, and the discriminator of one batch and of two
    for name in ("loss_discriminator", "loss_generator", "grad_norm_discriminator", "grad_norm_generator"):
        assert metrics[name] == pytest.approx(plain[name], rel=1e-3)


def test_what_cannot_be_compiled_is_named(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever torch.compile lacks, a C++ compiler often, is an error with the way out."""

    def backend(graph: object, inputs: object) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(turns, "COMPILER", backend)
    with pytest.raises(TrainingError, match=r"torch.compile cannot compile this: .*no compiler") as caught:
        train(make_config("compile=true"), tmp_path / "run")
    assert caught.value.hint == "set compile=false"
