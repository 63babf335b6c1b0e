"""Forms that ONNX Runtime computes faster on CPUs: 3x3 convolutions as matrix products, labels by strips.

Winograd's algorithm (`ops/cpu/winograd.py`) takes a quarter of the multiplications of a direct convolution; the runtime
does not use it by itself. Its maps are NHWC. Strips of rows go one after the other through all steps, so that what lies
between the steps stays in the caches.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from atonet_jax.export.onnx.program import Varied
from atonet_jax.ops.cpu.winograd import FROM_PIXELS, FROM_TAPS, INPUT_TILE, TILE, TO_PIXELS

_CHANNELS = 128  # fewer outputs, and moving the data costs what the products save
_STRIP = 2**15  # tiles times channels at once: 5 MB for the 36 numbers of each
_STRIP_PIXELS = 2**11  # of coarse logits


def suits(lowering, x, kernel: np.ndarray, params: Mapping[str, Any]) -> bool:
    """Whether a convolution goes this way; `kernel` is [O, C, ...]."""
    numbers = params['dimension_numbers']
    return (
        lowering.winograd
        and kernel.shape[2:] == (3, 3)
        and kernel.shape[0] >= _CHANNELS
        and params['feature_group_count'] == 1
        and set((*params['window_strides'], *params['lhs_dilation'], *params['rhs_dilation'])) == {1}
        and all(tuple(pad) == (1, 1) for pad in params['padding'])
        and numbers.lhs_spec == numbers.out_spec == (0, 3, 1, 2)
        and not any(isinstance(length, Varied) for length in x.shape[1:])
    )


def convolution(lowering, step, x, kernel: np.ndarray, bias: np.ndarray | None, relu: bool):
    """3x3 convolution of stride 1 by tiles of 4x4 pixels, which see 6x6: 36 products over channels for each."""
    graph = lowering.graph
    _, height, width, inputs = x.shape
    outputs = kernel.shape[0]
    seen = _pixels_seen((height, width))
    rows, columns = seen.shape[:2]
    few_tiles = 4 * rows * columns < inputs
    weights = _weights(graph, kernel.transpose((2, 3, 0, 1) if few_tiles else (2, 3, 1, 0)))
    from_pixels, to_pixels = (
        graph.constant(np.kron(matrix, matrix), np.float32) for matrix in (FROM_PIXELS, TO_PIXELS)
    )

    def reshape(x, *shape):
        return graph('Reshape', x, graph.integers(*shape))

    def gather(pixels, index):
        """Those of [B, pixels, C] that the index names, in its order."""
        return graph('Gather', pixels, graph.constant(index.ravel(), np.int32), axis=1)

    pixels = reshape(lowering.in_order(x, (0, 1, 2, 3)), -1, height * width, inputs)
    pixels = graph('Pad', pixels, graph.integers(0, 0, 0, 0, 1, 0))  # zeros, for what lies outside
    strips = []
    strip_rows = max(1, _STRIP // (columns * max(inputs, outputs)))
    for first in range(0, rows, strip_rows):
        of_strip = seen[first : first + strip_rows]
        tiles = len(of_strip) * columns
        y = gather(pixels, of_strip.transpose(2, 3, 0, 1))
        y = graph('MatMul', from_pixels, reshape(y, -1, INPUT_TILE**2, tiles * inputs))
        y = reshape(y, -1, INPUT_TILE**2, tiles, inputs)
        if few_tiles:  # most time goes into reading the weights, which a product's first matrix is spared being copied
            y = graph('MatMul', weights, graph.transpose(y, (0, 1, 3, 2)))
            y = graph.transpose(y, (0, 1, 3, 2))
        else:
            y = graph('MatMul', y, weights)
        y = graph('MatMul', to_pixels, reshape(y, -1, INPUT_TILE**2, tiles * outputs))
        places = np.arange(TILE**2 * tiles).reshape(TILE, TILE, -1, columns).transpose(2, 0, 3, 1)
        places = places.reshape(-1, TILE * columns)[: height - TILE * first, :width]
        y = gather(reshape(y, -1, TILE**2 * tiles, outputs), places)
        if bias is not None:
            y = graph('Add', y, graph.constant(bias))
        strips.append(graph('Relu', y) if relu else y)
    y = graph('Concat', *strips, axis=1) if len(strips) > 1 else strips[0]
    return lowering.new(reshape(y, -1, height, width, outputs), step.outputs[0], (0, 1, 2, 3))


def _weights(graph, kernel: np.ndarray) -> str:
    """[36, ...]: four times the kernel's size, so the file holds the kernel, and runtimes compute this, once."""
    weights = graph.constant(kernel.reshape(9, -1))
    weights = graph('MatMul', graph.constant(np.kron(FROM_TAPS, FROM_TAPS), np.float32), weights)
    return graph('Reshape', weights, graph.integers(INPUT_TILE**2, *kernel.shape[2:]))


def _pixels_seen(size: tuple[int, int]) -> np.ndarray:
    """[rows, columns, 6, 6]: which pixels each tile sees, counted row by row; height * width: one outside."""
    height, width = size
    pixels = np.pad(
        np.arange(height * width).reshape(size),
        ((1, 1 + -height % TILE), (1, 1 + -width % TILE)),
        constant_values=height * width,
    )
    return np.lib.stride_tricks.sliding_window_view(pixels, (INPUT_TILE, INPUT_TILE))[::TILE, ::TILE]


def labels_suit(logits, size: tuple[int, int]) -> bool:
    """Whether `labels_by_strips` takes them: an enlargement by one whole factor."""
    _, height, width, _ = logits.shape
    if any(isinstance(length, Varied) for length in (height, width, *size)):
        return False
    return size[0] % height == 0 and size == (height * (size[0] // height), width * (size[0] // height))


def labels_by_strips(lowering, logits, size: tuple[int, int], dtype) -> str:
    """The best class of each pixel of the logits enlarged to `size`, [B, H, W].

    By strips of rows, enlarged with a row of their neighbours on both sides.
    """
    graph = lowering.graph
    _, height, width, _ = logits.shape
    factor = size[0] // height
    coarse = lowering.in_order(logits, (0, 1, 2, 3))
    scales = graph.constant(np.array([1, factor, factor, 1], np.float32))
    strips = []
    strip_rows = max(1, _STRIP_PIXELS // width)
    for first in range(0, height, strip_rows):
        last = min(first + strip_rows, height)
        start, stop = max(first - 1, 0), min(last + 1, height)
        rows = graph.slice(coarse, 1, start, stop)
        if factor > 1:
            rows = graph('Resize', rows, '', scales, mode='linear', coordinate_transformation_mode='half_pixel')
        labels = lowering.cast(graph('ArgMax', rows, axis=3, keepdims=0), dtype)
        strips.append(graph.slice(labels, 1, (first - start) * factor, (last - start) * factor))
    return graph('Concat', *strips, axis=1)
