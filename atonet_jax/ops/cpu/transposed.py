"""Transposed convolution: phase by phase, and its kernel gradient by strips.

Many times faster on CPUs than XLA's own programs (`benchmarks/cpu_operations.py`).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from atonet_jax.ops import plain
from atonet_jax.ops.cpu import strips
from atonet_jax.ops.window import DIMENSIONS, Pair, TransposedWindow

_FEW_FEATURES = 32


def is_faster(x: jax.Array, kernel: jax.Array, window: TransposedWindow) -> bool:
    """Whether `convolve` has a faster program for CPUs than XLA's own, of values or of gradients."""
    return x.dtype in (jnp.float32, jnp.bfloat16) and (window.groups == 1 or _is_depthwise(kernel, window))


def _is_depthwise(kernel, window):
    return kernel.shape[2] == window.groups and kernel.shape[3] == 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, window: TransposedWindow) -> jax.Array:
    """`plain.conv_transpose` for which CPUs run the programs of this module; `is_faster` must hold."""
    by_default = functools.partial(plain.conv_transpose, window=window)
    if window.groups == 1 and not _gains_by_phases(kernel, window):
        return by_default(x, kernel)
    by_phases = functools.partial(_dense if window.groups == 1 else _depthwise, window=window)
    return jax.lax.platform_dependent(x, kernel, cpu=by_phases, default=by_default)


def _forward(x, kernel, window):
    return convolve(x, kernel, window), (x, kernel)


def _backward(window, saved, cotangent):
    def by_default(x, kernel, cotangent):
        transposed = jax.linear_transpose(lambda kernel: plain.conv_transpose(x, kernel, window), kernel)
        return input_gradient(x, kernel, cotangent), transposed(cotangent)[0]

    def input_gradient(x, kernel, cotangent):
        return jax.linear_transpose(lambda x: plain.conv_transpose(x, kernel, window), x)(cotangent)[0]

    def on_cpu(x, kernel, cotangent):
        if window.groups > 1:
            return jax.vjp(functools.partial(_depthwise, window=window), x, kernel)[1](cotangent)
        *size, channels, features = kernel.shape
        kernel_gradient = strips.kernel_gradient(cotangent, x, (*size, features, channels), window.of_convolution())
        return input_gradient(x, kernel, cotangent), kernel_gradient.swapaxes(2, 3)

    return jax.lax.platform_dependent(*saved, cotangent, cpu=on_cpu, default=by_default)


convolve.defvjp(_forward, _backward)


def _gains_by_phases(kernel, window) -> bool:
    """Whether taps fill whole strides, or so few channels result that XLA's own program leaves vectors half empty."""
    has_whole_steps = all(taps % step == 0 for taps, step in zip(kernel.shape[:2], window.stride, strict=True))
    return has_whole_steps or kernel.shape[3] < _FEW_FEATURES


def _dense(x, kernel, window):
    """[B, H, W, C], [kh, kw, C, O]: one convolution whose channels are the pixels that one step of the stride covers.

    XLA's own program convolves a map with zeros between the pixels, and multiplies by them.
    """
    size, features = window.output_size(x.shape[1:3], kernel.shape[:2]), kernel.shape[3]
    kernel = _by_steps(kernel, window.stride)
    down, rows, across, columns = kernel.shape[:4]
    kernel = kernel[::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5).reshape(down, across, x.shape[3], -1)
    phases = jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((down - 1, down - 1), (across - 1, across - 1)),
        dimension_numbers=DIMENSIONS,
    )
    batch, height, width, _ = phases.shape
    whole = phases.reshape(batch, height, width, rows, columns, features).transpose(0, 1, 3, 2, 4, 5)
    return _cut(whole.reshape(batch, height * rows, width * columns, features), window.padding, size)


def _by_steps(kernel: jax.Array, stride: Pair) -> jax.Array:
    """[kh, kw, ...] -> [down, rows, across, columns, ...], where rows and columns are the stride; zeros at the end.

    Output pixel q * stride + r takes tap j * stride + r of input pixel q - j.
    """
    down, across = (-(-taps // step) for taps, step in zip(kernel.shape[:2], stride, strict=True))
    missing = down * stride[0] - kernel.shape[0], across * stride[1] - kernel.shape[1]
    kernel = jnp.pad(kernel, ((0, missing[0]), (0, missing[1]), *((0, 0),) * (kernel.ndim - 2)))
    return kernel.reshape(down, stride[0], across, stride[1], *kernel.shape[2:])


def _depthwise(x, kernel, window):
    """[B, H, W, C], [kh, kw, C, 1]: the pixels that one step of the stride covers are computed side by side."""
    batch, height, width, channels = x.shape
    size = window.output_size(x.shape[1:3], kernel.shape[:2])
    kernel = _by_steps(kernel[:, :, :, 0].astype(jnp.float32), window.stride)
    down, rows, across, columns = kernel.shape[:4]
    x_padded = jnp.pad(x, ((0, 0), (down - 1, down - 1), (across - 1, across - 1), (0, 0)))

    whole = 0
    height, width = height + down - 1, width + across - 1
    for j, i in np.ndindex(down, across):
        top, left = down - 1 - j, across - 1 - i
        pixels = x_padded[:, top : top + height, left : left + width].astype(jnp.float32)
        whole += pixels[:, :, None, :, None] * kernel[j, :, i][:, None]
    whole = whole.reshape(batch, height * rows, width * columns, channels).astype(x.dtype)
    return _cut(whole, window.padding, size)


def _cut(x: jax.Array, first: Pair, size: Pair) -> jax.Array:
    """The part of `size` that begins at `first`; zeros beyond the map."""
    x = x[:, first[0] : first[0] + size[0], first[1] : first[1] + size[1]]
    below, right = (new - old for new, old in zip(size, x.shape[1:3], strict=True))
    return jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0)))
