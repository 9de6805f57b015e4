import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ganserve.errors import ConfigError
from training import config as configuration
from training.config import TrainingConfig, differences, from_dict, keys, list_recipes, load_recipe, override, to_dict


def test_every_recipe_has_one_line_of_description() -> None:
    """What `ganserve train --help` lists comes from the recipes themselves."""
    recipes = list_recipes()
    assert {"hinge", "lsgan", "quick", "r3gan", "seed", "wgan-gp"} <= set(recipes)
    assert all(text and "\n" not in text for text in recipes.values())


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_is_a_complete_run(name: str) -> None:
    """A packaged recipe states every setting but where the data is, so a changed default cannot change it."""
    text = (Path(configuration.__file__).parent / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    stated = set(flat(tomllib.loads(text)))
    assert stated == set(keys()) - {"recipe", "data.dir", "log.evaluator"} | {"description"}


def test_the_seed_recipe_is_the_article_to_the_letter() -> None:
    """Networks, slope, optimizer, batch, length, logging and order of updates are those that the article gives."""
    config = load_recipe("seed")
    assert (config.generator.kind, config.generator.latent_dim, config.generator.width, config.generator.depth) == (
        "mlp",
        100,
        128,
        2,
    )
    assert (config.discriminator.kind, config.discriminator.width, config.discriminator.depth) == ("mlp", 128, 2)
    assert config.generator.negative_slope == config.discriminator.negative_slope == 0.01
    assert config.generator.value_range == (0.0, 1.0)
    assert (config.optimizer.kind, config.optimizer.lr, config.optimizer.beta1) == ("adam", 2e-4, 0.5)
    assert (config.optimizer.beta2, config.optimizer.eps, config.optimizer.final_lr_share) == (0.999, 1e-7, 1.0)
    assert config.reuse_fakes
    assert (config.batch_size, config.steps, config.log.every_steps) == (128, 10_000, 100)
    assert (config.objective, config.first_player, config.conditional) == ("bce_mse", "generator", False)
    assert load_recipe("seed", ["objective=bce"]).objective == "bce"


@pytest.mark.parametrize("name", list_recipes())
def test_a_configuration_survives_json(name: str) -> None:
    """What a run saves as config.json is exactly what it was started with."""
    config = load_recipe(name, ["data.dir=/data/fashion", "optimizer.lr=1e-4"])
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_an_override_changes_one_value() -> None:
    """`--set key=value` reads numbers, switches, text and none as the key's type asks."""
    plain = load_recipe("quick")
    changed = load_recipe("quick", ["optimizer.lr=1e-4", "steps=1_000", "conditional=false", "wrong_label_weight=0"])
    assert differences(plain, changed) == {
        "optimizer.lr": (plain.optimizer.lr, 1e-4),
        "steps": (plain.steps, 1000),
        "conditional": (True, False),
        "wrong_label_weight": (0.3, 0.0),
    }
    assert override(load_recipe("quick", ["data.dir=x"]), ["data.dir=none"]) == plain


def test_a_recipe_of_your_own_is_named_after_its_file(tmp_path: Path) -> None:
    """A path to a .toml file is a recipe; what it does not state has its default."""
    path = tmp_path / "mine.toml"
    path.write_text("steps = 7\n[optimizer]\nlr = 1\n")
    config = load_recipe(str(path))
    assert (config.recipe, config.steps, config.optimizer.lr) == ("mine", 7, 1.0)


@pytest.mark.parametrize(
    ("overrides", "message", "hint"),
    [
        (["optimiser.lr=1"], "there is no setting 'optimiser.lr'", "optimizer.lr"),
        (["lr=1"], "there is no setting 'lr'", "optimizer.lr"),
        (["generator.widht=1"], "there is no setting 'generator.widht'", "generator.width"),
        (["optimizer=adam"], "optimizer is a group", "optimizer.kind"),
        (["steps"], "an override is key=value, got 'steps'", "--set"),
        (["steps=1.5"], "steps must be a whole number, got '1.5'", None),
        (["steps=0"], r"steps must be in \[1, .*got 0", None),
        (["conditional=maybe"], "conditional must be true or false, got 'maybe'", None),
        (["optimizer.lr=nan"], "optimizer.lr must be a finite number", None),
        (["optimizer.lr=0"], r"optimizer.lr must be in \(0, ", None),
        (["optimizer.beta2=1"], r"optimizer.beta2 must be in \[0, 1\), got 1", None),
        (
            ["objective=bse"],
            "objective must be one of bce, bce_mse, hinge, lsgan, ns, rpgan, wasserstein, got 'bse'",
            "bce",
        ),
        (["generator.kind=konv"], "generator.kind must be one of conv, mlp", "conv"),
        (["conditional=false"], "wrong_label_weight is 0.3, but conditional is false", "wrong_label_weight=0"),
        (["batch_size=1"], "batch_size must be at least 2 with generator.norm=batch", None),
        (["seed=-1"], r"seed must be in \[0, 9223372036854775807\], got -1", None),
        (["penalty.clip=0.1", "penalty.gradient=1"], "penalty.clip is 0.1 and penalty.gradient is 1.0", "to 0"),
        (["penalty.clip=0.1", "discriminator.norm=spectral"], "but discriminator.norm is spectral", "penalty.clip=0"),
        (
            ["objective=wasserstein", "penalty.r1=0", "wrong_label_weight=0"],
            "nothing keeps the discriminator Lipschitz",
            "penalty.gradient=10",
        ),
        (["objective=wasserstein"], "wrong_label_weight is 0.3, but objective is wasserstein", "wrong_label_weight=0"),
        (["optimizer.weight_decay=0.1"], "optimizer.kind is adam, which has none", "optimizer.kind=adamw"),
        (["penalty.r2=-1"], r"penalty.r2 must be in \[0, ", None),
        (["discriminator_steps=0"], r"discriminator_steps must be in \[1, ", None),
        (["generator.activation=gelu"], "generator.activation must be one of leaky_relu, prelu, relu, silu", None),
        (["discriminator.norm=batch"], "discriminator.norm must be one of none, spectral", None),
        (["augment.cutout=2"], r"augment.cutout must be in \[0, 1\]", None),
        (["optimizer.discriminator_lr_share=0"], r"optimizer.discriminator_lr_share must be in \(0, ", None),
        (
            ["batch_size=1", "generator.norm=none", "discriminator.minibatch_deviation=true"],
            "batch_size must be at least 2 with discriminator.minibatch_deviation=true",
            None,
        ),
        (["recipe=a/b"], "recipe must be a name", None),
    ],
)
def test_a_wrong_setting_is_named(overrides: list[str], message: str, hint: str | None) -> None:
    """The error names the dotted key, what it takes and what it got, and the nearest valid name."""
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe("quick", overrides)
    if hint is not None:
        assert caught.value.hint is not None
        assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("steps = true", "steps must be a whole number, got True"),
        ("steps = '3'", "steps must be a whole number, got '3'"),
        ("[steps]", "steps must be a whole number"),
        ("optimizer = 3", "optimizer is a group of settings, got 3"),
        ("[optimizer]\nlr = inf", "optimizer.lr must be a finite number"),
        ("[optimizer]\nmomentum = 0.9", "there is no setting 'optimizer.momentum'"),
        ("steps = ", "is not TOML"),
    ],
)
def test_a_wrong_recipe_file_is_refused(tmp_path: Path, toml: str, message: str) -> None:
    """A value of the wrong type in a recipe is an error that names the key, never a conversion."""
    path = tmp_path / "wrong.toml"
    path.write_text(toml)
    with pytest.raises(ConfigError, match=message):
        load_recipe(str(path))


