"""Sliding windows give the labels of a plain loop over windows, with one compiled network and bounded memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from atonet_jax.inference import windows
from atonet_jax.inference.views import Views, predict_labels
from atonet_jax.inference.windows import SlidingWindows
from atonet_jax.models.contract import IMAGENET
from atonet_jax.ops import resize_bilinear
from atonet_jax.process.devices import create_mesh

NUM_CLASSES = 5


class OneConvolution(nn.Module):
    """A network with the interface of all networks here, at stride 4."""

    @nn.compact
    def __call__(self, images, train):
        return {'logits': 10 * nn.Conv(NUM_CLASSES, (7, 7), strides=4)(images)}


class AlwaysClassTwo(nn.Module):
    """Sure of one class, so that pixels that no window covers stand out."""

    def __call__(self, images, train):
        height, width = images.shape[1:3]
        is_two = jax.nn.one_hot(2, NUM_CLASSES)
        return {'logits': jnp.broadcast_to(is_two, (len(images), -(-height // 4), -(-width // 4), NUM_CLASSES))}


@pytest.fixture(scope='module')
def network():
    model = OneConvolution()
    return model, model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)


def sliding(model, batch_size=1, **views):
    return SlidingWindows(model, create_mesh(), Views(**views), batch_size)


def random_images(count, height, width):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def plain_loop(network, images, window, stride, scales, flip):
    """What `SlidingWindows` is to give, from all probabilities of the whole image."""
    model, variables = network
    size = images.shape[1:3]

    @jax.jit
    def probabilities(part):
        logits = model.apply(variables, part, train=False)['logits']
        return jax.nn.softmax(resize_bilinear(logits, part.shape[1:3]))

    def starts(length, part, step):
        return sorted({min(start, length - part) for start in range(0, length - part + step, step)})

    total = 0
    for scale in scales:
        scaled = resize_bilinear(IMAGENET(images), tuple(round(scale * length) for length in size))
        for step in (1, -1) if flip else (1,):
            view = scaled[:, :, ::step]
            rows, columns = (min(part, length) for part, length in zip(window, view.shape[1:3]))
            summed = np.zeros((*view.shape[:3], NUM_CLASSES), np.float32)
            for top in starts(view.shape[1], rows, min(stride[0], rows)):
                for left in starts(view.shape[2], columns, min(stride[1], columns)):
                    place = (slice(None), slice(top, top + rows), slice(left, left + columns))
                    summed[place] += probabilities(view[place])
            total += resize_bilinear((summed / summed.sum(-1, keepdims=True))[:, :, ::step], size)
    return np.argmax(total, -1)


@pytest.mark.parametrize(
    ('count', 'size', 'window', 'stride', 'scales', 'flip', 'batch_size'),
    [
        (2, (61, 100), (40, 48), (26, 32), (1.0,), False, 1),
        (1, (61, 100), (40, 48), (17, 33), (1.0,), True, 5),
        (1, (97, 55), (40, 24), (17, 11), (0.5, 1.7), False, 4),
        (3, (50, 60), (64, 64), (42, 42), (1.0,), False, 8),
        (1, (61, 100), (40, 48), (26, 32), (3.0, 4.0), False, 4),
    ],
    ids=['one by one', 'mirrored and batched', 'scaled', 'larger than the image', 'much enlarged'],
)
def test_labels_are_those_of_a_loop_over_all_windows(network, count, size, window, stride, scales, flip, batch_size):
    model, variables = network
    images = random_images(count, *size)
    options = {'window': window, 'stride': stride, 'scales': scales, 'flip': flip}
    labels = np.asarray(sliding(model, **options, batch_size=batch_size)(variables, images))
    assert labels.dtype == np.uint8
    assert len(np.unique(labels)) > 1
    np.testing.assert_array_equal(labels, plain_loop(network, images, **options))


def test_a_height_resizes_the_images_first(network):
    model, variables = network
    images = random_images(1, 60, 92)
    of_height = sliding(model, window=(30, 30), height=45, scales=(1.0, 2.0))(variables, images)
    of_scale = sliding(model, window=(30, 30), scales=(0.75, 1.5))(variables, images)
    np.testing.assert_array_equal(of_height, of_scale)


@pytest.mark.parametrize(
    ('window', 'views'), [((60, 92), {}), ((200, 200), {'height': 45, 'scales': (0.5, 2.0), 'flip': True})]
)
def test_a_window_of_the_whole_image_changes_nothing(network, window, views):
    model, variables = network
    images = random_images(2, 60, 92)
    whole = jax.jit(lambda images: predict_labels(model, variables, images, Views(**views)))(images)
    np.testing.assert_array_equal(sliding(model, window=window, **views)(variables, images), whole)


def test_a_stride_of_none_is_two_thirds_of_the_window(network):
    model, variables = network
    images = random_images(1, 61, 100)
    given = sliding(model, window=(40, 48), stride=(26, 32))(variables, images)
    np.testing.assert_array_equal(sliding(model, window=(40, 48))(variables, images), given)


@pytest.mark.parametrize(
    ('size', 'window', 'options'),
    [
        ((61, 100), (40, 48), {'stride': (17, 33)}),
        ((61, 100), (40, 48), {'stride': (40, 48)}),
        ((80, 49), (40, 48), {'stride': (99, 99)}),
        ((160, 200), (512, 512), {'height': 512}),
        ((61, 100), (40, 48), {'height': 250}),
    ],
)
def test_windows_cover_every_pixel(size, window, options):
    labels = sliding(AlwaysClassTwo(), window=window, **options)({}, random_images(2, *size))
    np.testing.assert_array_equal(labels, np.full((2, *size), 2))


@pytest.mark.parametrize(('batch_size', 'numbers'), [(1, {1}), (2, {1, 2}), (4, {1, 3})])
def test_the_network_is_compiled_for_few_numbers_of_windows_whatever_the_size_of_the_images(batch_size, numbers):
    """Rows of 3, 6 and 5 windows."""
    traced = []

    class Counted(AlwaysClassTwo):
        def __call__(self, images, train):
            traced.append(images.shape)
            return super().__call__(images, train)

    label = sliding(Counted(), window=(32, 32), batch_size=batch_size)
    for size in ((32, 64), (64, 128), (200, 110)):
        label({}, random_images(1, *size))
    assert {shape[0] for shape in traced} == numbers  # with 1, to learn the number of classes
    assert {shape[1:] for shape in traced} == {(32, 32, 3)} and len(traced) <= 1 + len(numbers)


@pytest.mark.parametrize('scale', [0.5, 1.0, 1.5])
def test_rows_in_memory_do_not_grow_with_the_image(scale):
    def height_of_band(height):
        scaled = round(scale * height), round(scale * 100)
        return windows._View((height, 100), scaled, False, (60, 60), (40, 40), 40).band_height

    assert height_of_band(40_000) <= 60 + 40 * scale + 2
    assert height_of_band(40_000) <= height_of_band(4_000) + 1


def test_progress_counts_every_window(network, monkeypatch):
    model, variables = network
    bars = []

    class Recorded(windows.Progress):
        def __init__(self, what, total, unit, **options):
            super().__init__(what, total, unit, **options)
            self.total, self.done = total, 0
            bars.append(self)

        def update(self, count=1, figures=''):
            self.done += count

    monkeypatch.setattr(windows, 'Progress', Recorded)
    label = sliding(model, window=(40, 48), stride=(17, 33), flip=True, batch_size=2)
    label(variables, random_images(1, 61, 100))
    (bar,) = bars
    assert bar.total == bar.done == 2 * 3 * 3
