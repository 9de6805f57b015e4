"""What every generator and every discriminator is, and the layers that both families share."""

import abc

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from training import distributed

ImageShape = tuple[int, int, int]  # channels, height, width
Size = tuple[int, int]  # height, width


class Generator(nn.Module, abc.ABC):
    """Latents, and labels if conditional, to images.

    Attributes:
        latent_dim: length of one latent.
        num_classes: labels are in range(num_classes); None for an unconditional generator.
        value_range: the images' range: (-1, 1) or (0, 1).
    """

    latent_dim: int
    num_classes: int | None
    value_range: tuple[float, float]

    @abc.abstractmethod
    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images of the latents.

        Args:
            latents: float32 [N, latent_dim], standard normal.
            labels: int64 [N]; None exactly if the generator is unconditional.

        Returns:
            float32 [N, C, H, W] in `value_range`.
        """

    @abc.abstractmethod
    def normalized_layers(self) -> list[tuple[nn.Module, "Norm"]]:
        """Each normalisation after the layer whose output it gets: an `nn.Linear`, a convolution or a `LatentInput`.

        At inference a normalisation is an affine map, which belongs in the layer before it: this is for exporters.
        """


class Discriminator(nn.Module, abc.ABC):
    """Images, and labels if conditional, to logits, by features that do not depend on the label.

    The conditional logit is a projection, (w + e_label) . features + b (Miyato and Koyama 2018). Its features can be
    asked about several labels at the price of one pass: `step.py` does that for wrong labels.
    """

    def __init__(self, feature_dim: int, num_classes: int | None) -> None:
        super().__init__()
        self.logit = nn.Linear(feature_dim, 1)
        self.label_logit = None if num_classes is None else nn.Embedding(num_classes, feature_dim)
        if self.label_logit is not None:
            nn.init.zeros_(self.label_logit.weight)  # no opinion about classes before any was seen

    @abc.abstractmethod
    def features(self, images: Tensor, *, batches: int = 1) -> Tensor:
        """What the logits are made of.

        Args:
            images: float32 [N, C, H, W] in the generator's value range.
            batches: so many batches of one size lie behind each other in `images`; none has a part in the features of
                another, so that reals and fakes can be judged in one pass.

        Returns:
            float32 [N, feature_dim].
        """

    def logits(self, features: Tensor, labels: Tensor | None) -> Tensor:
        """Positive where the images look real (and of their labels int64 [N], if conditional): float32 [N]."""
        logits = self.logit(features).squeeze(1)
        if self.label_logit is not None:
            logits = logits + (self.label_logit(labels) * features).sum(dim=1)
        return logits.float()  # type: ignore[no-any-return]  # nn.Module's call is untyped

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images float32 [N, C, H, W] and labels int64 [N], or None if unconditional, to logits float32 [N]."""
        return self.logits(self.features(images), labels)


class _WholeBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation whose statistics are of the whole batch, however many processes have a share of it.

    torch's own SyncBatchNorm is for GPUs only.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """float32 [N, C] or [N, C, H, W] -> the same shape."""
        if not self.training or distributed.size() == 1:
            return super().forward(hidden)
        assert self.running_mean is not None, "statistics are always kept"
        assert self.running_var is not None, "statistics are always kept"
        assert self.num_batches_tracked is not None, "statistics are always kept"
        others = [0, *range(2, hidden.dim())]
        cells = (-1, *(1,) * (hidden.dim() - 2))
        # Around the running mean, which is near the batch's: a difference of two large squares would cost digits.
        shifted = hidden.float() - self.running_mean.view(cells)
        moments = torch.stack([shifted.mean(others), shifted.square().mean(others)])
        average, square = distributed.mean(moments).unbind()  # one exchange for both: it takes longer than the sums
        variance = (square - average.square()).clamp(min=0.0)
        normal = (shifted - average.view(cells)) * (variance + self.eps).rsqrt().view(cells)
        with torch.no_grad():
            count = distributed.size() * hidden.numel() / hidden.shape[1]
            momentum = 0.1 if self.momentum is None else self.momentum
            self.running_mean.add_(average, alpha=momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), momentum)
            self.num_batches_tracked += 1
        if self.affine:
            normal = torch.addcmul(self.bias.view(cells), normal, self.weight.view(cells))
        return normal.to(hidden.dtype)


