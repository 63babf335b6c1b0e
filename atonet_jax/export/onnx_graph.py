"""ATONet as an ONNX graph, made for speed in ONNX Runtime on CPUs.

The graph is built node by node, so that nothing is left of what JAX wrote: every BN within its convolution, maps of
one size added before the resizing that they share. 3x3 convolutions of many channels go by Winograd's algorithm
(ops/cpu/winograd.py), spelt out as matrix products, a quarter of the direct ones: the runtime does not do it by itself.
Winograd's convolutions take and make NHWC maps, the runtime's own NCHW ones; a map is transposed where it is needed
otherwise. Without Winograd all is NCHW.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from atonet_jax.models.atonet import LEVELS, ATONet, spp_grid
from atonet_jax.models.contract import IMAGENET
from atonet_jax.models.resnet import BLOCKS
from atonet_jax.ops import adaptive_pool_matrix, align_corners_matrix
from atonet_jax.ops.cpu.winograd import FROM_PIXELS, FROM_TAPS, NUMBERS, TILE, TO_PIXELS

MEAN_RGB, STDDEV_RGB = IMAGENET.in_pixel_values()
_OPSET = 18
_IR_VERSION = 10  # read by runtimes since 2024
_NCHW, _NHWC = (0, 3, 1, 2), (0, 2, 3, 1)  # transposes
_SWAPPED = (0, 1, 3, 2)

_WINOGRAD_CHANNELS = 128  # fewer outputs, and moving the data costs what the products save
_STRIP_PIXELS = 2**11  # of coarse logits
_STRIP = 2**15  # of tiles times channels at once: 5 MB for the 36 numbers of each


class _Map(NamedTuple):
    """A feature map in the graph: (H, W), and {layout: name of its value}, in the layouts that were needed so far."""

    size: tuple[int, int]
    values: dict[str, str]


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
        params: what `models.prepare` gives as 'prepared', float32.
        size: (height, width) of the images.
        batch_size: of the images; 0: any.
        inputs: 'uint8', RGB that the graph normalises, or 'normalized', float32.
        outputs: 'labels' [B, H, W] uint8, or 'logits' [B, H, W, classes] float32 in `layout`.
        layout: 'NHWC' or 'NCHW'.
        winograd: False leaves every convolution to the runtime: OpenVINO is faster so.

    Returns:
        A checked model with the input 'images' and an output named as `outputs` says.
    """
    graph = _Graph(winograd)
    stem = dict(params['stem'])
    x = 'images' if layout == 'NCHW' else graph('Transpose', 'images', perm=_NCHW)
    if inputs == 'uint8':
        # Divided by the deviation within the stem's kernel; the mean cannot go there, for the padding is the mean's 0.
        x = graph('Sub', graph('Cast', x, to=TensorProto.FLOAT), graph.constant(MEAN_RGB.reshape(3, 1, 1)))
        stem['kernel'] = np.asarray(stem['kernel']) / STDDEV_RGB[:, None]
    coarse = _network(graph, _Map(size, {'NCHW': x}), model, params, stem)
    if outputs == 'labels':
        result = graph.labels(coarse, size)
    else:
        result = graph.laid_out(graph.resize(coarse, size), layout)

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
                shortcut = graph.conv(x, layers['shortcut'], stride=stride, relu=False)
            x = graph.conv(x, layers['conv1'], stride=stride)
            x = graph.relu(graph.add(graph.conv(x, layers['conv2'], relu=False), shortcut))
        levels.append(x)
    levels.append(_spp(graph, x, model.spp_bins, params['spp']))

    summed = {}
    ups = [dict(params[f'up{level}']) for level in LEVELS]
    ups[-1]['bias'] = sum(np.asarray(up.pop('bias')) for up in ups)  # all on the smallest map: resizing keeps constants
    for up, features in zip(ups, levels, strict=True):
        up = graph.conv(features, up, relu=False)
        summed[up.size] = graph.add(summed[up.size], up) if up.size in summed else up
    ups = (graph.resize(up, levels[0].size) for up in summed.values())
    x = graph.relu(functools.reduce(graph.add, ups))
    x = graph.conv(x, params['head']['final'])
    x = graph.conv(x, params['head']['seg'])
    return graph.conv(x, params['head']['classifier']['conv'], relu=False)


def _spp(graph, x, bins, params) -> _Map:
    x = graph.conv(x, params['conv1'])
    pyramid = [x]
    for i, rows in enumerate(bins):
        pooled = graph.along_axes(x, adaptive_pool_matrix, spp_grid(rows, x.size))
        pooled = graph.conv(pooled, params[f'pool{i}'])
        pyramid.append(graph.along_axes(pooled, align_corners_matrix, x.size))
    return graph.conv(graph.concatenate(pyramid), params['conv2'])


