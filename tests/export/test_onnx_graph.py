"""The ONNX graph computes what the network does, at every size and whichever way its convolutions go."""

import jax
import numpy as np
import onnxruntime
import pytest

from atonet_jax.export import onnx_graph
from atonet_jax.inference import Segmenter
from atonet_jax.models import create_model, prepare
from atonet_jax.models.contract import IMAGENET
from atonet_jax.torch_weights import from_torch
from tests.test_parity import NUM_CLASSES, TINY, random_reference

SIZES = [(64, 128), (161, 97), (180, 240)]


@pytest.fixture(autouse=True)
def winograd_of_few_channels_in_many_strips(monkeypatch):
    monkeypatch.setattr(onnx_graph, '_WINOGRAD_CHANNELS', 8)
    monkeypatch.setattr(onnx_graph, '_STRIP', 2**9)
    monkeypatch.setattr(onnx_graph, '_STRIP_PIXELS', 2**7)


@pytest.fixture(scope='module')
def network():
    """Model and variables, of random weights and running statistics."""
    model = create_model('atonet', NUM_CLASSES, **TINY)
    return model, from_torch(random_reference(seed=1, **TINY).state_dict(), model)


@pytest.fixture(scope='module')
def build(network):
    """(size, **options) -> the network's graph."""
    params = jax.device_get(prepare(*network))['prepared']
    return lambda size, **options: onnx_graph.build(network[0], params, size, **options)


@pytest.fixture(scope='module')
def images_and_logits(network):
    """(size) -> three images and their logits, computed once."""
    segment, computed = Segmenter(*network), {}

    def of(size):
        if size not in computed:
            images = np.random.default_rng(2).integers(0, 256, (3, *size, 3), dtype=np.uint8)
            computed[size] = images, np.asarray(segment.logits(images))
        return computed[size]

    return of


def run(model, images):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    return session.run(None, {'images': images})[0]


def assert_close(logits, expected):
    assert logits.shape == expected.shape
    assert abs(logits - expected).max() <= 1e-4 * np.ptp(expected)


@pytest.mark.parametrize('winograd', [True, False])
@pytest.mark.parametrize('size', SIZES)
def test_logits_are_the_networks_for_any_number_of_images(build, images_and_logits, size, winograd):
    images, expected = images_and_logits(size)
    model = build(size, outputs='logits', winograd=winograd)
    assert_close(run(model, images), expected)
    assert_close(run(model, images[:1]), expected[:1])


@pytest.mark.parametrize('winograd', [True, False])
@pytest.mark.parametrize('size', SIZES)
def test_labels_are_the_networks(build, images_and_logits, size, winograd):
    images, logits = images_and_logits(size)
    labels = run(build(size, winograd=winograd), images)
    assert labels.dtype == np.uint8
    assert labels.shape == (3, *size)
    assert len(np.unique(labels)) == NUM_CLASSES
    assert np.mean(labels == logits.argmax(-1)) >= 0.999


@pytest.mark.parametrize('winograd', [True, False])
@pytest.mark.parametrize('layout', ['NHWC', 'NCHW'])
@pytest.mark.parametrize('inputs', ['uint8', 'normalized'])
def test_inputs_and_layout_change_no_logits(build, images_and_logits, inputs, layout, winograd):
    images, logits = images_and_logits(SIZES[0])
    images = np.asarray(IMAGENET(images)) if inputs == 'normalized' else images
    if layout == 'NCHW':
        images, logits = images.transpose(0, 3, 1, 2), logits.transpose(0, 3, 1, 2)
    model = build(SIZES[0], inputs=inputs, outputs='logits', layout=layout, winograd=winograd)
    assert_close(run(model, np.ascontiguousarray(images)), logits)


def test_winograd_takes_the_place_of_convolutions(build):
    with_winograd, without = (build(SIZES[0], winograd=winograd) for winograd in (True, False))
    convolutions = [sum(node.op_type == 'Conv' for node in model.graph.node) for model in (with_winograd, without)]
    assert convolutions[0] < convolutions[1] - 10
