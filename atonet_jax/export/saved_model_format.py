"""`saved_model`: a TensorFlow SavedModel for CPU, CUDA and TPU."""

import errno

import jax
import tensorflow as tf
from ml_collections import ConfigDict

from atonet_jax.errors import ExportError
from atonet_jax.export.comparison import compare
from atonet_jax.export.forward import forward_function, images_dtype, images_shape
from atonet_jax.export.tensorflow_function import tensorflow_function
from atonet_jax.runs.network import TrainedNetwork

ENDING = '_saved_model'
PLATFORMS = ('cpu', 'cuda', 'tpu')


def write(path: str, trained: TrainedNetwork, config: ConfigDict) -> None:
    module = tf.Module()
    module.function = tensorflow_function(
        forward_function(trained, config.export),
        images_shape(config.export, any_batch=None),
        images_dtype(config.export),
        config.export.outputs,
        PLATFORMS,
    )
    try:
        tf.saved_model.save(module, path, signatures=module.function)
    except tf.errors.OpError as error:  # it says 'PATH; File too large [Op:SaveV2]'
        raise OSError(errno.EIO, error.message.rpartition('; ')[2].partition(' [Op:')[0]) from error


def check(path: str, trained: TrainedNetwork, config: ConfigDict) -> str:
    signature = tf.saved_model.load(path).signatures['serving_default']

    def run(images):
        try:
            return signature(images=images)[config.export.outputs].numpy()
        except tf.errors.OpError as error:
            lines = [line.strip() for line in error.message.splitlines()]
            reason = next(line for line in lines if line and line != 'Graph execution error:')
            raise ExportError(
                f'TensorFlow {tf.__version__} cannot run what jax {jax.__version__} wrote ({reason}); jax 0.10 to 0.12 '
                'and TensorFlow 2.21 go together, or export another format'
            ) from error

    return compare(run, trained, config.export)
