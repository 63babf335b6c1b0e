"""Label maps are the argmax at full size, whatever the views of an image that they average."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from atonet_jax.config import default_config
from atonet_jax.inference.canvases import Canvases, programs_of
from atonet_jax.inference.label_map import label_map
from atonet_jax.inference.views import Views, many_sizes_text, predict_labels, winograd_pays
from atonet_jax.models import create_model
from atonet_jax.models.blocks import Classifier, ConvNorm
from atonet_jax.models.contract import IMAGENET
from atonet_jax.ops import cpu, resize_align_corners, resize_bilinear

NUM_CLASSES = 5


class OneConvolution(nn.Module):
    """A network with the interface of all networks here, at stride 4."""

    @nn.compact
    def __call__(self, images, train):
        features = ConvNorm(16, 7, stride=4)(images, train)
        return {'logits': 10 * Classifier(NUM_CLASSES)(features)}


@pytest.fixture(scope='module')
def network():
    model = OneConvolution()
    return model, model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)


@pytest.fixture(scope='module')
def predict(network):
    """`predict_labels` of `network`, jitted: (images, **views) -> label maps."""
    return lambda images, **views: jax.jit(partial(predict_labels, *network, views=Views(**views)))(images)


def random_images(height, width):
    return np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize('size', [(24, 32), (6, 24), (6, 8), (23, 31), (12, 13)])
def test_label_map_is_the_argmax_of_the_enlarged_logits(size):
    logits = np.random.default_rng(0).normal(size=(2, 6, 8, NUM_CLASSES)).astype(np.float32)
    labels = jax.jit(label_map, static_argnums=1)(logits, size)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, jnp.argmax(resize_bilinear(logits, size), axis=-1))


@pytest.mark.parametrize('fast', [True, False])
@pytest.mark.parametrize('upsampling', ['half_pixel', 'align_corners'])
def test_label_map_is_the_argmax_with_and_without_fast_paths(fast, upsampling):
    resize = {'half_pixel': resize_bilinear, 'align_corners': resize_align_corners}[upsampling]
    logits = np.random.default_rng(0).normal(size=(2, 6, 8, NUM_CLASSES)).astype(np.float32)
    with cpu.fast_paths(fast):
        labels = jax.jit(lambda logits: label_map(logits, (24, 32), upsampling))(logits)
    np.testing.assert_array_equal(labels, jnp.argmax(resize(logits, (24, 32)), axis=-1))


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


@pytest.mark.parametrize(
    ('options', 'window'),
    [
        ({}, '(300,300)'),
        ({'scales': (0.5, 2.0)}, '(256,256)'),  # no smaller: labels would suffer
        ({'height': 1200}, '(512,512)'),
        ({'height': 450}, '(384,384)'),
    ],
)
def test_many_sizes_are_answered_with_a_window_that_no_image_clips(options, window):
    settings = default_config().eval
    settings.update(options)
    sizes = [(300, 400), (500, 700), (600, 512), (900, 900), (901, 900)]
    assert f'pictures have 5 sizes: 4 programs are compiled, each once; --config.eval.window="{window}"' in (
        many_sizes_text('pictures', sizes, 4, Views.of(settings))
    )
    assert many_sizes_text('pictures', sizes, 3, Views.of(settings)) == ''


@pytest.mark.parametrize(
    ('sizes', 'programs', 'views', 'pays'),
    [
        ({}, 0, Views(), True),  # unknown
        ({(1000, 1000): 32}, 1, Views(), True),
        ({(1000, 1000): 31}, 1, Views(), False),
        ({(1000, 1000): 31, (1000, 1001): 1}, 2, Views(), False),
        ({(1000, 1000): 31, (1000, 1001): 1}, 1, Views(), True),
        ({(500, 500): 32}, 1, Views(), False),
        ({(500, 500): 32}, 1, Views(height=1000), True),
        ({(500, 500): 32}, 1, Views(scales=(2.0,)), True),
        ({(1000, 1000): 16}, 1, Views(flip=True), True),
    ],
)
def test_winograd_pays_where_a_program_sees_many_pixels(sizes, programs, views, pays):
    assert winograd_pays(sizes, programs, views) is pays


CROWDED = {(300 + i, 400): 2 for i in range(3)}  # on one canvas


@pytest.mark.parametrize(
    ('sizes', 'views', 'programs'),
    [
        ({}, Views(), 0),
        (CROWDED, Views(), 1),
        ({(300, 400): 2, (301, 400): 2}, Views(), 2),  # two sizes compile as fast as their canvas
        (CROWDED | {(64, 64): 1}, Views(), 1),  # a larger canvas holds all
        (CROWDED | {(64, 64): 1000}, Views(), 2),  # which would waste too much there
        (CROWDED | {(310, 400): 1000}, Views(), 2),  # and this one on any
        ({(300 + i, 400): 1000 for i in range(3)}, Views(), 3),
        ({(60 * i, 64 * j): 1 for i in (1, 3, 5, 7) for j in (2, 4, 6, 8)}, Views(), 1),
        (CROWDED, Views(height=200), 1),
        (CROWDED | {(300, 800): 1, (301, 800): 1, (302, 800): 1}, Views(height=200), 2),
        (CROWDED, Views(flip=True), 3),
        (CROWDED, Views(scales=(0.5,)), 3),
        (CROWDED, Views(window=(100, 100)), 1),
    ],
)
def test_sizes_share_programs_where_that_saves_time(sizes, views, programs):
    program_of = programs_of(sizes, create_model('atonet', 19), views)
    assert len({program_of(size) for size in sizes}) == programs


def test_sizes_that_are_not_known_share_programs_if_others_do():
    model = create_model('atonet', 19)
    assert isinstance(programs_of(CROWDED, model, Views())((64, 64)), Canvases)
    assert programs_of({(300, 400): 1}, model, Views())((64, 64)) == (64, 64)
    assert programs_of(CROWDED, create_model('icnet', 19), Views())((301, 400)) == (301, 400)
    assert programs_of(CROWDED, create_model('erfnet', 19), Views(height=200))((301, 400)) == (301, 400)
