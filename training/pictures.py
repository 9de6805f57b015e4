"""What a run shows of itself: sample sheets, and curves."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ganserve import imaging, latents
from training.data.batches import pixels_from_images
from training.models import Generator
from training.run_dir import printable

_SHEET_ROWS = 10
_SHEET_COLUMNS = 10
_SHEET_SCALE = 2


def sheet_inputs(
    seed: int, latent_dim: int, num_classes: int | None, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """The fixed latents, and labels, of a run's sheets: a column for each class, or ten columns without classes.

    Returns:
        latents float32 [N, latent_dim] and labels int64 [N] or None, N a multiple of the columns, row by row.
    """
    columns = num_classes or _SHEET_COLUMNS
    drawn, _ = latents.draw(seed, _SHEET_ROWS * columns, latent_dim)
    labels = None if num_classes is None else torch.arange(num_classes, device=device).repeat(_SHEET_ROWS)
    return torch.from_numpy(drawn).to(device), labels


@torch.no_grad()
def render(generator: Generator, latents: Tensor, labels: Tensor | None) -> npt.NDArray[np.uint8]:
    """The generator's images as pixels uint8 [N, H, W, C], in evaluation mode; its mode afterwards is as before."""
    training = generator.training
    generator.eval()
    images = generator(latents, labels)
    generator.train(training)
    return np.asarray(pixels_from_images(images, generator.value_range).cpu().numpy())


def sheet_png(generator: Generator, latents: Tensor, labels: Tensor | None) -> bytes:
    """A PNG of the images of `sheet_inputs`."""
    columns = generator.num_classes or _SHEET_COLUMNS
    sheet = imaging.contact_sheet(render(generator, latents, labels), columns=columns)
    return imaging.encode_png(sheet, scale=_SHEET_SCALE)


def curves_png(metrics: Sequence[Mapping[str, Any]], *, title: str) -> bytes:
    """A PNG of a run over its steps: both losses, what the discriminator says of real and of fake images, and FID.

    FID has a logarithmic axis, and there is none of a run that did not measure it.
    """
    from matplotlib.figure import Figure  # half a second, and only runs that get here pay it

    measured = [point for point in metrics if "fid" in point]
    figure = Figure(figsize=(9, 8 if measured else 6), dpi=110, layout="constrained")
    losses, probabilities, *rest = figure.subplots(3 if measured else 2, 1, sharex=True)
    _plot(losses, metrics, {"loss_discriminator": ("discriminator", "tab:blue"), "loss_generator": _GENERATOR})
    losses.set(ylabel="loss", ylim=(0, None))
    losses.set_title(printable(title), parse_math=False)  # a run may be called $x$
    _plot(probabilities, metrics, {"d_real": ("D(real)", "tab:green"), "d_fake": ("D(fake)", "tab:red")})
    probabilities.axhline(0.5, color="0.7", linewidth=1, linestyle="--")
    probabilities.set(ylabel="mean probability of real", ylim=(-0.02, 1.02))
    for axes in rest:
        _plot(axes, measured, {"fid": ("FID", "tab:purple")}, marker=".")
        axes.set(ylabel="FID", yscale="log")
    return _png(figure)


def gradients_png(metrics: Sequence[Mapping[str, Any]]) -> bytes | None:
    """A PNG of the gradient's norm of each layer of both players over the steps; None of a run without them."""
    from matplotlib.figure import Figure

    points = [point for point in metrics if "gradients" in point]
    if not points:
        return None
    figure = Figure(figsize=(9, 7), dpi=110, layout="constrained")
    for axes, player in zip(figure.subplots(2, 1, sharex=True), ("generator", "discriminator"), strict=True):
        for layer in points[-1]["gradients"][player]:
            steps = [point["step"] for point in points]
            norms = [point["gradients"][player].get(layer) or np.nan for point in points]  # no zeros on a log axis
            axes.plot(steps, norms, label=layer, linewidth=1)
        axes.set(ylabel=f"{player}: gradient norm", yscale="log")
    return _png(figure, legend="center left")


def class_shares_png(metrics: Sequence[Mapping[str, Any]]) -> bytes | None:
    """A PNG of how many images of each class the generator made over the steps; None of a run without an evaluator."""
    from matplotlib.figure import Figure

    points = [point for point in metrics if "class_shares" in point]
    if len(points) < 2:  # an area has a beginning and an end
        return None
    shares = np.array([point["class_shares"] for point in points]).T
    figure = Figure(figsize=(9, 3.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.stackplot([point["step"] for point in points], shares, labels=[f"class {i}" for i in range(len(shares))])
    axes.set(ylabel="share of images", ylim=(0, 1))
    return _png(figure, legend="center left")


_GENERATOR = ("generator", "tab:orange")


def _plot(axes: Any, points: Sequence[Mapping[str, Any]], lines: Mapping[str, tuple[str, str]], **style: Any) -> None:
    for name, (label, color) in lines.items():
        axes.plot(
            [point["step"] for point in points], [point[name] for point in points], label=label, color=color, **style
        )


def _png(figure: Any, *, legend: str = "upper right") -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for axes in figure.axes:
        axes.grid(alpha=0.3)
        beside = {"bbox_to_anchor": (1.0, 0.5), "fontsize": "x-small"} if legend == "center left" else {}
        axes.legend(loc=legend, **beside)
    figure.axes[-1].set(xlabel="step")
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box in the title says enough
        FigureCanvasAgg(figure).print_png(file)  # type: ignore[no-untyped-call]  # matplotlib ships this method untyped
    return file.getvalue()
