"""Rules for sums, means, extremes and their places."""

import dataclasses

import numpy as np

from atonet_jax.export.onnx.elementwise import wide_type
from atonet_jax.export.onnx.lowering import Value, rule
from atonet_jax.export.onnx.program import Varied

_PACKED = 2**23  # float32 holds such numbers exactly
_MOST_CODES = 1024  # classes, so that 8192 levels of logits remain on each side of 0
_REDUCTIONS = {'reduce_sum': 'ReduceSum', 'reduce_max': 'ReduceMax', 'reduce_min': 'ReduceMin',
               'reduce_prod': 'ReduceProd', 'reduce_mean': 'ReduceMean'}  # fmt: skip


@rule(*_REDUCTIONS, 'reduce_or', 'reduce_and')
def _reduce(lowering, step, x):
    x = lowering.whole(x)
    axes = step.params['axes']
    op = _REDUCTIONS.get(step.op) or {'reduce_or': 'ReduceMax', 'reduce_and': 'ReduceMin'}[step.op]
    places = lowering.graph.integers(*sorted(x.order.index(axis) for axis in axes))
    wide = wide_type(x.dtype)
    name = x.name if wide is None else lowering.cast(x.name, wide)
    if axes:
        name = lowering.graph(op, name, places, keepdims=0)
    if wide is not None:
        name = lowering.cast(name, step.outputs[0].dtype)
    return lowering.new(name, step.outputs[0], _order_without(x.order, axes))


def _order_without(order, axes) -> list[int]:
    kept = [axis for axis in range(len(order)) if axis not in axes]
    return [kept.index(axis) for axis in order if axis in kept]


@rule('argmax', 'argmin')
def _argmax(lowering, step, x):
    (axis,) = step.params['axes']
    output, x = step.outputs[0], lowering.whole(x)
    is_of_logits = step.op == 'argmax' and x.dtype == np.float32 and len(x.shape) == 4 and axis == 3
    scaled = scaled_logits(lowering, x) if is_of_logits else None
    if scaled is not None:
        name = lowering.cast(best_class(lowering, scaled.name, x, axis, packed=True), output.dtype)
        return lowering.new(name, output, _order_without(x.order, (axis,)))
    name = x.name if x.dtype in (np.float32, np.float64, np.int32) else lowering.cast(x.name, np.int32)
    op = {'argmax': 'ArgMax', 'argmin': 'ArgMin'}[step.op]
    name = lowering.graph(op, name, axis=x.order.index(axis), keepdims=0)
    return lowering.new(lowering.cast(name, output.dtype), output, _order_without(x.order, (axis,)))


def scaled_logits(lowering, x: Value) -> Value | None:
    """Logits [B, H, W, C] in units that `best_class` rounds to; None where they are not packed."""
    classes = x.shape[3]
    if not lowering.packed_labels or isinstance(classes, Varied) or classes > _MOST_CODES:
        return None
    graph = lowering.graph
    places = graph.integers(*sorted(x.order.index(axis) for axis in (1, 2, 3)))
    largest = graph('ReduceMax', graph('Abs', x.name), places, keepdims=1)
    largest = graph('Max', largest, graph.constant(np.float32(1e-30)))
    units = graph('Div', graph.constant(np.float32(_PACKED // _codes(classes) - 1)), largest)
    return dataclasses.replace(x, name=graph('Mul', x.name, units))


def best_class(lowering, name: str, x: Value, axis: int, packed: bool) -> str:
    """The first largest of logits along an axis of `x`, whose order and classes they have.

    packed: logits, of `scaled_logits`, become whole numbers with the class in their lowest bits, so that one maximum
    finds both. The numbers are made last: OpenVINO may compute all before in bfloat16.
    """
    graph, place = lowering.graph, x.order.index(axis)
    if not packed:
        return graph('ArgMax', name, axis=place, keepdims=0)
    classes = x.shape[axis]
    codes = np.arange(classes, dtype=np.float32)[::-1].reshape([-1 if i == place else 1 for i in range(len(x.order))])
    name = graph('Mul', graph('Round', name), graph.constant(np.float32(_codes(classes))))
    name = graph('ReduceMax', graph('Add', name, graph.constant(codes)), graph.integers(place), keepdims=0)
    name = graph('BitwiseAnd', lowering.cast(name, np.int32), graph.constant(np.int32(_codes(classes) - 1)))
    return graph('Sub', graph.constant(np.int32(classes - 1)), name)


def _codes(classes: int) -> int:
    return 1 << (classes - 1).bit_length()


@rule('cumsum')
def _cumsum(lowering, step, x):
    x = lowering.whole(x)
    axis = lowering.graph.constant(np.int64(x.order.index(step.params['axis'])))
    wide = wide_type(x.dtype)
    name = x.name if wide is None else lowering.cast(x.name, wide)
    name = lowering.graph('CumSum', name, axis, reverse=int(step.params['reverse']))
    return dataclasses.replace(x, name=name if wide is None else lowering.cast(name, x.dtype))
