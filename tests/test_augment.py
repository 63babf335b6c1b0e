"""The device's crops equal those of scaling whole images, cropping and flipping them one by one."""

import jax
import numpy as np
import pytest

from atonet_jax.augment import MEAN_RGB, STDDEV_RGB, Geometry, augment, normalize
from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.data.pipeline import draw_geometry, window_size


def scale_whole(image, labels, height, width):
    """Bilinear image in float64 and nearest labels, half-pixel centres, no antialiasing."""

    def axis(length, scaled):
        position = (np.arange(scaled) + 0.5) * length / scaled - 0.5
        position = np.clip(position, 0, length - 1)
        lower = np.floor(position).astype(int)
        nearest = [(2 * i + 1) * length // (2 * scaled) for i in range(scaled)]
        return lower, np.minimum(lower + 1, length - 1), position - lower, nearest

    top, bottom, down, rows = axis(image.shape[0], height)
    left, right, along, columns = axis(image.shape[1], width)
    image = image.astype(np.float64)
    image = image[top] * (1 - down)[:, None, None] + image[bottom] * down[:, None, None]
    image = image[:, left] * (1 - along)[:, None] + image[:, right] * along[:, None]
    return image, labels[rows][:, columns]


def reference_crop(image, labels, geometry, crop_size):
    """The crop in pixel values 0..255, the mean colour where there is no image, and its labels."""
    image, labels = scale_whole(image, labels, geometry.scaled_height, geometry.scaled_width)
    crop = np.broadcast_to(MEAN_RGB.astype(np.float64), (*crop_size, 3)).copy()
    crop_labels = np.full(crop_size, IGNORE_LABEL, np.uint8)
    for y in range(crop_size[0]):
        for x in range(crop_size[1]):
            row, column = y + geometry.crop_top, x + geometry.crop_left
            if 0 <= row < geometry.scaled_height and 0 <= column < geometry.scaled_width:
                crop[y, x], crop_labels[y, x] = image[row, column], labels[row, column]
    return (crop[:, ::-1], crop_labels[:, ::-1]) if geometry.flip else (crop, crop_labels)


def cut_window(array, geometry, size):
    padded = np.pad(array, [(0, size[0]), (0, size[1])] + [(0, 0)] * (array.ndim - 2))
    return padded[geometry.window_top :, geometry.window_left :][: size[0], : size[1]]


@pytest.mark.parametrize(
    ('image_size', 'crop_size', 'scale_range'),
    [
        ((40, 60), (16, 24), (1.0, 2.0)),  # the recipe's range
        ((37, 53), (16, 24), (0.5, 0.99)),  # reducing, sizes that nothing divides
        ((33, 47), (33, 47), (1.0, 1.0)),  # nothing to scale, nothing to choose
        ((11, 90), (20, 24), (0.75, 2.5)),  # sometimes lower than the crop
        ((7, 9), (30, 31), (0.3, 3.0)),  # smaller than the crop on both axes
        ((50, 50), (13, 17), (0.23, 0.26)),
    ],
)
def test_crop_equals_scaling_the_whole_image(image_size, crop_size, scale_range):
    rng = np.random.default_rng(0)
    window = window_size(crop_size, scale_range)
    geometries = [draw_geometry(5, g, image_size, crop_size, scale_range, flip=True) for g in range(12)]
    assert {geometry.flip for geometry in geometries} == {0, 1}
    images = rng.integers(0, 256, (len(geometries), *image_size, 3), dtype=np.uint8)
    labels = rng.integers(0, 19, (len(geometries), *image_size), dtype=np.uint8)
    batch = {
        'image': np.stack([cut_window(a, g, window) for a, g in zip(images, geometries)]),
        'label': np.stack([cut_window(a, g, window) for a, g in zip(labels, geometries)]),
        'geometry': np.array(geometries, np.int32),
    }

    crops, crop_labels = jax.jit(augment, static_argnums=1)(batch, crop_size)

    assert crops.dtype == np.float32 and crop_labels.dtype == np.uint8
    pixel_values = np.asarray(crops, np.float64) * STDDEV_RGB + MEAN_RGB
    for i, geometry in enumerate(geometries):
        expected, expected_labels = reference_crop(images[i], labels[i], geometry, crop_size)
        np.testing.assert_allclose(pixel_values[i], expected, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(crop_labels[i], expected_labels)


def test_padding_is_exactly_zero_and_ignored():
    geometry = Geometry(4, 4, 4, 4, crop_top=-2, crop_left=-3, window_top=0, window_left=0, flip=0)
    batch = {
        'image': np.full((1, 12, 12, 3), 255, np.uint8),
        'label': np.zeros((1, 12, 12), np.uint8),
        'geometry': np.array([geometry], np.int32),
    }
    crops, labels = augment(batch, (10, 10))
    inside = np.zeros((10, 10), bool)
    inside[2:6, 3:7] = True
    np.testing.assert_array_equal(labels[0] == 0, inside)
    np.testing.assert_array_equal(labels[0] == IGNORE_LABEL, ~inside)
    assert (np.asarray(crops)[0, ~inside] == 0).all()


def test_largest_images_do_not_overflow():
    """Index arithmetic is in 32 bits: the last pixels of a 16384 x 16384 image scaled by 2."""
    length = 16384
    crop_start, window_start = 2 * length - 8, length - 5
    geometry = Geometry(
        length, length, 2 * length, 2 * length, crop_start, crop_start, window_start, window_start, flip=0
    )
    window = np.arange(8, dtype=np.uint8)
    batch = {
        'image': np.broadcast_to(window[None, :, None, None], (1, 8, 8, 3)),
        'label': np.broadcast_to(window[None, :, None], (1, 8, 8)),
        'geometry': np.array([geometry], np.int32),
    }
    _, labels = augment(batch, (8, 8))
    np.testing.assert_array_equal(labels[0, :, 0], [1, 1, 2, 2, 3, 3, 4, 4])


def test_normalize_is_torchvisions():
    pixel = np.array([[0, 128, 255]], np.uint8)
    expected = (pixel / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(normalize(pixel), expected, atol=1e-6)
