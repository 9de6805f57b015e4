import io

import numpy as np
import pytest
import torch
from PIL import Image

from ganserve import imaging, latents
from training.config import GeneratorConfig
from training.models import GENERATORS
from training.pictures import curves_png, render, sheet_inputs, sheet_png


def test_a_sheet_has_a_column_for_each_class() -> None:
    """Labels count up along a row; the latents are the rows of `ganserve.latents` for the run's seed."""
    drawn, labels = sheet_inputs(7, 5, 3, torch.device("cpu"))
    assert labels is not None
    assert labels.tolist() == [0, 1, 2] * 10
    np.testing.assert_array_equal(drawn.numpy(), latents.draw(7, 30, 5)[0])
    drawn, labels = sheet_inputs(7, 5, None, torch.device("cpu"))
    assert labels is None
    assert drawn.shape == (100, 5)


def test_a_sheet_is_the_generator_in_evaluation_mode() -> None:
    """The PNG decodes to the contact sheet of the generator's pixels, and the generator goes on training."""
    network = GENERATORS["conv"](GeneratorConfig(latent_dim=5, width=4), image_shape=(1, 8, 6), num_classes=3).train()
    drawn, labels = sheet_inputs(7, 5, 3, torch.device("cpu"))
    statistics = {name: value.clone() for name, value in network.state_dict().items()}
    pixels = render(network, drawn, labels)
    assert pixels.shape == (30, 8, 6, 1)
    picture = np.asarray(Image.open(io.BytesIO(sheet_png(network, drawn, labels))))
    np.testing.assert_array_equal(picture[::2, ::2], imaging.contact_sheet(pixels, columns=3)[:, :, 0])
    assert network.training
    assert all(torch.equal(value, statistics[name]) for name, value in network.state_dict().items())


def test_curves_are_a_picture() -> None:
    """Any number of points, also one, gives a PNG of a fixed size."""
    point = {"step": 1, "loss_discriminator": 1.0, "loss_generator": 2.0, "d_real": 0.6, "d_fake": 0.4}
    for points in ([point], [point, point | {"step": 2}]):
        assert Image.open(io.BytesIO(curves_png(points, title="quick-1"))).size == (990, 660)
    measured = [point | {"fid": 20.0}, point | {"step": 2}, point | {"step": 3, "fid": 0.5}]
    assert Image.open(io.BytesIO(curves_png(measured, title="quick-1"))).size == (990, 880)


@pytest.mark.parametrize("title", ["$\\nothing$", "\udcff", "a\nb\x00", "\u2603 \U0001f600 \u4e2d"])
def test_any_name_can_be_a_title(title: str) -> None:
    """No formula, no bytes that are no UTF-8, no control character and no missing glyph stops the curves."""
    point = {"step": 1, "loss_discriminator": 1.0, "loss_generator": 2.0, "d_real": 0.6, "d_fake": 0.4}
    assert Image.open(io.BytesIO(curves_png([point], title=title))).size == (990, 660)
