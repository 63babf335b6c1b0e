"""What several networks share: convolution, batch normalisation, activations, attention. All shapes are NHWC.

A module that can compute faster in inference prepares itself: while the collection 'prepared' is mutable it writes what
it will need, and later reads that in place of its parameters (`models.prepare`). With 'transformed' mutable as well,
kernels for which `ops.prepare_kernel` knows a faster form on CPUs are written there instead.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.errors import InputError
from atonet_jax.ops.window import IntOrPair, Padding, pair

# torch's default for convolutions, U(-1/sqrt(fan_in), 1/sqrt(fan_in)), and for a residual network's backbone the
# one that torchvision uses, N(0, 2/fan_out).
torch_default_init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
kaiming_fan_out_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
kaiming_fan_in_init = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')


def torch_default_init_of(fan_in: int) -> nn.initializers.Initializer:
    """torch's default where the shape does not tell the fan-in: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return init


class _Preparing(nn.Module):
    """A module that has a prepared form."""

    def _is_prepared(self) -> bool:
        """Whether this call computes with prepared variables, or makes them."""
        return self.has_variable('prepared', 'bias') or self.is_mutable_collection('prepared')

    def _prepared(self, name: str, make: Callable[[], Any]) -> Any:
        """A prepared variable; zeros while it is made, so that a trace shows which parameters inference still reads."""
        value = self.variable('prepared', name, make).value
        return jnp.zeros_like(value) if self.is_mutable_collection('prepared') else value

    def _convolve_prepared(self, x, make: Callable[[], tuple[jax.Array, jax.Array]], convolve, shape) -> jax.Array:
        """Convolution and bias with what `make` gives, (kernel, bias), computed once.

        convolve: (x, kernel) -> the convolution. shape: stride and the like, of `ops.prepare_kernel`; None: not asked.
        """
        made = make() if self.is_mutable_collection('prepared') else (None, None)
        bias = self._prepared('bias', lambda: made[1])
        if shape is not None and self.is_mutable_collection('transformed'):
            transformed = ops.prepare_kernel(made[0].astype(self.dtype), **shape)
            if transformed is not None:
                self.variable('transformed', 'kernel', lambda: transformed)
                return convolve(x, jnp.zeros_like(made[0], self.dtype))
        if self.has_variable('transformed', 'kernel'):
            x = ops.conv_prepared(x, self.get_variable('transformed', 'kernel'))
        else:
            x = convolve(x, self._prepared('kernel', lambda: made[0].astype(self.dtype)))
        return x + bias.astype(x.dtype)


class Conv(_Preparing):
    """Convolution.

    Attributes:
        features: output channels.
        kernel_size: of both sides, or (rows, columns); so are stride, padding and dilation.
        padding: zeros at each side; None: (kernel_size // 2) * dilation, which keeps the size at stride 1.
        groups: of channels.
        use_bias: adds one number a channel.
        kernel_init: of the kernel, [kh, kw, C / groups, features].
        bias_init: of the bias; None: torch's default.
        dtype: computes in it; parameters are float32.
        transform: False where the memory of `ops.prepare_kernel`'s form, several times the map, costs more than its
            speed gains.
    """

    features: int
    kernel_size: IntOrPair = 3
    stride: IntOrPair = 1
    padding: Padding | None = None
    dilation: IntOrPair = 1
    groups: int = 1
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = torch_default_init
    bias_init: nn.initializers.Initializer | None = None
    dtype: jnp.dtype = jnp.float32
    transform: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, h, w, features] of `dtype`."""
        x = x.astype(self.dtype)
        shape = {'stride': self.stride, 'padding': self.padding, 'dilation': self.dilation, 'groups': self.groups}

        def make():
            params = self.variables['params']
            return params['kernel'], params.get('bias', jnp.zeros(self.features))

        if not self.is_initializing() and self._is_prepared():
            convolve = functools.partial(ops.conv, **shape)
            return self._convolve_prepared(x, make, convolve, shape if self.transform else None)
        size = pair(self.kernel_size)
        kernel = self.param('kernel', self.kernel_init, (*size, x.shape[-1] // self.groups, self.features))
        x = ops.conv(x, kernel.astype(self.dtype), **shape)
        if self.use_bias:
            fan_in = size[0] * size[1] * kernel.shape[2]
            bias_init = self.bias_init or torch_default_init_of(fan_in)
            x += self.param('bias', bias_init, (self.features,)).astype(x.dtype)
        return x


class ConvTranspose(nn.Module):
    """Transposed convolution as torch has it: `ops.conv_transpose`.

    Attributes as in `Conv`; `output_padding` is added to the size at the bottom and the right.

    Attributes:
        fan: whose channels the fan-in of torch's default initialisation counts: those of the 'output', as PyTorch
            does, or of the 'input', as Torch7 does.
        kernel_init: of the kernel, [kh, kw, C, features]; None: torch's default.
    """

    features: int
    kernel_size: IntOrPair = 3
    stride: IntOrPair = 2
    padding: IntOrPair = 1
    output_padding: IntOrPair = 1
    use_bias: bool = False
    fan: str = 'output'
    kernel_init: nn.initializers.Initializer | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, h, w, features] of `dtype`; h = (H - 1) * stride - 2 * padding + kernel + output."""
        size = pair(self.kernel_size)
        counted = self.features if self.fan == 'output' else x.shape[-1]
        default_init = torch_default_init_of(size[0] * size[1] * counted)
        shape = *size, x.shape[-1], self.features
        kernel = self.param('transposed_kernel', self.kernel_init or default_init, shape)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        x = ops.conv_transpose(x, kernel, self.stride, self.padding, self.output_padding)
        if self.use_bias:
            x += self.param('bias', default_init, (self.features,)).astype(x.dtype)
        return x


