"""Convolution, transposed convolution, and convolution with a kernel that was prepared for inference."""

from typing import Any

import jax

from atonet_jax.errors import InputError
from atonet_jax.ops import canvas, plain
from atonet_jax.ops.cpu import convolution as cpu_convolution
from atonet_jax.ops.cpu import has_fast_paths, transposed, winograd
from atonet_jax.ops.window import ConvWindow, IntOrPair, Padding, TransposedWindow, padding_pairs, pair


def conv(
    x: jax.Array,
    kernel: jax.Array,
    stride: IntOrPair = 1,
    padding: Padding | None = None,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> jax.Array:
    """Convolution (cross-correlation, as every framework calls it) with zero padding.

    On CPUs its gradients, and the values where there are groups or an uneven number of channels, go by faster programs
    where these are tested and pay (`ops.cpu.convolution`).

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
    if canvas.is_used():
        x = _masked(x, kernel, window)
    if has_fast_paths() and cpu_convolution.is_faster(x, kernel, window):
        return cpu_convolution.convolve(x, kernel, window)
    return plain.conv(x, kernel, window)


def _masked(x, kernel, window):
    """Of a canvas, as the window sees it."""
    rows, columns = (step * (taps - 1) + 1 for taps, step in zip(kernel.shape[:2], window.dilation, strict=True))
    canvas.check_window(x, (rows, columns), window.stride, window.padding, 'convolution')
    return x if (rows, columns) == (1, 1) else canvas.masked(x)


def _window(kernel, stride, padding, dilation, groups) -> ConvWindow:
    dilation = pair(dilation)
    if padding is None:
        padding = [size // 2 * step for size, step in zip(kernel.shape, dilation, strict=False)]
    return ConvWindow(pair(stride), padding_pairs(padding), dilation, groups)


def conv_transpose(
    x: jax.Array,
    kernel: jax.Array,
    stride: IntOrPair,
    padding: IntOrPair,
    output_padding: IntOrPair = 0,
    groups: int = 1,
) -> jax.Array:
    """Transposed convolution, as torch's ConvTranspose2d computes it.

    On CPUs the kernel's gradient, and the values where few channels result, go by faster programs
    (`ops.cpu.transposed`).

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
    channels = kernel.shape[2]
    if x.shape[-1] != channels or channels % groups:
        raise InputError(
            f'transposed convolution: x has {x.shape[-1]} channels, the kernel [kh, kw, C, O / groups] is '
            f'{tuple(kernel.shape)} and groups is {groups}; C must be {channels} and groups divide it'
        )
    window = TransposedWindow(pair(stride), pair(padding), pair(output_padding), groups)
    kernel = kernel.astype(x.dtype)
    if canvas.is_used():
        canvas.check_transposed(x, kernel.shape[:2], window)
        x = canvas.masked(x)
    if has_fast_paths() and transposed.is_faster(x, kernel, window):
        return transposed.convolve(x, kernel, window)
    return plain.conv_transpose(x, kernel, window)


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
    return winograd.convolve(canvas.masked(x), prepared)
