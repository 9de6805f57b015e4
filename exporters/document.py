"""What people look at in an artifact: the proof sheet and the model card."""

import io
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ganserve import imaging
from ganserve.artifact import ONNX, SAMPLES, TORCHSCRIPT, Manifest

Pixels = npt.NDArray[np.uint8]

DIFFERENCE_GAIN = 64  # one grey level shows as 64
_SCALE = 2
_CAPTION_WIDTH = 230


def samples_png(columns: Mapping[str, Pixels]) -> bytes:
    """The proof sheet: a row of images for each way of computing them, and for each but the first its difference.

    Args:
        columns: caption -> pixels uint8 [N, H, W, C] of the same latents; the first is the reference.

    Returns:
        A PNG file.
    """
    captions = list(columns)
    reference = columns[captions[0]]
    rows = dict(columns)
    for caption in captions[1:]:
        distance = np.abs(columns[caption].astype(np.int16) - reference.astype(np.int16)) * DIFFERENCE_GAIN
        rows[f"|{caption} - {captions[0]}| x {DIFFERENCE_GAIN}"] = np.minimum(distance, 255).astype(np.uint8)
    strips = [
        imaging.contact_sheet(pixels, columns=len(pixels)).repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)
        for pixels in rows.values()
    ]
    height, width, channels = strips[0].shape
    sheet = Image.new("RGB" if channels == 3 else "L", (_CAPTION_WIDTH + width, height * len(strips)), "black")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for index, (caption, strip) in enumerate(zip(rows, strips, strict=True)):
        sheet.paste(Image.fromarray(strip if channels == 3 else strip[:, :, 0]), (_CAPTION_WIDTH, index * height))
        draw.text((8, index * height + height // 2), caption, fill="white", anchor="lm", font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def model_card(manifest: Manifest, sizes: Mapping[str, int]) -> bytes:
    """The artifact's README: what it is, where it is from, how to run it, and the proof.

    Args:
        manifest: complete but for this very file.
        sizes: file name -> bytes.
    """
    image, source, model = manifest.model.image, manifest.source, manifest.model
    shape = f"[batch, {image.height}, {image.width}, {image.channels}]"
    labels = "none" if manifest.labels is None else ", ".join(manifest.labels)
    feeds = '{"latents": latents}' if manifest.labels is None else '{"latents": latents, "labels": labels}'
    inputs = f"`latents` float32 [batch, {manifest.latent.dim}], standard normal"
    draw_labels = ""
    if manifest.labels is not None:
        inputs += f"; `labels` int64 [batch] in 0..{len(manifest.labels) - 1}"
        draw_labels = f"labels = np.arange(10, dtype=np.int64) % {len(manifest.labels)}\n"
    metrics = "\n".join(f"| {name} | {value:.6g} |" for name, value in sorted(manifest.training.items()))
    parity = "\n".join(
        f"| {row.format} | {row.batch_rows} | {row.max_abs_diff} | {row.differing_share:.4%} |"
        for row in manifest.parity
    )
    quality = _quality_table(manifest.quality)
    torchscript = (
        f"- `{TORCHSCRIPT}` is for LibTorch; TorchScript is code: load it only if you trust who made it.\n"
        if TORCHSCRIPT in sizes
        else ""
    )
    files = "\n".join(f"| `{name}` | {size:,} |" for name, size in sorted(sizes.items()))
    return f"""# {manifest.name}

A generator of {image.height} x {image.width} images (`{model.generator}`, {model.parameters:,} parameters)
trained on `{source.dataset}` with the recipe `{source.recipe}` and exported by ganserve.

![the same latents through every format]({SAMPLES})

## Signature

Inputs: {inputs}. Output: `pixels` uint8 {shape}. Labels: {labels}.

## Run it

    GANSERVE_ARTIFACT=. bentoml serve ganserve.service:GanServe
    ganserve sample . --n 100 --out sheet.png

or without ganserve:

```python
import numpy as np, onnxruntime

session = onnxruntime.InferenceSession("{ONNX}")
latents = np.random.default_rng(0).standard_normal((10, {manifest.latent.dim}), dtype=np.float32)
{draw_labels}pixels = session.run(["pixels"], {feeds})[0]  # uint8 [10, {image.height}, {image.width}, {image.channels}]
```

{torchscript}
## Where it is from

Run `{source.run}`, checkpoint `{source.checkpoint}` (step {source.step:,}, {source.images_seen:,} images seen), weights
SHA-256 `{source.weights_sha256}`, data SHA-256 `{source.dataset_sha256}`.

| last training metric | value |
| --- | --- |
{metrics}

## Proof

Each format was run after it was written and compared with PyTorch on the same latents; images do not depend on the
batch they are in. Difference in grey levels, and share of pixels that differ:

| file | batch | worst difference | pixels that differ |
| --- | --- | --- | --- |
{parity}
{quality}
## Files

| file | bytes |
| --- | --- |
{files}

Digests are in `manifest.json`. A generator trained on MNIST makes images in the style of its data (CC BY-SA 3.0).
""".encode()


def _quality_table(quality: Mapping[str, Mapping[str, float]] | None) -> str:
    """What the images of each format score, as a part of the card; nothing where it was not measured."""
    if quality is None:
        return ""
    names = [name for name in ("fid", "label_accuracy", "diversity") if all(name in row for row in quality.values())]
    rows = "\n".join(
        f"| {format} | " + " | ".join(f"{values[name]:.5g}" for name in names) + " |"
        for format, values in quality.items()
    )
    images = next(iter(quality.values()))["images"]
    return f"""
Quality of the same {images:,.0f} latents through each format, against the test split (FID is near 0 for real images;
diversity is 1):

| format | {" | ".join(names)} |
| --- |{" --- |" * len(names)}
{rows}
"""
