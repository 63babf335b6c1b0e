"""Rules for pooling."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from atonet_jax.export.onnx.convolution import is_same
from atonet_jax.export.onnx.lowering import Value, rule
from atonet_jax.export.onnx.program import Constant, Size, Varied, VariesError, combine


@rule('reduce_window_max')
def _max_pool(lowering, step, x):
    return _pool(lowering, step, x, 'MaxPool')


@rule('reduce_window_min')
def _min_pool(lowering, step, x):
    negative = dataclasses.replace(x, name=lowering.graph('Neg', x.name))
    y = _pool(lowering, step, negative, 'MaxPool')
    return dataclasses.replace(y, name=lowering.graph('Neg', y.name))


@rule('avg_pool')
def _avg_pool(lowering, step, x):
    """The mean of each window, zeros of the padding counted."""
    return _pool(lowering, step, x, 'AveragePool', count_include_pad=1)


@rule('reduce_window_sum')
def _sum_pool(lowering, step, x):
    mean = _avg_pool(lowering, step, x)
    count = lowering.graph.constant(np.array(np.prod(step.params['window_dimensions']), np.float32))
    name = lowering.graph('Mul', mean.name, count)
    if step.outputs[0].dtype != np.float32:
        name = lowering.cast(lowering.graph('Round', name), step.outputs[0].dtype)
    return dataclasses.replace(mean, name=name)


@rule('reduce_window')
def _reduce_window(lowering, step, x, start):
    """With a reducer of one primitive."""
    reducers = [equation.primitive.name for equation in step.params['jaxpr'].eqns]
    if len(reducers) != 1 or reducers[0] not in ('max', 'add') or not isinstance(start, Constant):
        raise NotImplementedError(f'a reducer of {", ".join(reducers)}')
    if reducers[0] == 'add' and start.is_all(0):
        return _sum_pool(lowering, step, x)
    if reducers[0] == 'max' and start.is_all(-np.inf):
        return _pool(lowering, step, x, 'MaxPool')
    raise NotImplementedError(f'a window that starts from {start.scalar}')


def _pool(lowering, step, x, op: str, **attributes) -> Value:
    params = step.params
    x = lowering.whole(x)
    window, strides, pads = params['window_dimensions'], params['window_strides'], params['padding']
    dilations = params['window_dilation']
    if set(params['base_dilation']) != {1}:
        raise NotImplementedError('a dilated input')
    rank = len(window)
    spatial = [
        axis for axis in range(rank)
        if window[axis] != 1 or strides[axis] != 1 or tuple(pads[axis]) != (0, 0)
    ]  # fmt: skip
    rest = [axis for axis in x.order if axis not in spatial]
    while len(rest) > 2:  # a window of one pixel
        spatial.append(rest.pop())
    spatial.sort()
    added = 2 - len(rest)
    order = (*rest, *spatial)
    name = lowering.in_order(x, order)
    shape = [x.shape[axis] for axis in order]
    if added:
        name = lowering.graph.reshape(name, shape, [1] * added + shape)
    wide = x.dtype if x.dtype in (np.float32, np.float64) else np.dtype(np.float64)
    if wide != x.dtype:
        name = lowering.cast(name, wide if op == 'MaxPool' else np.float32)

    lengths = [window[axis] for axis in spatial]
    attributes |= {'kernel_shape': lengths, 'strides': [strides[axis] for axis in spatial]}
    if any(dilations[axis] != 1 for axis in spatial):
        if op != 'MaxPool':
            raise NotImplementedError('averages of a dilated window')
        attributes['dilations'] = [dilations[axis] for axis in spatial]
    of_window = [pads[axis] for axis in spatial]
    sizes = [x.shape[axis] for axis in spatial], [step.outputs[0].shape[axis] for axis in spatial]
    if any(isinstance(n, Varied) for pad in of_window for n in pad):
        if is_same(*sizes, attributes['strides'], lengths, [dilations[axis] for axis in spatial], of_window):
            attributes['auto_pad'] = 'SAME_UPPER'
        elif _is_rounded_up(*sizes, attributes['strides'], lengths, of_window) and op == 'MaxPool':
            attributes['ceil_mode'] = 1
            smallest = [tuple(min(n) if isinstance(n, Varied) else n for n in pad) for pad in of_window]
            attributes['pads'] = [pad[0] for pad in smallest] + [pad[1] for pad in smallest]
        else:
            raise VariesError('padding')
    elif any(max(pad) >= length for pad, length in zip(of_window, lengths, strict=True)):
        fill = lowering.graph.constant(np.array(-np.inf if op == 'MaxPool' else 0, wide))
        amounts = [0, 0, *(pad[0] for pad in of_window), 0, 0, *(pad[1] for pad in of_window)]
        name = lowering.graph('Pad', name, lowering.graph.integers(*amounts), fill)
    else:
        attributes['pads'] = [pad[0] for pad in of_window] + [pad[1] for pad in of_window]
    name = lowering.graph(op, name, **attributes)
    output = step.outputs[0]
    if wide != x.dtype and op == 'MaxPool':
        name = lowering.cast(name, output.dtype)
    if added:
        shape = [output.shape[axis] for axis in order]
        name = lowering.graph.reshape(name, [1] * added + shape, shape)
    return lowering.new(name, output, order)


def _is_rounded_up(sizes: Sequence[Size], results, strides, lengths, pads) -> bool:
    """Whether results are ceil((size + padding - window) / stride) + 1, of the smallest padding in the traces."""
    for size, result, stride, length, (before, after) in zip(sizes, results, strides, lengths, pads, strict=True):
        least = min(after) if isinstance(after, Varied) else after
        if isinstance(before, Varied):
            return False
        wanted = combine(lambda n, p=before + least - length, s=stride: -(-(n + p) // s) + 1, size)
        if wanted != result:
            return False
    return True
