"""Samples: each example once an epoch, crops distributed as the recipe says, windows that hold all that crops show."""

import dataclasses
import math

import numpy as np
import pytest

from atonet_jax.data.augmentation import Augmentation, Geometry
from atonet_jax.data.labels import IGNORE_LABEL, UNKNOWN_LABEL
from atonet_jax.data.sampling import draw_geometry, example_of_sample, window_size

NUM_DRAWS = 3000
# Two-sample Kolmogorov-Smirnov distance of that many draws each; above by chance once in 1000 times.
KS_LIMIT = 1.95 * math.sqrt(2 / NUM_DRAWS)

SETTINGS = [
    # image, crop, scale range
    ((64, 128), (64, 64), (1.0, 2.0)),  # the recipe's proportions
    ((60, 45), (32, 40), (0.75, 1.5)),
    ((20, 200), (32, 48), (0.5, 2.0)),  # often lower than the crop
    ((9, 11), (32, 33), (0.2, 3.0)),  # smaller than the crop
]


def distance(one, other):
    """Kolmogorov-Smirnov: the largest difference between two samples' cumulative distributions."""
    values = np.union1d(one, other)
    shares = [np.searchsorted(np.sort(sample), values, side='right') / len(sample) for sample in (one, other)]
    return np.abs(shares[0] - shares[1]).max()


def plain_draw(rng, image_size, crop_size, scale_range):
    """The recipe, said plainly: scaled size, crop start, flip, and the first pixel of the image that the crop needs."""
    scale = rng.uniform(scale_range[0], scale_range[1])
    sizes, starts, windows = [], [], []
    for length, crop in zip(image_size, crop_size):
        scaled = max(1, round(length * scale))
        if scaled >= crop:
            start = rng.choice(scaled - crop + 1)  # the crop lies in the image
        else:
            start = -rng.choice(crop - scaled + 1)  # the image lies in the crop
        shown = [i for i in range(start, start + crop) if 0 <= i < scaled]
        needed = [math.floor(max(0, (i + 0.5) * length / scaled - 0.5)) for i in shown]
        sizes.append(scaled)
        starts.append(start)
        windows.append(min(needed))
    return *sizes, *starts, *windows, rng.random() < 0.5


def draws(image_size, augmentation, number=NUM_DRAWS, seed=0, labels=None):
    """Geometry of arrays [number]."""
    drawn = [draw_geometry(seed, g, image_size, augmentation, labels) for g in range(number)]
    return Geometry(*np.array(drawn).T)


@pytest.mark.parametrize(('image_size', 'crop_size', 'scale_range'), SETTINGS)
def test_crops_are_distributed_as_in_a_plain_program(image_size, crop_size, scale_range):
    rng = np.random.default_rng(1)
    plain = np.array([plain_draw(rng, image_size, crop_size, scale_range) for _ in range(NUM_DRAWS)]).T
    drawn = draws(image_size, Augmentation(crop_size, scale_range))
    names = ('scaled_height', 'scaled_width', 'crop_top', 'crop_left', 'window_top', 'window_left', 'flip')
    distances = {name: distance(getattr(drawn, name), expected) for name, expected in zip(names, plain)}
    assert max(distances.values()) < KS_LIMIT, distances
    # Where a crop begins, given how large the image was scaled.
    for axis, crop in enumerate(crop_size):
        relative, plain_relative = (sample[2 + axis] / (sample[axis] - crop + 0.5) for sample in (drawn[2:], plain))
        assert distance(relative, plain_relative) < KS_LIMIT
    assert not drawn.rotation.any()


def test_successive_samples_and_what_is_drawn_for_one_are_independent():
    drawn = draws((1024, 2048), Augmentation((1024, 1024), (1.0, 2.0)))
    scale = drawn.scaled_height / 1024
    np.testing.assert_allclose(drawn.scaled_width / 2048, scale, atol=1e-3)
    top, left = drawn.crop_top / (drawn.scaled_height - 1023), drawn.crop_left / (drawn.scaled_width - 1023)
    values = np.array([scale, top, left, drawn.flip])
    correlation = np.corrcoef(np.concatenate([values[:, :-1], values[:, 1:]]))
    assert np.abs(correlation - np.eye(8)).max() < 0.08  # by chance some 0.018 each


