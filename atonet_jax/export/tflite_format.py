"""`tflite`: a float32 file for LiteRT on small devices, of built-in operations alone; one image unless told."""

import pathlib

import tensorflow as tf
from ml_collections import ConfigDict

from atonet_jax.export.comparison import compare
from atonet_jax.export.forward import forward_function, images_dtype, images_shape
from atonet_jax.export.tensorflow_function import tensorflow_function
from atonet_jax.runs.network import TrainedNetwork

ENDING = '.tflite'


def write(path: str, network: TrainedNetwork, config: ConfigDict) -> None:
    module = tf.Module()
    module.function = tensorflow_function(
        forward_function(network.in_float32(), config.export, enlarge_logits=True),
        images_shape(config.export, any_batch=1),
        images_dtype(config.export),
        config.export.outputs,
        platforms=('cpu',),
    )
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
