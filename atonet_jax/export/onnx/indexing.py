"""Rules for slices, padding, gathering and scattering."""

import dataclasses

import numpy as np

from atonet_jax.export.onnx.graph import TO_THE_END
from atonet_jax.export.onnx.lowering import Value, rule
from atonet_jax.export.onnx.program import Constant, Size, Varied, VariesError, combine


@rule('slice')
def _slice(lowering, step, x):
    params = step.params
    starts, stops, steps = params['start_indices'], params['limit_indices'], params['strides']
    return _sliced(lowering, step, lowering.whole(x), starts, stops, steps or (1,) * len(starts))


def _sliced(lowering, step, x: Value, starts, stops, steps) -> Value:
    places, begins, ends, strides = [], [], [], []
    for axis, (start, stop, stride) in enumerate(zip(starts, stops, steps, strict=True)):
        if start == 0 and stop == x.shape[axis] and stride == 1:
            continue
        places.append(x.order.index(axis))
        begins.append(start)
        ends.append(_end(start, stop, stride, x.shape[axis]))
        strides.append(stride)
    if not places:
        return dataclasses.replace(x, shape=step.outputs[0].shape)
    graph = lowering.graph
    name = graph('Slice', x.name, graph.size_vector(begins), graph.size_vector(ends), graph.integers(*places),
                 graph.integers(*strides))  # fmt: skip
    return lowering.new(name, step.outputs[0], x.order)


