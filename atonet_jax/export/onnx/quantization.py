"""An int8 graph of a float32 one: `quantize`."""

import collections
import contextlib
import functools
import io
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnxruntime import quantization

_log = logging.getLogger(__name__)

_PERCENTILE = 99.99  # of the values of a map; the few outside cost the others their resolution
# Operations whose maps are int8 from one to the next. All others compute in float32; with `Concat`, OpenVINO 2026.4
# crashes on several networks.
_CONVOLUTIONS = ('Conv', 'ConvTranspose')
_BYTE = 1 / 64  # any scale of the image but 1, with which OpenVINO would compute in float32
_BETWEEN = ('PRelu', 'LeakyRelu')  # float32, so that int8 sums beside them lose accuracy and gain nothing
_QUANTIZED = (*_CONVOLUTIONS, 'Add', 'Relu', 'MaxPool')


class _Images(quantization.CalibrationDataReader):
    """One batch after the other; of each, all maps are in memory."""

    def __init__(self, name: str, batches: Sequence[np.ndarray]):
        self._name, self._batches = name, batches
        self.set_range(0, len(batches))

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._left = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._left, None)
        return None if batch is None else {self._name: batch}


def quantize(graph: onnx.ModelProto, batches: Sequence[np.ndarray], path: str, careful: bool = False) -> bool:
    """Writes a static int8 form: weights by output channel, symmetric; maps uint8, of the range of 99.99 % of values.

    Logits stay in float32: rounding them costs most. The first convolutions take the bytes of the image as they are,
    where only the mean is subtracted before them. Weights have 7 bits where this CPU needs that (`sums_saturate`).

    Args:
        graph: of float32. It is changed.
        batches: what the graph takes, to find the ranges of all maps.
        path: of the file.
        careful: only convolutions are int8: slower, and closer to float where maps that are added have ranges that
            differ much. Graphs with PReLU are always written so.

    Returns:
        Whether only convolutions are int8.
    """
    nodes = graph.graph.node
    for i, node in enumerate(nodes):
        node.name = f'{node.op_type}_{i}'
    last, after = _last_convolutions(nodes)
    careful = careful or any(node.op_type in _BETWEEN for node in nodes)
    if sums_saturate():
        _log.info('int8 weights have 7 bits: on this CPU, sums of two products of 8 bits saturate')
    options = {
        'TensorQuantOverrides': _bytes_as_they_are(graph.graph),
        'CalibPercentile': _PERCENTILE,
        'CalibStridedMinMax': 1,  # image by image, whatever the method
    }
    with _quiet():
        quantization.quantize_static(
            graph,
            path,
            _Images(graph.graph.input[0].name, batches),
            per_channel=True,
            reduce_range=sums_saturate(),
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=list(_CONVOLUTIONS if careful else _QUANTIZED),
            nodes_to_exclude=after,
            calibrate_method=quantization.CalibrationMethod.Percentile,
            extra_options=options,
        )
    written = onnx.load(path)
    for name in last:
        _leave_in_float(written.graph, name)
    _drop_unused_constants(written.graph)
    onnx.save(written, path)
    return careful


@functools.cache
def sums_saturate() -> bool:
    """Whether ONNX Runtime loses the largest sums of int8 products on this CPU.

    x86 CPUs without VNNI add two products in 16 bits. With weights of 7 bits every sum fits.
    """
    most, length = (255, 127), 16
    matrix = np.full((length, length), most[1], np.int8)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node('MatMulInteger', ['x', 'matrix'], ['y'])],
        'sums',
        [onnx.helper.make_tensor_value_info('x', onnx.TensorProto.UINT8, (1, length))],
        [onnx.helper.make_tensor_value_info('y', onnx.TensorProto.INT32, None)],
        [numpy_helper.from_array(matrix, 'matrix')],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 13)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (sums,) = session.run(None, {'x': np.full((1, length), most[0], np.uint8)})
    return bool((sums != length * most[0] * most[1]).any())


def _bytes_as_they_are(graph: onnx.GraphProto) -> dict[str, list[dict[str, np.ndarray]]]:
    """Makes one number of the means that are subtracted from the image; the biases of its convolutions take the rest.

    So quantising the image rounds nothing, and costs little. Only its padding changes: from the mean of each channel to
    that of all channels.

    Returns:
        {name: [quantisation]} of the value that the convolutions take; empty where the graph takes no bytes, or does
        something else with them.
    """
    constants = {constant.name: constant for constant in graph.initializer}
    users = collections.defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)
    name, chain = graph.input[0].name, []
    while len(users[name]) == 1 and users[name][0].op_type in ('Transpose', 'Cast', 'Sub'):
        chain += users[name]
        name = chain[-1].output[0]
    is_bytes = graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    if not is_bytes or [node.op_type for node in chain][-2:] != ['Cast', 'Sub'] or chain[-1].input[1] not in constants:
        return {}
    subtraction, convolutions = chain[-1], users[name]
    means = numpy_helper.to_array(constants[subtraction.input[1]])
    channels = means.size
    if means.shape != (1, channels, 1, 1) or any(
        node.op_type != 'Conv' or node.input[1] not in constants or constants[node.input[1]].dims[1] != channels
        for node in convolutions
    ):
        return {}
    scaled, zero_point = 'scaled_bytes', int(np.clip(means.mean().round(), 0, 255))

    def constant(name: str, values) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.float32), name))
        return name

    for i, node in enumerate(convolutions):
        kernel = numpy_helper.to_array(constants[node.input[1]])
        bias = np.einsum('ocij,c->o', kernel, zero_point - means.reshape(-1))
        if len(node.input) > 2:
            bias += numpy_helper.to_array(constants[node.input[2]])
        node.input[:] = [scaled, constant(f'kernel_of_bytes_{i}', kernel / _BYTE), constant(f'bias_of_bytes_{i}', bias)]
    subtraction.input[1] = constant('mean_of_bytes', zero_point)
    product = onnx.helper.make_node('Mul', [name, constant('scale_of_bytes', _BYTE)], [scaled], name=scaled)
    graph.node.insert(list(graph.node).index(subtraction) + 1, product)
    _drop_unused_constants(graph)
    return {scaled: [{'scale': np.array(_BYTE, np.float32), 'zero_point': np.array(zero_point, np.uint8)}]}


def _last_convolutions(nodes: Sequence[onnx.NodeProto]) -> tuple[list[str], list[str]]:
    """What the convolutions give that none follows, and the names of the nodes after them."""
    used, last, after = set(), [], []  # used: values that lead to a convolution
    for node in reversed(nodes):
        is_conv, leads = node.op_type in _CONVOLUTIONS, not used.isdisjoint(node.output)
        if leads or is_conv:
            used.update(filter(None, node.input))
        if not leads:
            last += node.output if is_conv else []
            after += [] if is_conv else [node.name]
    return last, after


def _leave_in_float(graph: onnx.GraphProto, name: str) -> None:
    """Undoes the rounding of a value, where there is one."""
    for quantized in [node for node in graph.node if node.op_type == 'QuantizeLinear' and node.input[0] == name]:
        (back,) = [node for node in graph.node if quantized.output[0] in node.input]
        for node in graph.node:
            node.input[:] = [name if x == back.output[0] else x for x in node.input]
        graph.node.remove(quantized)
        graph.node.remove(back)


def _drop_unused_constants(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    for needless in [constant for constant in graph.initializer if constant.name not in used]:
        graph.initializer.remove(needless)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that ONNX Runtime logs at each call, and what it prints for each image."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
