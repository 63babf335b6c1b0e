"""The definitions: each operation in XLA's own terms, which GPUs, TPUs and exports run as they stand.

CPUs run faster programs of the same values where `ops.cpu` has them.
"""

import jax
import jax.numpy as jnp
import numpy as np

from atonet_jax.ops.window import DIMENSIONS, ConvWindow, PoolWindow, TransposedWindow


def conv(x: jax.Array, kernel: jax.Array, window: ConvWindow) -> jax.Array:
    """The convolution of [B, H, W, C] with [kh, kw, C / groups, O]."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=window.stride,
        padding=window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=DIMENSIONS,
        feature_group_count=window.groups,
    )


def conv_transpose(x: jax.Array, kernel: jax.Array, window: TransposedWindow) -> jax.Array:
    """The transposed convolution of [B, H, W, C] with [kh, kw, C, O / groups]."""
    height, width, channels, features = kernel.shape
    groups = window.groups
    kernel = kernel[::-1, ::-1].reshape(height, width, groups, channels // groups, features)
    kernel = kernel.transpose(0, 1, 3, 2, 4).reshape(height, width, channels // groups, groups * features)
    sides = zip((height, width), window.padding, window.output_padding, strict=True)
    x = jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=[2 * (size - 1 - cut + more,) for size, cut, more in sides],
        lhs_dilation=window.stride,
        dimension_numbers=DIMENSIONS,
        feature_group_count=groups,
    )
    # Both sides are padded alike and the first rows cut off: TFLite's converter takes uneven padding, and gives wrong
    # numbers.
    above, before = window.output_padding
    return x[:, above:, before:]


def max_pool(x: jax.Array, window: PoolWindow) -> jax.Array:
    """[B, H, W, C] -> [B, H', W', C], the largest pixel of each window."""
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, *window.size, 1), (1, *window.stride, 1), ((0, 0), *window.padding, (0, 0))
    )


def map_axis(x: jax.Array, matrix: np.ndarray, axis: int) -> jax.Array:
    """`matrix` [new, old] along axis 1 or 2 of [B, H, W, C], as a product of matrices."""
    return jnp.einsum(('oh,bhwc->bowc', 'ow,bhwc->bhoc')[axis - 1], matrix.astype(x.dtype), x)
