"""Label maps are the argmax at full size, whatever the views of an image that they average."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from atonet_jax.inference.label_map import label_map
from atonet_jax.inference.views import predict_labels
from atonet_jax.models.blocks import Classifier, ConvNorm
from atonet_jax.models.contract import IMAGENET
from atonet_jax.ops import resize_bilinear

NUM_CLASSES = 5


class OneConvolution(nn.Module):
    """A network with the interface of all networks here, at stride 4."""

    @nn.compact
    def __call__(self, images, train):
        features = ConvNorm(16, 7, stride=4)(images, train)
        return {'logits': 10 * Classifier(NUM_CLASSES)(features)}


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


@pytest.fixture(scope='module')
def predict(network):
    """`predict_labels` of `network`, jitted: (images, **options) -> label maps."""
    return lambda images, **options: jax.jit(partial(predict_labels, *network, **options))(images)


def random_images(height, width):
    return np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize('size', [(24, 32), (6, 24), (6, 8), (23, 31), (12, 13)])
def test_label_map_is_the_argmax_of_the_enlarged_logits(size):
    logits = np.random.default_rng(0).normal(size=(2, 6, 8, NUM_CLASSES)).astype(np.float32)
    labels = jax.jit(label_map, static_argnums=1)(logits, size)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, jnp.argmax(resize_bilinear(logits, size), axis=-1))


@pytest.mark.parametrize('size', [(48, 64), (37, 50)])
def test_predicted_labels_have_the_images_size_and_are_the_networks(network, predict, size):
    model, variables = network
    images = random_images(*size)
    labels = predict(images)
    logits = model.apply(variables, IMAGENET(images), train=False)['logits']
    assert len(np.unique(labels)) == NUM_CLASSES
    np.testing.assert_array_equal(labels, label_map(logits, size))


def test_flip_makes_predictions_of_mirrored_images_mirrored(predict):
    images = random_images(48, 64)
    mirrored = images[:, :, ::-1]
    np.testing.assert_array_equal(predict(mirrored, flip=True), predict(images, flip=True)[:, :, ::-1])
    assert (predict(mirrored) != predict(images)[:, :, ::-1]).any()


@pytest.mark.parametrize('window', [(48, 64), (100, 100)])
def test_window_of_the_whole_image_changes_nothing(predict, window):
    images = random_images(48, 64)
    np.testing.assert_array_equal(predict(images, window=window), predict(images))


@pytest.mark.parametrize(
    ('size', 'stride'), [((61, 100), None), ((61, 100), (17, 33)), ((61, 100), (40, 48)), ((80, 49), (40, 48))]
)
def test_windows_cover_every_pixel(size, stride):
    predict = partial(predict_labels, AlwaysClassTwo(), {}, window=(40, 48), window_stride=stride)
    labels = jax.jit(predict)(random_images(*size))
    np.testing.assert_array_equal(labels, np.full((2, *size), 2))


def test_windows_that_overlap_are_averaged(network, predict):
    """Two windows of 48 x 40 in an image of 48 x 64, 24 columns apart."""
    model, variables = network
    images = random_images(48, 64)
    summed = np.zeros((2, 48, 64, NUM_CLASSES))
    for columns in (slice(0, 40), slice(24, 64)):
        logits = model.apply(variables, IMAGENET(images[:, :, columns]), train=False)['logits']
        summed[:, :, columns] += jax.nn.softmax(resize_bilinear(logits, (48, 40)))
    labels = predict(images, window=(48, 40), window_stride=(48, 24))
    np.testing.assert_array_equal(labels, np.argmax(summed, -1))


def test_same_scale_twice_changes_nothing(predict):
    images = random_images(48, 64)
    np.testing.assert_array_equal(predict(images, scales=(1.0, 1.0)), predict(images))


def test_scales_and_mirror_images_are_averaged(network, predict):
    model, variables = network
    images = random_images(48, 64)

    @jax.jit
    def probabilities(scaled):
        logits = model.apply(variables, scaled, train=False)['logits']
        return jax.nn.softmax(resize_bilinear(logits, scaled.shape[1:3]))

    summed = 0
    for size in ((36, 48), (72, 96)):
        scaled = resize_bilinear(IMAGENET(images), size)
        for step in (1, -1):
            view = probabilities(scaled[:, :, ::step])[:, :, ::step]
            summed += resize_bilinear(view, (48, 64))
    labels = predict(images, scales=(0.75, 1.5), flip=True)
    np.testing.assert_array_equal(labels, jnp.argmax(summed, -1))


def test_images_are_resized_to_the_given_height_and_labels_are_of_the_images_size(network, predict):
    model, variables = network
    images = random_images(48, 64)
    resized = resize_bilinear(IMAGENET(images), (36, 48))
    logits = model.apply(variables, resized, train=False)['logits']
    np.testing.assert_array_equal(predict(images, height=36), label_map(logits, (48, 64)))
    np.testing.assert_array_equal(predict(images, height=48), predict(images))
