"""`tflite`: a float32 or int8 file for LiteRT on small devices, of built-in operations alone; one image unless told."""

import contextlib
import os
import pathlib
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict
from tensorflow.lite.python.convert_phase import ConverterError

from atonet_jax import ops
from atonet_jax.errors import ExportError
from atonet_jax.export.comparison import compare
from atonet_jax.export.forward import forward_function, images_dtype, images_shape
from atonet_jax.export.tensorflow_function import tensorflow_function
from atonet_jax.runs.network import TrainedNetwork

ENDING = '.tflite'
RUNTIME = f'TensorFlow Lite of TensorFlow {tf.__version__}'
HAS_CAREFUL_INT8 = False
_REFUSALS = (ConverterError, ValueError, RuntimeError)


def write(path: str, trained: TrainedNetwork, config: ConfigDict) -> None:
    """Writes a float32 file.

    Raises:
        ExportError: TensorFlow Lite lacks an operation of the network.
    """
    try:
        program = _converter(trained, config).convert()
    except _REFUSALS as error:
        raise ExportError(
            f'TensorFlow Lite cannot express {config.model.name} ({_reason(str(error))}); give another '
            'config.export.format'
        ) from error
    pathlib.Path(path).write_bytes(program)


def write_int8(path: str, trained: TrainedNetwork, config: ConfigDict, images: list[np.ndarray]) -> bool:
    """Writes a file that computes in int8 what TensorFlow Lite has int8 kernels for, and the rest in float32.

    Args:
        path: of the file.
        trained: what is exported.
        config: `config.export` says what the program takes and gives.
        images: to calibrate with, each as the program takes it, in a batch of one.

    Returns:
        False: not only convolutions are of int8.

    Raises:
        ExportError: TensorFlow Lite's quantiser cannot take the network.
    """
    with ops.pooling_for_quantizers():
        converter = _converter(trained, config)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]
    batch_size = config.export.batch_size or 1
    converter.representative_dataset = lambda: ([np.repeat(image, batch_size, axis=0)] for image in images)
    with _stderr() as written:
        try:
            program = converter.convert()
        except _REFUSALS as error:
            raise ExportError(
                f'TensorFlow Lite cannot make {config.model.name} int8 ({_reason(f"{written()}{error}")}); give '
                '--config.export.format=onnx, or leave out config.export.precision'
            ) from error
    pathlib.Path(path).write_bytes(program)
    return False


def _converter(trained: TrainedNetwork, config: ConfigDict) -> tf.lite.TFLiteConverter:
    module = tf.Module()
    module.function = tensorflow_function(
        forward_function(trained.in_float32(), config.export, enlarge_logits=True),
        images_shape(config.export, any_batch=1),
        images_dtype(config.export),
        config.export.outputs,
        platforms=('cpu',),
    )
    return tf.lite.TFLiteConverter.from_concrete_functions([module.function.get_concrete_function()], module)


@contextlib.contextmanager
def _stderr() -> Iterator[Callable[[], str]]:
    """Keeps from the screen what the process's compiled libraries write there, and yields what tells it."""
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as file:

        def written() -> str:
            file.seek(0)
            return file.read().decode(errors='replace')

        os.dup2(file.fileno(), 2)
        try:
            yield written
        finally:
            os.dup2(screen, 2)
            os.close(screen)


def _reason(text: str) -> str:
    """One line: the operations that are missing, where the converter names them, else how its message begins."""
    missing = sorted(set(re.findall(r"'(?:vhlo|stablehlo|tf)\.(\w+?)(?:_v\d+)?' op", text)))
    lines = [line.strip() for line in text.splitlines() if line.strip() and not re.match(r'[IW]\d{4} ', line)]
    return f'it has no {", ".join(missing)}' if missing else lines[0] if lines else 'it gives no reason'


def load(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """The file in TensorFlow Lite: images to labels or logits.

    Raises:
        ExportError: TensorFlow Lite cannot run it, here or when called.
    """
    with warnings.catch_warnings():
        # TensorFlow recommends ai_edge_litert for it, which would be one more package.
        warnings.filterwarnings('ignore', r'\s*Warning: tf\.lite\.Interpreter is deprecated', UserWarning)
        interpreter = tf.lite.Interpreter(path)
    with _runnable():
        interpreter.allocate_tensors()
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(images):
        interpreter.set_tensor(given['index'], images)
        with _runnable():
            interpreter.invoke()
        return interpreter.get_tensor(result['index'])

    return run


@contextlib.contextmanager
def _runnable() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition('\n')[0]
        raise ExportError(f'TensorFlow Lite cannot run the program ({reason}); choose another export.format') from error


def check(path: str, trained: TrainedNetwork, config: ConfigDict) -> str:
    return compare(load(path), trained.in_float32(), config.export, batch_size=config.export.batch_size or 1)
