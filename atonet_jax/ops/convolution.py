"""Convolution, transposed convolution, and convolution with a kernel that was prepared for inference."""

from typing import Any

import jax

from atonet_jax.errors import InputError
from atonet_jax.ops.cpu import convolution as cpu_convolution
from atonet_jax.ops.cpu import has_fast_paths, winograd
from atonet_jax.ops.window import IntOrPair, Padding, padding_pairs, pair


def conv(
    x: jax.Array,
    kernel: jax.Array,
    stride: IntOrPair = 1,
    padding: Padding | None = None,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> jax.Array:
    """Convolution (cross-correlation, as every framework calls it) with zero padding.

    On CPUs its gradients go by a faster program where that is tested and pays (`ops.cpu.convolution`).

    Args:
        x: [B, H, W, C] float32 or bfloat16.
        kernel: [kh, kw, C / groups, O], cast to x's dtype.
        stride: for rows and columns, or a pair (rows, columns).
        padding: for all sides, (rows, columns), or ((top, bottom), (left, right)). None: (k // 2) * dilation on both
            sides of each axis, which keeps the size where k is odd and the stride is 1.
        dilation: distance between the kernel's taps, or (rows, columns).
        groups: output channel o sees the input channels of its group alone; groups = C is a depthwise convolution.

    Returns:
        [B, H', W', O] in x's dtype, H' = (H + top + bottom - dilation * (kh - 1) - 1) // stride + 1.

    Raises:
        InputError: the channels of x, the kernel and the groups do not go together.
    """
    if x.shape[-1] != kernel.shape[2] * groups or kernel.shape[3] % groups:
        raise InputError(
            f'convolution: x has {x.shape[-1]} channels, the kernel [kh, kw, C / groups, O] is '
            f'{tuple(kernel.shape)} and groups is {groups}; C must be {kernel.shape[2] * groups} and groups divide O'
        )
    window = _window(kernel, stride, padding, dilation, groups)
    kernel = kernel.astype(x.dtype)
    if has_fast_paths() and cpu_convolution.has_fast_gradient(x, window):
        return cpu_convolution.convolve(x, kernel, window)
    return cpu_convolution.plain(x, kernel, window)


def _window(kernel, stride, padding, dilation, groups) -> cpu_convolution.Window:
    dilation = pair(dilation)
    if padding is None:
        padding = [size // 2 * step for size, step in zip(kernel.shape, dilation, strict=False)]
    return cpu_convolution.Window(pair(stride), padding_pairs(padding), dilation, groups)


def conv_transpose(
    x: jax.Array,
    kernel: jax.Array,
    stride: IntOrPair,
    padding: IntOrPair,
    output_padding: IntOrPair = 0,
    groups: int = 1,
) -> jax.Array:
    """Transposed convolution, as torch's ConvTranspose2d computes it.

    Args:
        x: [B, H, W, C] float32 or bfloat16.
        kernel: [kh, kw, C, O / groups], cast to x's dtype. Of torch's (in, out / groups, kh, kw) it is
            `transpose(2, 3, 0, 1)`.
        stride: factor by which the map grows, or (rows, columns).
        padding: rows and columns that are cut from each side of the result, or (rows, columns).
        output_padding: rows at the bottom and columns on the right that are computed beyond that, or (rows, columns).
        groups: as in `conv`.

    Returns:
        [B, H', W', O] in x's dtype, H' = (H - 1) * stride - 2 * padding + kh + output_padding.

    Raises:
        InputError: the channels of x, the kernel and the groups do not go together.
    """
    height, width, channels, features = kernel.shape
    if x.shape[-1] != channels or channels % groups:
        raise InputError(
            f'transposed convolution: x has {x.shape[-1]} channels, the kernel [kh, kw, C, O / groups] is '
            f'{tuple(kernel.shape)} and groups is {groups}; C must be {channels} and groups divide it'
        )
    kernel = kernel.astype(x.dtype)[::-1, ::-1].reshape(height, width, groups, channels // groups, features)
    kernel = kernel.transpose(0, 1, 3, 2, 4).reshape(height, width, channels // groups, groups * features)
    sides = zip((height, width), pair(padding), pair(output_padding), strict=True)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=[(size - 1 - cut, size - 1 - cut + more) for size, cut, more in sides],
        lhs_dilation=pair(stride),
        dimension_numbers=cpu_convolution.DIMENSIONS,
        feature_group_count=groups,
    )


def prepare_kernel(
    kernel: jax.Array,
    stride: IntOrPair = 1,
    padding: Padding | None = None,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> Any | None:
    """What `conv_prepared` takes in place of a kernel, for inference on CPUs; None where `conv` is best.

    Today that is Winograd's transform of 3x3 kernels of many input channels, in float32: up to twice as fast, with
    four times the kernel's memory. Whether it is None depends on shapes, dtype and the switch of `ops.cpu` alone, not
    on values: the kernel may be a tracer. It does not depend on the platform: prepare only where inference runs on
    CPUs.

    Args:
        kernel: [kh, kw, C / groups, O].
        stride, padding, dilation, groups: as in `conv`.
    """
    window = _window(kernel, stride, padding, dilation, groups)
    if not has_fast_paths() or not cpu_convolution.is_winograds(kernel, window):
        return None
    return winograd.transform_kernel(kernel) if kernel.shape[2] >= winograd.LEAST_CHANNELS else None


def conv_prepared(x: jax.Array, prepared: Any) -> jax.Array:
    """`conv` of [B, H, W, C] float32 with what `prepare_kernel` gave -> [B, H, W, O] float32."""
    return winograd.convolve(x, prepared)
