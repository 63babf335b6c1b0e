"""Convolution and max-pooling that CPUs differentiate in less time.

On CPUs alone (`jax.lax.platform_dependent`); other devices run the plain programs. Values and gradients are the same
everywhere but for rounding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from atonet_jax.ops.cpu import winograd

_STRIP_PIXELS = 2048


def conv_general_dilated(x: jax.Array, kernel: jax.Array, strides, padding, **options) -> jax.Array:
    """`jax.lax.conv_general_dilated` of [B, H, W, C] with [k, k, C, O], as `flax.linen.Conv` calls it."""
    convolution = functools.partial(jax.lax.conv_general_dilated, window_strides=strides, **options)
    return _convolve(x, kernel, convolution, tuple(strides), tuple(map(tuple, padding)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve(x, kernel, convolution, strides, padding):
    return convolution(x, kernel, padding=padding)


def _convolve_forward(x, kernel, convolution, strides, padding):
    def plain(x, kernel):
        return convolution(x, kernel, padding=padding)

    def by_winograd(x, kernel):
        return winograd.convolve(x, winograd.transform_kernel(kernel))

    if not _goes_by_winograd(x, kernel, strides, padding):
        return plain(x, kernel), (x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=by_winograd, default=plain), (x, kernel)


def _convolve_backward(convolution, strides, padding, saved, cotangent):
    def input_gradient(x, kernel, cotangent):
        return jax.linear_transpose(lambda x: convolution(x, kernel, padding=padding), x)(cotangent)[0]

    def plain(x, kernel, cotangent):
        transposed = jax.linear_transpose(lambda kernel: convolution(x, kernel, padding=padding), kernel)
        return input_gradient(x, kernel, cotangent), transposed(cotangent)[0]

    def by_strips(x, kernel, cotangent):
        kernel_gradient = _kernel_gradient(x, cotangent, kernel.shape, strides, padding)
        return input_gradient(x, kernel, cotangent), kernel_gradient

    def by_winograd(x, kernel, cotangent):
        return winograd.input_gradient(cotangent, kernel), winograd.kernel_gradient(x, cotangent)

    on_cpu = by_winograd if _goes_by_winograd(*saved, strides, padding) else by_strips
    return jax.lax.platform_dependent(*saved, cotangent, cpu=on_cpu, default=plain)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _goes_by_winograd(x, kernel, strides, padding) -> bool:
    """Where it can, and transforming the kernel is less work than transforming the images."""
    *size, channels, features = kernel.shape
    if (*size, *strides, *padding) != (3, 3, 1, 1, (1, 1), (1, 1)) or not x.dtype == kernel.dtype == jnp.float32:
        return False
    tiles = x.shape[0] * -(-x.shape[1] // winograd.TILE) * -(-x.shape[2] // winograd.TILE)
    worth_transforming = channels * features <= tiles * (channels + features)
    return worth_transforming and max(channels, features) >= winograd.LEAST_CHANNELS


def _kernel_gradient(x, cotangent, kernel_shape, strides, padding):
    """By convolutions along rows, of strips of rows that stay in the cache.

    In a strip, the cotangent's columns are convolved with those of x. What the rows of the kernel see lies side by
    side, as channels, and so do columns that one step of the stride covers: no stride is left. All pixels of a column
    are summed over at once, so it works on large matrices. The batch is the outer one of what is summed over: split
    over devices, each sums its own part.
    """
    kernel_height, kernel_width, channels, features = kernel_shape
    row_stride, column_stride = strides
    (top, _), (left, _) = padding
    if (kernel_height, kernel_width, top, left) == (1, 1, 0, 0):
        pixels = x[:, ::row_stride, ::column_stride].reshape(-1, channels)
        return (pixels.T @ cotangent.reshape(-1, features)).reshape(kernel_shape)

    batch, height, width = cotangent.shape[:3]
    rows = min(max(_STRIP_PIXELS // (batch * width), 1), height)
    strips = -(-height // rows)
    seen_rows = row_stride * (rows - 1) + kernel_height
    bottom = row_stride * rows * (strips - 1) + seen_rows - top - x.shape[1]
    steps = -(-x.shape[2] // column_stride)
    x = _pad(x, (top, bottom), right=steps * column_stride - x.shape[2])
    x = x.reshape(batch, -1, steps, column_stride * channels)
    cotangent = _pad(cotangent, (0, rows * strips - height))
    first, last = -left // column_stride, (kernel_width - 1 - left) // column_stride  # steps seen from an output's own

    def add_strip(strip, gradient):
        seen = jax.lax.dynamic_slice_in_dim(x, strip * row_stride * rows, seen_rows, 1).transpose(2, 0, 1, 3)
        seen = [seen[:, :, row : row + row_stride * (rows - 1) + 1 : row_stride] for row in range(kernel_height)]
        part = jax.lax.dynamic_slice_in_dim(cotangent, strip * rows, rows, 1).transpose(3, 2, 0, 1)
        return gradient + jax.lax.conv_general_dilated(
            part.reshape(features, width, batch * rows),
            jnp.concatenate(seen, -1).reshape(steps, batch * rows, -1),
            window_strides=(1,),
            padding=[(last, steps - width - first)],
            dimension_numbers=('NWC', 'WIO', 'NWC'),
        )

    shape = features, last - first + 1, kernel_height * column_stride * channels
    gradient = jax.lax.fori_loop(0, strips, add_strip, jnp.zeros(shape, x.dtype))[:, ::-1]
    gradient = gradient.reshape(*shape[:2], kernel_height, column_stride, channels).transpose(2, 1, 3, 4, 0)
    unseen = -left - first * column_stride
    return gradient.reshape(kernel_height, -1, channels, features)[:, unseen : unseen + kernel_width]


def _pad(x: jax.Array, rows: tuple[int, int], right: int = 0) -> jax.Array:
    """So many rows of zeros above and below, where less than none rows are cut, and columns on the right."""
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (*rows, 0), (0, right, 0), (0, 0, 0)])


def max_pool(x: jax.Array) -> jax.Array:
    """Max-pooling 3x3, stride 2, padding 1: [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C]."""
    return jax.lax.platform_dependent(x, cpu=max_pool_by_slices, default=max_pool_by_window)


def max_pool_by_window(x: jax.Array) -> jax.Array:
    """The plain program."""
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


@jax.custom_vjp
def max_pool_by_slices(x: jax.Array) -> jax.Array:
    """Slower by itself; its gradient takes a small part of the time on CPUs."""
    return _first_largest(x)[0]


def _first_largest(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest value of each window, NaN where there is one, and which of the nine it is, uint8."""
    height, width = _halves(x.shape)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    largest = places = None
    for place, (top, left) in enumerate(np.ndindex(3, 3)):
        values = padded[:, top : top + 2 * height - 1 : 2, left : left + 2 * width - 1 : 2]
        if place == 0:
            largest, places = values, jnp.zeros(values.shape, jnp.uint8)
            continue
        larger = (values > largest) | jnp.isnan(values)
        largest, places = jnp.where(larger, values, largest), jnp.where(larger, jnp.uint8(place), places)
    return largest, places


