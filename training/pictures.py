"""What a run shows of itself: sample sheets, and curves."""

import io
import warnings
from collections.abc import Mapping, Sequence

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


def curves_png(metrics: Sequence[Mapping[str, float]], *, title: str) -> bytes:
    """A PNG of a run over its steps: both losses, what the discriminator says of real and of fake images, and FID.

    FID has a logarithmic axis, and there is none of a run that did not measure it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second, and only runs that get here pay it
    from matplotlib.figure import Figure

    steps = [point["step"] for point in metrics]
    measured = [point for point in metrics if "fid" in point]
    figure = Figure(figsize=(9, 8 if measured else 6), dpi=110, layout="constrained")
    losses, probabilities, *rest = figure.subplots(3 if measured else 2, 1, sharex=True)
    losses.plot(steps, [point["loss_discriminator"] for point in metrics], label="discriminator", color="tab:blue")
    losses.plot(steps, [point["loss_generator"] for point in metrics], label="generator", color="tab:orange")
    losses.set(ylabel="loss", ylim=(0, None))
    losses.set_title(printable(title), parse_math=False)  # a run may be called $x$
    probabilities.plot(steps, [point["d_real"] for point in metrics], label="D(real)", color="tab:green")
    probabilities.plot(steps, [point["d_fake"] for point in metrics], label="D(fake)", color="tab:red")
    probabilities.axhline(0.5, color="0.7", linewidth=1, linestyle="--")
    probabilities.set(ylabel="mean probability of real", ylim=(-0.02, 1.02))
    for axes in rest:
        fids = [point["fid"] for point in measured]
        axes.plot([point["step"] for point in measured], fids, label="FID", color="tab:purple", marker=".")
        axes.set(ylabel="FID", yscale="log")
    every = [losses, probabilities, *rest]
    every[-1].set(xlabel="step")
    for axes in every:
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right")
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box in the title says enough
        FigureCanvasAgg(figure).print_png(file)  # type: ignore[no-untyped-call]  # matplotlib ships this method untyped
    return file.getvalue()
