"""Max-pooling, with indices and back, and average-pooling, as torch has them."""

import contextlib
import contextvars
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from atonet_jax.errors import InputError
from atonet_jax.ops import canvas, plain
from atonet_jax.ops.cpu import has_fast_paths
from atonet_jax.ops.cpu import pooling as cpu_pooling
from atonet_jax.ops.places import place_gradient
from atonet_jax.ops.resize import map_axis
from atonet_jax.ops.window import IntOrPair, Padding, Pair, PoolWindow, padding_pairs, pair

_for_quantizers = contextvars.ContextVar('pooling_for_quantizers', default=False)


@contextlib.contextmanager
def pooling_for_quantizers() -> Iterator[None]:
    """Within the context pooling takes operations that converters to int8 know, and gives the same values.

    `max_pool` pads with the pixels at the edge, because the range of a map would otherwise begin at -infinity.
    `avg_pool` is a product of matrices.
    """
    token = _for_quantizers.set(True)
    try:
        yield
    finally:
        _for_quantizers.reset(token)


def max_pool(
    x: jax.Array, window: IntOrPair = 3, stride: IntOrPair = 2, padding: Padding = 1, ceil: bool = False
) -> jax.Array:
    """Max-pooling. Pixels of the padding count as -infinity; NaN stays.

    On CPUs the gradients of small windows with a stride of two or more go by a faster program (`ops.cpu.pooling`).

    Args:
        x: [B, H, W, C] float.
        window: rows and columns of a window, or (rows, columns).
        stride: from one window to the next, or (rows, columns).
        padding: on all sides, (rows, columns), or ((top, bottom), (left, right)).
        ceil: the last window may reach beyond the padding (torch's ceil_mode), but must begin inside of map or padding.

    Returns:
        [B, H', W', C], H' = (H + top + bottom - window) / stride + 1, rounded down, or up with `ceil`. Of equal pixels
        the first takes the gradient.
    """
    window = _pool_window(x, window, stride, padding, ceil)
    x = _masked(x, window, -jnp.inf, ceil)
    if _for_quantizers.get():
        x = jnp.pad(x, ((0, 0), *window.padding, (0, 0)), mode='edge')
        return plain.max_pool(x, window._replace(padding=((0, 0), (0, 0))))
    if has_fast_paths() and cpu_pooling.is_faster(window):
        return cpu_pooling.max_pool(x, window)
    return plain.max_pool(x, window)


