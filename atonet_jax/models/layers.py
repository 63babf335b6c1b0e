"""Building blocks that every network here shares: convolution + norm, pooling, resizing. All shapes are NHWC.

Pooling to a grid and both kinds of resizing are linear maps along one axis at a time, so each is a small constant
matrix; bilinear enlargement by an integer factor needs no matrix: every output pixel is one of `factor` fixed blends
of two neighbours.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from atonet_jax.ops.cpu import gradients as cpu_gradients
from atonet_jax.ops.cpu import winograd

BN_MOMENTUM = 0.9  # torch's 0.1, which weighs the new value, not the old one
BN_EPSILON = 1e-5
_MOST_PHASES = 16

# torch's default for convolutions, U(-1/sqrt(fan_in), 1/sqrt(fan_in)), and for a residual network's backbone the
# one that torchvision uses, N(0, 2/fan_out).
torch_default_init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
kaiming_fan_out_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class BatchNorm(nn.Module):
    """Batch normalisation as torch has it.

    A batch of n values a channel is normalised by its biased variance, while the running variance takes the unbiased
    one, n / (n - 1) times as large, which `nn.BatchNorm` does not. n is small where SPP pools to few cells.
    Statistics are over the whole batch on all devices. Computes in float32; returns `dtype`.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]; with `train` 'batch_stats' must be mutable."""
        channels = x.shape[-1:]
        scale = self.param('scale', nn.initializers.ones, channels)
        bias = self.param('bias', nn.initializers.zeros, channels)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels)
        running_var = self.variable('batch_stats', 'var', jnp.ones, channels)

        x = x.astype(jnp.float32)
        mean, var = running_mean.value, running_var.value
        if train:
            mean = jnp.mean(x, (0, 1, 2))
            var = jnp.maximum(jnp.mean(jnp.square(x), (0, 1, 2)) - jnp.square(mean), 0.0)
            count = x.size // x.shape[-1]
            if not self.is_initializing():
                unbiased_var = var * (count / max(count - 1, 1))
                running_mean.value = BN_MOMENTUM * running_mean.value + (1 - BN_MOMENTUM) * mean
                running_var.value = BN_MOMENTUM * running_var.value + (1 - BN_MOMENTUM) * unbiased_var
            x = _normalize_by_batch(x, scale, bias, *jax.lax.stop_gradient((mean, var)))
        else:
            x = _normalize(x, scale, bias, mean, var)
        return x.astype(self.dtype)


def _normalize(x, scale, bias, mean, var):
    return (x - mean) * (scale * jax.lax.rsqrt(var + BN_EPSILON)) + bias


# Where mean and var are those of x itself: of scale, bias, and of x both directly and by way of mean and var. JAX finds
# the same gradient by itself, in more sums over maps, which take their time to read.
_normalize_by_batch = jax.custom_vjp(_normalize)


def _normalize_forward(x, scale, bias, mean, var):
    return _normalize(x, scale, bias, mean, var), (x, scale, mean, var)


def _normalize_backward(saved, cotangent):
    x, scale, mean, var = saved
    inverse = jax.lax.rsqrt(var + BN_EPSILON)
    count = x.size // x.shape[-1]
    bias_gradient = jnp.sum(cotangent, (0, 1, 2))
    scale_gradient = (jnp.sum(cotangent * x, (0, 1, 2)) - mean * bias_gradient) * inverse
    x_gradient = scale * inverse * (cotangent - bias_gradient / count - (x - mean) * (inverse * scale_gradient / count))
    return x_gradient, scale_gradient, bias_gradient, None, None


_normalize_by_batch.defvjp(_normalize_forward, _normalize_backward)


class ConvNorm(nn.Module):
    """Convolution without bias, symmetric zero padding, batch normalisation, optionally ReLU.

    `dtype` is the compute type; parameters and running statistics are float32 whatever it is. With variables of
    `fold_batch_norms` the normalisation is in the convolution already. `winograd` False keeps inference on CPUs from
    Winograd's convolution, which is faster, where its transforms, several times the map, would be most of the memory.
    """

    features: int
    kernel_size: int
    stride: int = 1
    relu: bool = True
    kernel_init: nn.initializers.Initializer = torch_default_init
    dtype: jnp.dtype = jnp.float32
    winograd: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        is_folded = not self.is_initializing() and not self.has_variable('params', 'bn')
        if is_folded and self._goes_by_winograd(x):
            params = self.get_variable('params', 'conv')
            kernel = self.variable('winograd', 'kernel', winograd.transform_kernel, params['kernel'])
            x = winograd.convolve(x, kernel.value) + params['bias']
            return nn.relu(x) if self.relu else x
        x = nn.Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            strides=self.stride,
            padding=self.kernel_size // 2,
            use_bias=is_folded,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            conv_general_dilated=cpu_gradients.conv_general_dilated if train else None,
            name='conv',
        )(x)
        if not is_folded:
            x = BatchNorm(self.dtype, name='bn')(x, train)
        return nn.relu(x) if self.relu else x

    def _goes_by_winograd(self, x: jax.Array) -> bool:
        """Where it suits the convolution, and 'winograd' is given or asked for (`winograd_kernels`)."""
        is_3x3 = self.kernel_size == 3 and self.stride == 1
        suits = self.winograd and is_3x3 and x.shape[-1] >= winograd.LEAST_CHANNELS
        return suits and (self.has_variable('winograd', 'kernel') or self.is_mutable_collection('winograd'))


def winograd_kernels(model: nn.Module, params: Mapping[str, Any]) -> dict[str, Any]:
    """{'winograd'} beside {'params'} of `fold_batch_norms`: with it, convolutions of many channels go by Winograd.

    Up to twice as fast on CPUs; four times the memory of their kernels.
    """

    def prepare(params, images):
        return model.apply(params, images, train=False, mutable=['winograd'])[1]

    wanted = jax.eval_shape(prepare, params, jnp.zeros((1, 64, 64, 3)))
    kernels = flatten_dict(params['params'])
    transform = jax.jit(winograd.transform_kernel)
    return unflatten_dict({path: transform(kernels[*path[1:-1], 'conv', 'kernel']) for path in flatten_dict(wanted)})


def fold_batch_norms(variables: Mapping[str, Any], dtype: jnp.dtype = jnp.float32) -> dict[str, Any]:
    """{'params'} that compute in evaluation what `variables` do, each BN within the convolution before it.

    Kernels of such convolutions are given in `dtype`, all else in float32.
    """

    def fold(params, batch_stats):
        if 'bn' not in params:
            return {name: fold(child, batch_stats.get(name, {})) if isinstance(child, Mapping) else child
                    for name, child in params.items()}  # fmt: skip
        kernel, bn, statistics = params['conv']['kernel'], params['bn'], batch_stats['bn']
        scale = bn['scale'] * jax.lax.rsqrt(statistics['var'] + BN_EPSILON)
        return {'conv': {'kernel': (kernel * scale).astype(dtype), 'bias': bn['bias'] - statistics['mean'] * scale}}

    return {'params': fold(variables['params'], variables['batch_stats'])}


class Classifier(nn.Module):
    """1x1 convolution with bias to class logits, float32 whatever the features are."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, num_classes] float32."""
        bound = x.shape[-1] ** -0.5

        def torch_default_bias_init(key, shape, dtype=jnp.float32):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return nn.Conv(
            self.num_classes,
            (1, 1),
            padding=0,
            kernel_init=torch_default_init,
            bias_init=torch_default_bias_init,
            dtype=jnp.float32,
            conv_general_dilated=cpu_gradients.conv_general_dilated if train else None,
            name='conv',
        )(x)


