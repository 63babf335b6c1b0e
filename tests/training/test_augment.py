"""The device's crops equal those of scaling whole images, turning, cropping and flipping them one by one.

What it draws beside that lies in the ranges asked for, depends on the key alone, and touches nothing where it is off.
"""

import colorsys
import dataclasses

import jax
import numpy as np
import pytest

from atonet_jax.data.augmentation import Augmentation, Geometry
from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.data.sampling import draw_geometry, window_size
from atonet_jax.models.contract import IMAGENET
from atonet_jax.training.augment import augment, too_long_text

MEAN_RGB, STDDEV_RGB = IMAGENET.in_pixel_values()

AUGMENT = jax.jit(augment, static_argnums=1)
EVERYTHING = Augmentation(
    (24, 32),
    scale_range=(0.7, 1.5),
    rotation=15.0,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    blur=0.5,
    blur_sigma=(0.2, 1.0),
    erasing=0.5,
)


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


def reference_rotated_crop(image, labels, geometry, crop_size):
    """As `reference_crop`, by where each pixel of the crop lies in the whole image, in float64.

    Also returns, [h, w] bool, where float32 may find another nearest pixel, or image for none: within 1e-4 pixels of
    an edge between two.
    """
    angle = np.deg2rad(geometry.rotation / 1000)
    down, right = np.indices(crop_size) + 0.5 - np.reshape(crop_size, (2, 1, 1)) / 2
    # A step to the right in the turned picture was one right and down before it was turned counterclockwise.
    right, down = np.cos(angle) * right - np.sin(angle) * down, np.sin(angle) * right + np.cos(angle) * down
    row = (geometry.crop_top + crop_size[0] / 2 + down) * geometry.image_height / geometry.scaled_height
    column = (geometry.crop_left + crop_size[1] / 2 + right) * geometry.image_width / geometry.scaled_width
    inside = (row >= 0) & (row < geometry.image_height) & (column >= 0) & (column < geometry.image_width)
    unsure = (np.abs(row - np.round(row)) < 1e-4) | (np.abs(column - np.round(column)) < 1e-4)

    def neighbours(position, length):
        position = np.clip(position - 0.5, 0, length - 1)
        lower = np.floor(position).astype(int)
        return lower, np.minimum(lower + 1, length - 1), position - lower

    top, bottom, down = neighbours(row, geometry.image_height)
    left, right, along = neighbours(column, geometry.image_width)
    image, along, down = image.astype(np.float64), along[..., None], down[..., None]
    upper = (1 - along) * image[top, left] + along * image[top, right]
    lower = (1 - along) * image[bottom, left] + along * image[bottom, right]
    nearest = (np.clip(np.floor(position).astype(int), 0, n - 1) for position, n in zip((row, column), labels.shape))
    crop = np.where(inside[..., None], (1 - down) * upper + down * lower, MEAN_RGB)
    crop_labels = np.where(inside, labels[*nearest], IGNORE_LABEL)
    return tuple(array[:, ::-1] if geometry.flip else array for array in (crop, crop_labels, unsure))


def cut_window(array, geometry, size):
    padded = np.pad(array, [(0, size[0]), (0, size[1])] + [(0, 0)] * (array.ndim - 2))
    return padded[geometry.window_top :, geometry.window_left :][: size[0], : size[1]]


def make_batch(images, labels, geometries, window):
    return {
        'image': np.stack([cut_window(a, g, window) for a, g in zip(images, geometries)]),
        'label': np.stack([cut_window(a, g, window) for a, g in zip(labels, geometries)]),
        'geometry': np.array(geometries, np.int32),
    }


def random_batch(augmentation, num_examples, image_size=(40, 60), seed=5):
    """Random images and labels, their geometries, and the batch of them."""
    rng = np.random.default_rng(seed)
    geometries = [draw_geometry(seed, g, image_size, augmentation) for g in range(num_examples)]
    images = rng.integers(0, 256, (num_examples, *image_size, 3), dtype=np.uint8)
    labels = rng.integers(0, 19, (num_examples, *image_size), dtype=np.uint8)
    return images, labels, geometries, make_batch(images, labels, geometries, window_size(augmentation))