class _Graph:
    """Nodes and constants as they come; with `winograd`, large convolutions go that way."""

    def __init__(self, winograd: bool):
        self._goes_by_winograd = winograd
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

    def laid_out(self, x: _Map, layout: str) -> str:
        """The map's value in a layout."""
        if layout not in x.values:
            (value,) = x.values.values()
            x.values[layout] = self('Transpose', value, perm=_NCHW if layout == 'NCHW' else _NHWC)
        return x.values[layout]

    def add(self, x: _Map, y: _Map) -> _Map:
        layout = _layout_of(x)
        return _Map(x.size, {layout: self('Add', self.laid_out(x, layout), self.laid_out(y, layout))})

    def relu(self, x: _Map) -> _Map:
        layout = _layout_of(x)
        return _Map(x.size, {layout: self('Relu', x.values[layout])})

    def concatenate(self, maps: Sequence[_Map]) -> _Map:
        """Along the channels."""
        return _Map(maps[0].size, {'NCHW': self('Concat', *(self.laid_out(x, 'NCHW') for x in maps), axis=1)})

    def max_pool(self, x: _Map) -> _Map:
        y = self('MaxPool', self.laid_out(x, 'NCHW'), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        return _Map(_shrunk(x.size, 2), {'NCHW': y})

    def conv(self, x: _Map, params: Mapping[str, Any], *, stride: int = 1, relu: bool = True) -> _Map:
        """Convolution, padded to the input's size over `stride`; params: 'kernel' [h, w, in, out], 'bias' or none."""
        kernel = np.asarray(params['kernel'])
        bias = [self.constant(params['bias'])] if 'bias' in params else []
        size = _shrunk(x.size, stride)
        if self._goes_by_winograd and kernel.shape[0] == 3 and stride == 1 and kernel.shape[3] >= _WINOGRAD_CHANNELS:
            return _Map(size, {'NHWC': self._winograd(x, kernel, bias, relu)})
        if kernel.shape[0] == 1 and stride == 1 and 'NHWC' in x.values:
            y = self('MatMul', x.values['NHWC'], self.constant(kernel[0, 0]))
            return _Map(size, {'NHWC': self._finished(y, bias, relu)})
        y = self('Conv', self.laid_out(x, 'NCHW'), self.constant(kernel.transpose(3, 2, 0, 1)), *bias,
                 strides=[stride] * 2, pads=[len(kernel) // 2] * 4, kernel_shape=kernel.shape[:2])  # fmt: skip
        return _Map(size, {'NCHW': self._finished(y, [], relu)})

    def _finished(self, x: str, bias: Sequence[str], relu: bool) -> str:
        """With the bias, if there is one, along the last axis."""
        for constant in bias:
            x = self('Add', x, constant)
        return self('Relu', x) if relu else x

    def _winograd(self, x: _Map, kernel: np.ndarray, bias: Sequence[str], relu: bool) -> str:
        """3x3 convolution of stride 1 by tiles of 4x4 pixels, which see 6x6: 36 products over channels for each.

        Strips of tiles go one after the other through all steps, so that what lies between these stays in the caches.
        """
        height, width = x.size
        inputs, outputs = kernel.shape[2:]
        seen = _pixels_seen(x.size)
        rows, columns = seen.shape[:2]
        few = 4 * rows * columns < inputs
        weights = self._winograd_weights(kernel.swapaxes(2, 3) if few else kernel)
        from_pixels, to_pixels = (self.constant(np.kron(matrix, matrix)) for matrix in (FROM_PIXELS, TO_PIXELS))
        pixels = self.reshape(self.laid_out(x, 'NHWC'), -1, height * width, inputs)
        pixels = self('Pad', pixels, self.constant((0, 0, 0, 0, 1, 0), np.int64))  # zeros, for what lies outside

        strips = []
        strip_rows = max(1, _STRIP // (columns * max(inputs, outputs)))
        for first in range(0, rows, strip_rows):
            of_strip = seen[first : first + strip_rows]
            tiles = len(of_strip) * columns
            y = self.gather(pixels, of_strip.transpose(2, 3, 0, 1))
            y = self('MatMul', from_pixels, self.reshape(y, -1, NUMBERS**2, tiles * inputs))
            y = self.reshape(y, -1, NUMBERS**2, tiles, inputs)
            if few:  # most time goes into reading the weights, which a product's first matrix is spared being copied
                y = self('MatMul', weights, self('Transpose', y, perm=_SWAPPED))
                y = self('Transpose', y, perm=_SWAPPED)
            else:
                y = self('MatMul', y, weights)
            y = self('MatMul', to_pixels, self.reshape(y, -1, NUMBERS**2, tiles * outputs))
            places = np.arange(TILE**2 * tiles).reshape(TILE, TILE, -1, columns).transpose(2, 0, 3, 1)
            places = places.reshape(-1, TILE * columns)[: height - TILE * first, :width]
            y = self.gather(self.reshape(y, -1, TILE**2 * tiles, outputs), places)
            strips.append(self._finished(y, bias, relu))
        return self.reshape(self('Concat', *strips, axis=1), -1, height, width, outputs)

    def _winograd_weights(self, kernel: np.ndarray) -> str:
        """[36, ...]: four times the kernel's size, so the file holds the kernel, and runtimes compute this, once."""
        weights = self.constant(kernel.reshape(9, -1))
        weights = self('MatMul', self.constant(np.kron(FROM_TAPS, FROM_TAPS)), weights)
        return self.reshape(weights, NUMBERS**2, *kernel.shape[2:])

    def gather(self, pixels: str, index: np.ndarray) -> str:
        """Those of [B, pixels, C] that the index names, in its order."""
        return self('Gather', pixels, self.constant(index.ravel(), np.int32), axis=1)

    def along_axes(self, x: _Map, matrix, size: tuple[int, int]) -> _Map:
        """Rows and columns through `matrix(old, new)`, [new, old], to a map of `size`."""
        rows, columns = (matrix(old, new) for old, new in zip(x.size, size, strict=True))
        y = self('MatMul', self.constant(rows), self.laid_out(x, 'NCHW'))
        return _Map(size, {'NCHW': self('MatMul', y, self.constant(columns.T))})

    def resize(self, x: _Map, size: tuple[int, int]) -> _Map:
        """Bilinear, half-pixel."""
        if x.size == size:
            return x
        layout = _layout_of(x)
        # Rounded up, for the new size is the product rounded down.
        factors = [np.nextafter(np.float32(new / old), np.float32(np.inf)) if new % old else new / old
                   for old, new in zip(x.size, size, strict=True)]  # fmt: skip
        scales = self.constant([1, *factors, 1] if layout == 'NHWC' else [1, 1, *factors])
        mode = {'mode': 'linear', 'coordinate_transformation_mode': 'half_pixel'}
        return _Map(size, {layout: self('Resize', x.values[layout], '', scales, **mode)})

    def labels(self, logits: _Map, size: tuple[int, int]) -> str:
        """The best class of each pixel of the logits enlarged to `size`, uint8."""
        height, width = logits.size
        factor = size[0] // height
        if not self._goes_by_winograd or (height * factor, width * factor) != size:
            return self._best_class(self.resize(logits, size))
        # By strips of rows, enlarged with a row of their neighbours on both sides; enlarged strips stay in the caches.
        coarse = self.laid_out(logits, 'NHWC')
        strips = []
        strip_rows = max(1, _STRIP_PIXELS // width)
        for first in range(0, height, strip_rows):
            last = min(first + strip_rows, height)
            start, stop = max(first - 1, 0), min(last + 1, height)
            rows = _Map((stop - start, width), {'NHWC': self._rows(coarse, start, stop)})
            labels = self._best_class(self.resize(rows, ((stop - start) * factor, size[1])))
            strips.append(self._rows(labels, (first - start) * factor, (last - start) * factor))
        return self('Concat', *strips, axis=1)

    def _best_class(self, logits: _Map) -> str:
        layout = _layout_of(logits)
        best = self('ArgMax', logits.values[layout], axis=layout.index('C'), keepdims=0)
        return self('Cast', best, to=TensorProto.UINT8)

    def _rows(self, x: str, start: int, stop: int) -> str:
        """Rows of an NHWC map or of labels."""
        return self('Slice', x, *(self.constant([number], np.int64) for number in (start, stop, 1)))

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


def _pixels_seen(size: tuple[int, int]) -> np.ndarray:
    """[rows, columns, 6, 6]: which pixels each tile sees, counted row by row; height * width: one outside."""
    height, width = size
    pixels = np.pad(
        np.arange(height * width).reshape(size),
        ((1, 1 + -height % TILE), (1, 1 + -width % TILE)),
        constant_values=height * width,
    )
    return np.lib.stride_tricks.sliding_window_view(pixels, (NUMBERS, NUMBERS))[::TILE, ::TILE]


def _layout_of(x: _Map) -> str:
    """The layout in which it was computed."""
    return next(iter(x.values))


def _shrunk(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return tuple(-(-length // stride) for length in size)
