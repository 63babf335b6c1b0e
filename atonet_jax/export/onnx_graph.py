"""ATONet as an ONNX graph, made for speed in ONNX Runtime on CPUs.

The graph is built node by node, so that nothing is left of what JAX wrote: every BN within its convolution, maps of
one size added before the resizing that they share. 3x3 convolutions of many channels go by Winograd's algorithm
(models/winograd.py), spelt out as matrix products, a quarter of the direct ones: the runtime does not do it by itself.
Maps are NHWC then, and a convolution's transposes to NCHW and back vanish within the runtime. Without Winograd all is
NCHW.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from atonet_jax.augment import MEAN_RGB, STDDEV_RGB
from atonet_jax.models.atonet import LEVELS, ATONet, spp_grid
from atonet_jax.models.layers import adaptive_pool_matrix, align_corners_matrix
from atonet_jax.models.resnet import BLOCKS
from atonet_jax.models.winograd import FROM_PIXELS, FROM_TAPS, NUMBERS, TILE, TO_PIXELS

_OPSET = 18
_IR_VERSION = 10  # read by runtimes since 2024
_NCHW, _NHWC = (0, 3, 1, 2), (0, 2, 3, 1)  # transposes

_WINOGRAD_CHANNELS = 128  # fewer outputs, and moving the data costs what the products save


class _Map(NamedTuple):
    """A feature map in the graph: the name of its value, in the graph's layout, and (H, W)."""

    name: str
    size: tuple[int, int]


def build(
    model: ATONet,
    params: Mapping[str, Any],
    size: tuple[int, int],
    *,
    batch_size: int = 0,
    inputs: str = 'uint8',
    outputs: str = 'labels',
    layout: str = 'NHWC',
    winograd: bool = True,
) -> onnx.ModelProto:
    """The graph that computes what `Segmenter` does, in float32.

    Args:
        model: the network.
        params: of `inference.inference_params`, float32.
        size: (height, width) of the images.
        batch_size: of the images; 0: any.
        inputs: 'uint8', RGB that the graph normalises, or 'normalized', float32.
        outputs: 'labels' [B, H, W] uint8, or 'logits' [B, H, W, classes] float32 in `layout`.
        layout: 'NHWC' or 'NCHW'.
        winograd: False leaves every convolution to the runtime: OpenVINO is faster so.

    Returns:
        A checked model with the input 'images' and an output named as `outputs` says.
    """
    graph = _Graph('NHWC' if winograd else 'NCHW')
    stem = dict(params['stem']['conv'])
    x = 'images' if layout == 'NCHW' else graph('Transpose', 'images', perm=_NCHW)
    if inputs == 'uint8':
        # Divided by the deviation within the stem's kernel; the mean cannot go there, for the padding is the mean's 0.
        x = graph('Sub', graph('Cast', x, to=TensorProto.FLOAT), graph.constant(MEAN_RGB.reshape(3, 1, 1)))
        stem['kernel'] = np.asarray(stem['kernel']) / STDDEV_RGB[:, None]
    coarse = _network(graph, _Map(graph.from_nchw(x), size), model, params, stem)
    logits = graph.resize(coarse, size)
    if outputs == 'labels':
        result = graph('Cast', graph('ArgMax', logits.name, axis=graph.channel_axis, keepdims=0), to=TensorProto.UINT8)
    else:
        result = graph.laid_out(logits, layout)

    batch = batch_size or 'batch'

    def shape(channels):
        return (batch, *size, channels) if layout == 'NHWC' else (batch, channels, *size)

    return graph.finish(
        result,
        ('images', TensorProto.UINT8 if inputs == 'uint8' else TensorProto.FLOAT, shape(3)),
        (outputs, TensorProto.UINT8, (batch, *size))
        if outputs == 'labels'
        else (outputs, TensorProto.FLOAT, shape(model.num_classes)),
    )


