"""Convolutions as others that compute the same for less, before anything is exported.

A doubled pixel is the same four times: what a convolution reads of a doubled image, it can read of the one before, by
four kernels of 2 x 2, one for each of the four pixels that a pixel became. A transposed convolution is a matrix product
of the smaller image, and a sum of its overlapping windows. All of it is exact, except that sums are done in another
order.
"""

from typing import Final, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.base import DoubledConv, ShuffledConv, Size, crop
from training.models.residual import DoublingBlock

# Up to so many outputs of a convolution, its time goes into copying windows of its input; a transposed one copies
# windows of its output. ONNX Runtime on one AVX-512 core, 28 x 28: 3.9-7.9 times as fast with one output, 2.0-2.3 with
# four, 1.2 with eight, and 0.7 with sixteen.
FEW_OUTPUTS: Final = 4

# Layers without numbers of their own that work value by value: where they stand beside a shuffle makes no difference.
_VALUE_BY_VALUE: Final = (nn.ReLU, nn.LeakyReLU, nn.SiLU)

# A row for each tap of the 2-wide kernels, a column for each tap of the 3-wide one that it sums. Output 2 i + 1 reads
# pixel i by taps 0 and 1, and pixel i + 1 by tap 2; output 2 i + 2 reads pixel i by tap 0, and pixel i + 1 by 1 and 2.
_WINDOWS: Final = (((1, 1, 0), (0, 0, 1)), ((1, 0, 0), (0, 1, 1)))

# A row for each tap of the 4-wide kernel, a column for each tap of the 3-wide one that it sums. Output 2 i reads pixel
# i - 1 by tap 0, and pixel i by taps 1 and 2; output 2 i + 1 reads pixel i by taps 0 and 1, and pixel i + 1 by tap 2.
_PHASES: Final = ((0, 0, 1), (0, 1, 1), (1, 1, 0), (1, 0, 0))


Layer = TypeVar("Layer", nn.Conv2d, nn.ConvTranspose2d)


def rewrite_convolutions(network: nn.Module, *, few_outputs: int = FEW_OUTPUTS, windows: bool = True) -> None:
    """Replaces, in place, every convolution in `network` that has a cheaper twin.

    - `DoubledConv`: each of its outputs reads four distinct pixels at most, nine times. 2 x 2 convolutions of the
      undoubled image read each once; or, without `windows`, a transposed convolution, 4 x 4 and stride 2.
    - `ShuffledConv` with few outputs: a transposed convolution, 6 x 6 and stride 2. With `windows`, others shuffle by
      copying all channels of a pixel at a time: ONNX Runtime's DepthToSpace copies number by number.
    - A plain convolution with few outputs: a transposed convolution with its kernel turned around.

    A doubling that is cropped (7 to 14 is not, 4 to 7 is) stays as it is: what is cropped must read as zero, and in no
    twin it would.

    Args:
        network: an exporter's own copy.
        few_outputs: 0 makes no transposed convolution but of doublings.
        windows: what ONNX Runtime computes soonest on a CPU, though it is more nodes.
    """
    for name, layer in list(network.named_children()):
        twin = rewritten(layer, few_outputs, windows=windows)
        if twin is None:
            rewrite_convolutions(layer, few_outputs=few_outputs, windows=windows)
        else:
            setattr(network, name, twin)
    if isinstance(network, DoublingBlock) and isinstance(network.first, Windows) and network.first_norm.layer is None:
        network.first_activation = network.first.take(network.first_activation)


class Windows(nn.Module):
    """A convolution of a doubled image, made of the undoubled one: each row of pixels becomes an upper and a lower row.

    A window of 2 x 2 pixels makes outputs between their centres: of a row of windows, which begins and ends half
    outside of the image, two in each row. With the channels last they lie in memory as they are in the image.
    """

    def __init__(self, upper: nn.Conv2d, lower: nn.Conv2d) -> None:
        """Both 2 x 2, to twice the channels: all of the left output's, then the right one's."""
        super().__init__()
        self.upper = upper
        self.lower = lower
        self.activation: nn.Module = nn.Identity()

    def take(self, activation: nn.Module) -> nn.Module:
        """Has `activation` done before the rows are moved, where a runtime does it within the convolution.

        Returns:
            What is left to do behind this layer: nothing, or `activation` itself if it knows channels apart.
        """
        if not isinstance(activation, _VALUE_BY_VALUE):
            return activation
        self.activation = activation
        return nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        """float32 [N, before, H, W] -> [N, after, 2 H, 2 W]."""
        (height, width), channels = hidden.shape[2:], self.upper.out_channels // 2
        rows = []
        for convolution, above, below in ((self.upper, 1, 0), (self.lower, 0, 1)):
            windows = self.activation(convolution(functional.pad(hidden, (1, 1, above, below))))
            rows.append(windows.permute(0, 2, 3, 1).reshape(-1, height, 1, (width + 1) * 2 * channels))
        images = torch.cat(rows, dim=2).reshape(-1, 2 * height, 2 * (width + 1), channels)
        return images[:, :, 1:-1].permute(0, 3, 1, 2)


