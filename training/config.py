"""What a training run is made of: frozen dataclasses, TOML recipes, and `a.b=c` overrides. Imports no torch."""

import dataclasses
import difflib
import importlib.resources
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

from ganserve.errors import ConfigError

# The names in the registries of training.models, training.losses and training.optimizers; a test holds them equal.
GENERATOR_KINDS: Final = ("conv", "mlp", "residual", "subpixel")
DISCRIMINATOR_KINDS: Final = ("conv", "mlp", "residual")
OBJECTIVES: Final = ("bce", "bce_mse", "hinge", "lsgan", "ns", "rpgan", "wasserstein")
OPTIMIZERS: Final = ("adam", "adamw", "rmsprop")
ACTIVATIONS: Final = ("leaky_relu", "prelu", "relu", "silu")
VALUE_RANGES: Final = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}
NORMS: Final = ("batch", "none")
DISCRIMINATOR_NORMS: Final = ("none", "spectral")
PRECISIONS: Final = ("bfloat16", "float16", "float32")
PLAYERS: Final = ("discriminator", "generator")
SEED_MAX: Final = 2**63 - 1  # what both TOML and torch hold
EVALUATE_IMAGES_MIN: Final = 256  # `training.evaluate.MIN_IMAGES`, which a test holds equal
_LIKE: Final = 0.6  # of difflib's 0 to 1: from here on two names are a slip of each other


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images; `dir` is a folder of IDX files, none for the packaged MNIST."""

    dir: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """The generator. `kind` decides what `width` and `depth` count.

    Attributes:
        kind: conv, subpixel (convolutions and pixel shuffles), residual or mlp.
        latent_dim: length of one latent.
        width: channels before the last upsampling (residual: also after it), doubled for each one below; mlp: units of
            a hidden layer.
        depth: doublings of the resolution; mlp: hidden layers.
        norm: batch (per-class scale and shift if the run is conditional) or none, before each activation.
        activation: leaky_relu, prelu (a learned slope for each channel or unit), relu or silu.
        negative_slope: slope of leaky_relu below zero, 0 is ReLU; and where prelu's slopes start.
        output: tanh (images in [-1, 1]) or sigmoid (images in [0, 1]).
    """

    kind: str = "conv"
    latent_dim: int = 64
    width: int = 32
    depth: int = 2
    norm: str = "batch"
    activation: str = "leaky_relu"
    negative_slope: float = 0.0
    output: str = "tanh"

    def __post_init__(self) -> None:
        _one_of("generator.kind", self.kind, GENERATOR_KINDS)
        _between("generator.latent_dim", self.latent_dim, 1, 4096)
        _between("generator.width", self.width, 1, 4096)
        _between("generator.depth", self.depth, 1, 8)
        _one_of("generator.norm", self.norm, NORMS)
        _one_of("generator.activation", self.activation, ACTIVATIONS)
        _between("generator.negative_slope", self.negative_slope, 0.0, 1.0)
        _one_of("generator.output", self.output, tuple(VALUE_RANGES))

    @property
    def value_range(self) -> tuple[float, float]:
        """The range of the images that both players see."""
        return VALUE_RANGES[self.output]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """The discriminator; no normalisation of it looks at the batch (that and gradient penalties do not go together).

    Attributes:
        kind: conv, residual or mlp.
        width: channels after the first halving, doubled at each one after; mlp: units of a hidden layer.
        depth: halvings of the resolution; mlp: hidden layers.
        norm: none, or spectral: each layer's weight is divided by its largest singular value (Miyato et al. 2018).
        minibatch_deviation: the last hidden layer also sees how much the images of a batch, all real or all fake,
            deviate from each other (Karras et al. 2018).
        activation: leaky_relu, prelu (a learned slope for each channel or unit), relu or silu.
        negative_slope: slope of leaky_relu below zero, 0 is ReLU; and where prelu's slopes start.
    """

    kind: str = "conv"
    width: int = 32
    depth: int = 3
    norm: str = "none"
    minibatch_deviation: bool = False
    activation: str = "leaky_relu"
    negative_slope: float = 0.2

    def __post_init__(self) -> None:
        _one_of("discriminator.kind", self.kind, DISCRIMINATOR_KINDS)
        _between("discriminator.width", self.width, 1, 4096)
        _between("discriminator.depth", self.depth, 1, 8)
        _one_of("discriminator.norm", self.norm, DISCRIMINATOR_NORMS)
        _one_of("discriminator.activation", self.activation, ACTIVATIONS)
        _between("discriminator.negative_slope", self.negative_slope, 0.0, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Both players' optimizer.

    Attributes:
        kind: adam, adamw or rmsprop.
        lr: learning rate at the start.
        discriminator_lr_share: the discriminator's rate is this share of the generator's, at all times; other than 1 it
            is the two time-scales of Heusel et al. 2017.
        final_lr_share: the rate falls along a cosine to this share of `lr` at the last step; 1 keeps it constant.
        beta1: Adam's decay of the first moment; RMSprop's momentum.
        beta2: Adam's and RMSprop's decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: adamw's: each step takes this share of the rate from every weight.
    """

    kind: str = "adam"
    lr: float = 2e-3
    discriminator_lr_share: float = 1.0
    final_lr_share: float = 0.02
    beta1: float = 0.5
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _one_of("optimizer.kind", self.kind, OPTIMIZERS)
        _between("optimizer.lr", self.lr, 0.0, 1e3, above=True)
        _between("optimizer.discriminator_lr_share", self.discriminator_lr_share, 0.0, 1e3, above=True)
        _between("optimizer.final_lr_share", self.final_lr_share, 0.0, 1.0)
        _between("optimizer.beta1", self.beta1, 0.0, 1.0, below=True)
        _between("optimizer.beta2", self.beta2, 0.0, 1.0, below=True)
        _between("optimizer.eps", self.eps, 0.0, 1.0, above=True)
        _between("optimizer.weight_decay", self.weight_decay, 0.0, 1e3)
        if self.weight_decay and self.kind != "adamw":
            raise ConfigError(
                f"optimizer.weight_decay is {self.weight_decay}, but optimizer.kind is {self.kind}, which has none",
                hint="set optimizer.kind=adamw, or optimizer.weight_decay=0",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PenaltyConfig:
    """What the discriminator pays beside its objective.

    Attributes:
        r1: gamma of the R1 penalty, (gamma / 2) |grad D(real)|^2; 0 is off.
        r2: gamma of the R2 penalty, (gamma / 2) |grad D(fake)|^2; 0 is off.
        gradient: weight of WGAN-GP's penalty, (|grad D| - 1)^2 between real and fake images; 0 is off.
        every_steps: penalties are taken at every so many steps of the discriminator, and count as much more (lazy
            regularisation, Karras et al. 2020).
        clip: after each step the discriminator's weights are brought into [-clip, clip]; 0 is off.
    """

    r1: float = 0.0
    r2: float = 0.0
    gradient: float = 0.0
    every_steps: int = 1
    clip: float = 0.0

    def __post_init__(self) -> None:
        _between("penalty.r1", self.r1, 0.0, 1e6)
        _between("penalty.r2", self.r2, 0.0, 1e6)
        _between("penalty.gradient", self.gradient, 0.0, 1e6)
        _between("penalty.every_steps", self.every_steps, 1, 10**6)
        _between("penalty.clip", self.clip, 0.0, 1e3)
        if self.clip and self.gradient:
            raise ConfigError(
                f"penalty.clip is {self.clip} and penalty.gradient is {self.gradient}: clipped weights cannot follow "
                "a penalty that wants gradients of length 1",
                hint="set one of the two to 0",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of every image that the discriminator sees, real or fake (DiffAugment, Zhao et al. 2020).

    Attributes:
        brightness: light is added or taken, up to this share of the images' range; DiffAugment's is 0.25.
        contrast: the distance from the image's mean is scaled by up to so much more or less; DiffAugment's is 0.5.
        translation: images are moved by up to this share of their height and width; DiffAugment's is 0.125.
        cutout: a rectangle of this share of the height and width turns grey; DiffAugment's is 0.5.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    translation: float = 0.0
    cutout: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _between(f"augment.{field.name}", getattr(self, field.name), 0.0, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Exponential moving average of the generator, which is then what is shown and exported.

    Attributes:
        half_life_images: after so many training images a change of the weights is half absorbed; 0 is off.
        ramp: the half-life never exceeds this share of the images seen, so that early averages follow.
    """

    half_life_images: float = 0.0
    ramp: float = 0.08

    def __post_init__(self) -> None:
        _between("ema.half_life_images", self.half_life_images, 0.0, 1e12)
        _between("ema.ramp", self.ramp, 0.0, 1e6, above=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """How often a run says and saves what; every one of them also at the last step.

    Attributes:
        keep_checkpoints: the latest ones that stay, beside the best.
        evaluate_images: how many images each checkpoint's FID is of; 0 measures nothing. FID of fewer images reads
            higher, and is less certain.
        tensorboard: event files in the run's `tensorboard/` too; needs ganserve[tensorboard].
        evaluator: the evaluator's .safetensors file; none for the packaged one, which is for MNIST alone.
    """

    every_steps: int = 100
    sheet_every_steps: int = 500
    checkpoint_every_steps: int = 500
    keep_checkpoints: int = 3
    evaluate_images: int = 5000
    tensorboard: bool = False
    evaluator: str | None = None

    def __post_init__(self) -> None:
        for name in ("every_steps", "sheet_every_steps", "checkpoint_every_steps", "keep_checkpoints"):
            _between(f"log.{name}", getattr(self, name), 1, 10**9)
        if self.evaluate_images:
            _between("log.evaluate_images", self.evaluate_images, EVALUATE_IMAGES_MIN, 10**6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One complete run.

    Attributes:
        recipe: the recipe's name; it names the run.
        objective: bce and ns (one function: binary cross-entropy of logits, with the generator's target at 1, is the
            non-saturating loss), bce_mse (the article's text), lsgan (least squares), hinge, wasserstein (with
            something that keeps the discriminator Lipschitz) or rpgan (relativistic: of pairs of real and fake images).
        conditional: the players are told the class.
        wrong_label_weight: weight of the discriminator's loss for real images under a wrong label.
        steps: updates of the generator, and of the discriminator if `discriminator_steps` is 1.
        discriminator_steps: updates of the discriminator for each of the generator's, each on a batch of its own.
        batch_size: real images, and as many fakes, in an update.
        seed: of the weights, the data order, the latents and the sheets.
        precision: of the networks' products: float32, or bfloat16 or float16 where torch's autocast finds it safe;
            weights, losses and averages are float32 always. With float16, which has a small range, losses are scaled
            before they are back-propagated, by what the gradients bear; bfloat16 has no such need.
        compile: torch.compile makes the networks' passes into kernels of their own. It takes a while, and a compiler.
        first_player: who is updated first in a step.
        reuse_fakes: both players learn from the same fakes in a step; otherwise the second one gets fresh ones.
    """

    recipe: str
    objective: str = "ns"
    conditional: bool = True
    wrong_label_weight: float = 0.0
    steps: int = 2000
    discriminator_steps: int = 1
    batch_size: int = 32
    seed: int = 0
    precision: str = "float32"
    compile: bool = False
    first_player: str = "discriminator"
    reuse_fakes: bool = True
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    generator: GeneratorConfig = dataclasses.field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = dataclasses.field(default_factory=DiscriminatorConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    penalty: PenaltyConfig = dataclasses.field(default_factory=PenaltyConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    ema: EmaConfig = dataclasses.field(default_factory=EmaConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        if not self.recipe or not all(character.isalnum() or character in "._-" for character in self.recipe):
            raise ConfigError(
                f"recipe must be a name of letters, digits, dots, dashes and underscores, got {self.recipe!r}"
            )
        _one_of("objective", self.objective, OBJECTIVES)
        _between("wrong_label_weight", self.wrong_label_weight, 0.0, 1e3)
        if self.wrong_label_weight and not self.conditional:
            raise ConfigError(
                f"wrong_label_weight is {self.wrong_label_weight}, but conditional is false: no label can be wrong",
                hint="set wrong_label_weight=0, or conditional=true",
            )
        unbounded = self.objective == "wasserstein" and not self.penalty.clip and self.discriminator.norm != "spectral"
        if self.wrong_label_weight and unbounded:
            raise ConfigError(
                f"wrong_label_weight is {self.wrong_label_weight}, but objective is wasserstein, and no gradient "
                "penalty bounds what an image's logit may be under a wrong label",
                hint="set wrong_label_weight=0, or discriminator.norm=spectral",
            )
        _between("steps", self.steps, 1, 10**9)
        _between("discriminator_steps", self.discriminator_steps, 1, 1000)
        _between("batch_size", self.batch_size, 1, 10**6)
        if self.objective == "wasserstein" and not self._lipschitz:
            raise ConfigError(
                "objective is wasserstein, but nothing keeps the discriminator Lipschitz: its loss has no lower bound",
                hint="set penalty.gradient=10, penalty.clip=0.01 or discriminator.norm=spectral",
            )
        if self.batch_size == 1 and self.generator.norm == "batch":
            raise ConfigError("batch_size must be at least 2 with generator.norm=batch, got 1")
        if self.batch_size == 1 and self.discriminator.minibatch_deviation:
            raise ConfigError("batch_size must be at least 2 with discriminator.minibatch_deviation=true, got 1")
        if self.penalty.clip and self.discriminator.norm == "spectral":
            raise ConfigError(
                f"penalty.clip is {self.penalty.clip}, but discriminator.norm is spectral, which scales every weight "
                "back again",
                hint="set penalty.clip=0, or discriminator.norm=none",
            )
        _between("seed", self.seed, 0, SEED_MAX)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("first_player", self.first_player, PLAYERS)

    @property
    def images_per_step(self) -> int:
        """Real images that the discriminator is shown in a step: how fast the training clock goes."""
        return self.batch_size * self.discriminator_steps

    @property
    def pairs_of_one_class(self) -> bool:
        """Whether a fake has the label of the real image at its place in the batch, because the two are compared."""
        return self.conditional and (self.objective == "rpgan" or self.penalty.gradient > 0)

    @property
    def _lipschitz(self) -> bool:
        penalty = self.penalty
        penalised = any((penalty.r1, penalty.r2, penalty.gradient, penalty.clip))
        return penalised or self.discriminator.norm == "spectral"


def list_recipes() -> dict[str, str]:
    """Name -> one-line description of every packaged recipe."""
    return {
        Path(file.name).stem: tomllib.loads(file.read_text(encoding="utf-8"))["description"]
        for file in sorted(_recipe_folder().iterdir(), key=lambda file: file.name)
        if file.name.endswith(".toml")
    }


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> TrainingConfig:
    """A packaged recipe by name, or one of your own by its .toml path; then each `key=value` of `overrides`.

    Raises:
        ConfigError: no such recipe, not TOML, or a key or value that is wrong; the message names the dotted key.
    """
    if name_or_path.endswith(".toml") or "/" in name_or_path:
        file: Traversable = Path(name_or_path)
        missing = ConfigError(f"there is no recipe file {name_or_path}")
    else:
        file = _recipe_folder() / f"{name_or_path}.toml"
        known = list(list_recipes())
        missing = ConfigError(
            f"there is no recipe {name_or_path!r}; there are {', '.join(known)}, or give the path of a .toml file",
            hint=_did_you_mean(name_or_path, known),
        )
    if not file.is_file():
        raise missing
    try:
        mapping = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise ConfigError(f"recipe {file} is not TOML: {err}") from err
    except OSError as err:
        raise ConfigError(f"recipe {file} cannot be read: {err.strerror}") from err
    mapping.pop("description", None)
    mapping.setdefault("recipe", Path(file.name).stem)
    return from_dict(_overridden(mapping, overrides))


def override(config: TrainingConfig, overrides: Sequence[str]) -> TrainingConfig:
    """`config` with each `key=value` applied, as `load_recipe` does it.

    Raises:
        ConfigError: a key or value that is wrong; the message names the dotted key.
    """
    return from_dict(_overridden(to_dict(config), overrides))


def to_dict(config: TrainingConfig) -> dict[str, Any]:
    """Nested plain values, as JSON and TOML know them; `from_dict` gives the same configuration back."""
    return dataclasses.asdict(config)


def from_dict(mapping: Mapping[str, Any]) -> TrainingConfig:
    """The configuration that a nested mapping describes; what it does not mention has its default.

    Raises:
        ConfigError: no mapping, or a key or value that is wrong; the message names the dotted key.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"a configuration is a group of settings, got {type(mapping).__name__}")
    config: TrainingConfig = _build(TrainingConfig, mapping, "")
    return config


def differences(old: TrainingConfig, new: TrainingConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old value, new value) wherever the two differ."""
    before, after = _flat(to_dict(old)), _flat(to_dict(new))
    return {key: (before[key], after[key]) for key in before if before[key] != after[key]}


def keys() -> dict[str, Any]:
    """Every dotted key that `--set` knows, with its type."""
    return _keys(TrainingConfig, "")


def _keys(cls: type, prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            found |= _keys(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            found[prefix + name] = hint
    return found


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in mapping.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _build(cls: type, mapping: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, value in mapping.items():
        if name not in hints:
            raise _unknown_key(prefix + name)
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{prefix}{name} is a group of settings, got {value!r}")
            values[name] = _build(typing.cast(type, hint), value, f"{prefix}{name}.")
        else:
            values[name] = _checked(prefix + name, value, hint)
    try:
        return cls(**values)
    except TypeError as err:  # only `recipe` has no default
        raise ConfigError(f"{prefix}{err.args[0].rpartition(': ')[2]} is missing") from err


def _checked(key: str, value: Any, hint: Any) -> Any:
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in allowed and type(value) is int:
        value = float(value)
    if type(value) not in allowed:  # by type, not isinstance: true is no number
        raise ConfigError(f"{key} must be {_type_name(hint)}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key} must be a finite number, got {value}")
    return value


def _overridden(mapping: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    result: dict[str, Any] = {
        name: dict(value) if isinstance(value, Mapping) else value for name, value in mapping.items()
    }
    known = keys()
    for text in overrides:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals:
            raise ConfigError(f"an override is key=value, got {text!r}", hint="for example --set optimizer.lr=1e-4")
        if key not in known:
            raise _unknown_key(key)
        *groups, name = key.split(".")
        target = result
        for group in groups:
            target = target.setdefault(group, {})
            if not isinstance(target, dict):
                raise ConfigError(f"{group} is a group of settings, got {target!r}")
        target[name] = _parsed(key, value.strip(), known[key])
    return result


def _parsed(key: str, text: str, hint: Any) -> Any:
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if types.NoneType in allowed and text.lower() in ("", "none", "null"):
        return None
    if bool in allowed and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for convert in (int, float):
        if convert in allowed:
            try:
                return convert(text)
            except ValueError:
                continue
    if str in allowed:
        return text
    raise ConfigError(f"{key} must be {_type_name(hint)}, got {text!r}")


def _unknown_key(key: str) -> ConfigError:
    known = keys()
    members = [name for name in known if name.startswith(f"{key}.")]
    if members:
        return ConfigError(f"{key} is a group of settings", hint=f"set one of {', '.join(members)}")
    hint = _did_you_mean(key, list(known)) or "ganserve train --dry-run prints every setting"
    return ConfigError(f"there is no setting {key!r}", hint=hint)


def _did_you_mean(name: str, known: Sequence[str]) -> str | None:
    """The hint with the known name most like `name`, as a whole or by its last part (`lr` is optimizer.lr), if any."""

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        last = difflib.SequenceMatcher(None, name.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return max(whole, 0.9 * last + 0.1 * whole)

    nearest = max(known, key=likeness)
    return f"did you mean {nearest}?" if likeness(nearest) >= _LIKE else None


def _type_name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "none"}
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return " or ".join(names[one] for one in allowed)


def _one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(
            f"{key} must be one of {', '.join(allowed)}, got {value!r}",
            hint=_did_you_mean(value, allowed),
        )


def _between(key: str, value: float, low: float, high: float, *, above: bool = False, below: bool = False) -> None:
    """`low <= value <= high`, strictly above `low` or below `high` where asked."""
    if not (low <= value <= high) or (above and value == low) or (below and value == high):
        opening, closing = "(" if above else "[", ")" if below else "]"
        ends = ", ".join(str(end) if isinstance(end, int) else f"{end:g}" for end in (low, high))
        raise ConfigError(f"{key} must be in {opening}{ends}{closing}, got {value}")


def _recipe_folder() -> Traversable:
    return importlib.resources.files(__package__) / "recipes"