def test_geometry_is_a_pure_function_of_seed_and_sample():
    augmentation = Augmentation((16, 24), (1.0, 2.0), rotation=10.0, class_aware_crops=0.5)
    labels = np.random.default_rng(0).integers(0, 19, (40, 60), dtype=np.uint8)
    forwards = [draw_geometry(3, g, (40, 60), augmentation, labels) for g in range(50)]
    backwards = [draw_geometry(3, g, (40, 60), augmentation, labels) for g in reversed(range(50))]
    assert forwards == backwards[::-1]
    assert all(isinstance(value, int) for value in forwards[0])
    other = [draw_geometry(4, g, (40, 60), augmentation, labels) for g in range(50)]
    assert len(set(forwards) | set(other)) > 95


@pytest.mark.parametrize(
    'change', [{'flip': False}, {'rotation': 20.0}, {'class_aware_crops': 1.0}, {'brightness': 0.5, 'erasing': 1.0}]
)
def test_switching_one_option_changes_nothing_else(change):
    options = Augmentation((16, 24), (1.0, 2.0))
    labels = np.random.default_rng(0).integers(0, 19, (40, 60), dtype=np.uint8)
    own = {'flip': ('flip',), 'rotation': ('rotation', 'window_top', 'window_left')}
    own['class_aware_crops'] = ('crop_top', 'crop_left', 'window_top', 'window_left')
    own = own.get(next(iter(change)), ())
    changed = 0
    for g in range(20):
        before = draw_geometry(0, g, (40, 60), options, labels)
        after = draw_geometry(0, g, (40, 60), dataclasses.replace(options, **change), labels)
        assert after._replace(**{name: getattr(before, name) for name in own}) == before
        changed += after != before
    assert changed >= 5 if own else changed == 0


def test_rotation_is_uniform_to_either_side():
    drawn = draws((40, 60), Augmentation((16, 24), rotation=12.5)).rotation / 1000
    assert np.abs(drawn).max() <= 12.5
    assert distance(drawn, np.linspace(-12.5, 12.5, NUM_DRAWS)) < 0.036  # one-sample: 1.95 / sqrt(NUM_DRAWS)
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.08


@pytest.mark.parametrize('num_examples', [1, 7, 64])
def test_every_example_once_an_epoch(num_examples):
    order = [example_of_sample(5, num_examples, g) for g in range(4 * num_examples)]
    epochs = [order[start : start + num_examples] for start in range(0, len(order), num_examples)]
    assert all(sorted(epoch) == list(range(num_examples)) for epoch in epochs)
    if num_examples > 1:
        assert len(set(map(tuple, epochs))) == 4
        assert order != [example_of_sample(6, num_examples, g) for g in range(4 * num_examples)]
    assert [example_of_sample(5, num_examples, np.int64(g)) for g in range(len(order))] == order
    assert type(order[0]) is int


def places(geometry, crop_size):
    """Rows and columns of the image, [h, w] float64 from its edge, at which the crop's pixels lie, before flipping."""
    angle = math.radians(geometry.rotation / 1000)
    down, right = np.indices(crop_size) + 0.5 - np.reshape(crop_size, (2, 1, 1)) / 2
    row = geometry.crop_top + crop_size[0] / 2 + math.sin(angle) * right + math.cos(angle) * down
    column = geometry.crop_left + crop_size[1] / 2 + math.cos(angle) * right - math.sin(angle) * down
    return (
        row * geometry.image_height / geometry.scaled_height,
        column * geometry.image_width / geometry.scaled_width,
    )


