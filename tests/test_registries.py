"""Every registered name, in combination: build, train two steps, export, and compare."""

import dataclasses
import itertools

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch

from exporters.onnx_export import export_onnx
from exporters.parity import probes, pytorch_pixels
from exporters.torchscript_export import export_torchscript, load_torchscript
from exporters.wrapper import ExportedGenerator
from ganserve.artifact import ONNX
from ganserve.cost import check_cost
from ganserve.fitness import fitness
from ganserve.onnx_reader import read_model
from ganserve.proof import prove
from training.config import (
    ACTIVATIONS,
    DISCRIMINATOR_NORMS,
    NORMS,
    DiscriminatorConfig,
    GeneratorConfig,
    OptimizerConfig,
    PenaltyConfig,
    TrainingConfig,
)
from training.data import DatasetFacts
from training.losses import OBJECTIVES
from training.models import DISCRIMINATORS, GENERATORS
from training.optimizers import OPTIMIZERS
from training.state import TrainingState, new_state
from training.step import discriminator_step, generator_step

# Both sides odd at some halving, so that doublings have to be cropped.
FACTS = DatasetFacts(name="x", images=8, class_names=tuple("012"), height=9, width=6, channels=1, digest="")
LABELS = torch.arange(6) % 3


@pytest.fixture(autouse=True)
def _same_every_time() -> None:
    torch.manual_seed(0)


def trained(config: TrainingConfig) -> TrainingState:
    """Two steps of both players, with every penalty that the configuration asks for."""
    state = new_state(config, FACTS, torch.device("cpu"))
    labels = LABELS if config.conditional else None
    objective = OBJECTIVES[config.objective]
    for _ in range(2):
        real = torch.rand(6, 1, FACTS.height, FACTS.width)
        fakes = state.generator(torch.randn(6, config.generator.latent_dim), labels)
        d_report = discriminator_step(
            state.discriminator,
            state.discriminator_optimizer,
            objective,
            real_images=real,
            real_labels=labels,
            fake_images=fakes,
            fake_labels=labels,
            wrong_labels=(LABELS + 1) % 3 if config.conditional else None,
            wrong_label_weight=0.3,
            r1_weight=config.penalty.r1,
            r2_weight=config.penalty.r2,
            gradient_weight=config.penalty.gradient,
            mix=torch.rand(6),
            clip=config.penalty.clip,
        )
        g_report = generator_step(
            state.generator,
            state.discriminator,
            state.generator_optimizer,
            objective,
            fake_images=fakes,
            fake_labels=labels,
            real_images=real,
            real_labels=labels,
        )
        assert torch.stack([*d_report, *g_report]).isfinite().all()
    return state


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("discriminator", DISCRIMINATORS)
@pytest.mark.parametrize("generator", GENERATORS)
def test_every_combination_trains(generator: str, discriminator: str, objective: str) -> None:
    """Two steps change every weight of both players, conditional or not, whatever the norms.

    Activations, optimizers, deviation and penalties take turns: each meets each kind, not each combination.
    """
    turns = itertools.count(list(OBJECTIVES).index(objective))
    for conditional, norm, d_norm in itertools.product([True, False], NORMS, DISCRIMINATOR_NORMS):
        turn = next(turns)
        optimizers, activations = list(OPTIMIZERS), list(ACTIVATIONS)
        config = TrainingConfig(
            recipe="tiny",
            conditional=conditional,
            objective=objective,
            generator=GeneratorConfig(
                kind=generator, latent_dim=4, width=4, norm=norm, activation=activations[turn % 4], negative_slope=0.1
            ),
            discriminator=DiscriminatorConfig(
                kind=discriminator,
                width=16,
                depth=2,
                norm=d_norm,
                activation=activations[(turn + 1) % 4],
                minibatch_deviation=turn % 2 == 0,
            ),
            optimizer=OptimizerConfig(kind=optimizers[turn % len(optimizers)]),
            penalty=PenaltyConfig(
                r1=1.0,
                r2=float(turn % 2),
                gradient=float(turn % 3 == 0),
                clip=0.5 if turn % 3 == 1 and d_norm == "none" else 0.0,
            ),
        )
        fresh = new_state(config, FACTS, torch.device("cpu"))
        state = trained(config)
        for player in ("generator", "discriminator"):
            before = dict(fresh.networks[player].named_parameters())
            for name, after in state.networks[player].named_parameters():
                # What a bias of both logits adds to one term, the other takes away again.
                if name == "logit.bias" and objective in ("hinge", "rpgan", "wasserstein"):
                    continue
                assert not torch.equal(before[name], after), f"{player}.{name} of {config}"


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", GENERATORS)
def test_every_generator_exports(kind: str, norm: str, conditional: bool) -> None:
    """ONNX and TorchScript of a trained generator give its pixels; ONNX the same bits at every batch size."""
    turn = list(GENERATORS).index(kind) + 2 * NORMS.index(norm) + conditional
    activation = ACTIVATIONS[turn % 4]  # every kind meets every one
    config = TrainingConfig(
        recipe="tiny",
        conditional=conditional,
        generator=GeneratorConfig(
            kind=kind, latent_dim=4, width=4, norm=norm, activation=activation, negative_slope=0.1
        ),
        discriminator=DiscriminatorConfig(width=4),
    )
    config = dataclasses.replace(config, optimizer=OptimizerConfig(lr=0.05))  # so that nothing is as it started
    network = trained(config).generator.eval()
    rows, labels = probes(network, 64)
    reference = pytorch_pixels(network, rows, labels)
    assert reference.std(axis=0).max() > 0
    exported = ExportedGenerator(network).eval()

    content = export_onnx(exported, {})
    model = read_model(content, ONNX)  # what is exported may be served
    assert fitness(ONNX, model).compute_islands == 1
    assert check_cost(model, ONNX, FACTS.height * FACTS.width) > 0
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def onnx_pixels(
        given: npt.NDArray[np.float32], of: npt.NDArray[np.int64] | None, session: object = session
    ) -> npt.NDArray[np.uint8]:
        feed = {"latents": given} | ({} if of is None else {"labels": of})
        return session.run(None, feed)[0]  # type: ignore[attr-defined,no-any-return]

    prove(ONNX, onnx_pixels, reference, rows, labels)

    module = load_torchscript(export_torchscript(exported, {}))
    inputs = [torch.from_numpy(rows)] + ([] if labels is None else [torch.from_numpy(labels)])
    difference = np.abs(module(*inputs).numpy().astype(int) - reference.astype(int))
    assert difference.max() <= 1
