"""Convolutions that give few pixels, as one product of a matrix of patches with the kernel.

XLA's own program for CPUs swaps map and kernel where the kernel has more taps than the map has pixels, and then takes
tens of times as long. Other maps of few pixels and many channels gain too: the product reads the large kernel once
(`benchmarks/cpu_operations.py`).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from atonet_jax.ops.window import ConvWindow, Pair


def suits(x: jax.Array, kernel: jax.Array, window: ConvWindow) -> bool:
    """Whether a convolution has few pixels beside its output channels, so that the patches are smaller than the kernel.

    Not where the batch or the map is of any size, as in exports.
    """
    taps, features = kernel.shape[0] * kernel.shape[1], kernel.shape[3]
    if window.groups > 1 or taps == 1 or not all(isinstance(length, int) for length in x.shape):
        return False
    size = window.output_size(x.shape[1:3], kernel.shape[:2])
    return 2 * x.shape[0] * math.prod(size) <= features


def convolve(x: jax.Array, kernel: jax.Array, window: ConvWindow) -> jax.Array:
    """[B, H, W, C] with [kh, kw, C, O] -> [B, H', W', O]. Sums are float32."""
    size = window.output_size(x.shape[1:3], kernel.shape[:2])
    product = _product(_patches(x, kernel.shape[:2], window), kernel.reshape(-1, kernel.shape[3]))
    return product.astype(x.dtype).reshape(x.shape[0], *size, -1)


def input_gradient(
    cotangent: jax.Array, kernel: jax.Array, shape: tuple[int, int, int, int], window: ConvWindow
) -> jax.Array:
    """`convolve` transposed: a cotangent [B, H', W', O] -> [B, H, W, C] = `shape`."""
    features = kernel.shape[3]
    product = _product(cotangent.reshape(-1, features), kernel.reshape(-1, features).T)
    x = jax.ShapeDtypeStruct(shape, product.dtype)
    (gradient,) = jax.linear_transpose(lambda x: _patches(x, kernel.shape[:2], window), x)(product)
    return gradient.astype(cotangent.dtype)


def kernel_gradient(
    x: jax.Array, cotangent: jax.Array, kernel_shape: tuple[int, int, int, int], window: ConvWindow
) -> jax.Array:
    """`convolve` transposed in its kernel: [B, H, W, C], a cotangent [B, H', W', O] -> `kernel_shape`."""
    patches = _patches(x, kernel_shape[:2], window)
    return _product(patches.T, cotangent.reshape(-1, kernel_shape[3])).astype(x.dtype).reshape(kernel_shape)


def _product(a, b):
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _patches(x: jax.Array, kernel_size: Pair, window: ConvWindow) -> jax.Array:
    """[B, H, W, C] -> [B * H' * W', kh * kw * C]: what the kernel sees of each output pixel."""
    height, width = window.output_size(x.shape[1:3], kernel_size)
    (rows, columns), dilation = window.stride, np.asarray(window.dilation)
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*sides, 0) for sides in window.padding), (0, 0, 0)])
    parts = [
        x[:, top : top + rows * (height - 1) + 1 : rows, left : left + columns * (width - 1) + 1 : columns]
        for top, left in (dilation * tap for tap in np.ndindex(*kernel_size))
    ]
    return jnp.concatenate(parts, -1).reshape(-1, kernel_size[0] * kernel_size[1] * x.shape[3])
