"""`onnx`: one file for ONNX Runtime, OpenVINO and others, float32."""

import onnx
import onnxruntime
from ml_collections import ConfigDict

from atonet_jax.errors import InputError
from atonet_jax.export.comparison import compare
from atonet_jax.export.forward import forward_function, images_dtype, images_shape
from atonet_jax.export.onnx import to_onnx
from atonet_jax.models import network as contract_of
from atonet_jax.runs.network import TrainedNetwork

ENDING = '.onnx'
_OTHER_SIZE = 13, 30  # pixels more: any size must be computed as well as that of the config


def build(network: TrainedNetwork, options: ConfigDict) -> onnx.ModelProto:
    """The graph of a network, from images to labels or logits as `config.export` says.

    Raises:
        InputError: ONNX, or a graph of any size, cannot express the network.
    """
    forward = forward_function(network.in_float32(), options, enlarge_logits=True)
    shape = list(images_shape(options, any_batch=None))
    size_axes = (2, 3) if options.layout == 'NCHW' else (1, 2)
    multiple = contract_of(network.model).multiple_of
    if options.dynamic_size:
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
        winograd=options.winograd,
    )


def write(path: str, network: TrainedNetwork, config: ConfigDict) -> None:
    onnx.save(build(network, config.export), path)


def check(path: str, network: TrainedNetwork, config: ConfigDict) -> str:
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])

    def at_size(size):
        options = config.export.copy_and_resolve_references()
        options.size = tuple(size)
        return compare(lambda images: session.run(None, {'images': images})[0], network.in_float32(), options)

    text = at_size(config.export.size)
    if config.export.dynamic_size:
        multiple = contract_of(network.model).multiple_of
        height, width = (
            length + -(-more // multiple) * multiple
            for length, more in zip(config.export.size, _OTHER_SIZE, strict=True)
        )
        text = f'{text}; at {height}x{width}: {at_size((height, width))}'
    return text
