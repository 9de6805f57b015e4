import onnx
import pytest
import torch
from torch import nn

from exporters.onnx_export import export_onnx
from exporters.rewrite import FEW_OUTPUTS, transpose_convolutions, transposed
from exporters.wrapper import ExportedGenerator
from tests.exporters.test_wrapper import build
from training.models.base import DoubledConv, ShuffledConv


@pytest.fixture(autouse=True)
def _same_every_time() -> None:
    torch.manual_seed(0)


def assert_same(layer: nn.Module, channels: int, size: tuple[int, int]) -> None:
    """The twin of `layer` gives its outputs to 1e-5, for images and for a single lit pixel in each corner."""
    twin = transposed(layer)
    assert twin is not None
    hidden = torch.randn(3, channels, *size)
    corners = torch.zeros(4, channels, *size)
    for index, (row, column) in enumerate(((0, 0), (0, -1), (-1, 0), (-1, -1))):
        corners[index, :, row, column] = 1.0
    for given in (hidden, corners):
        with torch.no_grad():
            torch.testing.assert_close(twin(given), layer(given), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("after", [1, 3, 16, 33])
@pytest.mark.parametrize("before", [1, 8, 40])
def test_a_doubled_convolution_is_one_transposed_convolution(before: int, after: int, bias: bool) -> None:
    """Doubling and convolving is a transposed convolution of the undoubled image, of every width, at every border."""
    layer = DoubledConv(before, after, (14, 6), bias=bias)
    assert isinstance(transposed(layer), nn.ConvTranspose2d)
    assert_same(layer, before, (7, 3))


@pytest.mark.parametrize("before", [1, 8, 40])
def test_a_shuffled_convolution_to_one_channel_is_transposed(before: int) -> None:
    """Convolving to the 2 x 2 cells of one channel is a transposed convolution, though each cell has its own bias."""
    layer = ShuffledConv(before, 1, (28, 10), bias=True)
    assert layer.bias is not None
    assert len(set(layer.bias.tolist())) == 4
    assert_same(layer, before, (14, 5))


@pytest.mark.parametrize("after", [1, 3, 4])
@pytest.mark.parametrize("before", [1, 8, 40])
def test_a_convolution_to_few_channels_is_transposed(before: int, after: int) -> None:
    """A 3 x 3 convolution with few outputs is a transposed one with its kernel turned around, of odd sizes too."""
    assert_same(nn.Conv2d(before, after, 3, padding=1), before, (9, 7))


@pytest.mark.parametrize(
    "layer",
    [
        DoubledConv(4, 4, (7, 8), bias=True),
        DoubledConv(4, 4, (8, 7), bias=True),
        ShuffledConv(4, 1, (7, 8), bias=True),
        ShuffledConv(4, 2, (8, 8), bias=True),
        nn.Conv2d(4, FEW_OUTPUTS + 1, 3, padding=1),
        nn.Conv2d(4, 1, 1),
        nn.Conv2d(4, 1, 3, padding=0),
        nn.Conv2d(4, 1, 3, padding=1, stride=2),
        nn.Conv2d(4, 1, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Linear(4, 1),
    ],
    ids=str,
)
def test_what_has_no_cheaper_twin_stays(layer: nn.Module) -> None:
    """Cropped doublings, convolutions with many outputs and those of other kinds are not rewritten."""
    assert transposed(layer) is None
    parent = nn.Sequential(layer)
    transpose_convolutions(parent)
    assert parent[0] is layer


# Of MNIST's 28 x 28 in two doublings nothing is cropped; what is left is what the shortcuts double.
OPERATORS = {
    "conv": {"ConvTranspose": 2},
    "mlp": {},
    "residual": {"ConvTranspose": 3, "Conv": 4, "Resize": 2},
    "subpixel": {"Conv": 1, "DepthToSpace": 1, "ConvTranspose": 1},
}


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("kind", sorted(OPERATORS))
def test_no_convolution_reads_a_doubled_image(kind: str, conditional: bool) -> None:
    """The graphs of the registry hold the rewritten operators, and no convolution behind a Resize."""
    graph = onnx.load_from_string(export_onnx(ExportedGenerator(build(kind, conditional=conditional)), {})).graph
    operators = [node.op_type for node in graph.node]
    counted = ("Conv", "ConvTranspose", "DepthToSpace", "Resize")
    assert {name: operators.count(name) for name in counted if name in operators} == OPERATORS[kind]
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type == "Conv":
            assert made_by.get(node.input[0]) != "Resize"


def test_the_original_keeps_its_convolutions() -> None:
    """Wrapping rewrites a copy: the generator that was given still holds its own layers."""
    network = build("residual", conditional=True)
    ExportedGenerator(network)
    assert any(isinstance(module, DoubledConv) for module in network.modules())


def test_torchscript_keeps_convolutions_with_few_outputs() -> None:
    """For PyTorch's own kernels only doublings are transposed: the last convolution stays one."""
    exported = ExportedGenerator(build("residual", conditional=True), torchscript=True)
    convolutions = [type(module) for module in exported.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    assert convolutions.count(nn.ConvTranspose2d) == 2  # one in each block
    assert convolutions.count(nn.Conv2d) == 5  # two in each block, and the pixels
