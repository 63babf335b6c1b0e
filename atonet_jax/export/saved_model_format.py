"""`saved_model`: a TensorFlow SavedModel for CPU, CUDA and TPU, by jax2tf."""

import tensorflow as tf
from jax.experimental import jax2tf
from ml_collections import ConfigDict

from atonet_jax.export.comparison import compare
from atonet_jax.export.forward import forward_function, images_dtype, images_shape
from atonet_jax.runs.network import TrainedNetwork

tf.config.set_visible_devices([], 'GPU')  # it would reserve the memory of the accelerators that JAX computes on

ENDING = '_saved_model'
PLATFORMS = ('cpu', 'cuda', 'tpu')


def write(path: str, network: TrainedNetwork, config: ConfigDict) -> None:
    function = jax2tf.convert(
        forward_function(network, config.export),
        polymorphic_shapes=['({}, {}, {}, {})'.format(*images_shape(config.export, 'batch'))],
        with_gradient=False,
        native_serialization_platforms=PLATFORMS,
    )
    spec = tf.TensorSpec(images_shape(config.export, None), images_dtype(config.export), name='images')
    module = tf.Module()
    module.function = tf.function(lambda images: {config.export.outputs: function(images)}, [spec], autograph=False)
    tf.saved_model.save(module, path, signatures=module.function)


def check(path: str, network: TrainedNetwork, config: ConfigDict) -> str:
    signature = tf.saved_model.load(path).signatures['serving_default']
    return compare(lambda images: signature(images=images)[config.export.outputs].numpy(), network, config.export)
