"""Rules for sums, means, extremes and their places."""

import dataclasses

import numpy as np

from atonet_jax.export.onnx.elementwise import wide_type
from atonet_jax.export.onnx.lowering import rule

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
    x = lowering.whole(x)
    name = x.name if x.dtype in (np.float32, np.float64, np.int32) else lowering.cast(x.name, np.int32)
    op = {'argmax': 'ArgMax', 'argmin': 'ArgMin'}[step.op]
    name = lowering.graph(op, name, axis=x.order.index(axis), keepdims=0)
    output = step.outputs[0]
    return lowering.new(lowering.cast(name, output.dtype), output, _order_without(x.order, (axis,)))


@rule('cumsum')
def _cumsum(lowering, step, x):
    x = lowering.whole(x)
    axis = lowering.graph.constant(np.int64(x.order.index(step.params['axis'])))
    wide = wide_type(x.dtype)
    name = x.name if wide is None else lowering.cast(x.name, wide)
    name = lowering.graph('CumSum', name, axis, reverse=int(step.params['reverse']))
    return dataclasses.replace(x, name=name if wide is None else lowering.cast(name, x.dtype))
