"""Building blocks that every network here shares: convolution + norm, classifier. All shapes are NHWC."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from atonet_jax.ops import batch_normalize, batch_statistics, conv, conv_prepared, normalize_by_batch, prepare_kernel

BN_MOMENTUM = 0.9  # torch's 0.1, which weighs the new value, not the old one
BN_EPSILON = 1e-5

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

        mean, var = running_mean.value, running_var.value
        if train:
            mean, var = batch_statistics(x)
            count = x.size // x.shape[-1]
            if not self.is_initializing():
                unbiased_var = var * (count / max(count - 1, 1))
                running_mean.value = BN_MOMENTUM * running_mean.value + (1 - BN_MOMENTUM) * mean
                running_var.value = BN_MOMENTUM * running_var.value + (1 - BN_MOMENTUM) * unbiased_var
            x = normalize_by_batch(x, scale, bias, mean, var, BN_EPSILON)
        else:
            x = batch_normalize(x, scale, bias, mean, var, BN_EPSILON)
        return x.astype(self.dtype)


def _conv(x, kernel, strides, padding, **_):
    """`ops.conv` as `nn.Conv` calls it."""
    return conv(x, kernel, strides, padding)


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
            kernel = self.variable('winograd', 'kernel', prepare_kernel, params['kernel'])
            x = conv_prepared(x, kernel.value) + params['bias']
            return nn.relu(x) if self.relu else x
        x = nn.Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            strides=self.stride,
            padding=self.kernel_size // 2,
            use_bias=is_folded,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            conv_general_dilated=_conv if train else None,
            name='conv',
        )(x)
        if not is_folded:
            x = BatchNorm(self.dtype, name='bn')(x, train)
        return nn.relu(x) if self.relu else x

    def _goes_by_winograd(self, x: jax.Array) -> bool:
        """Where it suits the convolution, and 'winograd' is given or asked for (`winograd_kernels`)."""
        if self.has_variable('winograd', 'kernel'):
            return True
        shape = self.kernel_size, self.kernel_size, x.shape[-1], self.features
        prepared = jax.eval_shape(lambda: prepare_kernel(jnp.zeros(shape, self.dtype), self.stride))
        return self.winograd and prepared is not None and self.is_mutable_collection('winograd')


def winograd_kernels(model: nn.Module, params: Mapping[str, Any]) -> dict[str, Any]:
    """{'winograd'} beside {'params'} of `fold_batch_norms`: with it, convolutions of many channels go by Winograd.

    Up to twice as fast on CPUs; four times the memory of their kernels.
    """

    def prepare(params, images):
        return model.apply(params, images, train=False, mutable=['winograd'])[1]

    wanted = jax.eval_shape(prepare, params, jnp.zeros((1, 64, 64, 3)))
    kernels = flatten_dict(params['params'])
    transform = jax.jit(prepare_kernel)
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
            conv_general_dilated=_conv if train else None,
            name='conv',
        )(x)