def _max_pool_forward(x):
    largest, places = _first_largest(x)
    return largest, (places, x.shape)


def _max_pool_backward(saved, cotangent):
    """A pixel of even row and column is in one window, others in two or four."""
    places, shape = saved
    height, width = _halves(shape)
    by_place = np.empty((3, 3), object)
    for place, index in enumerate(np.ndindex(3, 3)):
        by_place[index] = jnp.where(places == place, cotangent, 0)

    def both(one, next_one, axis):
        """Sums what a pixel takes as the last of a window and as the first of the next."""
        length = next_one.shape[axis]
        following = jax.lax.slice_in_dim(next_one, 1, length, axis=axis)
        return one + jnp.concatenate([following, jnp.zeros_like(jax.lax.slice_in_dim(next_one, 0, 1, axis=axis))], axis)

    even = [by_place[1, 1], both(by_place[1, 2], by_place[1, 0], 2)]
    odd = [
        both(by_place[2, 1], by_place[0, 1], 1),
        both(both(by_place[2, 2], by_place[0, 2], 1), both(by_place[2, 0], by_place[0, 0], 1), 2),
    ]
    batch, channels = shape[0], shape[3]
    rows = [jnp.stack(columns, 3).reshape(batch, height, 2 * width, channels) for columns in (even, odd)]
    gradient = jnp.stack(rows, 2).reshape(batch, 2 * height, 2 * width, channels)
    return (gradient[:, : shape[1], : shape[2]],)


max_pool_by_slices.defvjp(_max_pool_forward, _max_pool_backward)


def _halves(shape: tuple[int, ...]) -> tuple[int, int]:
    return -(-shape[1] // 2), -(-shape[2] // 2)