def _network(graph, images, model, params, stem) -> _Map:
    """Normalised images to coarse logits: models/atonet.py, node by node."""
    x = graph.max_pool(graph.conv(images, stem, stride=2))
    levels = []
    for i, num_blocks in enumerate(BLOCKS):
        for block in range(num_blocks):
            layers = params[f'layer{i + 1}'][f'block{block}']
            stride = 2 if block == 0 and i > 0 else 1
            shortcut = x
            if 'shortcut' in layers:
                shortcut = graph.conv(x, layers['shortcut']['conv'], stride=stride, relu=False)
            x = graph.conv(x, layers['conv1']['conv'], stride=stride)
            x = graph.relu(graph.add(graph.conv(x, layers['conv2']['conv'], relu=False), shortcut))
        levels.append(x)
    levels.append(_spp(graph, x, model.spp_bins, params['spp']))

    summed = {}
    for level, features in zip(LEVELS, levels, strict=True):
        up = graph.conv(features, params[f'up{level}']['conv'], relu=False)
        summed[up.size] = graph.add(summed[up.size], up) if up.size in summed else up
    ups = (graph.resize(up, levels[0].size) for up in summed.values())
    x = graph.relu(functools.reduce(graph.add, ups))
    x = graph.conv(x, params['final']['conv'])
    x = graph.conv(x, params['seg']['conv'])
    return graph.conv(x, params['classifier']['conv'], relu=False)


def _spp(graph, x, bins, params) -> _Map:
    x = graph.conv(x, params['conv1']['conv'])
    pyramid = [x.name]
    for i, rows in enumerate(bins):
        pooled = graph.along_axes(x, adaptive_pool_matrix, spp_grid(rows, x.size))
        pooled = graph.conv(pooled, params[f'pool{i}']['conv'])
        pyramid.append(graph.along_axes(pooled, align_corners_matrix, x.size).name)
    return graph.conv(_Map(graph('Concat', *pyramid, axis=graph.channel_axis), x.size), params['conv2']['conv'])


