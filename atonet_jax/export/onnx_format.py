"""`onnx`: one file for ONNX Runtime, OpenVINO and others, float32 or int8."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
from ml_collections import ConfigDict

from atonet_jax.errors import InputError
from atonet_jax.export.comparison import compare
from atonet_jax.export.forward import forward_function, images_dtype, images_shape
from atonet_jax.export.onnx import to_onnx
from atonet_jax.export.onnx.quantization import quantize
from atonet_jax.models import network
from atonet_jax.runs.network import TrainedNetwork

ENDING = '.onnx'
RUNTIME = f'ONNX Runtime {onnxruntime.__version__}'
HAS_CAREFUL_INT8 = True
_OTHER_SIZE = 13, 30  # pixels more: any size must be computed as well as that of the config


def build(trained: TrainedNetwork, options: ConfigDict, for_int8: bool = False) -> onnx.ModelProto:
    """The graph of a network, from images to labels or logits as `config.export` says.

    Raises:
        InputError: ONNX, or a graph of any size, cannot express the network.
    """
    forward = forward_function(trained.in_float32(), options, enlarge_logits=True)
    shape = list(images_shape(options, any_batch=None))
    size_axes = (2, 3) if options.layout == 'NCHW' else (1, 2)
    multiple = network(trained.model).multiple_of
    if options.dynamic_size:
        if trained.height:
            raise InputError(
                f'config.eval.height={trained.height}: a graph of any size resizes no images; give '
                '--config.eval.height=0, or leave out config.export.dynamic_size'
            )
        if any(length % multiple for length in options.size):
            raise InputError(
                f'config.export.size={tuple(options.size)}: a graph of any size of this network takes multiples of '
                f'{multiple}; give such a size, or leave out config.export.dynamic_size'
            )
        shape[size_axes[0]] = shape[size_axes[1]] = None
    return to_onnx(
        forward,
        shape,
        images_dtype(options),
        size_axes=size_axes,
        size_multiple=multiple,
        output_name=options.outputs,
        winograd=options.winograd and not for_int8,  # int8 kernels do not know products of many matrices
        packed_labels=for_int8,
    )


def write(path: str, trained: TrainedNetwork, config: ConfigDict) -> None:
    onnx.save(build(trained, config.export), path)


def write_int8(
    path: str, trained: TrainedNetwork, config: ConfigDict, images: list[np.ndarray], careful: bool = False
) -> bool:
    """Writes a graph whose maps between the first and the last convolution are of int8 (`quantization.quantize`).

    Args:
        path: of the file.
        trained: what is exported.
        config: `config.export` says what the graph takes and gives.
        images: to calibrate with, each as the graph takes it, in a batch of one.
        careful: only convolutions are of int8.

    Returns:
        Whether only convolutions are of int8, which some networks need in any case.
    """
    options = config.export
    batches = [np.repeat(image, options.batch_size or 1, axis=0) for image in images]
    return quantize(build(trained, options, for_int8=True), batches, path, careful)


def load(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """The file in ONNX Runtime, on the CPU: images to labels or logits."""
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return lambda images: session.run(None, {'images': images})[0]


def check(path: str, trained: TrainedNetwork, config: ConfigDict) -> str:
    run = load(path)

    def at_size(size):
        options = config.export.copy_and_resolve_references()
        options.size = tuple(size)
        return compare(run, trained.in_float32(), options)

    text = at_size(config.export.size)
    if config.export.dynamic_size:
        multiple = network(trained.model).multiple_of
        height, width = (
            length + -(-more // multiple) * multiple
            for length, more in zip(config.export.size, _OTHER_SIZE, strict=True)
        )
        text = f'{text}; at {height}x{width}: {at_size((height, width))}'
    return text
