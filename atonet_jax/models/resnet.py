"""The stages of ResNet-18: He et al., "Deep Residual Learning for Image Recognition"."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from atonet_jax.models.layers import ConvNorm, kaiming_fan_out_init

BLOCKS = (2, 2, 2, 2)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where stride or channels change."""

    features: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv_norm = partial(ConvNorm, self.features, kernel_init=kaiming_fan_out_init, dtype=self.dtype)
        shortcut = x
        if self.stride != 1 or x.shape[-1] != self.features:
            shortcut = conv_norm(kernel_size=1, stride=self.stride, relu=False, name='shortcut')(x, train)
        x = conv_norm(kernel_size=3, stride=self.stride, name='conv1')(x, train)
        x = conv_norm(kernel_size=3, relu=False, name='conv2')(x, train)
        return nn.relu(x + shortcut)


class Stage(nn.Module):
    """Basic blocks in a row; the first takes the stride. With `remat`, training keeps nothing of a block's inside."""

    features: int
    num_blocks: int
    stride: int
    dtype: jnp.dtype
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        block_class = nn.remat(BasicBlock, static_argnums=(2,)) if self.remat and train else BasicBlock
        for block in range(self.num_blocks):
            stride = self.stride if block == 0 else 1
            x = block_class(self.features, stride, self.dtype, name=f'block{block}')(x, train)
        return x
