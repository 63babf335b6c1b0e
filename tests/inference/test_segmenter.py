"""`Segmenter` gives the plain path's labels, and says what is wrong with images that it cannot take."""

import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest

from atonet_jax.data.labels import CITYSCAPES
from atonet_jax.errors import InputError
from atonet_jax.inference.canvases import canvases
from atonet_jax.inference.segmenter import Segmenter, prepared_variables
from atonet_jax.inference.views import Views, predict_labels
from atonet_jax.models import create_model, prepare
from atonet_jax.process.devices import create_mesh
from atonet_jax.runs.network import blank_variables, trained_network
from atonet_jax.runs.workdir import claim, load_config
from tests.drawn_weights import drawn_variables
from tests.parity_cases import NUM_CLASSES, TINY


@pytest.fixture(scope='module')
def network():
    """Random weights and running statistics."""
    model = create_model('atonet', NUM_CLASSES, **TINY)
    return model, drawn_variables(model, seed=0)


@pytest.fixture(scope='module')
def segment(network):
    return Segmenter(*network)


@pytest.fixture
def compiled(monkeypatch):
    """Grows with each program that a segmenter compiles."""
    programs, compile_ = [], Segmenter._compile
    monkeypatch.setattr(Segmenter, '_compile', lambda self, key: programs.append(key) or compile_(self, key))
    return programs


def random_images(batch, height, width):
    return np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize('shape', [(2, 64, 128), (1, 161, 97)])
def test_labels_are_the_plain_paths(network, segment, shape):
    images = random_images(*shape)
    labels = segment(images)
    assert labels.dtype == np.uint8 and labels.shape == shape
    plain = jax.jit(partial(predict_labels, *network))(images)
    assert np.mean(np.asarray(labels) == np.asarray(plain)) >= 0.9999
    assert len(np.unique(labels)) == NUM_CLASSES


def test_images_are_resized_to_a_height_and_labels_have_their_own_size(network):
    images = random_images(2, 64, 96)
    labels = Segmenter(*network, height=96)(images)
    assert labels.shape == (2, 64, 96)
    plain = jax.jit(partial(predict_labels, *network, views=Views(height=96)))(images)
    assert np.mean(np.asarray(labels) == np.asarray(plain)) >= 0.9999


def test_labels_of_the_full_size_network_whose_deep_stages_go_by_winograd():
    model = create_model('atonet', 19)
    variables = drawn_variables(model, seed=2)
    images = random_images(1, 96, 160)
    plain = jax.jit(partial(predict_labels, model))(variables, images)
    assert np.mean(np.asarray(Segmenter(model, variables)(images)) == np.asarray(plain)) >= 0.9999


def test_winograd_is_for_convolutions_of_many_channels_and_stride_1_on_smaller_maps():
    model = create_model('atonet', 19)
    kernels = prepare(model, blank_variables(model), transform_kernels=True)['transformed']
    assert set(kernels) == {'layer2', 'layer3', 'layer4', 'up2', 'up3', 'up4', 'up5'}
    assert set(kernels['layer4']['block0']) == {'conv2'}
    assert [row.shape for row in kernels['up2']['kernel']] == 6 * [(6, 128, 128)]


@pytest.mark.parametrize('winograd', [True, False])
def test_programs_without_winograd_have_no_transformed_kernels(winograd):
    model = create_model('atonet', 19)
    variables = prepared_variables(model, blank_variables(model), create_mesh(), winograd)
    assert ('transformed' in variables) is winograd


def test_logits_are_at_the_images_resolution_and_their_argmax_the_labels(segment):
    images = random_images(2, 64, 128)
    logits = segment.logits(images)
    assert logits.shape == (2, 64, 128, NUM_CLASSES) and logits.dtype == np.float32
    assert np.mean(np.argmax(logits, -1) == np.asarray(segment(images))) >= 0.9999
    assert segment.coarse_logits(images).shape == (2, 16, 32, NUM_CLASSES)


def test_confidence_is_the_softmax_probability_of_the_label(segment):
    images = random_images(1, 64, 128)
    labels, confidence = segment.with_confidence(images)
    np.testing.assert_array_equal(labels, segment(images))
    np.testing.assert_allclose(confidence, jax.nn.softmax(segment.logits(images)).max(-1), rtol=1e-4)


def test_bfloat16_gives_nearly_the_same_labels(network, segment):
    model, variables = network
    images = random_images(2, 64, 128)
    labels = Segmenter(model.clone(dtype=jax.numpy.bfloat16), variables)(images)
    assert np.mean(np.asarray(labels) == np.asarray(segment(images))) > 0.9


