"""`tflite`: a float32 file for LiteRT on small devices, of built-in operations alone; one image unless told."""

import pathlib

import tensorflow as tf
from jax.experimental import jax2tf
from ml_collections import ConfigDict

from atonet_jax.export.comparison import compare
from atonet_jax.export.forward import forward_function, images_dtype, images_shape
from atonet_jax.runs.network import TrainedNetwork

tf.config.set_visible_devices([], 'GPU')  # it would reserve the memory of the accelerators that JAX computes on

ENDING = '.tflite'


def write(path: str, network: TrainedNetwork, config: ConfigDict) -> None:
    forward = forward_function(network.in_float32(), config.export, enlarge_logits=True)
    function = jax2tf.convert(forward, with_gradient=False, native_serialization_platforms=('cpu',))
    spec = tf.TensorSpec(images_shape(config.export, any_batch=1), images_dtype(config.export), name='images')
    module = tf.Module()
    module.function = tf.function(function, [spec], autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.function.get_concrete_function()], module)
    pathlib.Path(path).write_bytes(converter.convert())


def check(path: str, network: TrainedNetwork, config: ConfigDict) -> str:
    interpreter = tf.lite.Interpreter(path)
    interpreter.allocate_tensors()
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(images):
        interpreter.set_tensor(given['index'], images)
        interpreter.invoke()
        return interpreter.get_tensor(result['index'])

    return compare(run, network.in_float32(), config.export, batch_size=config.export.batch_size or 1)