def test_an_unknown_recipe_offers_the_nearest() -> None:
    """A mistyped name is answered with the names there are."""
    with pytest.raises(
        ConfigError, match="there is no recipe 'quik'; there are best, fast, hinge, lsgan, quick, r3gan, seed, wgan-gp"
    ) as caught:
        load_recipe("quik")
    assert caught.value.hint == "did you mean quick?"
    with pytest.raises(ConfigError, match=r"there is no recipe file no/such\.toml"):
        load_recipe("no/such.toml")


def test_only_a_name_that_is_close_is_suggested() -> None:
    """A name like none that there is gets no guess; for a setting, the command that lists them all."""
    for ask in (lambda: load_recipe("quick", ["generator.kind=transformer"]), lambda: load_recipe("diffusion")):
        with pytest.raises(ConfigError) as caught:
            ask()
        assert caught.value.hint is None
    with pytest.raises(ConfigError, match="there is no setting 'zzz'") as caught:
        load_recipe("quick", ["zzz=1"])
    assert caught.value.hint == "ganserve train --dry-run prints every setting"


def test_a_configuration_is_a_mapping() -> None:
    """JSON that is a list is refused as what it is."""
    with pytest.raises(ConfigError, match="a configuration is a group of settings, got list"):
        from_dict([])  # type: ignore[arg-type]


def test_a_configuration_without_a_recipe_name_is_refused() -> None:
    """Only the recipe's name has no default."""
    with pytest.raises(ConfigError, match="recipe"):
        from_dict({"steps": 3})


def test_the_configuration_needs_no_torch() -> None:
    """The command line parses recipes without waiting for torch."""
    code = "import sys, training.config as c; c.load_recipe('quick', ['steps=1']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_are_those_of_the_registries() -> None:
    """What the configuration accepts is what there is a builder for."""
    from training import losses, models, optimizers

    assert set(configuration.GENERATOR_KINDS) == set(models.GENERATORS)
    assert set(configuration.DISCRIMINATOR_KINDS) == set(models.DISCRIMINATORS)
    assert set(configuration.OBJECTIVES) == set(losses.OBJECTIVES)
    assert set(configuration.OPTIMIZERS) == set(optimizers.OPTIMIZERS)


def test_a_run_from_before_the_newer_settings_still_loads() -> None:
    """A config.json without them is the run that it was: every one of them is off by default."""
    plain = load_recipe("quick")
    older = to_dict(plain)
    for group, names in {
        "generator": ["activation"],
        "discriminator": ["norm", "minibatch_deviation", "activation"],
        "optimizer": ["discriminator_lr_share", "weight_decay"],
        "penalty": ["r2", "gradient", "clip"],
    }.items():
        for name in names:
            del older[group][name]
    for name in ("discriminator_steps", "precision", "augment"):
        del older[name]
    assert from_dict(older) == plain


def test_configurations_are_frozen() -> None:
    """Nothing changes a run's configuration while it trains."""
    with pytest.raises(AttributeError):
        TrainingConfig(recipe="x").steps = 1  # type: ignore[misc]


def flat(mapping: dict[str, object], prefix: str = "") -> list[str]:
    """The dotted keys of a nested mapping."""
    found: list[str] = []
    for key, value in mapping.items():
        found += flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return found
