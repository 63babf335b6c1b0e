"""A JAX function as a TensorFlow function: what `saved_model` and `tflite` write.

TensorFlow holds the compiled program as StableHLO within one XlaCallModule operation. JAX writes StableHLO for readers
that are a few weeks old, and TensorFlow releases are older than that. So the program is written once more, in a version
that TensorFlow reads.
"""

from collections.abc import Callable, Sequence

import jax
import jax.export
import numpy as np
import tensorflow as tf
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from jax.extend.mlir.passmanager import PassManager
from tensorflow.compiler.tf2xla.python import xla

from atonet_jax.errors import ExportError

tf.config.set_visible_devices([], 'GPU')  # it would reserve the memory of the accelerators that JAX computes on

STABLEHLO_VERSION = '1.9.0'  # TensorFlow 2.21 reads up to 1.13.7; readers take versions up to five years old


def tensorflow_function(
    function: Callable[[jax.Array], jax.Array],
    shape: Sequence[int | None],
    dtype: np.dtype,
    output: str,
    platforms: Sequence[str],
) -> tf.types.experimental.GenericFunction:
    """Lowers a JAX function of images to a `tf.function` that returns {output: result}.

    Args:
        function: images to one array; its parameters are constants within.
        shape: of the images; None where the batch may be of any size.
        dtype: of the images.
        output: name of the result.
        platforms: that the program is lowered for, as `jax.export` names them.

    Raises:
        ExportError: the program holds an operation that StableHLO of this version lacks.
    """
    (batch,) = jax.export.symbolic_shape('batch')
    images = jax.ShapeDtypeStruct([batch if size is None else size for size in shape], dtype)
    exported = jax.export.export(jax.jit(function), platforms=platforms)(images)
    (result,) = exported.out_avals
    program = _in_older_version(exported.mlir_module_serialized)

    @tf.function(input_signature=[tf.TensorSpec(shape, dtype, name='images')], autograph=False)
    def call(images):
        (values,) = xla.call_module(
            [images],
            version=exported.calling_convention_version,
            module=program,
            Sout=[tf.TensorShape([size if isinstance(size, int) else None for size in result.shape])],
            Tout=[tf.as_dtype(result.dtype)],
            platforms=[platform.upper() for platform in platforms],
        )
        return {output: values}

    return call


def _in_older_version(program: bytes) -> bytes:
    with ir.Context() as context:
        stablehlo.register_dialect(context)
        stablehlo.register_stablehlo_passes()
        try:
            module = stablehlo.deserialize_portable_artifact(context, program)
            # TensorFlow leaves composites such as erf and top_k as they are, and then finds their batch to be unknown.
            passes = 'builtin.module(func.func(stablehlo-legalize-composite-to-call),inline)'
            PassManager.parse(passes).run(module.operation)
            return stablehlo.serialize_portable_artifact(module, STABLEHLO_VERSION)
        except Exception as error:  # the binding raises what the compiler's message became
            raise ExportError(
                f'the program of jax {jax.__version__} cannot be written as StableHLO {STABLEHLO_VERSION}, which '
                f'TensorFlow {tf.__version__} reads; jax 0.10 to 0.12 and TensorFlow 2.21 go together, or export '
                'another format'
            ) from error