def max_pool(x: jax.Array, train: bool) -> jax.Array:
    """Max-pooling 3x3, stride 2, padding 1: [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C]."""
    return cpu_gradients.max_pool(x) if train else cpu_gradients.max_pool_by_window(x)


def adaptive_avg_pool(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Average-pools [B, H, W, C] to [B, *size, C] by torch's rule; `size` may exceed (H, W)."""
    rows, columns = (adaptive_pool_matrix(old, new) for old, new in zip(x.shape[1:3], size, strict=True))
    return _map_rows_and_columns(x, rows, columns)


def resize_align_corners(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear resize of [B, H, W, C] to [B, *size, C] in which the corner pixels' centres stay where they are."""
    rows, columns = (align_corners_matrix(old, new) for old, new in zip(x.shape[1:3], size, strict=True))
    return _map_rows_and_columns(x, rows, columns)


@partial(jax.jit, static_argnames='size')  # a call by name, which the ONNX export recognises
def resize_bilinear(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear half-pixel resize (no antialiasing) of [B, H, W, C] to [B, *size, C]."""
    for axis in (2, 1):  # rows last: whole ones are moved where most is
        old, new = x.shape[axis], size[axis - 1]
        if new == old:
            continue
        if new % old == 0:
            phases = jnp.stack(enlarged_phases(x, new // old, axis), axis + 1)
            x = phases.reshape(*x.shape[:axis], new, *x.shape[axis + 1 :])
        else:
            x = _map_axis(x, _half_pixel_matrix(old, new), axis)
    return x


def enlarged_phases(x: jax.Array, factor: int, axis: int) -> list[jax.Array]:
    """Bilinear half-pixel enlargement by an integer factor, not interleaved.

    Element p holds output pixels p, p + factor, p + 2 * factor, ... along `axis`, in the shape of `x`.
    """
    pixels = with_neighbours(x, axis)
    return [
        sum(weight * part for weight, part in zip(weights, pixels, strict=True) if weight)
        for weights in phase_weights(factor).tolist()
    ]


def with_neighbours(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The pixels before those of `x` along `axis`, these, and those after them; the outermost stand for their own."""
    length = x.shape[axis]
    before = jnp.concatenate([_slice(x, 0, 1, axis), _slice(x, 0, length - 1, axis)], axis)
    after = jnp.concatenate([_slice(x, 1, length, axis), _slice(x, length - 1, length, axis)], axis)
    return before, x, after


def phase_weights(factor: int) -> np.ndarray:
    """[factor, 3] float32: what each phase of an enlargement by `factor` takes of `with_neighbours`."""
    offsets = (np.arange(factor) + 0.5) / factor - 0.5
    return np.stack([np.maximum(-offsets, 0), 1 - np.abs(offsets), np.maximum(offsets, 0)], 1).astype(np.float32)


def phase_factors(old: tuple[int, int], new: tuple[int, int]) -> tuple[int, int] | None:
    """Row and column factors of an enlargement that is better taken phase by phase than as a whole.

    None where it is not by whole numbers, or has so many phases that programs would grow too large.
    """
    if new[0] % old[0] or new[1] % old[1]:
        return None
    factors = new[0] // old[0], new[1] // old[1]
    return factors if factors[0] * factors[1] <= _MOST_PHASES else None


def _slice(x: jax.Array, start: int, stop: int, axis: int) -> jax.Array:
    return jax.lax.slice_in_dim(x, start, stop, axis=axis)


def _map_axis(x: jax.Array, matrix: np.ndarray, axis: int) -> jax.Array:
    """Applies `matrix` [new, old] along axis 1 or 2 of [B, H, W, C]."""
    return jnp.einsum(('oh,bhwc->bowc', 'ow,bhwc->bhoc')[axis - 1], matrix.astype(x.dtype), x)


def _map_rows_and_columns(x: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    return _map_axis(_map_axis(x, rows, 1), columns, 2)


def adaptive_pool_matrix(old: int, new: int) -> np.ndarray:
    """[new, old]: torch's rule, cell i averages pixels floor(i * old / new) .. ceil((i + 1) * old / new) - 1."""
    matrix = np.zeros((new, old), np.float32)
    for cell in range(new):
        start, stop = cell * old // new, -(-(cell + 1) * old // new)
        matrix[cell, start:stop] = 1 / (stop - start)
    return matrix


def align_corners_matrix(old: int, new: int) -> np.ndarray:
    """[new, old]: bilinear resizing that leaves the first and the last pixel's centre where they are."""
    return _two_tap_matrix(np.arange(new) * ((old - 1) / max(new - 1, 1)), old)


def _half_pixel_matrix(old: int, new: int) -> np.ndarray:
    return _two_tap_matrix((np.arange(new) + 0.5) * (old / new) - 0.5, old)


def _two_tap_matrix(positions: Sequence[float], old: int) -> np.ndarray:
    """[len(positions), old]: linear interpolation at `positions`, clamped to the first and last pixel."""
    positions = np.clip(positions, 0, old - 1)
    lower = np.floor(positions).astype(int)
    upper = np.minimum(lower + 1, old - 1)
    matrix = np.zeros((len(positions), old))
    rows = np.arange(len(positions))
    np.add.at(matrix, (rows, lower), 1 - (positions - lower))
    np.add.at(matrix, (rows, upper), positions - lower)
    return matrix.astype(np.float32)
