"""The small convolutional classifier whose features the metrics compare, and its training."""

import dataclasses
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.data import Dataset
from training.data.batches import batch_indices

FEATURE_DIM: Final = 128
_CHUNK_ROWS: Final = 250  # images a pass: their activations stay in the cache of a small machine

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Features = npt.NDArray[np.float32]
Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierRecipe:
    """How a classifier is trained; written beside its weights.

    Attributes:
        seed: of the first weights, the order of the images and their shifts.
        epochs: passes over the train split.
        batch_size: images a step.
        lr: AdamW's rate at its highest, after a tenth of the steps; from there a cosine to zero.
        weight_decay: AdamW's.
        max_shift: each image is moved by up to so many pixels, either way, in both directions.
        average: share that the average of the weights keeps at a step; the average is what is used.
    """

    seed: int = 0
    epochs: int = 5
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.02
    max_shift: int = 2
    average: float = 0.998


class Classifier(nn.Module):
    """Images of any size from 4 x 4 to 128 features and a logit for each class.

    The features are a mean over places, after a ReLU: moving a digit by a pixel changes them little.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *_block(channels, 32, kernel=5),
            nn.MaxPool2d(2),
            *_block(32, 64),
            nn.MaxPool2d(2),
            *_block(64, 128),
            *_block(128, FEATURE_DIM, stride=2),
        )
        self.classes = nn.Linear(FEATURE_DIM, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """float32 [N, C, H, W] in [-1, 1] -> float32 [N, 128]."""
        return self.convolutions(images).mean(dim=(2, 3))  # type: ignore[no-any-return]  # nn.Module's call is untyped

    def forward(self, images: Tensor) -> Tensor:
        """float32 [N, C, H, W] in [-1, 1] -> logits float32 [N, num_classes]."""
        return self.classes(self.features(images))  # type: ignore[no-any-return]


def train_classifier(
    dataset: Dataset, recipe: ClassifierRecipe, *, on_step: Callable[[int, int], None] = lambda step, steps: None
) -> Classifier:
    """A classifier of the data set's images, in evaluation mode: a pure function of its arguments on one machine.

    It takes one thread, whatever there is: sums in another order are other weights.

    Args:
        dataset: the train split.
        recipe: how.
        on_step: hears of each step that is done, and of how many there are.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            return _train(dataset, recipe, on_step)
    finally:
        torch.set_num_threads(threads)


def run_classifier(
    network: Classifier, pixels: Pixels, *, on_rows: Progress = lambda rows: None
) -> tuple[Features, Features]:
    """Features float32 [N, 128] and logits float32 [N, num_classes] of pixels uint8 [N, H, W, C].

    `on_rows` hears of rows as they are done.
    """
    features, logits = [], []
    with torch.inference_mode():
        for start in range(0, len(pixels), _CHUNK_ROWS):
            chunk = torch.from_numpy(np.ascontiguousarray(pixels[start : start + _CHUNK_ROWS]))
            rows = network.features(_images(chunk.permute(0, 3, 1, 2)))
            features.append(rows.numpy())
            logits.append(network.classes(rows).numpy())
            on_rows(len(chunk))
    return np.concatenate(features), np.concatenate(logits)


def _train(dataset: Dataset, recipe: ClassifierRecipe, on_step: Callable[[int, int], None]) -> Classifier:
    torch.manual_seed(recipe.seed)
    network = Classifier(dataset.facts.channels, dataset.num_classes)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    keep = torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.average)  # type: ignore[no-untyped-call]
    average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=keep, use_buffers=True)
    pixels = torch.from_numpy(dataset.images).unsqueeze(1)
    labels = torch.from_numpy(dataset.labels)
    steps = max(1, recipe.epochs * len(labels) // recipe.batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps + 1, pct_start=0.1)
    for step in range(steps):
        rows = batch_indices(recipe.seed, step, recipe.batch_size, len(labels))
        images = _images(_shifted(pixels[rows], recipe.max_shift))
        loss = functional.cross_entropy(network(images), labels[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        average.update_parameters(network)
        on_step(step + 1, steps)
    trained: Classifier = average.module  # type: ignore[assignment]
    return trained.eval().requires_grad_(False)


def _block(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def _images(pixels: Tensor) -> Tensor:
    """uint8 [N, C, H, W] -> float32 in [-1, 1], laid out as the convolutions like it."""
    return pixels.float().mul_(2 / 255).sub_(1).contiguous(memory_format=torch.channels_last)


def _shifted(pixels: Tensor, most: int) -> Tensor:
    """Each image of uint8 [N, C, H, W] moved by -most to +most pixels in both directions; what comes in is black."""
    count, channels, height, width = pixels.shape
    padded = functional.pad(pixels, [most] * 4)
    down, right = torch.randint(2 * most + 1, (2, count, 1, 1, 1))
    rows = torch.arange(height).view(1, 1, -1, 1) + down
    columns = torch.arange(width).view(1, 1, 1, -1) + right
    return padded[torch.arange(count).view(-1, 1, 1, 1), torch.arange(channels).view(1, -1, 1, 1), rows, columns]
