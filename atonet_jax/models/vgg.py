"""The backbone VGG16: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition"."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models.blocks import Conv, kaiming_fan_out_init
from atonet_jax.models.contract import Rule, conv_norm

BLOCKS = (2, 2, 3, 3, 3)

# Files of Caffe, and all that are made from them, call the convolutions what this file does.
CAFFE_RULES = (Rule(r'(conv\d_\d)', r'\1'),)
_CONVS = [f'conv{block}_{i}' for block, num_convs in enumerate(BLOCKS, 1) for i in range(1, num_convs + 1)]
# Places in torchvision's vgg16, and in its vgg16_bn, where a batch normalisation follows each convolution.
_PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_BN_PLACES = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
TORCHVISION_RULES = tuple(Rule(conv, f'features.{place}') for conv, place in zip(_CONVS, _PLACES, strict=True))
TORCHVISION_BN_RULES = tuple(
    rule
    for conv, place in zip(_CONVS, _BN_PLACES, strict=True)
    for rule in conv_norm(conv, f'features.{place}', f'features.{place + 1}')
)


def vgg16(images: jax.Array, width: int, first_padding: int, dtype: jnp.dtype) -> list[jax.Array]:
    """The five levels of a VGG16, to be called within a compact module, which owns 'conv1_1' .. 'conv5_3'.

    Args:
        images: [B, H, W, 3], normalised.
        width: channels of the first block.
        first_padding: zeros at each side of the image; more than 1 enlarges all levels.
        dtype: compute type.

    Returns:
        After each block's max-pool [B, ceil(H / s), ceil(W / s), c], for (s, c) = (2, width), (4, 2 * width),
        (8, 4 * width), (16, 8 * width), (32, 8 * width).
    """
    x, levels = images, []
    for block in range(1, len(BLOCKS) + 1):
        x = vgg16_block(x, block, width, dtype, first_padding if block == 1 else 1)
        x = ops.max_pool(x, 2, 2, 0, ceil=True)
        levels.append(x)
    return levels


def vgg16_block(
    x: jax.Array, block: int, width: int, dtype: jnp.dtype, first_padding: int = 1, dilation: int = 1
) -> jax.Array:
    """The convolutions of one block, without its pool, to be called within a compact module, which owns them.

    Args:
        x: [B, H, W, C].
        block: 1 .. 5.
        width: channels of the first block.
        dtype: compute type.
        first_padding: zeros at each side of `x`, without dilation.
        dilation: of all convolutions of the block, which are padded so that they keep the size.

    Returns:
        [B, H, W, c], with `first_padding` of more than 1 larger; c is `block_width(block, width)`.
    """
    for i in range(1, BLOCKS[block - 1] + 1):
        conv = Conv(
            block_width(block, width),
            padding=first_padding if i == 1 and dilation == 1 else dilation,
            dilation=dilation,
            use_bias=True,
            kernel_init=kaiming_fan_out_init,
            bias_init=nn.initializers.zeros,
            dtype=dtype,
            name=f'conv{block}_{i}',
        )
        x = nn.relu(conv(x))
    return x


def block_width(block: int, width: int) -> int:
    """The channels of block 1 .. 5, where the first one has `width`."""
    return width * min(2 ** (block - 1), 8)
