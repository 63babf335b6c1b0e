"""Convolution whose gradients CPUs compute faster: Winograd's for many channels, strips of rows for the rest.

Values and gradients are those of the plain program but for rounding.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from atonet_jax.ops.cpu import winograd
from atonet_jax.ops.window import Pair

DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')
_STRIP_PIXELS = 2048


class Window(NamedTuple):
    """What a convolution's shapes do not tell.

    Attributes:
        stride: of rows and columns.
        padding: ((top, bottom), (left, right)), zeros.
        dilation: of rows and columns.
        groups: of channels.
    """

    stride: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair
    groups: int


def plain(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """The convolution of [B, H, W, C] with [kh, kw, C / groups, O] by XLA's own program."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=window.stride,
        padding=window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=DIMENSIONS,
        feature_group_count=window.groups,
    )


def has_fast_gradient(x: jax.Array, window: Window) -> bool:
    """Whether `convolve` takes it: float32 or bfloat16, no groups, columns not both strided and dilated."""
    is_dense = window.groups == 1 and 1 in (window.stride[1], window.dilation[1])
    return is_dense and x.dtype in (jnp.float32, jnp.bfloat16)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """`plain`; where it is differentiated, CPUs run the programs of this module. `has_fast_gradient` must hold."""
    return plain(x, kernel, window)


def _forward(x, kernel, window):
    def by_winograd(x, kernel):
        return winograd.convolve(x, winograd.transform_kernel(kernel))

    by_default = functools.partial(plain, window=window)
    if not _trains_by_winograd(x, kernel, window):
        return by_default(x, kernel), (x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=by_winograd, default=by_default), (x, kernel)


def _backward(window, saved, cotangent):
    def input_gradient(x, kernel, cotangent):
        return jax.linear_transpose(lambda x: plain(x, kernel, window), x)(cotangent)[0]

    def by_default(x, kernel, cotangent):
        transposed = jax.linear_transpose(lambda kernel: plain(x, kernel, window), kernel)
        return input_gradient(x, kernel, cotangent), transposed(cotangent)[0]

    def by_strips(x, kernel, cotangent):
        return input_gradient(x, kernel, cotangent), kernel_gradient(x, cotangent, kernel.shape, window)

    def by_winograd(x, kernel, cotangent):
        return winograd.input_gradient(cotangent, kernel), winograd.kernel_gradient(x, cotangent)

    on_cpu = by_winograd if _trains_by_winograd(*saved, window) else by_strips
    return jax.lax.platform_dependent(*saved, cotangent, cpu=on_cpu, default=by_default)


convolve.defvjp(_forward, _backward)


def is_winograds(kernel: jax.Array, window: Window) -> bool:
    """Whether Winograd's F(4x4, 3x3) computes this convolution."""
    is_3x3 = kernel.shape[:2] == (3, 3) and window == Window((1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    return is_3x3 and kernel.dtype == jnp.float32


def _trains_by_winograd(x, kernel, window) -> bool:
    """Where it can, and transforming the kernel is less work than transforming the images."""
    if not is_winograds(kernel, window):
        return False
    channels, features = kernel.shape[2:]
    tiles = x.shape[0] * -(-x.shape[1] // winograd.TILE) * -(-x.shape[2] // winograd.TILE)
    worth_transforming = channels * features <= tiles * (channels + features)
    return worth_transforming and max(channels, features) >= winograd.LEAST_CHANNELS


def kernel_gradient(
    x: jax.Array, cotangent: jax.Array, kernel_shape: tuple[int, int, int, int], window: Window
) -> jax.Array:
    """Gradient of a [kh, kw, C, O] kernel, summed in float32, in x's dtype.

    It is a sum of convolutions along rows, each over a strip of rows that stays in the cache. In a strip, the
    cotangent's columns are convolved with those of x. What the rows of the kernel see lies side by side, as channels,
    and so do columns that one step of the stride covers: no stride is left. All pixels of a column are summed over at
    once, so the products are of large matrices. The batch is the outer axis of what is summed over: split over devices,
    each device sums its own part.
    """
    kernel_height, kernel_width, channels, features = kernel_shape
    row_stride, column_stride = window.stride
    (top, _), (left, _) = window.padding
    row_dilation, column_dilation = window.dilation
    if (kernel_height, kernel_width, *window.padding) == (1, 1, (0, 0), (0, 0)):
        pixels = x[:, ::row_stride, ::column_stride].reshape(-1, channels)
        cotangent = cotangent.reshape(-1, features)
        gradient = jnp.matmul(pixels.T, cotangent, preferred_element_type=jnp.float32)
        return gradient.astype(x.dtype).reshape(kernel_shape)

    batch, height, width = cotangent.shape[:3]
    rows = min(max(_STRIP_PIXELS // (batch * width), 1), height)
    strips = -(-height // rows)
    seen_rows = row_stride * (rows - 1) + row_dilation * (kernel_height - 1) + 1
    bottom = row_stride * rows * (strips - 1) + seen_rows - top - x.shape[1]
    steps = -(-x.shape[2] // column_stride)
    x = _pad(x, (top, bottom), right=steps * column_stride - x.shape[2])
    x = x.reshape(batch, -1, steps, column_stride * channels)
    cotangent = _pad(cotangent, (0, rows * strips - height))
    # The first and the last step that an output sees, counted from its own.
    first, last = -left // column_stride, (column_dilation * (kernel_width - 1) - left) // column_stride

    def add_strip(strip, gradient):
        seen = jax.lax.dynamic_slice_in_dim(x, strip * row_stride * rows, seen_rows, 1).transpose(2, 0, 1, 3)
        tops = range(0, row_dilation * kernel_height, row_dilation)
        seen = [seen[:, :, row : row + row_stride * (rows - 1) + 1 : row_stride] for row in tops]
        part = jax.lax.dynamic_slice_in_dim(cotangent, strip * rows, rows, 1).transpose(3, 2, 0, 1)
        return gradient + jax.lax.conv_general_dilated(
            part.reshape(features, width, batch * rows),
            jnp.concatenate(seen, -1).reshape(steps, batch * rows, -1),
            window_strides=(column_dilation,),
            padding=[(last, steps - width - first)],
            dimension_numbers=('NWC', 'WIO', 'NWC'),
            preferred_element_type=jnp.float32,
        )

    shape = features, (last - first) // column_dilation + 1, kernel_height * column_stride * channels
    gradient = jax.lax.fori_loop(0, strips, add_strip, jnp.zeros(shape, jnp.float32))[:, ::-1]
    gradient = gradient.reshape(*shape[:2], kernel_height, column_stride, channels).transpose(2, 1, 3, 4, 0)
    unseen = -left - first * column_stride
    gradient = gradient.reshape(kernel_height, -1, channels, features)[:, unseen : unseen + kernel_width]
    return gradient.astype(x.dtype)


def _pad(x: jax.Array, rows: tuple[int, int], right: int = 0) -> jax.Array:
    """So many rows of zeros above and below, where less than none rows are cut, and columns on the right."""
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (*rows, 0), (0, right, 0), (0, 0, 0)])
