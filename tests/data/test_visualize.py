"""Pictures of label maps."""

import numpy as np
import pytest

from atonet_jax.data import visualize
from atonet_jax.data.labels import CITYSCAPES, IGNORE_LABEL


def test_an_overlay_is_nine_parts_of_the_image_and_eleven_of_the_colour(monkeypatch):
    """In strips, of which the last is not whole. Ignored pixels are the image's own."""
    monkeypatch.setattr(visualize, '_STRIP', 100)
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (11, 40, 3), np.uint8)
    labels = generator.integers(0, 19, (11, 40), np.uint8)
    labels[3:5] = IGNORE_LABEL
    blended = visualize.overlay(image, labels, CITYSCAPES.palette)
    exact = (9 * image.astype(float) + 11.0 * CITYSCAPES.palette[labels]) / 20
    ignored = labels == IGNORE_LABEL
    np.testing.assert_array_equal(blended[ignored], image[ignored])
    assert np.abs(blended - exact)[~ignored].max() <= 0.5
    assert blended.dtype == np.uint8


def test_pixels_that_a_network_gives_to_no_class_show_the_image_in_a_comparison():
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    labels = np.full((8, 12), 3, np.uint8)
    labels[:4] = CITYSCAPES.num_classes  # the output for void
    predicted = visualize.comparison(image, np.zeros_like(labels), labels, CITYSCAPES)[-8:, -12:]
    np.testing.assert_array_equal(predicted[:4], image[:4])
    np.testing.assert_array_equal(predicted[4:], visualize.overlay(image, labels, CITYSCAPES.palette)[4:])


def test_a_legend_names_the_classes_that_it_is_asked_for():
    """It is drawn once for the frames of a video, and anew for other classes or another width."""
    picture = np.full((30, 1200, 3), 7, np.uint8)
    few, many, few_again = (
        np.asarray(visualize.with_legend(picture, CITYSCAPES, present)) for present in ([0, 1], range(19), [0, 1, 250])
    )
    np.testing.assert_array_equal(few[:30], picture)
    np.testing.assert_array_equal(few, few_again)
    assert len(many) > len(few)
    for name, color in zip(CITYSCAPES.class_names, CITYSCAPES.class_colors, strict=True):
        assert (many[30:] == color).all(-1).any(), name
    assert not (few[30:] == CITYSCAPES.class_colors[13]).all(-1).any()


@pytest.mark.parametrize(('size', 'factor'), [((30, 40), 27), ((400, 40), 11), ((12000, 48), 1), ((8, 1200), 1)])
def test_a_small_picture_is_enlarged_within_reason(size, factor):
    picture = np.zeros((*size, 3), np.uint8)
    assert np.asarray(visualize.with_legend(picture, CITYSCAPES, [])).shape[1] == factor * size[1]