@pytest.mark.parametrize('rotation', [0.0, 7.0, 30.0, 90.0, 180.0])
@pytest.mark.parametrize(('image_size', 'crop_size', 'scale_range'), [*SETTINGS, ((300, 400), (20, 90), (0.3, 0.4))])
def test_windows_hold_every_pixel_that_bilinear_interpolation_needs(image_size, crop_size, scale_range, rotation):
    augmentation = Augmentation(crop_size, scale_range, rotation=rotation)
    window = window_size(augmentation)
    for g in range(60):
        geometry = draw_geometry(0, g, image_size, augmentation)
        rows, columns = places(geometry, crop_size)
        inside = (rows >= 0) & (rows < image_size[0]) & (columns >= 0) & (columns < image_size[1])
        starts = geometry.window_top, geometry.window_left
        for position, start, length, size in zip((rows, columns), starts, window, image_size):
            assert 0 <= start < size
            if inside.any():
                # Float32 on the device may take what lies this near to a pixel's centre to either side of it.
                slack = 1e-3
                position = np.clip(position[inside] - 0.5, 0, size - 1)
                assert math.floor(position.min() + slack) >= start
                assert min(math.floor(position.max() + slack) + 1, size - 1) < start + length


def test_windows_are_no_larger_than_they_need_to_be():
    assert window_size(Augmentation((64, 96), (1.0, 2.0))) == (66, 98)
    assert window_size(Augmentation((64, 96), (0.75, 2.0))) == (math.ceil(64 / 0.75) + 2, 130)
    # Turned by 90 degrees at most, a diagonal stands upright on the way.
    diagonal = math.ceil(math.hypot(64, 96)) + 2
    assert window_size(Augmentation((64, 96), rotation=180.0)) == (diagonal, diagonal)
    sine, cosine = math.sin(math.radians(10)), math.cos(math.radians(10))
    expected = math.ceil(64 * cosine + 96 * sine) + 2, math.ceil(96 * cosine + 64 * sine) + 2
    assert window_size(Augmentation((64, 96), rotation=10.0)) == expected


def shown_labels(labels, geometry, crop_size):
    """The labels in a crop, `IGNORE_LABEL` outside the image."""
    rows, columns = (np.floor(position).astype(int) for position in places(geometry, crop_size))
    inside = (rows >= 0) & (rows < labels.shape[0]) & (columns >= 0) & (columns < labels.shape[1])
    return np.where(inside, labels[np.where(inside, rows, 0), np.where(inside, columns, 0)], IGNORE_LABEL)


@pytest.mark.parametrize(('image_size', 'crop_size', 'scale_range'), [*SETTINGS, ((90, 200), (16, 24), (0.3, 0.9))])
def test_class_aware_crops_always_show_the_class(image_size, crop_size, scale_range):
    """Single pixels of one class among ignored ones, some of which vanish where the image is reduced."""
    augmentation = Augmentation(crop_size, scale_range, class_aware_crops=1.0)
    labels = np.full(image_size, IGNORE_LABEL, np.uint8)
    labels[tuple(np.random.default_rng(0).integers(0, image_size, (4, 2)).T)] = 7
    labels[0, 0] = labels[-1, -1] = 7
    shown = 0
    for g in range(300):
        geometry = draw_geometry(0, g, image_size, augmentation, labels)
        for start, scaled, crop in zip(geometry[4:6], geometry[2:4], crop_size):
            assert min(scaled - crop, 0) <= start <= max(scaled - crop, 0)
        whole = geometry._replace(crop_top=0, crop_left=0)
        if (shown_labels(labels, whole, geometry[2:4]) == 7).any():
            assert (shown_labels(labels, geometry, crop_size) == 7).any()
            shown += 1
    assert shown > 200


def test_rotated_class_aware_crops_show_the_class():
    augmentation = Augmentation((16, 40), (0.8, 1.5), rotation=60.0, class_aware_crops=1.0)
    labels = np.full((60, 90), IGNORE_LABEL, np.uint8)
    labels[30:36, 20:26] = 7
    for g in range(300):
        geometry = draw_geometry(0, g, labels.shape, augmentation, labels)
        assert (shown_labels(labels, geometry, (16, 40)) == 7).any()
        assert 0 <= geometry.crop_top <= geometry.scaled_height - 16
        assert 0 <= geometry.crop_left <= geometry.scaled_width - 40


