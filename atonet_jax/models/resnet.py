"""The backbone ResNet-18: He et al., "Deep Residual Learning for Image Recognition"."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models.blocks import ConvNorm, kaiming_fan_out_init
from atonet_jax.models.contract import Rule, WeightNames, conv_norm

BLOCKS = (2, 2, 2, 2)


def block_names(path: str, name: str) -> tuple[Rule, ...]:
    """The rules of a `BasicBlock` or a `Bottleneck` in torchvision's names."""
    return (
        *conv_norm(rf'{path}/conv(?P<i>\d)', rf'{name}.conv\g<i>', rf'{name}.bn\g<i>'),
        *conv_norm(f'{path}/shortcut', f'{name}.downsample.0', f'{name}.downsample.1'),
    )


STAGE_RULES = block_names(r'(layer\d)/block(\d)', r'\1.\2')
TORCHVISION = WeightNames((*conv_norm('stem', 'conv1', 'bn1'), *STAGE_RULES), ignored=r'fc\..*')


def resnet18(
    images: jax.Array,
    train: bool,
    width: int,
    dtype: jnp.dtype,
    dilations: Sequence[int] = (1, 1, 1, 1),
) -> list[jax.Array]:
    """The four levels of a ResNet-18, to be called within a compact module, which owns 'stem', 'layer1' .. 'layer4'.

    Args:
        images: [B, H, W, 3], normalised.
        train: whether batch statistics are used.
        width: channels of the stem and of layer1.
        dtype: compute type.
        dilations: of the stages' 3x3 convolutions; a stage with more than 1 has stride 1.

    Returns:
        [B, ceil(H / s), ceil(W / s), c] for (s, c) = (4, width), (8, 2 * width), (16, 4 * width), (32, 8 * width); s
        stays what it was where a stage is dilated.
    """
    x = Stem(width, 7, stride=2, kernel_init=kaiming_fan_out_init, dtype=dtype, name='stem')(images, train)
    levels = []
    for i, (num_blocks, dilation) in enumerate(zip(BLOCKS, dilations, strict=True)):
        stride = 1 if i == 0 or dilation > 1 else 2
        stage = Stage(width * 2**i, num_blocks, stride, dtype=dtype, dilation=dilation, name=f'layer{i + 1}')
        x = stage(x, train)
        levels.append(x)
    return levels


def in_resnet(path: tuple[str, ...]) -> bool:
    """Whether `resnet18` makes a parameter."""
    return path[0] in ('stem', 'layer1', 'layer2', 'layer3', 'layer4')


def is_stage_kernel(path: tuple[str, ...]) -> bool:
    """Whether a parameter is a kernel of layer1 .. layer4, their shortcuts' too."""
    return in_resnet(path) and path[0] != 'stem' and path[-2] == 'conv'


class Stem(ConvNorm):
    """Convolution, batch normalisation, ReLU, and max-pooling 3x3 with stride 2."""

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, 3] -> [B, ceil(H / 4), ceil(W / 4), features] with a convolution of stride 2."""
        return ops.max_pool(super().__call__(x, train))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where stride or channels change.

    Attributes:
        features: output channels.
        stride: of the first convolution and the shortcut.
        activation: of the sum; None: none.
        dtype: compute type.
        dilation: of the 3x3 convolutions.
    """

    features: int
    stride: int = 1
    activation: Callable[[jax.Array], jax.Array] | None = nn.relu
    dtype: jnp.dtype = jnp.float32
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        conv_norm = partial(ConvNorm, self.features, kernel_init=kaiming_fan_out_init, dtype=self.dtype)
        shortcut = x
        if self.stride != 1 or x.shape[-1] != self.features:
            shortcut = conv_norm(kernel_size=1, stride=self.stride, activation=None, name='shortcut')(x, train)
        x = conv_norm(kernel_size=3, stride=self.stride, dilation=self.dilation, name='conv1')(x, train)
        x = conv_norm(kernel_size=3, dilation=self.dilation, activation=None, name='conv2')(x, train) + shortcut
        return self.activation(x) if self.activation else x


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut, which is a 1x1 convolution where stride or channels change.

    The block of DDRNet and PIDNet: it gives twice the channels that it computes in, ResNet-50's four times, and no
    activation follows the sum.

    Attributes:
        width: channels within; the output has twice as many.
        stride: of the 3x3 convolution and the shortcut.
        dtype: compute type.
    """

    width: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), 2 * width]."""
        conv_norm = partial(ConvNorm, kernel_init=kaiming_fan_out_init, dtype=self.dtype)
        features = 2 * self.width
        shortcut = x
        if self.stride != 1 or x.shape[-1] != features:
            shortcut = conv_norm(features, 1, stride=self.stride, activation=None, name='shortcut')(x, train)
        x = conv_norm(self.width, 1, name='conv1')(x, train)
        x = conv_norm(self.width, 3, stride=self.stride, name='conv2')(x, train)
        return conv_norm(features, 1, activation=None, name='conv3')(x, train) + shortcut


class Stage(nn.Module):
    """Basic blocks in a row; the first one takes the stride.

    Attributes:
        last_activation: whether the last block ends with its ReLU.
        dilation: of the 3x3 convolutions.
    """

    features: int
    num_blocks: int
    stride: int = 1
    last_activation: bool = True
    dtype: jnp.dtype = jnp.float32
    dilation: int = 1
    is_sequence = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        for block in range(self.num_blocks):
            activation = nn.relu if block < self.num_blocks - 1 or self.last_activation else None
            stride = self.stride if block == 0 else 1
            basic = BasicBlock(self.features, stride, activation, self.dtype, self.dilation, name=f'block{block}')
            x = basic(x, train)
        return x