class Cells(nn.Module):
    """A convolution to the 2 x 2 cells of each pixel, and the image that they make, cropped to `size`.

    The cells are put in place with the channels last, where a row of them is one piece of memory.
    """

    def __init__(self, convolution: nn.Conv2d, size: Size) -> None:
        """The convolution's outputs are ordered by cell, then channel."""
        super().__init__()
        self.convolution = convolution
        self.size = size

    def forward(self, hidden: Tensor) -> Tensor:
        """float32 [N, before, ceil(H / 2), ceil(W / 2)] -> [N, after, H, W], H and W being `size`."""
        cells = self.convolution(hidden)
        _, channels, height, width = cells.shape
        pairs = cells.permute(0, 2, 3, 1).reshape(-1, width, 2, channels // 2)  # of each row: column, upper or lower
        images = pairs.transpose(1, 2).reshape(-1, 2 * height, 2 * width, channels // 4)
        return crop(images.permute(0, 3, 1, 2), self.size)


class TransposedShuffle(nn.Module):
    """A transposed convolution, and a bias for each pixel: those of a shuffled convolution take turns."""

    bias: Tensor

    def __init__(self, convolution: nn.ConvTranspose2d, bias: Tensor) -> None:
        """The bias is float32 [C, H, W]."""
        super().__init__()
        self.convolution = convolution
        self.register_buffer("bias", bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """float32 [N, before, H / 2, W / 2] -> [N, C, H, W]."""
        images: Tensor = self.convolution(hidden) + self.bias
        return images


def rewritten(layer: nn.Module, few_outputs: int = FEW_OUTPUTS, *, windows: bool = True) -> nn.Module | None:
    """The twin that computes what `layer` does, where there is one and it is cheaper."""
    if not isinstance(layer, nn.Conv2d) or not _plain(layer):
        return None
    if isinstance(layer, DoubledConv):
        if not _exactly_doubles(layer):
            return None
        return _windows_of_doubled(layer) if windows else _of_doubled(layer)
    if isinstance(layer, ShuffledConv):
        if layer.out_channels <= few_outputs and _exactly_doubles(layer):
            return _of_shuffled(layer)
        return _cells_of_shuffled(layer) if windows else None
    return _of_plain(layer) if layer.out_channels <= few_outputs else None


def _plain(layer: nn.Conv2d) -> bool:
    """Whether it is 3 x 3, padded by one zero, of one group, and moves by one."""
    return (layer.kernel_size, layer.padding, layer.stride, layer.dilation, layer.groups, layer.padding_mode) == (
        (3, 3),
        (1, 1),
        (1, 1),
        (1, 1),
        1,
        "zeros",
    )


def _exactly_doubles(layer: DoubledConv | ShuffledConv) -> bool:
    """Whether nothing is cropped: odd sizes are, of the even ones above them."""
    return all(length % 2 == 0 for length in layer.size)


def _windows_of_doubled(layer: DoubledConv) -> Windows:
    taps = torch.tensor(_WINDOWS, dtype=torch.float64)
    # [row, column and channel after, channel before, 2, 2]
    lower, upper = torch.einsum("pak,qbl,oikl->pqoiab", taps, taps, layer.weight.double()).flatten(1, 2)
    bias = None if layer.bias is None else layer.bias.repeat(2)
    return Windows(_conv(upper, bias), _conv(lower, bias))


def _cells_of_shuffled(layer: ShuffledConv) -> Cells:
    def by_cell(values: Tensor) -> Tensor:
        return values.reshape(-1, 4, *values.shape[1:]).transpose(0, 1).flatten(0, 1)

    return Cells(
        _conv(by_cell(layer.weight), None if layer.bias is None else by_cell(layer.bias), padding=1), layer.size
    )


def _of_doubled(layer: DoubledConv) -> nn.ConvTranspose2d:
    phases = torch.tensor(_PHASES, dtype=torch.float64)
    kernel = torch.einsum("ak,bl,oikl->ioab", phases, phases, layer.weight.double())
    return _conv_transpose(kernel, layer.bias, stride=2, padding=1)


def _of_shuffled(layer: ShuffledConv) -> TransposedShuffle:
    # Output 2 i + p reads pixel i + k - 1 by tap k of cell p: in that pixel's window of 6 it is number 2 (2 - k) + p.
    cells = layer.weight.double().reshape(-1, 2, 2, *layer.weight.shape[1:]).flip(-1, -2)
    kernel = torch.einsum("opqikl->iokplq", cells).flatten(4, 5).flatten(2, 3)
    biases = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias.detach()
    height, width = layer.size
    bias = biases.reshape(-1, 2, 2).repeat(1, height // 2, width // 2)
    return TransposedShuffle(_conv_transpose(kernel, None, stride=2, padding=2), bias)


def _of_plain(layer: nn.Conv2d) -> nn.ConvTranspose2d:
    return _conv_transpose(layer.weight.transpose(0, 1).flip(-1, -2), layer.bias, stride=1, padding=1)


def _conv(kernel: Tensor, bias: Tensor | None, *, padding: int = 0) -> nn.Conv2d:
    """A layer of this kernel [after, before, K, K], rounded to float32."""
    after, before, width, _ = kernel.shape
    return _filled(nn.Conv2d(before, after, width, padding=padding, bias=bias is not None), kernel, bias)


def _conv_transpose(kernel: Tensor, bias: Tensor | None, *, stride: int, padding: int) -> nn.ConvTranspose2d:
    """A layer of this kernel [before, after, K, K], rounded to float32."""
    before, after, width, _ = kernel.shape
    layer = nn.ConvTranspose2d(before, after, width, stride=stride, padding=padding, bias=bias is not None)
    return _filled(layer, kernel, bias)


def _filled(layer: Layer, kernel: Tensor, bias: Tensor | None) -> Layer:
    layer.weight = nn.Parameter(kernel.detach().float().contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    layer.eval()
    return layer
