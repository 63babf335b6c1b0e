"""Which program CPUs run for a convolution and for its gradients.

Products of patches for few pixels; Winograd's for many channels; whole vectors of output channels; kernel gradients by
strips of rows for the rest; taps for depthwise convolutions; for other groups one convolution a group, because XLA's
own grouped convolutions are slow (`benchmarks/cpu_operations.py`). What is left goes by XLA's own program. Values and
gradients are those of the plain program except for rounding.
"""

import functools

import jax
import jax.numpy as jnp

from atonet_jax.ops import plain
from atonet_jax.ops.cpu import depthwise, patches, strips, winograd
from atonet_jax.ops.window import ConvWindow

_MOST_GROUPS = 32  # programs grow with them
_VECTOR = 16  # float32 numbers


def is_faster(x: jax.Array, kernel: jax.Array, window: ConvWindow) -> bool:
    """Whether `convolve` has a faster program for CPUs than XLA's own, of values or of gradients."""
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        return False
    size = x.shape[1:3]
    if all(isinstance(length, int) for length in size) and min(window.output_size(size, kernel.shape[:2])) < 1:
        return False  # gives no pixel
    if window.groups == 1:
        suits_strips = strips.suits(x.shape[3], kernel.shape[:2], window)
        is_small = patches.suits(x, kernel, window)
        return is_small or suits_strips or _gains_by_padding(kernel) or _trains_by_winograd(x, kernel, window)
    return depthwise.suits(kernel) or window.groups <= _MOST_GROUPS


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, window: ConvWindow) -> jax.Array:
    """`plain.conv` for which CPUs run the programs of this module; `is_faster` must hold."""
    if window.groups > 1:
        on_cpu = _convolve_on_cpu
    elif patches.suits(x, kernel, window):
        on_cpu = patches.convolve
    else:
        on_cpu = _convolve_padded if _gains_by_padding(kernel) else None
    return _on_cpus(on_cpu, plain.conv, window)(x, kernel)


def _forward(x, kernel, window):
    if not _trains_by_winograd(x, kernel, window):
        return convolve(x, kernel, window), (x, kernel)
    return _on_cpus(_convolve_by_winograd, plain.conv, window)(x, kernel), (x, kernel)


def _backward(window, saved, cotangent):
    return _on_cpus(_gradients_on_cpu, _plain_gradients, window)(*saved, cotangent)


convolve.defvjp(_forward, _backward)


def _on_cpus(on_cpu, default, window):
    """One function for CPUs, where there is one, and another for all other devices."""
    default = functools.partial(default, window=window)
    if on_cpu is None:
        return default
    return functools.partial(jax.lax.platform_dependent, cpu=functools.partial(on_cpu, window=window), default=default)


def _convolve_by_winograd(x, kernel, window):
    return winograd.convolve(x, winograd.transform_kernel(kernel))


def _gains_by_padding(kernel) -> bool:
    """Whether whole vectors of output channels take less time: XLA's own program is slow where some are left over."""
    features = kernel.shape[3]
    return features > _VECTOR and features % _VECTOR > 0


def _convolve_padded(x, kernel, window):
    features = kernel.shape[3]
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, 0), (0, -features % _VECTOR)))
    return plain.conv(x, kernel, window)[..., :features]


def _convolve_on_cpu(x, kernel, window):
    """With groups."""
    if depthwise.suits(kernel):
        return depthwise.convolve(x, kernel, window)
    parts = zip(*_split(window.groups, x, kernel), strict=True)
    return jnp.concatenate([plain.conv(*part, window._replace(groups=1)) for part in parts], 3)


def _gradients_on_cpu(x, kernel, cotangent, window):
    if window.groups == 1:
        if patches.suits(x, kernel, window):
            kernel_gradient = patches.kernel_gradient(x, cotangent, kernel.shape, window)
            return patches.input_gradient(cotangent, kernel, x.shape, window), kernel_gradient
        if _trains_by_winograd(x, kernel, window):
            return winograd.input_gradient(cotangent, kernel), winograd.kernel_gradient(x, cotangent)
        if strips.suits(x.shape[3], kernel.shape[:2], window):
            kernel_gradient = strips.kernel_gradient(x, cotangent, kernel.shape, window)
            return _plain_input_gradient(x, kernel, cotangent, window), kernel_gradient
        return _plain_gradients(x, kernel, cotangent, window)
    if depthwise.suits(kernel):
        kernel_gradient = depthwise.kernel_gradient(x, cotangent, kernel.shape, window)
        return depthwise.input_gradient(cotangent, kernel, x.shape, window), kernel_gradient
    parts = zip(*_split(window.groups, x, kernel, cotangent), strict=True)
    gradients = [_gradients_on_cpu(*part, window._replace(groups=1)) for part in parts]
    return tuple(jnp.concatenate(of_groups, 3) for of_groups in zip(*gradients, strict=True))


def _split(groups, *arrays):
    return [jnp.split(array, groups, 3) for array in arrays]


def _plain_gradients(x, kernel, cotangent, window):
    transposed = jax.linear_transpose(lambda kernel: plain.conv(x, kernel, window), kernel)
    return _plain_input_gradient(x, kernel, cotangent, window), transposed(cotangent)[0]


def _plain_input_gradient(x, kernel, cotangent, window):
    return jax.linear_transpose(lambda x: plain.conv(x, kernel, window), x)(cotangent)[0]


def is_winograds(kernel: jax.Array, window: ConvWindow) -> bool:
    """Whether Winograd's F(4x4, 3x3) computes this convolution."""
    is_3x3 = kernel.shape[:2] == (3, 3) and window == ConvWindow((1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    return is_3x3 and kernel.dtype == jnp.float32


def _trains_by_winograd(x, kernel, window) -> bool:
    """Where it can, and transforming the kernel is less work than transforming the images."""
    if not is_winograds(kernel, window) or not all(isinstance(length, int) for length in x.shape):
        return False  # of any batch, as exports have it: which is less work is not known
    if patches.suits(x, kernel, window):
        return False
    channels, features = kernel.shape[2:]
    tiles = x.shape[0] * -(-x.shape[1] // winograd.TILE) * -(-x.shape[2] // winograd.TILE)
    worth_transforming = channels * features <= tiles * (channels + features)
    return worth_transforming and max(channels, features) >= winograd.LEAST_CHANNELS