class _BatchNorm1d(_WholeBatchNorm, nn.BatchNorm1d):
    """Of [N, C]."""


class _BatchNorm2d(_WholeBatchNorm, nn.BatchNorm2d):
    """Of [N, C, H, W]."""


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation whose scale and shift are looked up by the label (de Vries et al. 2017)."""

    def __init__(self, normalize: nn.BatchNorm1d | nn.BatchNorm2d, num_classes: int) -> None:
        super().__init__()
        self.normalize = normalize  # without an affine part of its own
        self.scale = nn.Embedding(num_classes, normalize.num_features)
        self.shift = nn.Embedding(num_classes, normalize.num_features)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """float32 [N, C] or [N, C, H, W], labels int64 [N] -> the same shape."""
        cells = (1,) * (hidden.dim() - 2)
        scale = self.scale(labels).unflatten(1, (-1, *cells))
        shift = self.shift(labels).unflatten(1, (-1, *cells))
        return torch.addcmul(shift, self.normalize(hidden), scale)


class Norm(nn.Module):
    """Batch normalisation of [N, C] or [N, C, H, W], conditional or not; or nothing.

    Args:
        kind: batch or none.
        channels: C.
        spatial: whether there are H and W.
        num_classes: None for an unconditional one.
    """

    def __init__(self, kind: str, channels: int, *, spatial: bool, num_classes: int | None) -> None:
        super().__init__()
        self.layer: nn.Module | None = None
        self.conditional = num_classes is not None
        if kind == "batch":
            batch_norm = _BatchNorm2d if spatial else _BatchNorm1d
            normalize = batch_norm(channels, affine=num_classes is None)
            self.layer = normalize if num_classes is None else ConditionalBatchNorm(normalize, num_classes)

    def forward(self, hidden: Tensor, labels: Tensor | None) -> Tensor:
        """The same shape; labels int64 [N] if conditional."""
        if self.layer is None:
            return hidden
        return self.layer(hidden, labels) if self.conditional else self.layer(hidden)  # type: ignore[no-any-return]


class MinibatchDeviation(nn.Module):
    """Adds one channel (or unit): the standard deviation over the batch, averaged over everything else.

    A discriminator of single images cannot tell that all of them are the same; with this one it can (Karras et al.
    2018). The group is the whole batch, however many processes have a share of it.
    """

    def forward(self, hidden: Tensor, batches: int) -> Tensor:
        """[N, C] or [N, C, H, W] of `batches` batches behind each other -> one C more; each sees its own deviation."""
        groups = hidden.reshape(batches, -1, *hidden.shape[1:])
        values = groups.float()
        if distributed.size() == 1:
            variance = values.var(dim=1, correction=0)
        else:
            average = distributed.mean(values.mean(dim=1, keepdim=True))
            variance = distributed.mean((values - average).square().mean(dim=1))
        # The square root has no gradient at zero, where a collapsed generator is: hence the small number.
        deviation = (variance + 1e-8).sqrt().flatten(1).mean(dim=1)
        one_each = deviation.repeat_interleave(groups.shape[1]).view(-1, *(1,) * (hidden.dim() - 1))
        return torch.cat([hidden, one_each.expand(-1, 1, *hidden.shape[2:])], dim=1)


class LatentInput(nn.Module):
    """The first linear layer of a generator: of the latent and the one-hot label side by side, if conditional.

    The label's half is an embedding: a row look-up instead of a product with zeros, and a plain gather in ONNX.
    """

    def __init__(self, latent_dim: int, units: int, num_classes: int | None, *, bias: bool) -> None:
        super().__init__()
        self.latent = nn.Linear(latent_dim, units, bias=bias)
        self.label = None if num_classes is None else nn.Embedding(num_classes, units)
        if self.label is not None:
            bound = (latent_dim + self.label.num_embeddings) ** -0.5  # as nn.Linear over both would start
            nn.init.uniform_(self.label.weight, -bound, bound)

    def forward(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """float32 [N, latent_dim], labels int64 [N] if conditional -> float32 [N, units]."""
        hidden: Tensor = self.latent(latents)
        return hidden if self.label is None else hidden + self.label(labels)


class DoubledConv(nn.Conv2d):
    """Each pixel twice in both directions, cropped to `size`; then a 3 x 3 convolution, padded by one."""

    def __init__(self, before: int, after: int, size: Size, *, bias: bool) -> None:
        super().__init__(before, after, 3, padding=1, bias=bias)
        self.size = size

    def forward(self, hidden: Tensor) -> Tensor:
        """float32 [N, before, ceil(H / 2), ceil(W / 2)] -> [N, after, H, W], H and W being `size`."""
        return super().forward(doubled(hidden, self.size))


class ShuffledConv(nn.Conv2d):
    """A 3 x 3 convolution to 2 x 2 cells a pixel, which become pixels (Shi et al. 2016), cropped to `size`."""

    def __init__(self, before: int, after: int, size: Size, *, bias: bool) -> None:
        super().__init__(before, 4 * after, 3, padding=1, bias=bias)
        self.size = size

    def forward(self, hidden: Tensor) -> Tensor:
        """float32 [N, before, ceil(H / 2), ceil(W / 2)] -> [N, after, H, W], H and W being `size`."""
        return crop(functional.pixel_shuffle(super().forward(hidden), 2), self.size)


def output_activation(output: str) -> nn.Module:
    """The layer that brings images into the range of `output`, tanh or sigmoid."""
    return nn.Tanh() if output == "tanh" else nn.Sigmoid()


def activation(kind: str, channels: int, negative_slope: float) -> nn.Module:
    """One layer's activation: leaky_relu, prelu, relu or silu.

    LeakyReLU(x) = max(slope * x, x); slope 0 is ReLU. PReLU learns a slope for each of `channels` (or units) and starts
    at `negative_slope` (He et al. 2015).

    ReLUs work in place: 4 % of a step on two cores. That is safe behind a linear layer, a convolution, a normalisation
    or a sum: none needs its output for its gradient.
    """
    if kind == "prelu":
        return nn.PReLU(channels, init=negative_slope)
    if kind == "silu":
        return nn.SiLU()
    if kind == "leaky_relu" and negative_slope:
        return nn.LeakyReLU(negative_slope, inplace=True)
    return nn.ReLU(inplace=True)


def normalize_spectrally(discriminator: Discriminator) -> None:
    """Divides the weight of every layer by an estimate of its largest singular value (Miyato et al. 2018).

    The estimate is one power iteration better after each pass in training mode; it is part of the state.
    """
    if discriminator.label_logit is not None:
        nn.init.normal_(discriminator.label_logit.weight)  # zeros have no direction to divide
    for module in list(discriminator.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
            parametrizations.spectral_norm(module)


def halvings(size: Size, times: int) -> list[Size]:
    """`size` and what it becomes, rounded up, at each of `times` halvings: `times + 1` sizes."""
    sizes = [size]
    for _ in range(times):
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return sizes


def doubled(hidden: Tensor, size: Size) -> Tensor:
    """[N, C, ceil(H / 2), ceil(W / 2)] with each pixel twice in both directions, cropped to `size`: [N, C, H, W]."""
    return crop(functional.interpolate(hidden, scale_factor=2.0, mode="nearest"), size)


def crop(hidden: Tensor, size: Size) -> Tensor:
    """The upper left [N, C, *size] of a doubled image: what is too much where an odd size was halved."""
    return hidden if hidden.shape[2:] == size else hidden[:, :, : size[0], : size[1]]
