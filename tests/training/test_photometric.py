"""Colour changes are Pillow's, hue is colorsys's, blur is a plain convolution, rectangles have the size asked for."""

import colorsys

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest

from atonet_jax.training import photometric


def random_image(seed, *size):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def float_image(image):
    return image.astype(np.float32)


@pytest.mark.parametrize('factor', [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize('effect', ['Brightness', 'Contrast', 'Color'])
def test_colour_changes_are_pillows(effect, factor):
    image = random_image(0, 20, 30) // 2 + 20
    expected = getattr(PIL.ImageEnhance, effect)(PIL.Image.fromarray(image)).enhance(factor)
    actual = {
        'Brightness': lambda pixels: photometric.adjust_brightness(pixels, factor),
        'Contrast': lambda pixels: photometric.adjust_contrast(pixels, factor, np.ones(pixels.shape[:2], bool)),
        'Color': lambda pixels: photometric.adjust_saturation(pixels, factor),
    }[effect](float_image(image))
    assert actual.dtype == np.float32
    # Pillow cuts the result to whole numbers, and rounds the grey to which it adds 1 - factor times.
    np.testing.assert_allclose(actual, np.asarray(expected, np.float32), rtol=0, atol=1 + abs(1 - factor))


@pytest.mark.parametrize('effect', [photometric.adjust_brightness, photometric.adjust_saturation])
def test_colours_are_clipped_to_pixel_values(effect):
    changed = np.asarray(effect(float_image(random_image(1, 20, 20)), 3.0))
    assert changed.min() == 0 and changed.max() == 255


def test_contrast_is_about_the_mean_of_the_pixels_inside():
    image = float_image(random_image(2, 8, 9))
    inside = np.zeros((8, 9), bool)
    inside[2:, :5] = True
    outside_changed = np.where(inside[..., None], image, 77)
    mean = (image[inside].astype(np.float64) @ [0.299, 0.587, 0.114]).mean()
    for pixels in (image, outside_changed):
        np.testing.assert_allclose(photometric.adjust_contrast(pixels, 0.0, inside), mean, rtol=0, atol=1e-3)
    assert np.isfinite(photometric.adjust_contrast(image, 0.5, np.zeros((8, 9), bool))).all()


@pytest.mark.parametrize('shift', [-0.5, -0.13, 0.0, 1 / 3, 0.5])
def test_hue_is_colorsyss(shift):
    corners = [[r, g, b] for r in (0, 100, 255) for g in (0, 100, 255) for b in (0, 100, 255)]
    image = np.concatenate([np.array(corners, np.uint8), random_image(3, 9, 3).reshape(-1, 3)]).reshape(6, 9, 3)
    expected = []
    for pixel in image.reshape(-1, 3):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        expected.append(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value))
    actual = photometric.adjust_hue(float_image(image), shift)
    np.testing.assert_allclose(actual, 255 * np.reshape(expected, image.shape), rtol=0, atol=1e-3)


@pytest.mark.parametrize(('sigma', 'radius'), [(0.1, 2), (0.8, 3), (2.5, 8)])
def test_blur_is_a_convolution_with_a_gaussian(sigma, radius):
    image = float_image(random_image(4, 7, 13))  # lower than the kernel
    kernel = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2.0 * sigma**2))
    kernel /= kernel.sum()
    padded = np.pad(image.astype(np.float64), [(radius, radius), (radius, radius), (0, 0)], mode='edge')
    for axis in range(2):
        padded = np.apply_along_axis(np.convolve, axis, padded, kernel, mode='valid')
    np.testing.assert_allclose(photometric.gaussian_blur(image, sigma, radius), padded, rtol=0, atol=1e-3)


LARGEST_DRAW = 1 - 2.0**-23  # of float32


@pytest.mark.parametrize('size', [(32, 48), (1024, 1024), (8, 200)])
def test_rectangle_is_whole_and_as_large_as_asked(size):
    rng = np.random.default_rng(5)
    for place in [(0.0, 0.0), (LARGEST_DRAW, LARGEST_DRAW), *rng.random((6, 2))]:
        area, aspect = rng.uniform(0.02, 0.5), 3 ** rng.uniform(-1, 1)
        covered = np.asarray(photometric.rectangle(size, np.float32(area), np.float32(aspect), *np.float32(place)))
        rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
        height, width = len(rows), len(columns)
        assert covered.sum() == height * width  # nothing but a rectangle, and so it has no gaps:
        assert rows[-1] - rows[0] + 1 == height and columns[-1] - columns[0] + 1 == width
        # Each side is rounded by half a pixel at most.
        assert abs(height * width - area * size[0] * size[1]) <= (height + width) / 2 + 0.25
        fits = area * size[0] * size[1] / size[1] ** 2 <= aspect <= size[0] ** 2 / (area * size[0] * size[1])
        if fits:
            assert (height - 0.6) / (width + 0.6) <= aspect <= (height + 0.6) / (width - 0.6)
        if place[0] == 0.0:
            assert rows[0] == columns[0] == 0
        if place[0] == LARGEST_DRAW:
            assert (rows[-1] + 1, columns[-1] + 1) == size


def test_smallest_rectangle_is_a_pixel():
    assert photometric.rectangle((5, 5), np.float32(1e-6), np.float32(1), np.float32(0.5), np.float32(0.5)).sum() == 1
