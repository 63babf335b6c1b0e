"""Rules for matrix products."""

import numpy as np

from atonet_jax.export.onnx.lowering import Value, rule
from atonet_jax.export.onnx.program import Constant, VariesError
from atonet_jax.export.onnx.resizing import lower_resizing_matrix


@rule('dot_general')
def _dot_general(lowering, step, x, y):
    (x_axes, y_axes), (x_batch, y_batch) = step.params['dimension_numbers']
    if not x_batch and len(x_axes) == 1:
        for value, matrix, value_axes, matrix_axes in ((x, y, x_axes, y_axes), (y, x, y_axes, x_axes)):
            if isinstance(matrix, Constant) and len(matrix.shape) == 2 and isinstance(value, Value):
                matrix = matrix if matrix_axes[0] == 1 else _transposed(matrix)
                return _map_axis(lowering, step, value, value_axes[0], matrix, value is x)
    x, y = lowering.whole(x), lowering.whole(y)
    if x.dtype != np.float32 or y.dtype != np.float32:
        raise NotImplementedError('a product of whole numbers')
    letters = iter('abcdefghijklmnopqrstuvwxyz')
    of_x = [next(letters) for _ in x.shape]
    of_y = [None] * len(y.shape)
    for axis, other in zip((*x_batch, *x_axes), (*y_batch, *y_axes), strict=True):
        of_y[other] = of_x[axis]
    of_y = [letter or next(letters) for letter in of_y]
    output = [of_x[axis] for axis in x_batch]
    output += [letter for axis, letter in enumerate(of_x) if axis not in (*x_batch, *x_axes)]
    output += [letter for axis, letter in enumerate(of_y) if axis not in (*y_batch, *y_axes)]
    subscripts = [''.join(letters[axis] for axis in value.order) for letters, value in ((of_x, x), (of_y, y))]
    name = lowering.graph('Einsum', x.name, y.name, equation=f'{",".join(subscripts)}->{"".join(output)}')
    return lowering.new(name, step.outputs[0], range(len(output)))


def _transposed(matrix: Constant) -> Constant:
    return Constant(tuple(array.T for array in matrix.arrays), matrix.shape[::-1])


def _map_axis(lowering, step, x: Value, axis: int, matrix: Constant, value_first: bool) -> Value:
    """One axis of `x` through a matrix [new, old], where it lies."""
    output = step.outputs[0]
    x = lowering.whole(x)
    kept = [a for a in range(len(x.shape)) if a != axis]
    first = 0 if value_first else 1
    places = {a: i + first for i, a in enumerate(kept)} | {axis: len(kept) if value_first else 0}
    resized = lower_resizing_matrix(lowering, x, axis, matrix)
    order = x.order
    if resized is not None:
        name = resized
    else:
        place = order.index(axis)
        if x.dtype != np.float32:
            raise NotImplementedError('a product of whole numbers')
        if place < len(order) - 2 and not (place == 1 and len(order) == 4):
            order = tuple(a for a in order if a != axis) + (axis,)
            place = len(order) - 1
        name = lowering.in_order(x, order)
        if len(matrix.whole) > 1:
            raise VariesError('a matrix')
        (array,) = matrix.whole
        if place == len(order) - 1:
            name = lowering.graph('MatMul', name, lowering.graph.constant(array.T))
        elif place == len(order) - 2:
            name = lowering.graph('MatMul', lowering.graph.constant(array), name)
        else:
            name = lowering.graph('Conv', name, lowering.graph.constant(array[:, :, None, None]), kernel_shape=[1, 1])
    return lowering.new(name, output, [places[a] for a in order])
