"""A JAX function computes the same in TensorFlow, whose StableHLO is older than JAX's."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from flax import linen as nn

from atonet_jax.data.labels import CITYSCAPES
from atonet_jax.errors import ExportError
from atonet_jax.export import saved_model_format, tflite_format
from atonet_jax.export import tensorflow_function as module
from atonet_jax.export.tensorflow_function import STABLEHLO_VERSION, tensorflow_function
from atonet_jax.runs.network import TrainedNetwork


def doubled(dtype=np.float32):
    return tensorflow_function(lambda images: images * 2, (None, 2, 3), dtype, 'twice', platforms=('cpu', 'cuda'))


def test_any_batch_computes_what_jax_computes_once_saved_and_loaded(tmp_path):
    saved = tf.Module()
    saved.function = doubled()
    tf.saved_model.save(saved, str(tmp_path), signatures=saved.function)
    signature = tf.saved_model.load(str(tmp_path)).signatures['serving_default']
    for batch in (1, 3):
        images = np.arange(batch * 6, dtype=np.float32).reshape(batch, 2, 3)
        np.testing.assert_array_equal(signature(images=images)['twice'], 2 * images)
    with pytest.raises(tf.errors.InvalidArgumentError, match='Expected value >= 1 for dimension variable'):
        signature(images=np.zeros((0, 2, 3), np.float32))


def test_the_program_is_of_the_version_that_tensorflow_reads():
    graph = doubled().get_concrete_function().graph.as_graph_def()
    (program,) = (node.attr['module'].s for node in graph.node if node.op == 'XlaCallModule')
    assert f'StableHLO_v{STABLEHLO_VERSION}'.encode() in program


def test_a_type_of_half_precision_and_bytes_go_through():
    images = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    function = tensorflow_function(
        lambda x: x.astype(jnp.bfloat16) + 1, (1, 2, 3), np.dtype(np.uint8), 'result', platforms=('cpu',)
    )
    np.testing.assert_array_equal(tf.cast(function(images)['result'], tf.float32), images + 1.0)


@pytest.mark.parametrize('function', [jax.lax.erf, lambda x: jax.lax.top_k(x, 2)[0]], ids=['erf', 'top_k'])
def test_functions_that_jax_leaves_to_the_backend_take_any_batch(function):
    images = np.linspace(-2, 2, 18, dtype=np.float32).reshape(3, 2, 3)
    converted = tensorflow_function(function, (None, 2, 3), np.dtype(np.float32), 'result', platforms=('cpu', 'cuda'))
    np.testing.assert_allclose(converted(images)['result'], function(images), rtol=1e-5)


def test_a_program_that_no_older_version_can_hold_is_one_line(monkeypatch):
    monkeypatch.setattr(module, 'STABLEHLO_VERSION', '1.0.0')  # the tangent came with 1.4.0
    with pytest.raises(ExportError, match='cannot be written as StableHLO 1.0.0, .* TensorFlow') as caught:
        tensorflow_function(jnp.tan, (1, 2), np.dtype(np.float32), 'result', platforms=('cpu',))
    assert '\n' not in str(caught.value)


class OfOneOperation(nn.Module):
    operation: Callable
    num_classes: int = 19
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, train):
        return {'logits': self.operation(jnp.tile(images, (1, 1, 1, 7))[..., :19])}


@pytest.mark.parametrize(
    ('operation', 'reason'),
    [
        (lambda x: jnp.sort(x, 1), 'TensorFlow Lite cannot express atonet (it has no sort); give another'),
        (lambda x: x + jnp.linalg.svd(x)[1][:, :, None], 'cannot be written as StableHLO'),
    ],
    ids=['sort', 'svd'],
)
def test_an_operation_that_tensorflow_lite_lacks_is_named_in_one_line(operation, reason, tiny_config, tmp_path):
    config = tiny_config.copy_and_resolve_references()
    config.export.update(size=(64, 64), format='tflite')
    network = TrainedNetwork(OfOneOperation(operation), {'params': {}}, CITYSCAPES, step=None)
    with pytest.raises(ExportError, match=re.escape(reason)) as caught:
        tflite_format.write(str(tmp_path / 'network.tflite'), network, config)
    assert '\n' not in str(caught.value)


def test_a_saved_model_that_tensorflow_cannot_run_is_one_line(
    tiny_model, tiny_variables, tiny_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, '_in_older_version', lambda program: b'of a version to come')
    network = TrainedNetwork(tiny_model, tiny_variables, CITYSCAPES, step=None)
    config = tiny_config.copy_and_resolve_references()
    config.export.size = (64, 128)
    saved_model_format.write(str(tmp_path), network, config)
    with pytest.raises(ExportError, match='TensorFlow .* cannot run what jax .* wrote .*jax 0.10 to 0.12') as caught:
        saved_model_format.check(str(tmp_path), network, config)
    assert '\n' not in str(caught.value)