def _end(start: Size, stop: Size, stride: int, length: Size) -> Size:
    """An end that takes as much as `stop`, counted from the end of the axis where that is one number."""

    def count(first, last):
        return -(-(last - first) // stride)

    for missing in range(stride):  # what lies between the last that is taken and the next is free to choose
        same = combine(lambda a, b, n, m=missing: count(a, n - m) == count(a, b), start, stop, length)
        if same is True:
            return -missing if missing else TO_THE_END
    missing = combine(lambda a, b: a - b, stop, length)
    return stop if isinstance(missing, Varied) or missing >= 0 else missing


@rule('dynamic_slice')
def _dynamic_slice(lowering, step, x, *starts):
    sizes = step.params['slice_sizes']
    x = lowering.whole(x)
    if all(isinstance(start, Constant) for start in starts):
        firsts = [
            combine(lambda s, n, size: min(max(int(s), 0), n - size), start.scalar, n, size)
            for start, n, size in zip(starts, x.shape, sizes, strict=True)
        ]
        stops = [combine(lambda a, b: a + b, first, size) for first, size in zip(firsts, sizes, strict=True)]
        return _sliced(lowering, step, x, firsts, stops, (1,) * len(sizes))
    graph = lowering.graph
    firsts, stops, axes = [], [], []
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        if size == x.shape[axis]:
            continue
        name = lowering.in_order(lowering.whole(start), ())
        name = graph.reshape(lowering.cast(name, np.int64), [], [1])
        last = graph('Sub', graph.size(x.shape[axis]), graph.size(size))
        name = graph('Min', graph('Max', name, graph.integers(0)), last)
        firsts.append(name)
        stops.append(graph('Add', name, graph.size(size)))
        axes.append(x.order.index(axis))
    if not axes:
        return x
    firsts, stops = (graph('Concat', *names, axis=0) for names in (firsts, stops))
    return lowering.new(graph('Slice', x.name, firsts, stops, graph.integers(*axes)), step.outputs[0], x.order)


@rule('dynamic_update_slice')
def _dynamic_update_slice(lowering, step, x, update, *starts):
    if not all(isinstance(start, Constant) for start in starts):
        raise NotImplementedError('an update at a computed place')
    return _updated(lowering, lowering.whole(x), lowering.whole(update), [start.scalar for start in starts])


def _updated(lowering, x: Value, update: Value, starts) -> Value:
    """The update between what lies before and after it, along the one axis where it is smaller."""
    smaller = [axis for axis, (a, b) in enumerate(zip(x.shape, update.shape, strict=True)) if a != b]
    if not smaller:
        return dataclasses.replace(update, dtype=x.dtype)
    if len(smaller) > 1:
        raise NotImplementedError('an update that is smaller along several axes')
    (axis,) = smaller
    length, size, place = x.shape[axis], update.shape[axis], x.order.index(axis)
    start = combine(lambda s, n, k: min(max(int(s), 0), n - k), starts[axis], length, size)
    stop = combine(lambda a, b: a + b, start, size)
    parts = [lowering.in_order(update, x.order)]
    if start != 0:
        parts.insert(0, lowering.graph.slice(x.name, place, 0, start))
    if stop != length:
        parts.append(lowering.graph.slice(x.name, place, stop, None))
    return dataclasses.replace(x, name=lowering.graph('Concat', *parts, axis=place))


@rule('pad')
def _pad(lowering, step, x, value):
    x = lowering.whole(x)
    graph, output = lowering.graph, step.outputs[0]
    config = step.params['padding_config']
    fill = lowering.in_order(value, ())
    supported = x.dtype in (np.float32, np.float64, np.int32, np.int64, np.uint8, bool)
    name, dtype = x.name, x.dtype
    if not supported:
        dtype = np.dtype(np.int64)
        name, fill = lowering.cast(name, dtype), lowering.cast(fill, dtype)
    shape = list(x.shape)
    for axis, (_, _, between) in enumerate(config):
        if between == 0:
            continue
        place = x.order.index(axis)  # as an axis [n, 1], padded to [n, between + 1], and joined
        physical = [shape[a] for a in x.order]
        split = [*physical[: place + 1], 1, *physical[place + 1 :]]
        name = graph.reshape(name, physical, split)
        amounts = [0] * (2 * len(split))
        amounts[len(split) + place + 1] = between
        name = graph('Pad', name, graph.integers(*amounts), fill)
        split[place + 1] = between + 1
        shape[axis] = combine(lambda n, b=between: n * (b + 1), shape[axis])
        name = graph.reshape(name, split, [shape[a] for a in x.order])
        name = graph.slice(name, place, 0, -between)
        shape[axis] = combine(lambda n, b=between: n - b, shape[axis])
    for axis, (before, after, _) in enumerate(config):
        signs = [combine(lambda n: n < 0, n) for n in (before, after)]
        if any(isinstance(sign, tuple) for sign in signs):
            raise VariesError('negative padding')
        first = combine(lambda n: max(-n, 0), before)
        last = after if signs[1] else None
        if signs[0] or signs[1]:
            name = graph.slice(name, x.order.index(axis), first, last)
    amounts = [[combine(lambda n: max(n, 0), config[axis][side]) for axis in x.order] for side in (0, 1)]
    if any(n != 0 for side in amounts for n in side):
        name = graph('Pad', name, graph.size_vector(amounts[0] + amounts[1]), fill)
    return lowering.new(name if supported else lowering.cast(name, output.dtype), output, x.order)


@rule('gather')
def _gather(lowering, step, x, indices):
    """Rows by their numbers, elements beside their own, or elements by all their numbers.

    Numbers out of range are clipped: JAX gives NaN for them where it fills, as `jnp.take` does.
    """
    numbers, sizes = step.params['dimension_numbers'], step.params['slice_sizes']
    x, output, graph = lowering.whole(x), step.outputs[0], lowering.graph
    named = tuple(numbers.start_index_map)
    collapsed, batching = tuple(numbers.collapsed_slice_dims), tuple(numbers.operand_batching_dims)
    full = all(sizes[axis] == x.shape[axis] for axis in range(len(x.shape)) if axis not in (*collapsed, *batching))
    if collapsed != tuple(sorted(named)) or not full:
        if isinstance(indices, Constant) and indices.array is not None and not batching:
            return _gather_slice(lowering, step, x, indices.array)
        raise NotImplementedError('slices at computed places')
    rest = [axis for axis in range(len(x.shape)) if axis not in (*named, *batching)]
    of_indices = [axis for axis in range(len(output.shape)) if axis not in numbers.offset_dims]
    if not batching and len(named) == 1:
        (axis,) = named
        place = x.order.index(axis)
        index = _clipped(lowering, indices, [x.shape[axis]], squeeze=True)
        name = graph('Gather', x.name, index, axis=place)
        at = dict(zip(rest, numbers.offset_dims, strict=True))
        order = [n for a in x.order for n in (of_indices if a == axis else [at[a]])]
        return lowering.new(name, output, order)
    if not batching:
        order = (*named, *rest)
        index = _clipped(lowering, indices, [x.shape[axis] for axis in named])
        name = graph('GatherND', lowering.in_order(x, order), index)
        return lowering.new(name, output, (*of_indices, *numbers.offset_dims))
    if len(named) == 1 and not rest:  # take_along_axis
        batch = tuple(numbers.start_indices_batching_dims)
        (axis,) = named
        free = [a for a in range(len(indices.shape) - 1) if a not in batch]
        if len(free) == 1:
            at = dict(zip(batch, batching, strict=True)) | {free[0]: axis}
            order = tuple(at[a] for a in range(len(indices.shape) - 1))
            index = _clipped(lowering, indices, [x.shape[axis]], squeeze=True)
            name = graph('GatherElements', lowering.in_order(x, order), index, axis=order.index(axis))
            return lowering.new(name, output, range(len(order)))
    raise NotImplementedError('this kind of indexing')


def _gather_slice(lowering, step, x, index) -> Value:
    """A slice at places that are known."""
    numbers, sizes = step.params['dimension_numbers'], step.params['slice_sizes']
    if index.ndim != 1:
        raise NotImplementedError('several slices at once')
    starts = [0] * len(x.shape)
    for axis, start in zip(numbers.start_index_map, index.tolist(), strict=True):
        starts[axis] = combine(lambda n, k, s=start: min(max(s, 0), n - k), x.shape[axis], sizes[axis])
    name = x.name
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        if size != x.shape[axis]:
            stop = combine(lambda a, b: a + b, start, size)
            name = lowering.graph.slice(name, x.order.index(axis), start, stop)
    gone = numbers.collapsed_slice_dims
    kept = [axis for axis in range(len(x.shape)) if axis not in gone]
    physical = [sizes[axis] for axis in x.order]
    order = [axis for axis in x.order if axis in kept]
    name = lowering.graph.reshape(name, physical, [sizes[axis] for axis in order])
    at = dict(zip(kept, numbers.offset_dims, strict=True))
    return lowering.new(name, step.outputs[0], [at[axis] for axis in order])


def _clipped(lowering, indices, lengths, squeeze: bool = False) -> str:
    """Numbers [..., k] within 0 .. lengths - 1; without the last axis where `squeeze` says so."""
    graph = lowering.graph
    whole = isinstance(indices, Constant) and indices.array is not None
    if whole and not any(isinstance(length, Varied) for length in lengths):
        array = np.clip(np.broadcast_to(indices.array, indices.shape), 0, np.array(lengths) - 1).astype(np.int64)
        return graph.constant(np.ascontiguousarray(array[..., 0] if squeeze else array))
    indices = lowering.whole(indices)
    shape = list(indices.shape)
    name = lowering.cast(lowering.in_order(indices, range(len(shape))), np.int64)
    last = graph('Sub', graph.size_vector(lengths), graph.integers(1))
    name = graph('Min', graph('Max', name, graph.integers(0)), last)
    return graph('Squeeze', name, graph.integers(-1)) if squeeze else name


@rule('scatter', 'scatter-add', 'scatter_add', 'scatter_max', 'scatter_min', 'scatter_mul')
def _scatter(lowering, step, x, indices, updates):
    """Elements, or whole slices, by their numbers, which must be in range."""
    numbers = step.params['dimension_numbers']
    named, inserted = tuple(numbers.scatter_dims_to_operand_dims), tuple(numbers.inserted_window_dims)
    batching = tuple(numbers.operand_batching_dims)
    known = isinstance(indices, Constant) and indices.array is not None and len(indices.shape) == 1
    if step.op == 'scatter' and known and not inserted and not batching:  # one slice
        starts = [0] * len(x.shape)
        for axis, start in zip(named, np.broadcast_to(indices.array, indices.shape).tolist(), strict=True):
            starts[axis] = start
        return _updated(lowering, lowering.whole(x), lowering.whole(updates), starts)
    x, updates, graph = lowering.whole(x), lowering.whole(updates), lowering.graph
    rest = [axis for axis in range(len(x.shape)) if axis not in (*named, *batching)]
    window = tuple(numbers.update_window_dims)
    fits = all(updates.shape[w] == x.shape[a] for w, a in zip(window, rest, strict=False))
    if inserted != tuple(sorted(named)) or batching or not fits or len(window) != len(rest):
        raise NotImplementedError('this kind of scattering')
    indices = lowering.whole(indices)
    index = lowering.cast(lowering.in_order(indices, range(len(indices.shape))), np.int64)
    order = (*named, *rest)
    outer = [axis for axis in range(len(updates.shape)) if axis not in window]
    reduction = {'scatter': 'none', 'scatter-add': 'add', 'scatter_add': 'add', 'scatter_max': 'max',
                 'scatter_min': 'min', 'scatter_mul': 'mul'}[step.op]  # fmt: skip
    name = graph('ScatterND', lowering.in_order(x, order), index, lowering.in_order(updates, (*outer, *window)),
                 reduction=reduction)  # fmt: skip
    return lowering.new(name, step.outputs[0], order)


@rule('iota')
def _iota(lowering, step):
    """Too long to be a constant."""
    graph, output, axis = lowering.graph, step.outputs[0], step.params['dimension']
    numbers = lowering.cast(lowering.range(output.shape[axis]), output.dtype)
    stored = [length if i == axis else 1 for i, length in enumerate(output.shape)]
    name = graph('Reshape', numbers, graph.integers(*(-1 if i == axis else 1 for i in range(len(stored)))))
    return lowering.new(name, output, range(len(stored)), stored)