def to_pixel_values(crops):
    return np.asarray(crops, np.float64) * STDDEV_RGB + MEAN_RGB


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
    augmentation = Augmentation(crop_size, scale_range)
    images, labels, geometries, batch = random_batch(augmentation, 12, image_size)
    assert {geometry.flip for geometry in geometries} == {0, 1}

    crops, crop_labels = AUGMENT(batch, augmentation)

    assert crops.dtype == np.float32 and crop_labels.dtype == np.uint8
    pixel_values = to_pixel_values(crops)
    for i, geometry in enumerate(geometries):
        expected, expected_labels = reference_crop(images[i], labels[i], geometry, crop_size)
        np.testing.assert_allclose(pixel_values[i], expected, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(crop_labels[i], expected_labels)


@pytest.mark.parametrize(
    ('image_size', 'crop_size', 'scale_range', 'rotation'),
    [
        ((40, 60), (16, 24), (1.0, 2.0), 10.0),
        ((37, 53), (16, 25), (0.5, 0.99), 45.0),
        ((11, 90), (20, 24), (0.75, 2.5), 180.0),
        ((7, 9), (30, 31), (0.3, 3.0), 90.0),
    ],
)
def test_rotated_crop_equals_turning_the_whole_image(image_size, crop_size, scale_range, rotation):
    augmentation = Augmentation(crop_size, scale_range, rotation=rotation)
    images, labels, geometries, batch = random_batch(augmentation, 12, image_size)
    assert min(g.rotation for g in geometries) < 0 < max(g.rotation for g in geometries)

    crops, crop_labels = AUGMENT(batch, augmentation)

    assert crops.dtype == np.float32 and crop_labels.dtype == np.uint8
    pixel_values = to_pixel_values(crops)
    for i, geometry in enumerate(geometries):
        expected, expected_labels, unsure = reference_rotated_crop(images[i], labels[i], geometry, crop_size)
        assert unsure.mean() < 0.01
        # Places are right to some 1e-5 pixels in float32, and neighbours differ by up to 255 along each axis.
        np.testing.assert_allclose(pixel_values[i][~unsure], expected[~unsure], rtol=0, atol=0.02)
        np.testing.assert_array_equal(np.asarray(crop_labels[i])[~unsure], expected_labels[~unsure])


def test_positive_rotation_is_counterclockwise_and_flips_come_after_it():
    rng = np.random.default_rng(0)
    batch = {
        'image': rng.integers(0, 256, (3, 12, 12, 3), dtype=np.uint8),
        'label': rng.integers(0, 19, (3, 12, 12), dtype=np.uint8),
    }
    geometry = Geometry(12, 12, 12, 12, crop_top=2, crop_left=3, window_top=0, window_left=0, flip=0)
    turns = [geometry._replace(rotation=90_000), geometry._replace(rotation=-90_000)]
    turns.append(turns[0]._replace(flip=1))
    crops, labels = AUGMENT(batch | {'geometry': np.array(turns, np.int32)}, Augmentation((8, 8), rotation=90.0))
    for whole, crop in ((IMAGENET(batch['image']), crops), (batch['label'], labels)):
        upright = np.asarray(whole)[:, 2:10, 3:11]
        np.testing.assert_allclose(crop[0], np.rot90(upright[0]), rtol=0, atol=1e-4)
        np.testing.assert_allclose(crop[1], np.rot90(upright[1], -1), rtol=0, atol=1e-4)
        np.testing.assert_allclose(crop[2], np.rot90(upright[2])[:, ::-1], rtol=0, atol=1e-4)


def test_padding_is_exactly_zero_and_ignored():
    geometry = Geometry(4, 4, 4, 4, crop_top=-2, crop_left=-3, window_top=0, window_left=0, flip=0)
    batch = {
        'image': np.full((1, 12, 12, 3), 255, np.uint8),
        'label': np.zeros((1, 12, 12), np.uint8),
        'geometry': np.array([geometry], np.int32),
    }
    crops, labels = AUGMENT(batch, Augmentation((10, 10)))
    inside = np.zeros((10, 10), bool)
    inside[2:6, 3:7] = True
    np.testing.assert_array_equal(labels[0] == 0, inside)
    np.testing.assert_array_equal(labels[0] == IGNORE_LABEL, ~inside)
    assert (np.asarray(crops)[0, ~inside] == 0).all()


@pytest.mark.parametrize('rotation', [0.0, 5.0])
def test_largest_images_do_not_overflow(rotation):
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
    _, labels = AUGMENT(batch, Augmentation((8, 8), rotation=rotation))
    np.testing.assert_array_equal(labels[0, :, 0], [1, 1, 2, 2, 3, 3, 4, 4])


def test_images_too_long_for_32_bits_are_named():
    doubled = Augmentation((64, 64), (0.5, 2.0))
    assert too_long_text({(23170, 64), (64, 64)}, doubled) == ''
    assert too_long_text({(64, 23171), (64, 64)}, doubled) == (
        'an image of 64x23171 is too long to be scaled by up to 2; cut such images, or lower config.data.scale_range'
    )
    assert too_long_text([(64, 23171)], Augmentation((64, 64))) == ''


def test_recipe_draws_nothing_on_the_device():
    batch = {
        'image': np.zeros((2, 40, 40, 3), np.uint8),
        'label': np.zeros((2, 40, 40), np.uint8),
        'geometry': np.zeros((2, len(Geometry._fields)), np.int32),
    }
    for rotation in (0.0, 10.0):
        augmentation = Augmentation((24, 32), (1.0, 2.0), rotation=rotation, class_aware_crops=0.5)
        assert not augmentation.needs_key
        program = jax.make_jaxpr(augment, static_argnums=1)(batch, augmentation, jax.random.key(0))
        assert 'random' not in str(program)


@pytest.mark.parametrize('effect', ['brightness', 'contrast', 'saturation', 'hue', 'blur', 'erasing'])
def test_effect_without_a_key_is_refused(effect):
    augmentation = Augmentation((8, 8), **{effect: 0.5})
    _, _, _, batch = random_batch(augmentation, 1)
    assert augmentation.needs_key
    with pytest.raises(ValueError, match='needs a random key'):
        augment(batch, augmentation)


def test_key_decides_alone():
    _, _, _, batch = random_batch(EVERYTHING, 6)
    one, again, other = (AUGMENT(batch, EVERYTHING, jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert all((np.asarray(one[0][i]) != np.asarray(other[0][i])).any() for i in range(6))


def test_example_does_not_depend_on_the_others_of_its_batch():
    _, _, _, batch = random_batch(EVERYTHING, 6)
    _, _, _, others = random_batch(EVERYTHING, 6, seed=6)
    mixed = {name: np.concatenate([batch[name][:2], others[name][2:]]) for name in batch}
    whole, part = (AUGMENT(b, EVERYTHING, jax.random.key(0)) for b in (batch, mixed))
    for array, mixed_array in zip(whole, part):
        np.testing.assert_array_equal(array[:2], mixed_array[:2])
        assert (np.asarray(array[2:]) != np.asarray(mixed_array[2:])).any()
    # Nor do equal examples come out alike.
    same = {name: np.stack([array[0]] * 6) for name, array in batch.items()}
    crops = np.asarray(AUGMENT(same, EVERYTHING, jax.random.key(0))[0])
    assert all((crops[i] != crops[j]).any() for i in range(6) for j in range(i))


def test_outside_stays_zero_and_ignored_whatever_is_on():
    geometry_only = dataclasses.replace(
        EVERYTHING, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, blur=0.0, erasing=0.0
    )
    options = dataclasses.replace(EVERYTHING, blur=1.0)
    _, _, _, batch = random_batch(options, 6, image_size=(18, 26))
    outside = np.asarray(AUGMENT(batch, geometry_only)[1]) == IGNORE_LABEL
    assert 0.1 < outside.mean() < 0.9
    crops, labels = (np.asarray(array) for array in AUGMENT(batch, options, jax.random.key(0)))
    assert (crops[outside] == 0).all() and (labels[outside] == IGNORE_LABEL).all()
    assert np.isfinite(crops).all()


def color_batch(pixels, num_examples):
    """Of one image, [8, 8, 3], as often as asked, whole."""
    geometry = Geometry(8, 8, 8, 8, 0, 0, 0, 0, flip=0)
    return {
        'image': np.stack([np.broadcast_to(np.array(pixels, np.uint8), (8, 8, 3))] * num_examples),
        'label': np.zeros((num_examples, 8, 8), np.uint8),
        'geometry': np.array([geometry] * num_examples, np.int32),
    }


def brightness_of(crop):
    return crop[0, 0, 0] / 80


def contrast_of(crop):
    return (crop[0, 7, 0] - crop[0, 0, 0]) / 60


def saturation_of(crop):
    return (crop[0, 0, 0] - crop[0, 0, 1]) / 60


def hue_of(crop):
    return (colorsys.rgb_to_hsv(*crop[0, 0] / 255)[0] - colorsys.rgb_to_hsv(140, 80, 100)[0] + 0.5) % 1 - 0.5


@pytest.mark.parametrize(
    ('effect', 'strength', 'measure', 'pixels', 'lowest', 'highest'),
    [
        ('brightness', 0.5, brightness_of, (80, 80, 80), 0.5, 1.5),
        ('brightness', 1.5, brightness_of, (80, 80, 80), 0.0, 2.5),  # never below 0
        ('contrast', 0.3, contrast_of, [[[80] * 3] * 4 + [[140] * 3] * 4], 0.7, 1.3),
        ('saturation', 0.8, saturation_of, (140, 80, 80), 0.2, 1.8),
        ('hue', 0.2, hue_of, (140, 80, 100), -0.2, 0.2),
    ],
)
def test_strengths_are_uniform_over_their_range(effect, strength, measure, pixels, lowest, highest):
    augmentation = Augmentation((8, 8), **{effect: strength})
    crops, labels = AUGMENT(color_batch(pixels, 200), augmentation, jax.random.key(0))
    assert not np.asarray(labels).any()
    drawn = np.sort([measure(crop) for crop in to_pixel_values(crops)])
    share = (drawn - lowest) / (highest - lowest)
    assert share[0] > -1e-4 and share[-1] < 1 + 1e-4
    # Kolmogorov-Smirnov distance; above 0.137 by chance once in 1000 times, and the draw is fixed.
    assert np.abs(share - np.arange(200) / 200).max() < 0.137


def test_blur_has_a_width_of_its_range_and_half_the_crops_stay_as_they_are():
    point = np.zeros((8, 8, 3), np.uint8)
    point[4, 4] = 255
    batch = color_batch(point, 100)
    augmentation = Augmentation((8, 8), blur=0.5, blur_sigma=(0.4, 0.8))
    crops = to_pixel_values(AUGMENT(batch, augmentation, jax.random.key(0))[0])
    untouched = np.abs(crops - point).max((1, 2, 3)) < 1e-3
    assert 35 < untouched.sum() < 65
    blurred = crops[~untouched]
    sigma = (2 * np.log(blurred[:, 4, 4] / blurred[:, 4, 5])) ** -0.5
    assert 0.4 - 1e-3 < sigma.min() < 0.5 and 0.7 < sigma.max() < 0.8 + 1e-3


def test_untouched_crops_are_exactly_those_of_the_recipe():
    augmentation = Augmentation((24, 32), scale_range=(0.7, 1.5), blur=0.5, blur_sigma=(0.5, 1.0), erasing=0.5)
    _, _, _, batch = random_batch(augmentation, 40)
    recipe = dataclasses.replace(augmentation, blur=0.0, erasing=0.0)
    # Not jitted: each compiled program rounds in its own way.
    expected, expected_labels = (np.asarray(array) for array in augment(batch, recipe))
    crops, labels = (np.asarray(array) for array in augment(batch, augmentation, jax.random.key(3)))
    same = (crops == expected).all((1, 2, 3))
    assert 3 < same.sum() < 20  # a quarter
    np.testing.assert_array_equal(labels[same], expected_labels[same])


def test_blur_mixes_the_mean_colour_in_from_outside():
    """A white image from the third row on; the crop's border repeats."""
    geometry = Geometry(12, 12, 12, 12, crop_top=-2, crop_left=2, window_top=0, window_left=1, flip=0)
    batch = {
        'image': np.full((1, 12, 12, 3), 255, np.uint8),
        'label': np.zeros((1, 12, 12), np.uint8),
        'geometry': np.array([geometry], np.int32),
    }
    crops, _ = AUGMENT(batch, Augmentation((8, 8), blur=1.0, blur_sigma=(1.0, 1.0)), jax.random.key(0))
    kernel = np.exp(-0.5 * np.arange(-3, 4) ** 2.0)
    column = np.convolve(np.pad([0, 0, 1, 1, 1, 1, 1, 1], 3, mode='edge'), kernel / kernel.sum(), mode='valid')
    column[:2] = 0
    white = (255 - MEAN_RGB) / STDDEV_RGB
    expected = np.broadcast_to(column[:, None, None] * white, (8, 8, 3))
    np.testing.assert_allclose(crops[0], expected, rtol=0, atol=1e-5)


def test_erasing_ignores_exactly_one_rectangle_of_a_size_in_range():
    augmentation = Augmentation((40, 60), flip=False, erasing=0.5, erasing_area=(0.1, 0.3))
    num_examples = 60
    _, _, _, batch = random_batch(augmentation, num_examples)
    expected, expected_labels = (np.asarray(array) for array in augment(batch, Augmentation((40, 60), flip=False)))
    crops, labels = (np.asarray(array) for array in augment(batch, augmentation, jax.random.key(0)))
    erased = labels == IGNORE_LABEL
    assert (crops[erased] == 0).all()
    np.testing.assert_array_equal(crops[~erased], expected[~erased])
    np.testing.assert_array_equal(labels[~erased], expected_labels[~erased])
    assert 18 < erased.any((1, 2)).sum() < 42
    shares, aspects, places = [], [], []
    for mask in erased[erased.any((1, 2))]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask.sum() == len(rows) * len(columns)
        shares.append(mask.mean())
        aspects.append(len(rows) / len(columns))
        places.append((rows[0], columns[0]))
    assert 0.09 < min(shares) < 0.15 and 0.25 < max(shares) < 0.31  # sides are whole pixels
    assert 0.3 < min(aspects) < 0.5 and 2 < max(aspects) < 3.2
    assert len(set(places)) > 10
