"""The ONNX export computes what ATONet does, at every size and whichever way its convolutions go."""

import collections

import jax
import numpy as np
import onnxruntime
import pytest

from atonet_jax.config import default_config
from atonet_jax.data.labels import CITYSCAPES
from atonet_jax.errors import InputError
from atonet_jax.export import onnx_format
from atonet_jax.export.onnx import winograd as winograd_form
from atonet_jax.inference.segmenter import Segmenter
from atonet_jax.models.contract import IMAGENET
from atonet_jax.runs.network import TrainedNetwork

SIZES = [(64, 128), (161, 97), (180, 240)]
NUM_CLASSES = 5


@pytest.fixture(autouse=True)
def winograd_of_few_channels_in_many_strips(monkeypatch):
    monkeypatch.setattr(winograd_form, '_CHANNELS', 8)
    monkeypatch.setattr(winograd_form, '_STRIP', 2**9)
    monkeypatch.setattr(winograd_form, '_STRIP_PIXELS', 2**7)


@pytest.fixture(scope='module')
def network(tiny_model, tiny_variables):
    """Of random scales and running statistics."""
    rng = np.random.default_rng(1)

    def drawn(path, array):
        low, high = {'scale': (0.5, 1.5), 'var': (0.5, 1.5), 'mean': (-0.2, 0.2), 'bias': (-0.2, 0.2)}.get(
            path[-1].key, (None, None))  # fmt: skip
        return array if low is None else rng.uniform(low, high, array.shape).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(drawn, jax.device_get(tiny_variables))
    return TrainedNetwork(tiny_model, variables, CITYSCAPES, step=None)


@pytest.fixture(scope='module')
def build(network):
    """(size, **options of config.export) -> the network's graph, with `height` of config.eval."""

    def of(size, height=0, **options):
        config = default_config().export
        config.update(format='onnx', size=size, **options)
        return onnx_format.build(network._replace(height=height), config)

    return of


@pytest.fixture(scope='module')
def images_and_logits(network):
    """(size) -> three images and their logits, computed once."""
    segment, computed = Segmenter(network.model, network.variables), {}

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


def counted(model):
    return collections.Counter(node.op_type for node in model.graph.node)


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
    assert len(np.unique(labels)) > 1
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


@pytest.mark.parametrize(('outputs', 'layout'), [('logits', 'NHWC'), ('logits', 'NCHW'), ('labels', 'NHWC')])
def test_one_graph_takes_images_of_any_size(build, images_and_logits, outputs, layout):
    model = build(SIZES[0], outputs=outputs, layout=layout, dynamic_size=True)
    for size in SIZES:
        images, logits = images_and_logits(size)
        if layout == 'NCHW':
            images, logits = np.ascontiguousarray(images.transpose(0, 3, 1, 2)), logits.transpose(0, 3, 1, 2)
        result = run(model, images)
        if outputs == 'logits':
            assert_close(result, logits)
        else:
            assert np.mean(result == logits.argmax(-1)) >= 0.999


@pytest.mark.parametrize('inputs', ['uint8', 'normalized'])
def test_images_are_resized_to_the_height_that_they_are_evaluated_at(network, build, images_and_logits, inputs):
    images, _ = images_and_logits(SIZES[0])
    expected = Segmenter(network.model, network.variables, height=96).logits(images)
    images = np.asarray(IMAGENET(images)) if inputs == 'normalized' else images
    assert_close(run(build(SIZES[0], height=96, inputs=inputs, outputs='logits'), images), expected)


def test_a_graph_of_any_size_is_refused_where_images_are_resized(build):
    with pytest.raises(InputError, match=r'config\.eval\.height=96: .* give --config\.eval\.height=0'):
        build(SIZES[0], height=96, dynamic_size=True)


def test_axes_that_may_have_any_length_are_named(build):
    def axes(value):
        return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]

    graph = build(SIZES[0], outputs='logits', dynamic_size=True).graph
    assert (graph.input[0].name, graph.output[0].name) == ('images', 'logits')
    assert axes(graph.input[0]) == ['batch', 'height', 'width', 3]
    assert axes(graph.output[0]) == ['batch', 'height', 'width', NUM_CLASSES]
    graph = build(SIZES[0], batch_size=2).graph
    assert axes(graph.input[0]) == [2, *SIZES[0], 3]
    assert axes(graph.output[0]) == [2, *SIZES[0]]


def test_the_plain_graph_has_nothing_but_what_the_network_is_made_of(build):
    nodes = counted(build(SIZES[0], layout='NCHW', winograd=False))
    assert nodes['Transpose'] == 0
    assert nodes['Conv'] == 33
    assert nodes['Resize'] == 4  # three of levels, one of logits
    assert nodes['Add'] == 12  # eight blocks, four levels
    assert set(nodes) == {'Add', 'ArgMax', 'Cast', 'Concat', 'Conv', 'Identity', 'MatMul', 'MaxPool', 'Relu', 'Resize',
                          'Sub'}  # fmt: skip


def test_winograd_takes_the_place_of_convolutions(build):
    convolutions = [counted(build(SIZES[0], winograd=winograd))['Conv'] for winograd in (True, False)]
    assert convolutions[0] < convolutions[1] - 10
