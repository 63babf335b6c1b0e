"""Kernel gradients by convolutions along rows, over strips of rows that stay in the cache."""

import jax
import jax.numpy as jnp

from atonet_jax.ops.window import ConvWindow

# With fewer, XLA's own program is as fast where the stride is 1; twice as many for kernels along one axis.
LEAST_CHANNELS = 16
_PIXELS = 2048  # of a strip


def suits(channels: int, kernel_size: tuple[int, int], window: ConvWindow) -> bool:
    """Whether `kernel_gradient` takes a convolution without groups, and is faster than XLA's own program."""
    is_pointwise = kernel_size == (1, 1) and window.padding == ((0, 0), (0, 0))
    least = LEAST_CHANNELS if min(kernel_size) > 1 else 2 * LEAST_CHANNELS
    is_faster = channels >= least or window.stride != (1, 1) or is_pointwise
    return is_faster and 1 in (window.stride[1], window.dilation[1])


def kernel_gradient(
    x: jax.Array, cotangent: jax.Array, kernel_shape: tuple[int, int, int, int], window: ConvWindow
) -> jax.Array:
    """Gradient of a [kh, kw, C, O] kernel, summed in float32, in x's dtype.

    It is a sum of convolutions along rows, each over a strip of rows that stays in the cache. In a strip, the
    cotangent's columns are convolved with those of x. Rows under the kernel, and columns under one step of the stride,
    are stacked as channels, so that the inner convolution has stride 1. All pixels of a column are summed over at once,
    so the products are of large matrices. The batch is the outer axis of what is summed over: split over devices,
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
    rows = min(max(_PIXELS // (batch * width), 1), height)
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
