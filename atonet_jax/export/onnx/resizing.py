"""Rules for resizing: one `Resize` node for what the program computes by matrices or by phases."""

import numpy as np

from atonet_jax.export.onnx import winograd
from atonet_jax.export.onnx.lowering import Value, rule
from atonet_jax.export.onnx.program import Constant, Size, Varied, combine
from atonet_jax.export.onnx.reductions import best_class, scaled_logits
from atonet_jax.ops import adaptive_pool_matrix, align_corners_matrix, half_pixel_matrix

_LONGEST_PRODUCT = 64  # pixels along an axis; longer ones, `Resize` computes faster than a product with a matrix
_MODES = {
    'half_pixel': {'mode': 'linear', 'coordinate_transformation_mode': 'half_pixel'},
    'align_corners': {'mode': 'linear', 'coordinate_transformation_mode': 'align_corners'},
    'nearest': {'mode': 'nearest', 'coordinate_transformation_mode': 'asymmetric', 'nearest_mode': 'floor'},
}


def resized(lowering, x: Value, kind: str, sizes: dict[int, Size]) -> str:
    """`x` with axes of new lengths; returns the name.

    Args:
        lowering: the graph.
        x: whole.
        kind: 'half_pixel' or 'align_corners', both linear, or 'nearest': pixel i takes pixel floor(i * old / new).
        sizes: axis -> its new length.
    """
    changed = {axis: size for axis, size in sizes.items() if size != x.shape[axis]}
    if not changed:
        return x.name
    before = lowering.resized.get(x.name)
    if before is not None and before[1] == kind and kind != 'nearest' and not set(before[2]) & set(changed):
        lowering.graph.forget(x.name)
        x, changed = before[0], before[2] | changed  # rows and columns at once
    factors = [_factor(x.shape[axis], changed[axis]) if axis in changed else 1 for axis in x.order]
    if None in factors:
        target = lowering.graph.size_vector([changed.get(axis, x.shape[axis]) for axis in x.order])
        name = lowering.graph('Resize', x.name, '', '', target, **_MODES[kind])
    else:
        scales = lowering.graph.constant(np.array(factors, np.float32))
        name = lowering.graph('Resize', x.name, '', scales, **_MODES[kind])
    lowering.resized[name] = x, kind, changed
    return name


def _factor(old: Size, new: Size) -> np.float32 | None:
    """The factor of `Resize`, which rounds its product with `old` down; None where there is none."""
    if isinstance(old, Varied) or isinstance(new, Varied):
        same = combine(lambda a, b: b // a if b % a == 0 else 0, old, new)
        return None if isinstance(same, Varied) or same == 0 else np.float32(same)
    factor = np.float32(new / old)
    if new % old:
        factor = np.nextafter(factor, np.float32(np.inf))
    products = factor * np.float32(old), float(factor) * old  # runtimes take either
    return factor if all(int(product) == new for product in products) else None


@rule('named_resize_bilinear')
def _resize_bilinear(lowering, step, x):
    return _resize(lowering, step, x, 'half_pixel')


@rule('named_resize_nearest')
def _resize_nearest(lowering, step, x):
    x, shape = lowering.whole(x), step.outputs[0].shape
    if any(isinstance(n, Varied) for n in (*x.shape[1:3], *shape[1:3])):
        return _resize(lowering, step, x, 'nearest')
    if all(new % old == 0 for old, new in zip(x.shape[1:3], shape[1:3], strict=True)):
        return _resize(lowering, step, x, 'nearest')
    name = x.name  # `Resize` divides in float32, and may round to the pixel before
    for axis in (1, 2):
        index = np.arange(shape[axis]) * x.shape[axis] // shape[axis]
        name = lowering.graph('Gather', name, lowering.graph.constant(index, np.int64), axis=x.order.index(axis))
    return lowering.new(name, step.outputs[0], x.order)


def _resize(lowering, step, x, kind) -> Value:
    output, x = step.outputs[0], lowering.whole(x)
    return lowering.new(resized(lowering, x, kind, {1: output.shape[1], 2: output.shape[2]}), output, x.order)


@rule('resize_argmax')
def _resize_argmax(lowering, step, x):
    """The best class of each pixel of enlarged logits."""
    x, output, (height, width) = lowering.whole(x), step.outputs[0], step.params['size']
    if lowering.winograd and winograd.labels_suit(x, (height, width)):
        return lowering.new(winograd.labels_by_strips(lowering, x, (height, width), output.dtype), output, (0, 1, 2))
    scaled = scaled_logits(lowering, x)
    name = resized(lowering, scaled or x, 'half_pixel', {1: height, 2: width})
    name = best_class(lowering, name, x, 3, scaled is not None)
    return lowering.new(lowering.cast(name, output.dtype), output, [axis for axis in x.order if axis != 3])


def lower_resizing_matrix(lowering, x: Value, axis: int, matrix: Constant) -> str | None:
    """`x` with one axis through a matrix [new, old], where that is better done otherwise; None where not."""
    new, old = matrix.shape
    if new == 1 and all(np.allclose(array, 1 / array.size, rtol=1e-6, atol=0) for array in matrix.whole):
        return lowering.graph('ReduceMean', x.name, lowering.graph.integers(x.order.index(axis)), keepdims=1)
    if not any(isinstance(size, Varied) for size in (new, old)) and matrix.array is not None:
        if max(new, old) > _LONGEST_PRODUCT and len(x.shape) == 4 and _is(align_corners_matrix, matrix):
            return resized(lowering, x, 'align_corners', {axis: new})
        return None
    if _is(align_corners_matrix, matrix):
        return resized(lowering, x, 'align_corners', {axis: new})
    if _is(half_pixel_matrix, matrix):
        return resized(lowering, x, 'half_pixel', {axis: new})
    if _is(adaptive_pool_matrix, matrix):
        return _adaptive_pool(lowering, x, axis, old, new)
    return None


def _is(build, matrix: Constant) -> bool:
    """Whether the matrix is `build(old, new)`, in every trace."""
    return all(np.array_equal(array, build(array.shape[1], array.shape[0])) for array in matrix.whole)


def _adaptive_pool(lowering, x: Value, axis: int, old: Size, new: Size) -> str:
    """The matrix of torch's adaptive average pooling, made in the graph."""
    graph = lowering.graph
    one = graph.constant(np.int64(1))
    old, new = (graph.reshape(graph.size(size), [1], []) for size in (old, new))
    cells, pixels = (graph('Range', graph.constant(np.int64(0)), size, one) for size in (new, old))
    cells = graph('Unsqueeze', cells, graph.integers(1))
    starts = graph('Div', graph('Mul', cells, old), new)
    ends = graph('Mul', graph('Add', cells, one), old)
    ends = graph('Div', graph('Sub', graph('Add', ends, new), one), new)
    inside = graph('And', graph('LessOrEqual', starts, pixels), graph('Less', pixels, ends))
    counts = lowering.cast(graph('Sub', ends, starts), np.float32)
    matrix = graph('Div', lowering.cast(inside, np.float32), counts)  # [new, old]
    place, last = x.order.index(axis), len(x.order) - 1
    if place == last - 1:
        return graph('MatMul', matrix, x.name)
    swapped = [place if i == last else last if i == place else i for i in range(last + 1)]
    name = graph.transpose(x.name, swapped)
    name = graph('MatMul', name, graph.transpose(matrix, (1, 0)))
    return graph.transpose(name, swapped)
