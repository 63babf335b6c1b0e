"""Depthwise convolution as a sum over the kernel's taps of shifted maps, each times one number a channel.

Many times faster on CPUs than XLA's own programs (`benchmarks/cpu_operations.py`). Sums are float32.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from atonet_jax.ops.window import ConvWindow, Pair

_MOST_TAPS = 49  # programs grow with them


def suits(kernel: jax.Array) -> bool:
    """Whether the [kh, kw, C / groups, O] kernel of a convolution with groups is depthwise, and of few taps."""
    return kernel.shape[2] == 1 and kernel.shape[0] * kernel.shape[1] <= _MOST_TAPS


def convolve(x: jax.Array, kernel: jax.Array, window: ConvWindow) -> jax.Array:
    """[B, H, W, C] with [kh, kw, 1, C * multiplier] -> [B, H', W', C * multiplier]."""
    height, width, _, features = kernel.shape
    padded = jnp.pad(_repeat(x, features), ((0, 0), *window.padding, (0, 0)))
    return _sum_of_taps(padded, kernel.reshape(height * width, features), (height, width), window).astype(x.dtype)


def input_gradient(
    cotangent: jax.Array, kernel: jax.Array, shape: tuple[int, int, int, int], window: ConvWindow
) -> jax.Array:
    """`convolve` transposed: a cotangent [B, H', W', C * multiplier] -> [B, H, W, C] = `shape`."""
    size, features = kernel.shape[:2], kernel.shape[3]
    pads = []
    for new, old, taps, stride, dilation, (before, _) in zip(
        shape[1:3], cotangent.shape[1:3], size, window.stride, window.dilation, window.padding, strict=True
    ):
        reach = dilation * (taps - 1)
        pads.append((reach - before, new + before - stride * (old - 1) - 1, stride - 1))
    spread = jax.lax.pad(cotangent, jnp.zeros((), cotangent.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    flipped = kernel[::-1, ::-1].reshape(-1, features)
    gradient = _sum_of_taps(spread, flipped, size, window._replace(stride=(1, 1)))
    if features != shape[3]:
        gradient = gradient.reshape(*shape, -1).sum(-1)
    return gradient.astype(cotangent.dtype)


def kernel_gradient(
    x: jax.Array, cotangent: jax.Array, kernel_shape: tuple[int, int, int, int], window: ConvWindow
) -> jax.Array:
    """`convolve` transposed in its kernel: [B, H, W, C], a cotangent [B, H', W', C * multiplier] -> `kernel_shape`.

    Row after row, products are added to a row of sums for each tap. Pixels of a row are summed over at the end,
    because XLA's reductions on CPUs are much slower than its additions.
    """
    features = kernel_shape[3]
    padded = jnp.pad(_repeat(x, features), ((0, 0), *window.padding, (0, 0)))
    seen_rows = window.dilation[0] * (kernel_shape[0] - 1) + 1

    def add_row(row, sums):
        rows = jax.lax.dynamic_slice_in_dim(padded, row * window.stride[0], seen_rows, 1)
        of_row = jax.lax.dynamic_slice_in_dim(cotangent, row, 1, 1).astype(jnp.float32)
        return [sum_ + seen * of_row for sum_, seen in zip(sums, _seen(rows, kernel_shape[:2], window), strict=True)]

    batch, height, width, _ = cotangent.shape
    zeros = [jnp.zeros((batch, 1, width, features))] * (kernel_shape[0] * kernel_shape[1])
    sums = jax.lax.fori_loop(0, height, add_row, zeros)
    return jnp.stack([jnp.sum(sum_, (0, 1, 2)) for sum_ in sums]).reshape(kernel_shape).astype(x.dtype)


def _repeat(x: jax.Array, features: int) -> jax.Array:
    return x if x.shape[3] == features else jnp.repeat(x, features // x.shape[3], 3)


def _sum_of_taps(padded: jax.Array, taps: jax.Array, size: Pair, window: ConvWindow) -> jax.Array:
    return sum(seen * tap for seen, tap in zip(_seen(padded, size, window), taps.astype(jnp.float32), strict=True))


def _seen(padded: jax.Array, size: Pair, window: ConvWindow) -> Iterator[jax.Array]:
    """What each tap of the kernel sees of a padded map: [B, H', W', C] float32, tap by tap."""
    (row_stride, column_stride), (row_dilation, column_dilation) = window.stride, window.dilation
    rows = padded.shape[1] - row_dilation * (size[0] - 1)
    columns = padded.shape[2] - column_dilation * (size[1] - 1)
    for row, column in np.ndindex(*size):
        top, left = row * row_dilation, column * column_dilation
        yield padded[:, top : top + rows : row_stride, left : left + columns : column_stride].astype(jnp.float32)