def max_pool_with_indices(
    x: jax.Array, window: IntOrPair = 3, stride: IntOrPair = 2, padding: Padding = 1, ceil: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Max-pooling and where each value was found.

    Args:
        x, window, stride, padding, ceil: as in `max_pool`.

    Returns:
        What `max_pool` gives; and of each value its index, row * W + column in the map without padding, int32 of the
        same shape. Of equal pixels the first counts, as in torch. Indices have no gradient.
    """
    window = _pool_window(x, window, stride, padding, ceil)
    x = _masked(x, window, -jnp.inf, ceil)
    largest, places = _largest_and_places(x, window)
    first = window.first_inside(largest.shape[1:3])[:, :, None]
    places = jnp.where(largest == -jnp.inf, first, places.astype(jnp.int32))
    rows, columns = (
        stride * np.arange(length) - before
        for length, stride, (before, _) in zip(largest.shape[1:3], window.stride, window.padding, strict=True)
    )
    of_window = (rows[:, None] * x.shape[2] + columns)[:, :, None].astype(np.int32)
    row = jax.lax.div(places, np.int32(window.size[1]))
    return largest, of_window + (row * x.shape[2] + (places - row * window.size[1]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _largest_and_places(x, window):
    return window.first_largest(x)


def _forward(x, window):
    largest, places = window.first_largest(x)
    return (largest, places), (places, x)


def _backward(window, saved, cotangents):
    places, x = saved  # of x the shape alone is needed
    return (place_gradient(cotangents[0], places, window, x.shape),)


_largest_and_places.defvjp(_forward, _backward)


def _pool_window(x: jax.Array, window, stride, padding, ceil) -> PoolWindow:
    size, stride, padding = pair(window), pair(stride), padding_pairs(padding)
    if ceil:
        padding = tuple(
            (before, after + _missing(length, *sides, before, after))
            for length, *sides, (before, after) in zip(x.shape[1:3], size, stride, padding, strict=True)
        )
    found = PoolWindow(size, stride, padding)
    if min(found.output_size(x.shape[1:3])) < 1:
        raise InputError(f'pooling: a map of {x.shape[1]}x{x.shape[2]} is smaller than a window of {size[0]}x{size[1]}')
    return found


def _masked(x: jax.Array, window: PoolWindow, value: float, ceil: bool = False) -> jax.Array:
    if not (ceil and window.size == window.stride):  # n / stride, rounded up, whatever n is
        canvas.check_window(x, *window, 'pooling')
    return canvas.masked(x, value)


def _missing(length: int, size: int, stride: int, before: int, after: int) -> int:
    """How far the last window reaches beyond the padding, where one more begins inside of map or padding."""
    rest = (length + before + after - size) % stride
    last = length + before + after - size - rest + stride  # where one more window would begin
    return stride - rest if rest and last < length + before else 0


def max_unpool(
    x: jax.Array,
    indices: jax.Array,
    size: Pair,
    window: IntOrPair,
    stride: IntOrPair | None = None,
    padding: Padding = 0,
) -> jax.Array:
    """Puts each value back where `max_pool_with_indices` found it; zeros elsewhere.

    Args:
        x: [B, h, w, C].
        indices: [B, h, w, C] int32, row * W + column in a map of `size` = (H, W).
        size: (H, W) of the result.
        window: of the pool that gave the indices.
        stride: of that pool; None: `window`.
        padding: of that pool.

    Returns:
        [B, H, W, C]. Where several values have one index, which overlapping windows give, it is the last of them, row
        by row; each takes the pixel's gradient, as in torch.

    Raises:
        InputError: `x` and `indices` have different shapes.
    """
    if x.shape != indices.shape:
        raise InputError(f'unpooling: the values are {tuple(x.shape)} and the indices {tuple(indices.shape)}; '
                         'both must be the same [B, h, w, C]')  # fmt: skip
    pool = PoolWindow(pair(window), pair(window if stride is None else stride), padding_pairs(padding))
    indices = canvas.masked(indices, -1)
    do_overlap = any(taps > step for taps, step in zip(pool.size, pool.stride, strict=True))
    return (_unpool_overlapping if do_overlap else _unpool_windows)(x, indices, tuple(size), pool)


def _unpool_windows(x, indices, size, pool):
    """A comparison for each place of a window, instead of a scatter.

    The map is made of phases: phase (a, b) holds the pixels a + i * stride, b + j * stride of the padded map. Windows
    that overlap have several places in one phase; the values there are of window (i, j), of (i, j - 1) and so on.
    """
    batch, height, width, channels = x.shape
    (top, _), (left, _) = pool.padding
    first = (np.arange(height) * pool.stride[0] - top)[:, None] * size[1] + np.arange(width) * pool.stride[1] - left
    places = indices - first[:, :, None].astype(np.int32)
    more = [(taps - 1) // step for taps, step in zip(pool.size, pool.stride, strict=True)]
    shifted = {}  # by how many windows: values, and their places
    for shift in np.ndindex(more[0] + 1, more[1] + 1):
        edges = ((0, 0), *((before, all_ - before) for before, all_ in zip(shift, more, strict=True)), (0, 0))
        shifted[shift] = jnp.pad(x, edges), jnp.pad(places, edges, constant_values=-1)

    def phase(start):
        pixels = jnp.zeros((batch, height + more[0], width + more[1], channels), x.dtype)
        for shift in reversed(shifted):  # the last window is not shifted, and its value stays
            row, column = (a + n * step for a, n, step in zip(start, shift, pool.stride, strict=True))
            if row < pool.size[0] and column < pool.size[1]:
                values, of_values = shifted[shift]
                pixels = jnp.where(of_values == row * size[1] + column, values, pixels)
        return pixels

    rows = [jnp.stack([phase((row, column)) for column in range(pool.stride[1])], 3) for row in range(pool.stride[0])]
    lengths = [(n + beyond) * step for n, beyond, step in zip((height, width), more, pool.stride, strict=True)]
    unpooled = jnp.stack(rows, 2).reshape(batch, *lengths, channels)
    unpooled = unpooled[:, top : top + size[0], left : left + size[1]]
    below, right = (new - old for new, old in zip(size, unpooled.shape[1:3], strict=True))
    return jnp.pad(unpooled, ((0, 0), (0, below), (0, right), (0, 0)))


_unpool_overlapping = jax.custom_vjp(_unpool_windows, nondiff_argnums=(2, 3))
_unpool_overlapping.defvjp(
    lambda x, indices, size, pool: (_unpool_windows(x, indices, size, pool), indices),
    lambda size, pool, indices, cotangent: _take_gradient(indices, cotangent),
)


def _take_gradient(indices, cotangent):
    batch, _, _, channels = indices.shape
    pixels = cotangent.reshape(batch, -1, channels)
    gradient = jnp.take_along_axis(pixels, indices.reshape(batch, -1, channels), 1)
    return gradient.reshape(indices.shape), None


def avg_pool(x: jax.Array, window: IntOrPair, stride: IntOrPair, padding: Padding = 0) -> jax.Array:
    """Average-pooling. The zeros of the padding count (torch's count_include_pad, its default).

    Args:
        x: [B, H, W, C] float; sums are float32.
        window, stride, padding: as in `max_pool`.

    Returns:
        [B, H', W', C] in x's dtype, H' = (H + top + bottom - window) // stride + 1.
    """
    window = _pool_window(x, window, stride, padding, ceil=False)
    x = _masked(x, window, 0.0)
    if _for_quantizers.get():
        rows, columns = map(_avg_pool_matrix, x.shape[1:3], *window)
        return map_axis(map_axis(x, rows, 1), columns, 2)
    strides, pads = (1, *window.stride, 1), ((0, 0), *window.padding, (0, 0))
    summed = jax.lax.reduce_window(x.astype(jnp.float32), 0.0, jax.lax.add, (1, *window.size, 1), strides, pads)
    return (summed / (window.size[0] * window.size[1])).astype(x.dtype)


def _avg_pool_matrix(length: int, size: int, stride: int, padding: Pair) -> np.ndarray:
    """[new, length]: what `avg_pool` makes of one axis."""
    starts = np.arange((length + sum(padding) - size) // stride + 1)[:, None] * stride - padding[0]
    pixels = np.arange(length)
    return ((starts <= pixels) & (pixels < starts + size)).astype(np.float32) / size


def global_avg_pool(x: jax.Array) -> jax.Array:
    """The average of all pixels: [B, H, W, C] -> [B, 1, 1, C]."""
    if not canvas.is_used():
        return jnp.mean(x, (1, 2), keepdims=True)
    rows, columns = canvas.image_size(x.shape[1:3])
    summed = jnp.sum(canvas.masked(x), (1, 2), keepdims=True, dtype=jnp.float32)
    return (summed / (rows * columns)).astype(x.dtype)


def adaptive_avg_pool(x: jax.Array, size: Pair) -> jax.Array:
    """Average-pools [B, H, W, C] to [B, *size, C] by torch's rule; `size` may exceed (H, W)."""
    canvas.refuse('adaptive pooling')
    rows, columns = (adaptive_pool_matrix(old, new) for old, new in zip(x.shape[1:3], size, strict=True))
    return map_axis(map_axis(x, rows, 1), columns, 2)


def adaptive_pool_matrix(old: int, new: int) -> np.ndarray:
    """[new, old]: torch's rule, cell i averages pixels floor(i * old / new) .. ceil((i + 1) * old / new) - 1."""
    matrix = np.zeros((new, old), np.float32)
    for cell in range(new):
        start, stop = cell * old // new, -(-(cell + 1) * old // new)
        matrix[cell, start:stop] = 1 / (stop - start)
    return matrix
