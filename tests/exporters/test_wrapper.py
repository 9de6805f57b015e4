import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from exporters.onnx_export import export_onnx
from exporters.parity import probes, pytorch_pixels
from exporters.wrapper import ExportedGenerator, fold_normalizations
from ganserve.errors import ExportError
from tests.runs import make_checkpoint
from training.checkpoint import load_generator
from training.config import load_recipe
from training.models import GENERATORS, Generator
from training.models.base import Norm


def build(kind: str, *, conditional: bool, norm: str = "batch") -> Generator:
    """A generator with lively statistics: as after training, without the training."""
    recipe = load_recipe("quick")
    config = dataclasses.replace(recipe.generator, kind=kind, width=8, norm=norm, latent_dim=16)
    torch.manual_seed(1)
    network = GENERATORS[kind](config, image_shape=(1, 28, 28), num_classes=10 if conditional else None)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert module.running_mean is not None and module.running_var is not None  # noqa: PT018  # for mypy
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            assert module.num_batches_tracked is not None
            module.num_batches_tracked.fill_(7)
            if module.affine:
                nn.init.normal_(module.weight, 1.0, 0.3)
                nn.init.normal_(module.bias)
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, 0.5)
    return network.eval()


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("kind", sorted(GENERATORS))
def test_folding_changes_no_image(kind: str, conditional: bool) -> None:
    """A folded generator of every family computes the unfolded one's images to float32's precision."""
    network = build(kind, conditional=conditional)
    latents = torch.randn(32, 16)
    labels = torch.arange(32) % 10 if conditional else None
    with torch.no_grad():
        expected = network(latents, labels)
        found = fold_normalizations(network)(latents, labels)
    # Images span 2; float32 keeps 7 digits, and a few layers of sums lose one or two of them.
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("kind", sorted(GENERATORS))
def test_nothing_is_left_of_the_statistics(kind: str, conditional: bool) -> None:
    """A folded generator holds no batch normalisation, and the original still holds its own."""
    network = build(kind, conditional=conditional)
    folded = fold_normalizations(network)
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    assert not any(isinstance(module, norms) for module in folded.modules())
    assert any(isinstance(module, norms) for module in network.modules())


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("kind", sorted(GENERATORS))
def test_the_graph_scales_by_no_channel(kind: str, conditional: bool) -> None:
    """Of the normalisations, the ONNX graph keeps at most look-ups by label: it multiplies by no constant vector.

    An Add of a constant vector is allowed beside a MatMul or a ConvTranspose alone, where it is that layer's bias.
    """
    graph = onnx.load_from_string(export_onnx(ExportedGenerator(build(kind, conditional=conditional)), {})).graph
    vectors = {tensor.name for tensor in graph.initializer if np.prod(tensor.dims) > 1}
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    assert "BatchNormalization" not in made_by.values()
    for node in graph.node:
        if node.op_type in ("Mul", "Div", "Sub"):
            assert not vectors.intersection(node.input), node
        if node.op_type == "Add" and vectors.intersection(node.input):
            assert {"MatMul", "ConvTranspose"}.intersection(made_by.get(name) for name in node.input), node


def test_training_mode_is_refused() -> None:
    """A generator in training mode is refused: its images would depend on their batch."""
    with pytest.raises(ExportError, match="training mode"):
        ExportedGenerator(build("conv", conditional=True).train())


def test_untrained_statistics_are_refused() -> None:
    """Statistics that no batch has updated are refused."""
    network = build("conv", conditional=False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    with pytest.raises(ExportError, match="never trained"):
        ExportedGenerator(network)


def test_pixels_are_the_rounded_images(tmp_path: Path) -> None:
    """The exported graph's uint8 pixels are NumPy's rounding of the images, in [0, 1] as in [-1, 1]."""
    for recipe in ("quick", "seed"):
        trained = load_generator(make_checkpoint(tmp_path / recipe, recipe=recipe))
        rows, labels = probes(trained.network, 64)
        wrapped = ExportedGenerator(trained.network).eval()
        given = [torch.from_numpy(rows)] + ([] if labels is None else [torch.from_numpy(labels)])
        with torch.no_grad():
            found = wrapped(*given).numpy()
        expected = pytorch_pixels(trained.network, rows, labels)
        assert found.dtype == np.uint8
        assert found.shape == (64, 28, 28, 1)
        distance = np.abs(found.astype(int) - expected.astype(int))
        assert distance.max() <= 1
        assert np.count_nonzero(distance) <= 1e-3 * distance.size


class Loud(Generator):
    """Images that are their latents, far out of range, with no last layer to bound them."""

    latent_dim, num_classes, value_range = 4, None, (-1.0, 1.0)

    def forward(self, latents: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """float32 [N, 4] -> [N, 1, 2, 2]."""
        return self.scale(latents).reshape(-1, 1, 2, 2)

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(4, 4, bias=False)
        nn.init.eye_(self.scale.weight)

    def normalized_layers(self) -> list[tuple[nn.Module, Norm]]:
        """None."""
        return []


def test_images_without_bounds_are_clipped() -> None:
    """What is beyond the range is black or white, and does not begin again at the other end."""
    pixels = ExportedGenerator(Loud().eval())(torch.tensor([[-9.0, 9.0, -1.0, 1.0]]))
    assert pixels.shape == (1, 2, 2, 1)
    assert pixels.flatten().tolist() == [0, 255, 0, 255]


@pytest.mark.parametrize("kind", sorted(GENERATORS))
def test_tanh_needs_no_bounds_of_ours(kind: str) -> None:
    """Images that the last layer bounds are not clipped, and those of one channel are in order as they are."""
    graph = onnx.load_from_string(export_onnx(ExportedGenerator(build(kind, conditional=False)), {})).graph
    assert "Clip" not in {node.op_type for node in graph.node}
    (made_by,) = [node.op_type for node in graph.node if "pixels" in node.output]
    assert made_by == "Reshape"


@pytest.mark.parametrize("kind", ["residual", "subpixel"])
def test_the_graph_knows_the_batch_everywhere(kind: str) -> None:
    """Each value between nodes has a shape, so that ONNX Runtime sees what can be added to what."""
    graph = onnx.load_from_string(export_onnx(ExportedGenerator(build(kind, conditional=True)), {})).graph
    made = {name for node in graph.node for name in node.output} - {"pixels"}
    assert {value.name for value in graph.value_info} == made
    assert not [node for node in graph.node if node.op_type == "Reshape" and node.input[0] == "labels"]
    for value in graph.value_info:
        assert "batch" in value.type.tensor_type.shape.dim[0].dim_param, value
        assert not value.metadata_props
        assert not value.doc_string
