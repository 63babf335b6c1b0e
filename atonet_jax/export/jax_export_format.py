"""`jax_export`: StableHLO for CPU, CUDA and TPU in one file, which JAX alone loads and runs."""

import pathlib

import jax
import jax.export
import numpy as np
from ml_collections import ConfigDict

from atonet_jax.export.comparison import compare
from atonet_jax.export.forward import forward_function, images_dtype, images_shape
from atonet_jax.runs.network import TrainedNetwork

ENDING = '.jax_export'
PLATFORMS = ('cpu', 'cuda', 'tpu')


def write(path: str, trained: TrainedNetwork, config: ConfigDict) -> None:
    (batch,) = jax.export.symbolic_shape('batch')
    images = jax.ShapeDtypeStruct(images_shape(config.export, batch), images_dtype(config.export))
    exported = jax.export.export(jax.jit(forward_function(trained, config.export)), platforms=PLATFORMS)(images)
    pathlib.Path(path).write_bytes(exported.serialize())


def check(path: str, trained: TrainedNetwork, config: ConfigDict) -> str:
    exported = jax.export.deserialize(bytearray(pathlib.Path(path).read_bytes()))
    return compare(lambda images: np.asarray(exported.call(images)), trained, config.export, in_jax=True)