def test_what_no_turned_crop_can_show_leaves_the_usual_crop():
    labels = np.full((60, 90), IGNORE_LABEL, np.uint8)
    labels[0, 0] = 7
    usual = Augmentation((16, 40), rotation=45.0)
    class_aware = dataclasses.replace(usual, class_aware_crops=1.0)
    for g in range(50):
        geometry = draw_geometry(0, g, labels.shape, class_aware, labels)
        if abs(geometry.rotation) > 5000:
            assert geometry == draw_geometry(0, g, labels.shape, usual)


def test_classes_are_drawn_alike_and_their_pixels_too():
    """Crops of one pixel show which was drawn."""
    labels = np.zeros((30, 40), np.uint8)
    labels[:, 35:] = 3
    labels[2, 5] = labels[29, 0] = labels[11, 11] = 18
    labels[:5, 20:] = IGNORE_LABEL
    labels[6:8, 20:] = UNKNOWN_LABEL
    drawn = draws(labels.shape, Augmentation((1, 1), class_aware_crops=1.0), labels=labels)
    counts = np.bincount(labels[drawn.crop_top, drawn.crop_left], minlength=256)
    assert counts[[0, 3, 18]].sum() == NUM_DRAWS
    assert np.abs(counts[[0, 3, 18]] / NUM_DRAWS - 1 / 3).max() < 0.03
    rare = drawn.crop_top[labels[drawn.crop_top, drawn.crop_left] == 18]
    assert np.abs(np.unique(rare, return_counts=True)[1] / len(rare) - 1 / 3).max() < 0.05


@pytest.mark.parametrize(('pixel', 'tops', 'lefts'), [((5, 58), (0, 5), (35, 36)), ((20, 30), (5, 20), (7, 30))])
def test_starts_are_uniform_among_those_that_show_the_pixel(pixel, tops, lefts):
    labels = np.full((40, 60), IGNORE_LABEL, np.uint8)
    labels[pixel] = 2
    drawn = draws(labels.shape, Augmentation((16, 24), class_aware_crops=1.0), labels=labels)
    for values, (lowest, highest) in ((drawn.crop_top, tops), (drawn.crop_left, lefts)):
        assert (values.min(), values.max()) == (lowest, highest)
        assert distance(values, np.arange(lowest, highest + 1)) < 0.036  # one-sample: 1.95 / sqrt(NUM_DRAWS)


def test_class_aware_crops_raise_the_share_of_a_rare_class():
    labels = np.zeros((100, 200), np.uint8)
    labels[70:74, 150:154] = 5
    shares = []
    for probability in (0.0, 0.5, 1.0):
        augmentation = Augmentation((30, 30), (1.0, 2.0), class_aware_crops=probability)
        drawn = [draw_geometry(0, g, labels.shape, augmentation, labels) for g in range(600)]
        shares.append(np.mean([(shown_labels(labels, geometry, (30, 30)) == 5).any() for geometry in drawn]))
    assert shares[0] < 0.1
    # Half of the class-aware crops are of this class, and of the others as many show it as before.
    expected = [shares[0] + probability * (1 - shares[0]) / 2 for probability in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(shares, expected, rtol=0, atol=0.06)


def test_image_without_labelled_pixels_is_cropped_as_usual():
    labels = np.full((40, 60), IGNORE_LABEL, np.uint8)
    labels[3:9] = UNKNOWN_LABEL
    usual = Augmentation((16, 24), (1.0, 2.0))
    class_aware = dataclasses.replace(usual, class_aware_crops=1.0)
    for g in range(20):
        assert draw_geometry(0, g, (40, 60), class_aware, labels) == draw_geometry(0, g, (40, 60), usual)
