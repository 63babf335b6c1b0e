"""Each export in its own runtime: images [B, H, W, 3] uint8 to labels [B, H, W] uint8."""

import pathlib

import jax
import numpy as np


def run_weights(path, images):
    from atonet_jax.inference.segmenter import Segmenter

    return np.asarray(Segmenter.from_workdir(path)(images))


def run_jax_export(path, images):
    return np.asarray(jax.export.deserialize(bytearray(pathlib.Path(path).read_bytes())).call(images))


def run_saved_model(path, images):
    import tensorflow as tf

    return tf.saved_model.load(path).signatures['serving_default'](images=images)['labels'].numpy()


def run_onnx(path, images):
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider']).run(None, {'images': images})[0]


def run_tflite(path, images):
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(path)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]['index'], images)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]['index'])


RUN = {
    'weights': run_weights,
    'jax_export': run_jax_export,
    'saved_model': run_saved_model,
    'onnx': run_onnx,
    'tflite': run_tflite,
}
