"""The backbone Xception39 of BiSeNet: a small Xception (Chollet, "Xception", CVPR 2017), as BiSeNet's code has it."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from atonet_jax.models.blocks import Conv, ConvNorm, torch_default_init
from atonet_jax.models.contract import Rule, conv_norm
from atonet_jax.models.resnet import Stem

BLOCKS = (4, 8, 4)

_SEPARABLE = r'(layer\d)/block(\d)'
STAGE_RULES: tuple[Rule, ...] = (
    Rule(rf'{_SEPARABLE}/conv(\d)/depthwise', r'\1.\2.residual_branch.\3.conv1'),
    *conv_norm(
        rf'{_SEPARABLE}/conv(\d)/pointwise',
        r'\1.\2.residual_branch.\3.point_wise_cbr.conv',
        r'\1.\2.residual_branch.\3.point_wise_cbr.bn',
    ),
    Rule(rf'{_SEPARABLE}/shortcut/depthwise', r'\1.\2.proj.conv1'),
    *conv_norm(rf'{_SEPARABLE}/shortcut/pointwise', r'\1.\2.proj.point_wise_cbr.conv', r'\1.\2.proj.point_wise_cbr.bn'),
)


def xception39(images: jax.Array, train: bool, width: int, dtype: jnp.dtype) -> list[jax.Array]:
    """The three levels of an Xception39, to be called within a compact module, which owns 'stem', 'layer1' .. 'layer3'.

    Args:
        images: [B, H, W, 3], normalised.
        train: whether batch statistics are used.
        width: channels of the stem.
        dtype: compute type.

    Returns:
        [B, ceil(H / s), ceil(W / s), c] for (s, c) = (8, 8 * width), (16, 16 * width), (32, 32 * width).
    """
    x = Stem(width, 3, stride=2, dtype=dtype, name='stem')(images, train)
    levels = []
    for i, num_blocks in enumerate(BLOCKS, 1):
        x = Stage(width * 2**i, num_blocks, dtype, name=f'layer{i}')(x, train)
        levels.append(x)
    return levels


class SeparableConvNorm(nn.Module):
    """Depthwise 3x3 convolution, which takes the stride, then at once 1x1 convolution and batch normalisation."""

    features: int
    stride: int
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer = torch_default_init

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        options, channels = {'kernel_init': self.kernel_init, 'dtype': self.dtype}, x.shape[-1]
        x = Conv(channels, 3, self.stride, groups=channels, **options, name='depthwise')(x)
        return ConvNorm(self.features, 1, activation=None, **options, name='pointwise')(x, train)


class Block(nn.Module):
    """Three separable convolutions and a shortcut, which is one more of them where stride or channels change.

    Attributes:
        width: channels within; the output has four times as many.
        stride: of the first convolution and the shortcut.
        dtype: compute type.
    """

    width: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), 4 * width]."""
        features = 4 * self.width
        shortcut = x
        if self.stride != 1 or x.shape[-1] != features:
            shortcut = SeparableConvNorm(features, self.stride, self.dtype, name='shortcut')(x, train)
        x = nn.relu(SeparableConvNorm(self.width, self.stride, self.dtype, name='conv0')(x, train))
        x = nn.relu(SeparableConvNorm(self.width, 1, self.dtype, name='conv1')(x, train))
        x = SeparableConvNorm(features, 1, self.dtype, name='conv2')(x, train)
        return nn.relu(x + shortcut)


class Stage(nn.Module):
    """Blocks in a row; the first one halves the map."""

    width: int
    num_blocks: int
    dtype: jnp.dtype
    is_sequence = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), 4 * width]."""
        for block in range(self.num_blocks):
            x = Block(self.width, 2 if block == 0 else 1, self.dtype, name=f'block{block}')(x, train)
        return x