class _Graph:
    """Nodes and constants as they come; maps are in `layout`, and in NHWC large convolutions go by Winograd."""

    def __init__(self, layout: str):
        self._layout = layout
        self.channel_axis = layout.index('C')
        self._nodes = []
        self._constants = []

    def __call__(self, operation: str, *inputs: str, **attributes) -> str:
        """Adds a node; returns the name of its output."""
        name = f'{operation}_{len(self._nodes)}'
        self._nodes.append(helper.make_node(operation, inputs, [name], name=name, **attributes))
        return name

    def constant(self, values, dtype=np.float32) -> str:
        name = f'constant_{len(self._constants)}'
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(values, dtype), name))
        return name

    def reshape(self, x: str, *shape: int) -> str:
        return self('Reshape', x, self.constant(shape, np.int64))

    def add(self, x: _Map, y: _Map) -> _Map:
        return _Map(self('Add', x.name, y.name), x.size)

    def relu(self, x: _Map) -> _Map:
        return _Map(self('Relu', x.name), x.size)

    def laid_out(self, x: _Map, layout: str) -> str:
        """The map's value in a layout."""
        if layout == self._layout:
            return x.name
        return self('Transpose', x.name, perm=_NCHW if layout == 'NCHW' else _NHWC)

    def from_nchw(self, x: str) -> str:
        return x if self._layout == 'NCHW' else self('Transpose', x, perm=_NHWC)

    def max_pool(self, x: _Map) -> _Map:
        y = self('MaxPool', self.laid_out(x, 'NCHW'), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        return _Map(self.from_nchw(y), _shrunk(x.size, 2))

    def conv(self, x: _Map, params: Mapping[str, Any], *, stride: int = 1, relu: bool = True) -> _Map:
        """Convolution with bias, padded to the input's size over `stride`; params: 'kernel' [h, w, in, out], 'bias'."""
        kernel, bias = np.asarray(params['kernel']), np.asarray(params['bias'])
        suits_winograd = kernel.shape[0] == 3 and stride == 1 and kernel.shape[3] >= _WINOGRAD_CHANNELS
        if self._layout == 'NHWC' and suits_winograd:
            y = self('Add', self._winograd(x, kernel), self.constant(bias))
        else:
            weights = self.constant(kernel.transpose(3, 2, 0, 1))
            y = self('Conv', self.laid_out(x, 'NCHW'), weights, self.constant(bias), strides=[stride] * 2,
                     pads=[len(kernel) // 2] * 4, kernel_shape=kernel.shape[:2])  # fmt: skip
            y = self.from_nchw(y)
        return _Map(self('Relu', y) if relu else y, _shrunk(x.size, stride))

    def _winograd(self, x: _Map, kernel: np.ndarray) -> str:
        """3x3 convolution of stride 1 by tiles of 4x4 pixels, which see 6x6: 36 products over channels for each."""
        rows, columns = (-(-length // TILE) for length in x.size)
        tiles, inputs, outputs = rows * columns, *kernel.shape[2:]
        # Four times the kernel's size, so the file holds the kernel, and runtimes compute this once, at loading.
        weights = self.constant(kernel.reshape(9, inputs * outputs))
        weights = self('MatMul', self.constant(np.kron(FROM_TAPS, FROM_TAPS)), weights)
        weights = self.reshape(weights, NUMBERS**2, inputs, outputs)

        height, width = TILE * rows + 2, TILE * columns + 2
        padding = (0, 1, 1, 0, 0, height - 1 - x.size[0], width - 1 - x.size[1], 0)
        y = self('Pad', x.name, self.constant(padding, np.int64))
        y = self.reshape(y, -1, height * width, inputs)
        pixels = np.arange(height * width).reshape(height, width)
        windows = np.lib.stride_tricks.sliding_window_view(pixels, (NUMBERS, NUMBERS))[::TILE, ::TILE]
        y = self('Gather', y, self.constant(windows.transpose(2, 3, 0, 1).ravel(), np.int64), axis=1)
        y = self.reshape(y, -1, NUMBERS**2, tiles * inputs)
        y = self('MatMul', self.constant(np.kron(FROM_PIXELS, FROM_PIXELS)), y)
        y = self('MatMul', self.reshape(y, -1, NUMBERS**2, tiles, inputs), weights)
        y = self.reshape(y, -1, NUMBERS**2, tiles * outputs)
        y = self('MatMul', self.constant(np.kron(TO_PIXELS, TO_PIXELS)), y)

        # In two steps, each of which moves whole rows of memory.
        y = self('Transpose', self.reshape(y, -1, TILE, TILE, rows, columns * outputs), perm=(0, 3, 1, 2, 4))
        y = self('Transpose', self.reshape(y, -1, TILE * rows, TILE, columns, outputs), perm=(0, 1, 3, 2, 4))
        y = self.reshape(y, -1, TILE * rows, TILE * columns, outputs)
        if (TILE * rows, TILE * columns) != tuple(x.size):
            start, stop, axes = (self.constant(values, np.int64) for values in ((0, 0), x.size, (1, 2)))
            y = self('Slice', y, start, stop, axes)
        return y

    def along_axes(self, x: _Map, matrix, size: tuple[int, int]) -> _Map:
        """Rows and columns through `matrix(old, new)`, [new, old], to a map of `size`."""
        rows, columns = (matrix(old, new) for old, new in zip(x.size, size, strict=True))
        y = self('MatMul', self.constant(rows), self.laid_out(x, 'NCHW'))
        return _Map(self.from_nchw(self('MatMul', y, self.constant(columns.T))), size)

    def resize(self, x: _Map, size: tuple[int, int]) -> _Map:
        """Bilinear, half-pixel."""
        if x.size == size:
            return x
        # Rounded up, for the new size is the product rounded down.
        factors = [np.nextafter(np.float32(new / old), np.float32(np.inf)) if new % old else new / old
                   for old, new in zip(x.size, size, strict=True)]  # fmt: skip
        scales = self.constant([1, *factors, 1] if self._layout == 'NHWC' else [1, 1, *factors])
        y = self('Resize', x.name, '', scales, mode='linear', coordinate_transformation_mode='half_pixel')
        return _Map(y, size)

    def finish(self, result: str, graph_input: tuple, graph_output: tuple) -> onnx.ModelProto:
        """The checked model, whose output is `result`; input and output are (name, type, shape)."""
        self._nodes.append(helper.make_node('Identity', [result], [graph_output[0]]))
        graph = helper.make_graph(
            self._nodes,
            'atonet',
            [helper.make_tensor_value_info(*graph_input)],
            [helper.make_tensor_value_info(*graph_output)],
            self._constants,
        )
        opset = helper.make_opsetid('', _OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION, producer_name='atonet_jax')
        onnx.checker.check_model(model)
        return model


def _shrunk(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return tuple(-(-length // stride) for length in size)