class BatchNorm(_Preparing):
    """Batch normalisation as torch has it.

    A batch of n values a channel is normalised by its biased variance; the running variance takes the unbiased one,
    n / (n - 1) times as large, which `flax.linen.BatchNorm` does not. Statistics are over the whole batch on all
    devices. Computes in float32.

    Attributes:
        epsilon: added to the variance.
        momentum: weight of the old running value: 1 - torch's momentum.
        dtype: of the result.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]; with `train` 'batch_stats' must be mutable."""
        channels = x.shape[-1:]
        if not train and not self.is_initializing() and self._is_prepared():
            made = scale_and_shift(self) if self.is_mutable_collection('prepared') else (None, None)
            scale, shift = (self._prepared(name, lambda i=i: made[i]) for i, name in enumerate(('scale', 'bias')))
            return (x * scale.astype(x.dtype) + shift.astype(x.dtype)).astype(self.dtype)

        scale = self.param('scale', nn.initializers.ones, channels)
        bias = self.param('bias', nn.initializers.zeros, channels)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels)
        running_var = self.variable('batch_stats', 'var', jnp.ones, channels)
        x = x.astype(jnp.float32)
        if train:
            mean, var = ops.batch_statistics(x)
            if not self.is_initializing():
                count = x.size // x.shape[-1]
                if count == 1:
                    raise InputError(
                        f'config.train.batch_size: {"/".join(self.path)} normalises one value a channel, which has no '
                        'variance; give two images or more at once (batch_size divided by train.accumulation)'
                    )
                unbiased_var = var * (count / (count - 1))
                running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
                running_var.value = self.momentum * running_var.value + (1 - self.momentum) * unbiased_var
            x = ops.normalize_by_batch(x, scale, bias, mean, var, self.epsilon)
        else:
            x = ops.batch_normalize(x, scale, bias, running_mean.value, running_var.value, self.epsilon)
        return x.astype(self.dtype)


def scale_and_shift(bn: BatchNorm) -> tuple[jax.Array, jax.Array]:
    """What a bound batch normalisation multiplies with and adds in inference: two of [C] float32."""
    params, statistics = bn.variables['params'], bn.variables['batch_stats']
    scale = params['scale'] * jax.lax.rsqrt(statistics['var'] + bn.epsilon)
    return scale, params['bias'] - statistics['mean'] * scale


