"""The generator as it is exported: normalisations folded away, convolutions rewritten, pixels uint8 out."""

import copy

import torch
from torch import Tensor, nn

from exporters.rewrite import FEW_OUTPUTS, rewrite_convolutions
from ganserve.errors import ExportError
from training.models import Generator
from training.models.base import ConditionalBatchNorm, LatentInput


class ExportedGenerator(nn.Module):
    """Latents (and labels) to pixels, as every exported format computes them.

    The conversion to uint8 is part of the graph: it is bit-identical to NumPy's, costs nothing, and a quarter of the
    bytes leave the session.
    """

    def __init__(
        self, generator: Generator, *, float16: bool = False, pixels: bool = True, torchscript: bool = False
    ) -> None:
        """Wraps a folded and rewritten copy; `generator` is left as it is.

        Args:
            generator: in evaluation mode.
            float16: compute in float16 between casts; inputs and output stay what they are.
            pixels: return pixels; otherwise the images as the network makes them.
            torchscript: PyTorch will run it, whose own kernels are slower where a convolution with few outputs is
                transposed: 0.5 times as fast where ONNX Runtime is 1.2.

        Raises:
            ExportError: it is in training mode, or a layer in it cannot be folded.
        """
        super().__init__()
        self.generator = fold_normalizations(generator)
        few_outputs = 0 if torchscript else FEW_OUTPUTS
        rewrite_convolutions(self.generator, few_outputs=few_outputs, windows=not (torchscript or float16))
        self.dtype = torch.float16 if float16 else torch.float32
        self.generator.to(self.dtype)
        for module in self.generator.modules():
            if isinstance(module, (nn.ReLU, nn.LeakyReLU)):
                module.inplace = False  # on a cropped image, that is exported as a scatter with computed indices
        self.pixels = pixels
        self.latent_dim = generator.latent_dim
        self.num_classes = generator.num_classes
        self.bounded = isinstance(list(generator.children())[-1], (nn.Tanh, nn.Sigmoid))  # needs no bounds of ours
        low, high = generator.value_range
        self.scale = 255.0 / (high - low)
        self.offset = -low * self.scale

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Pixels, or images, of the latents.

        Args:
            latents: float32 [N, latent_dim].
            labels: int64 [N], exactly if the model is conditional.

        Returns:
            uint8 [N, H, W, C]; or images float32 [N, C, H, W] in the generator's value range.
        """
        # Back to float32 before the conversion: float16 keeps 11 bits, and 255 * x needs its halves right.
        images: Tensor = self.generator(latents.to(self.dtype), labels).to(torch.float32)
        if not self.pixels:
            return images
        grey = images * self.scale
        if self.offset:
            grey = grey + self.offset
        grey = torch.round(grey)
        if not self.bounded:
            grey = torch.clamp(grey, 0.0, 255.0)
        pixels = grey.to(torch.uint8)
        if pixels.shape[1] == 1:  # already in order: nothing to copy
            return pixels.reshape(-1, *pixels.shape[2:], 1)
        return pixels.permute(0, 2, 3, 1)


class ConditionalAffine(nn.Module):
    """A conditional normalisation with its statistics folded in: hidden * scale[label] + shift[label]."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor, *, spatial: bool) -> None:
        """Tables float32 [num_classes, C]; `spatial` for hidden layers that have a height and a width."""
        super().__init__()
        # Stored in the shape in which they are used: a row is one Gather, with no Reshape after it.
        cells = (1, 1) if spatial else ()
        self.register_buffer("scale", scale.reshape(*scale.shape, *cells))
        self.register_buffer("shift", shift.reshape(*shift.shape, *cells))

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """float32 [N, C] or [N, C, H, W], labels int64 [N] -> the same shape."""
        return hidden * self.scale.index_select(0, labels) + self.shift.index_select(0, labels)


def fold_normalizations(generator: Generator) -> Generator:
    """A copy whose batch normalisations are part of the layers before them.

    At inference a batch normalisation multiplies and adds per channel. Unconditional ones vanish into the weights of
    the layer before, also across the reshape from a linear layer to an image, where no exporter finds them; conditional
    ones become a look-up of scale and shift. The arithmetic is done in float64 and rounded once.

    Raises:
        ExportError: training mode, statistics that were never updated, or a layer that cannot be folded.
    """
    if generator.training:
        raise ExportError("the generator is in training mode: its batch statistics would be those of each batch")
    folded = copy.deepcopy(generator)
    for layer, norm in folded.normalized_layers():
        if norm.layer is None:
            continue
        if isinstance(norm.layer, ConditionalBatchNorm):
            scale, shift = _affine(norm.layer.normalize)
            weight, bias = norm.layer.scale.weight.double(), norm.layer.shift.weight.double()
            spatial = isinstance(norm.layer.normalize, nn.BatchNorm2d)
            norm.layer = ConditionalAffine((weight * scale).float(), (bias + weight * shift).float(), spatial=spatial)
        elif isinstance(norm.layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            scale, shift = _affine(norm.layer)
            weight, bias = norm.layer.weight.double(), norm.layer.bias.double()
            _fold_into(layer, scale * weight, shift * weight + bias)
            norm.layer = None
        else:
            raise ExportError(f"cannot fold a {type(norm.layer).__name__}")
    return folded.requires_grad_(False)


def _affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift, float64 [C], that normalise with the running statistics."""
    mean, variance, seen = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if mean is None or variance is None or seen is None or int(seen) == 0:
        raise ExportError("a batch normalisation has no running statistics: the generator was never trained")
    scale = torch.rsqrt(variance.double() + norm.eps)
    return scale, -mean.double() * scale


def _fold_into(layer: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """Makes `layer` compute scale * layer(x) + shift; both float64 [C]."""
    if isinstance(layer, LatentInput):
        if layer.label is not None:
            raise ExportError("cannot fold an unconditional normalisation into a conditional input")
        layer = layer.latent
    if isinstance(layer, nn.Linear):
        # [C] to [C * cells]: the linear layer may be reshaped into C channels of several cells.
        cells = layer.out_features // len(scale)
        scale, shift = scale.repeat_interleave(cells), shift.repeat_interleave(cells)
        weight_scale = scale[:, None]
    elif isinstance(layer, nn.ConvTranspose2d):
        if layer.groups != 1:
            raise ExportError("cannot fold a normalisation into a grouped transposed convolution")
        weight_scale = scale[None, :, None, None]
    elif isinstance(layer, nn.Conv2d):
        # A pixel shuffle may make C channels of the convolution's C * cells.
        cells = layer.out_channels // len(scale)
        scale, shift = scale.repeat_interleave(cells), shift.repeat_interleave(cells)
        weight_scale = scale[:, None, None, None]
    else:
        raise ExportError(f"cannot fold a normalisation into a {type(layer).__name__}")
    bias = torch.zeros_like(shift) if layer.bias is None else layer.bias.double()
    layer.weight = nn.Parameter((layer.weight.double() * weight_scale).float())
    layer.bias = nn.Parameter((bias * scale + shift).float())