@pytest.mark.parametrize('height', [0, 90])
def test_images_of_many_sizes_share_a_program_and_have_the_labels_of_their_own(network, compiled, height):
    segment = Segmenter(*network, height=height)
    images = [random_images(1, *size)[0] for size in [(70, 101), (75, 110), (127, 65)]]
    together = [segment.of_any_size(image) for image in images]
    assert len(compiled) == len({canvases(image.shape[:2], height) for image in images}) < len(images)
    for image, labels in list(zip(images, together))[1:]:
        assert labels.dtype == np.uint8 and labels.shape == image.shape[:2]
        assert np.mean(labels == np.asarray(segment(image[None]))[0]) >= 0.999


def test_images_of_several_sizes_go_through_the_network_together(network, segment):
    images = [random_images(1, *size)[0] for size in [(70, 101), (100, 126), (127, 65)]]
    together = np.asarray(segment.on_canvas(images))
    assert together.shape == (3, 128, 128)
    for image, labels in zip(images, together):
        height, width = image.shape[:2]
        assert np.mean(labels[:height, :width] == segment.of_any_size(image)) >= 0.999


def test_images_of_different_canvases_are_refused(segment):
    with pytest.raises(InputError, match=r'images on canvases of \(\d+, 128\) and \(\d+, 128\): give those of one'):
        segment.on_canvas([np.zeros((64, 128, 3), np.uint8), np.zeros((65, 128, 3), np.uint8)])


def test_more_classes_than_are_unrolled_share_a_program_too():
    model = create_model('atonet', 70, **TINY)
    segment = Segmenter(model, drawn_variables(model, seed=0))
    image = random_images(1, 33, 50)[0]
    assert np.mean(segment.of_any_size(image) == np.asarray(segment(image[None]))[0]) >= 0.999


def test_a_network_that_cannot_share_programs_takes_any_size_nevertheless():
    model = create_model('icnet', NUM_CLASSES, width=4, head_width=4)
    segment = Segmenter(model, drawn_variables(model, seed=0))
    image = random_images(1, 33, 50)[0]
    assert not segment.shares_programs
    np.testing.assert_array_equal(segment.of_any_size(image), np.asarray(segment(image[None]))[0])


def test_shapes_given_ahead_compile_once_and_before_any_image(network, compiled):
    segment = Segmenter(*network, shapes=[(2, 64, 128)])
    assert len(compiled) == 1
    assert segment(random_images(2, 64, 128)).shape == (2, 64, 128)
    assert len(compiled) == 1


def test_of_a_workdir_it_has_the_runs_weights_and_classes(finished):
    segment = Segmenter.from_workdir(finished)
    assert segment.class_table.num_classes == 19
    assert segment(random_images(1, 64, 128)).shape == (1, 64, 128)


def test_images_of_a_run_and_of_a_file_are_resized_to_the_height_of_their_evaluation(finished, exported, tmp_path):
    workdir, images = tmp_path / 'run', random_images(1, 64, 128)
    shutil.copytree(finished, workdir)
    settings = json.loads((workdir / 'config.json').read_text())
    settings['eval']['height'] = 96
    (workdir / 'config.json').write_text(json.dumps(settings))
    trained = trained_network(load_config(finished), finished, create_mesh())
    plain, resized = (
        np.asarray(jax.jit(partial(predict_labels, trained.model, views=Views(height)))(trained.variables, images))
        for height in (0, 96)
    )
    assert np.mean(resized != plain) > 0.05

    config = load_config(str(workdir))
    config.init_from = exported('torch')
    of_file = Segmenter.of(trained_network(config, str(tmp_path / 'no_run'), create_mesh()))
    for segment in (Segmenter.from_workdir(str(workdir)), of_file):
        assert np.mean(np.asarray(segment(images)) == resized) >= 0.9999


def test_a_workdir_without_checkpoints_is_named(tmp_path):
    with pytest.raises(InputError, match=f'{tmp_path}.*no such file'):
        Segmenter.from_workdir(str(tmp_path))


def test_a_workdir_whose_run_saved_nothing_yet_is_named(tiny_config, tmp_path):
    claim(str(tmp_path), tiny_config, CITYSCAPES)
    with pytest.raises(InputError, match=f'{tmp_path}/checkpoints: no checkpoint; train first'):
        Segmenter.from_workdir(str(tmp_path))


@pytest.mark.parametrize(
    ('images', 'text'),
    [
        (np.zeros((1, 64, 64, 3), np.float32), 'not float32'),
        (np.zeros((64, 64, 3), np.uint8), r'not of shape \(64, 64, 3\); for a single image give image\[None\]'),
        (np.zeros((1, 64, 64, 4), np.uint8), r'not of shape \(1, 64, 64, 4\)'),
        (np.zeros((1, 0, 64, 3), np.uint8), r'not of shape \(1, 0, 64, 3\)'),
        ([[1]], 'not list'),
    ],
)
def test_images_that_are_none_are_refused(segment, images, text):
    with pytest.raises(InputError, match=r'images must be \[B, H, W, 3\] uint8 RGB, ' + text):
        segment(images)
