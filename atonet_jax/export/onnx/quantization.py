"""An int8 graph of a float32 one: `quantize`."""

import contextlib
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnxruntime import quantization

# Operations whose maps are int8 from one to the next. All others compute in float32.
_CONVOLUTIONS = ('Conv', 'ConvTranspose')
_QUANTIZED = (*_CONVOLUTIONS, 'Add', 'Relu', 'MaxPool', 'Concat')


class _Images(quantization.CalibrationDataReader):
    def __init__(self, name: str, batches: Sequence[np.ndarray]):
        self._batches = iter([{name: batch} for batch in batches])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def quantize(
    graph: onnx.ModelProto, batches: Sequence[np.ndarray], path: str, convolutions_alone: bool = False
) -> None:
    """Writes a static int8 form: weights by output channel, symmetric; maps uint8, from the least to the largest value.

    The convolutions that see the image, and those that give the logits, stay in float32: they are few of the
    multiplications and much of the error.

    Args:
        graph: of float32. It is changed: its nodes get names.
        batches: what the graph takes, to find the ranges of all maps.
        path: of the file.
        convolutions_alone: sums and concatenations stay in float32: slower, and closer to float where the maps that are
            joined have ranges that differ much.
    """
    nodes = graph.graph.node
    for i, node in enumerate(nodes):
        node.name = f'{node.op_type}_{i}'
    with _quiet():
        quantization.quantize_static(
            graph,
            path,
            _Images(graph.graph.input[0].name, batches),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=list(_CONVOLUTIONS if convolutions_alone else _QUANTIZED),
            nodes_to_exclude=sorted(_first_convolutions(nodes) | _first_convolutions(nodes, backwards=True)),
        )


def _first_convolutions(nodes: Sequence[onnx.NodeProto], backwards: bool = False) -> set[str]:
    """Names of the convolutions with none before them, or none after them."""
    reached, first = set(), set()  # values that a convolution led to
    for node in reversed(nodes) if backwards else nodes:
        given, made = (node.output, node.input) if backwards else (node.input, node.output)
        is_conv = node.op_type in _CONVOLUTIONS
        if is_conv and reached.isdisjoint(given):
            first.add(node.name)
        if is_conv or not reached.isdisjoint(given):
            reached.update(filter(None, made))
    return first


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that ONNX Runtime logs at each call."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
