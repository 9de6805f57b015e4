import onnx
import pytest
import torch
from torch import nn

from exporters.onnx_export import export_onnx
from exporters.rewrite import FEW_OUTPUTS, Cells, TransposedShuffle, Windows, rewrite_convolutions, rewritten
from exporters.wrapper import ExportedGenerator
from tests.exporters.test_wrapper import build
from training.config import GeneratorConfig
from training.models.base import DoubledConv, ShuffledConv
from training.models.residual import DoublingBlock


@pytest.fixture(autouse=True)
def _same_every_time() -> None:
    torch.manual_seed(0)


def assert_same(layer: nn.Module, kind: type[nn.Module], channels: int, size: tuple[int, int], windows: bool) -> None:
    """The twin of `layer` gives its outputs to 1e-5, for images and for a single lit pixel in each corner."""
    twin = rewritten(layer, windows=windows)
    assert isinstance(twin, kind)
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
@pytest.mark.parametrize(("windows", "kind"), [(True, Windows), (False, nn.ConvTranspose2d)])
def test_a_doubled_convolution_reads_the_undoubled_image(
    windows: bool, kind: type[nn.Module], before: int, after: int, bias: bool
) -> None:
    """Doubling and convolving is 2 x 2 convolutions, or a transposed one, of the undoubled image, at every border."""
    assert_same(DoubledConv(before, after, (14, 6), bias=bias), kind, before, (7, 3), windows)


@pytest.mark.parametrize("before", [1, 8, 40])
@pytest.mark.parametrize("windows", [True, False])
def test_a_shuffled_convolution_to_one_channel_is_transposed(before: int, windows: bool) -> None:
    """Convolving to the 2 x 2 cells of one channel is a transposed convolution, though each cell has its own bias."""
    layer = ShuffledConv(before, 1, (28, 10), bias=True)
    assert layer.bias is not None
    assert len(set(layer.bias.tolist())) == 4
    assert_same(layer, TransposedShuffle, before, (14, 5), windows)


@pytest.mark.parametrize("size", [(28, 10), (7, 8), (8, 7), (7, 7)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("after", [2, 16])
def test_a_shuffled_convolution_moves_whole_pixels(after: int, bias: bool, size: tuple[int, int]) -> None:
    """Cells that are put in place with the channels last are those that a pixel shuffle moves, cropped too."""
    before = (-(-size[0] // 2), -(-size[1] // 2))
    assert_same(ShuffledConv(8, after, size, bias=bias), Cells, 8, before, True)


@pytest.mark.parametrize("after", [1, 3, 4])
@pytest.mark.parametrize("before", [1, 8, 40])
def test_a_convolution_to_few_channels_is_transposed(before: int, after: int) -> None:
    """A 3 x 3 convolution with few outputs is a transposed one with its kernel turned around, of odd sizes too."""
    assert_same(nn.Conv2d(before, after, 3, padding=1), nn.ConvTranspose2d, before, (9, 7), True)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu", "prelu"])
def test_an_activation_comes_before_the_shuffle(activation: str) -> None:
    """A residual block computes the same though its activation is done before pixels move; PReLU stays behind."""
    config = GeneratorConfig(activation=activation, norm="none", negative_slope=0.2)
    block = DoublingBlock(config, 8, 4, (14, 6), num_classes=None)
    if isinstance(block.first_activation, nn.PReLU):
        nn.init.uniform_(block.first_activation.weight)
    hidden = torch.randn(3, 8, 7, 3)
    with torch.no_grad():
        expected = block(hidden, None)
        rewrite_convolutions(block)
        torch.testing.assert_close(block(hidden, None), expected, rtol=0, atol=1e-5)
    assert isinstance(block.first_activation, nn.PReLU if activation == "prelu" else nn.Identity)


@pytest.mark.parametrize(
    "layer",
    [
        DoubledConv(4, 4, (7, 8), bias=True),
        DoubledConv(4, 4, (8, 7), bias=True),
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
    assert rewritten(layer) is None
    parent = nn.Sequential(layer)
    rewrite_convolutions(parent)
    assert parent[0] is layer


@pytest.mark.parametrize("layer", [ShuffledConv(4, 1, (7, 8), bias=True), ShuffledConv(4, 2, (8, 8), bias=True)])
def test_shuffles_stay_where_windows_are_not_wanted(layer: nn.Module) -> None:
    """For a GPU and for PyTorch a pixel shuffle is one node, and stays one."""
    assert rewritten(layer, windows=False) is None


# Of MNIST's 28 x 28 in two doublings nothing is cropped; what is left is what the shortcuts double.
OPERATORS = {
    "conv": {"ConvTranspose": 2},
    "mlp": {},
    "residual": {"ConvTranspose": 1, "Conv": 8, "Resize": 2},
    "subpixel": {"Conv": 1, "ConvTranspose": 1},
}
ON_A_GPU = {
    "residual": {"ConvTranspose": 3, "Conv": 4, "Resize": 2},
    "subpixel": {"Conv": 1, "DepthToSpace": 1, "ConvTranspose": 1},
}


@pytest.mark.parametrize(
    ("kind", "conditional", "float16"),
    [(kind, conditional, False) for kind in OPERATORS for conditional in (True, False)]
    + [(kind, True, True) for kind in ("residual", "subpixel")],
)
def test_no_convolution_reads_a_doubled_image(kind: str, conditional: bool, float16: bool) -> None:
    """The graphs of the registry hold the rewritten operators, no convolution behind a Resize, and no Pad."""
    expected = ON_A_GPU[kind] if float16 else OPERATORS[kind]
    exported = ExportedGenerator(build(kind, conditional=conditional), float16=float16)
    graph = onnx.load_from_string(export_onnx(exported, {})).graph
    operators = [node.op_type for node in graph.node]
    counted = ("Conv", "ConvTranspose", "DepthToSpace", "Pad", "Resize")
    assert {name: operators.count(name) for name in counted if name in operators} == expected
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
