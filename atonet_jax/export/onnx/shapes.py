"""Rules for shapes: axes are split, joined, inserted and moved, mostly without a node."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from atonet_jax.export.onnx.graph import TO_THE_END
from atonet_jax.export.onnx.lowering import Value, rule, stored_shape
from atonet_jax.export.onnx.program import Ref, Size, Varied, combine


@rule('transpose')
def _transpose(lowering, step, x):
    permutation = step.params['permutation']
    x = lowering.in_graph(x)
    order = [permutation.index(axis) for axis in x.order]
    return lowering.new(x.name, step.outputs[0], order, [x.stored[axis] for axis in permutation])


@rule('broadcast_in_dim')
def _broadcast(lowering, step, x, *sizes):
    """Only inserts axes of length 1: the rest is left to those who need it."""
    output, axes = step.outputs[0], step.params['broadcast_dimensions']
    x = lowering.in_graph(x)
    stored = [1] * len(output.shape)
    for length, axis in zip(x.stored, axes, strict=True):
        stored[axis] = length
    return _with_axes_of_length_1(lowering, x, dict(enumerate(axes)), output, stored)


def _with_axes_of_length_1(lowering, x, places: Mapping[int, int], output: Ref, stored: Sequence[Size]) -> Value:
    """`x` whose axis i becomes `places[i]`, axes of length 1 added or gone: as NCHW where nothing has to move."""
    long = [places[axis] for axis in x.order if x.stored[axis] != 1]
    rank = len(stored)
    orders = [(0, rank - 1, *range(1, rank - 1))] if rank == 4 else []
    if len(x.order) == rank:
        orders.insert(0, tuple(places.get(axis, -1) for axis in x.order))
    orders.append(tuple(range(rank)))
    order = next((order for order in orders if sorted(order) == list(range(rank))
                  and [axis for axis in order if stored[axis] != 1] == long), None)  # fmt: skip
    if order is None:
        order = list(long)
        for axis in range(rank):
            if axis not in order:
                order.insert(order.index(axis - 1) + 1 if axis else 0, axis)
    name = lowering.graph.reshape(x.name, x.physical, [stored[axis] for axis in order])
    return lowering.new(name, output, order, stored)


@rule('squeeze', 'expand_dims')
def _squeeze(lowering, step, x):
    return _reshape(lowering, step, x)


@rule('reshape')
def _reshape(lowering, step, x):
    """Splits and joins axes where they lie; transposes only what would be joined and does not lie side by side."""
    output = step.outputs[0]
    x = lowering.in_graph(x)
    old_axes = [axis for axis, length in enumerate(x.shape) if length != 1]
    new_axes = [axis for axis, length in enumerate(output.shape) if length != 1]
    if [x.shape[axis] for axis in old_axes] == [output.shape[axis] for axis in new_axes]:
        places = dict(zip(old_axes, new_axes, strict=True))
        stored = [1] * len(output.shape)
        for old, new in places.items():
            stored[new] = x.stored[old]
        return _with_axes_of_length_1(lowering, x, places, output, stored)

    x = lowering.whole(x)
    groups = _groups(x.shape, output.shape, old_axes, new_axes)
    long = [axis for axis in x.order if x.shape[axis] != 1]
    if not all(_lies_together(old, long) for old, _ in groups):
        long = old_axes
        order = tuple(range(len(x.shape)))
        x = Value(lowering.in_order(x, order), x.shape, x.shape, order, x.dtype)
    groups = sorted(groups, key=lambda group: long.index(group[0][0]))
    order = [axis for _, new in groups for axis in new]
    for axis in range(len(output.shape)):
        if axis not in order:
            order.insert(order.index(axis - 1) + 1 if axis else 0, axis)
    name = lowering.graph.reshape(x.name, x.physical, [output.shape[axis] for axis in order])
    return lowering.new(name, output, order)


def _groups(old, new, old_axes, new_axes) -> list[tuple[list[int], list[int]]]:
    """Axes before and after a reshape that hold the same elements, as small as can be."""
    groups, before, after = [], list(old_axes), list(new_axes)

    def product(shape, axes):
        return combine(lambda *lengths: int(np.prod(lengths)), *(shape[axis] for axis in axes))

    while before:
        olds, news = [before.pop(0)], [after.pop(0)]
        while product(old, olds) != product(new, news):
            sizes = product(old, olds), product(new, news)
            first, second = (size[0] if isinstance(size, Varied) else size for size in sizes)
            smaller = first < second
            if not (before if smaller else after):
                raise NotImplementedError('a reshape that joins and splits axes of unknown length')
            (olds if smaller else news).append((before if smaller else after).pop(0))
        groups.append((olds, news))
    return groups


def _lies_together(axes: Sequence[int], order: Sequence[int]) -> bool:
    start = order.index(axes[0])
    return list(order[start : start + len(axes)]) == list(axes)


@rule('concatenate')
def _concatenate(lowering, step, *inputs):
    axis, output = step.params['dimension'], step.outputs[0]
    computed = [x for x in inputs if isinstance(x, Value)]
    order = computed[0].order if computed else tuple(range(len(output.shape)))
    shared = [all(stored_shape(x)[i] == 1 for x in inputs) for i in range(len(output.shape))]  # stays broadcast
    parts = []
    for x in inputs:
        x = lowering.in_graph(x)
        stored = tuple(1 if shared[i] and i != axis else length for i, length in enumerate(x.shape))
        if stored != x.stored:
            sizes = lowering.graph.size_vector([stored[i] for i in x.order])
            x = dataclasses.replace(x, name=lowering.graph('Expand', x.name, sizes), stored=stored)
        parts.append(lowering.in_order(x, order))
    name = lowering.graph('Concat', *parts, axis=order.index(axis)) if len(parts) > 1 else parts[0]
    stored = [1 if shared[i] and i != axis else length for i, length in enumerate(output.shape)]
    return lowering.new(name, output, order, stored)


@rule('tile')
def _tile(lowering, step, x):
    x, repeats = lowering.whole(x), step.params['reps']
    if len(repeats) != len(x.shape):
        raise NotImplementedError('more repeats than axes')
    name = lowering.graph('Tile', x.name, lowering.graph.size_vector([repeats[axis] for axis in x.order]))
    return lowering.new(name, step.outputs[0], x.order)


@rule('rev')
def _reverse(lowering, step, x):
    x = lowering.in_graph(x)
    name = x.name
    for axis in step.params['dimensions']:
        if x.stored[axis] != 1:
            place = x.order.index(axis)
            name = lowering.graph('Slice', name, *map(lowering.graph.integers, (-1, -TO_THE_END, place, -1)))
    return dataclasses.replace(x, name=name)


@rule('split')
def _split(lowering, step, x):
    x = lowering.whole(x)
    start, results = 0, []
    for output, size in zip(step.outputs, step.params['sizes'], strict=True):
        axis = step.params['axis']
        stop = combine(lambda a, b: a + b, start, size)
        name = lowering.graph.slice(x.name, x.order.index(axis), start, stop)
        results.append(lowering.new(name, output, x.order))
        start = stop
    return tuple(results)