class ConvNorm(_Preparing):
    """Convolution, batch normalisation, activation.

    The prepared form has the normalisation within the convolution. Attributes as in `Conv` and `BatchNorm`;
    `activation` maps an array to an array, None: none.
    """

    features: int
    kernel_size: IntOrPair = 3
    stride: IntOrPair = 1
    padding: Padding | None = None
    dilation: IntOrPair = 1
    groups: int = 1
    use_bias: bool = False
    activation: Callable[[jax.Array], jax.Array] | None = nn.relu
    epsilon: float = 1e-5
    momentum: float = 0.9
    kernel_init: nn.initializers.Initializer = torch_default_init
    dtype: jnp.dtype = jnp.float32
    transform: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, h, w, features] of `dtype`."""
        x = x.astype(self.dtype)
        shape = {'stride': self.stride, 'padding': self.padding, 'dilation': self.dilation, 'groups': self.groups}
        conv = Conv(self.features, self.kernel_size, **shape, use_bias=self.use_bias, kernel_init=self.kernel_init,
                    dtype=self.dtype, name='conv')  # fmt: skip
        bn = BatchNorm(self.epsilon, self.momentum, self.dtype, name='bn')

        if not train and not self.is_initializing() and self._is_prepared():
            convolve = functools.partial(ops.conv, **shape)
            make = functools.partial(_merge, conv, bn, 'kernel')
            x = self._convolve_prepared(x, make, convolve, shape if self.transform else None)
        else:
            x = bn(conv(x), train)
        return self.activation(x) if self.activation else x


class NormConv(nn.Module):
    """Batch normalisation, ReLU, convolution: a block in the order of pre-activation. Attributes as in `ConvNorm`."""

    features: int
    kernel_size: IntOrPair = 3
    groups: int = 1
    use_bias: bool = False
    momentum: float = 0.9
    kernel_init: nn.initializers.Initializer = torch_default_init
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, features] of `dtype`."""
        x = nn.relu(BatchNorm(momentum=self.momentum, dtype=self.dtype, name='bn')(x, train))
        conv = Conv(self.features, self.kernel_size, groups=self.groups, use_bias=self.use_bias,
                    kernel_init=self.kernel_init, dtype=self.dtype, name='conv')  # fmt: skip
        return conv(x)


class ConvTransposeNorm(_Preparing):
    """Transposed convolution, batch normalisation, activation. Attributes as in `ConvTranspose` and `ConvNorm`."""

    features: int
    kernel_size: IntOrPair = 3
    stride: IntOrPair = 2
    padding: IntOrPair = 1
    output_padding: IntOrPair = 1
    use_bias: bool = False
    fan: str = 'output'
    activation: Callable[[jax.Array], jax.Array] | None = nn.relu
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, h, w, features] of `dtype`."""
        x = x.astype(self.dtype)
        shape = self.stride, self.padding, self.output_padding
        conv = ConvTranspose(self.features, self.kernel_size, *shape, self.use_bias, self.fan, dtype=self.dtype,
                             name='conv')  # fmt: skip
        bn = BatchNorm(self.epsilon, dtype=self.dtype, name='bn')
        if not train and not self.is_initializing() and self._is_prepared():

            def convolve(x, kernel):
                return ops.conv_transpose(x, kernel, *shape)

            make = functools.partial(_merge, conv, bn, 'transposed_kernel')
            x = self._convolve_prepared(x, make, convolve, None)
        else:
            x = bn(conv(x), train)
        return self.activation(x) if self.activation else x


def _merge(conv: nn.Module, bn: BatchNorm, kernel: str) -> tuple[jax.Array, jax.Array]:
    """Kernel and bias of a bound convolution and the batch normalisation after it, as one convolution."""
    params = conv.variables['params']
    scale, shift = scale_and_shift(bn)
    return params[kernel] * scale, shift + params.get('bias', 0.0) * scale


class PReLU(nn.Module):
    """Parametric ReLU: x where x > 0, else slope * x.

    Attributes:
        shared: one slope for all channels, instead of one each.
    """

    shared: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C] of the same dtype."""
        slope = self.param('slope', nn.initializers.constant(0.25), (1 if self.shared else x.shape[-1],))
        return jnp.where(x > 0, x, slope.astype(x.dtype) * x)


class SqueezeAttention(nn.Module):
    """Channel attention from the global mean: x * sigmoid(ConvNorm 1x1 of the mean). Attributes as in `ConvNorm`."""

    kernel_init: nn.initializers.Initializer = torch_default_init
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        pooled = ops.global_avg_pool(x)
        gate = ConvNorm(x.shape[-1], 1, activation=nn.sigmoid, kernel_init=self.kernel_init, dtype=self.dtype,
                        name='conv')  # fmt: skip
        return x * gate(pooled, train)


class Classifier(nn.Module):
    """1x1 convolution with bias to class logits, float32 whatever the features are."""

    num_classes: int
    kernel_init: nn.initializers.Initializer = torch_default_init
    bias_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, num_classes] float32."""
        inits = {'kernel_init': self.kernel_init, 'bias_init': self.bias_init}
        return Conv(self.num_classes, 1, use_bias=True, **inits, name='conv')(x)
