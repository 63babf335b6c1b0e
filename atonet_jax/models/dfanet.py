"""DFANet: Li, Xiong, Fan, Sun, "DFANet: Deep Feature Aggregation for Real-Time Semantic Segmentation" (CVPR 2019).

A small Xception runs three times, each time at half the resolution, and takes in what the run before it has found on
every level. A light decoder joins the three. The authors published no code, and public networks of this name contradict
one another. This one is rebuilt from the paper's Table 1; its multiply-accumulates are the printed ones.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models.blocks import Conv, ConvNorm, kaiming_fan_in_init
from atonet_jax.models.contract import Family, Network, Published, Rule, WeightNames, conv_bn, conv_norm
from atonet_jax.models.terms import Term
from atonet_jax.models.xception import SeparableConvNorm

BACKBONES = (1, 2, 3)
BLOCKS = {'enc2': 4, 'enc3': 6, 'enc4': 4}
IMAGENET_CLASSES = 1000  # the attention begins with the backbone's ImageNet classifier
ATTENTIONS = {'relu': nn.relu, 'sigmoid': nn.sigmoid}

_ConvNorm = partial(ConvNorm, kernel_init=kaiming_fan_in_init)


class DFANet(nn.Module):
    """The network of the paper's Fig. 3.

    Attributes:
        num_classes: classes to tell apart.
        width: channels of each backbone's first stage, a multiple of 4; the other two have 2 and 4 times as many. 48 is
            DFANet A, 32 is B.
        decoder_width: channels of the decoder. The paper does not tell them: its operations fit 32.
        attention: what the weights of the channels pass, 'relu' or, as in one port, 'sigmoid'.
        dtype: compute type, float32 or bfloat16. Parameters, running statistics and logits are float32 in both.
    """

    num_classes: int
    width: int = 48
    decoder_width: int = 32
    attention: str = 'relu'
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """images: [B, H, W, 3] float, normalised, of any size.

        Returns {'logits': [B, ceil(H / 4), ceil(W / 4), num_classes] float32}. With `train`, 'batch_stats' must be
        mutable.
        """
        x = _ConvNorm(8, 3, stride=2, dtype=self.dtype, name='conv1')(images, train)
        beside, runs = (), []
        for b in BACKBONES:
            levels = Backbone(self.width, self.attention, self.dtype, name=f'backbone{b}')(x, beside, train)
            runs.append(levels)
            first, *beside, attended = levels
            x = jnp.concatenate([first, ops.resize_align_corners(attended, first.shape[1:3])], -1)
        decoder = Decoder(self.num_classes, self.decoder_width, self.dtype, name='decoder')
        return {'logits': decoder([levels[0] for levels in runs], [levels[-1] for levels in runs], train)}


class Backbone(nn.Module):
    """The Xception of the paper's Table 1, from its second stage on, with the attention at its end.

    Attributes:
        width: channels of the first stage.
        attention: of `DFANet`.
        dtype: compute type.
    """

    width: int
    attention: str
    dtype: jnp.dtype
    is_sequence = True

    @nn.compact
    def __call__(self, x: jax.Array, beside: Sequence[jax.Array], train: bool) -> list[jax.Array]:
        """x: [B, H, W, C]. beside: maps of the run before, which join the input of each stage but the first; or none.

        Returns the maps of the three stages, [B, ceil(H / s), ceil(W / s), c] for (s, c) = (2, width), (4, 2 * width)
        and (8, 4 * width), and the last one with attention.
        """
        levels = []
        for i, (name, num_blocks) in enumerate(BLOCKS.items()):
            if beside and i > 0:
                x = jnp.concatenate([x, beside[i - 1]], -1)
            x = Stage(2**i * self.width, num_blocks, self.dtype, name=name)(x, train)
            levels.append(x)
        return [*levels, Attention(self.attention, self.dtype, name='attention')(x, train)]


class Stage(nn.Module):
    """Blocks in a row; the first one halves the map."""

    features: int
    num_blocks: int
    dtype: jnp.dtype
    is_sequence = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), features]."""
        for block in range(self.num_blocks):
            x = Block(self.features, 2 if block == 0 else 1, self.dtype, name=f'block{block}')(x, train)
        return x


class Block(nn.Module):
    """Three separable convolutions and a shortcut, which is a 1x1 convolution where stride or channels change.

    Attributes:
        features: output channels; within there are a quarter as many.
        stride: of the first convolution and the shortcut.
        dtype: compute type.
    """

    features: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        separable = partial(SeparableConvNorm, dtype=self.dtype, kernel_init=kaiming_fan_in_init)
        width, shortcut = self.features // 4, x
        if self.stride != 1 or x.shape[-1] != self.features:
            options = {'stride': self.stride, 'activation': None, 'dtype': self.dtype}
            shortcut = _ConvNorm(self.features, 1, **options, name='shortcut')(x, train)
        x = nn.relu(separable(width, self.stride, name='sep1')(x, train))
        x = nn.relu(separable(width, 1, name='sep2')(x, train))
        return nn.relu(separable(self.features, 1, name='sep3')(x, train) + shortcut)


class Attention(nn.Module):
    """Fully connected attention (the paper's Fig. 4): channels are weighed by what ImageNet's classes would be.

    Attributes:
        activation: of the weights, one of `ATTENTIONS`.
        dtype: compute type.
    """

    activation: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        classes = nn.Dense(IMAGENET_CLASSES, kernel_init=kaiming_fan_in_init, dtype=self.dtype, name='fc')
        of_image = classes(ops.global_avg_pool(x)[:, 0, 0])[:, None, None]  # LiteRT takes no layer of four axes
        activation = ATTENTIONS[self.activation]
        return x * _ConvNorm(x.shape[-1], 1, activation=activation, dtype=self.dtype, name='conv')(of_image, train)


class Decoder(nn.Module):
    """Sums of the three runs' fine maps and of their attended coarse maps (the paper's Fig. 3, right).

    Attributes:
        num_classes: output channels.
        width: channels within.
        dtype: compute type of all but the logits.
    """

    num_classes: int
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, fine: Sequence[jax.Array], coarse: Sequence[jax.Array], train: bool) -> jax.Array:
        """Of each run a map; the first fine one is [B, H, W, C] -> [B, H, W, num_classes] float32."""
        block, size = partial(_ConvNorm, self.width, dtype=self.dtype), fine[0].shape[1:3]

        def added(maps, name):
            maps = [block(1, name=f'{name}{b}')(x, train) for b, x in zip(BACKBONES, maps, strict=True)]
            return sum(x if x.shape[1:3] == size else ops.resize_align_corners(x, size) for x in maps)

        x = block(3, name='fuse')(added(fine, 'low'), train) + added(coarse, 'high')
        classifier = Conv(self.num_classes, 1, use_bias=True, kernel_init=kaiming_fan_in_init,
                          bias_init=nn.initializers.zeros, name='classifier')  # fmt: skip
        return classifier(x)


def describe(model: DFANet) -> Network:
    widths = model.width, model.decoder_width
    title, rows, parameters, macs = _PUBLISHED.get(widths, ('DFANet', (), None, None))
    return Network(
        terms=(Term('logits'),),
        in_backbone=lambda path: path[0] != 'decoder',
        upsampling='align_corners',
        on_canvas=True,
        weights=(_NAMES,),
        published=Published(
            title=title,
            source='Li, Xiong, Fan, Sun: CVPR 2019, rebuilt from its Table 1',
            parameters=parameters,
            macs=macs and ((1024, 1024), macs),
            license='no code',
            rows=rows,
            notes='the printed 7.8 M and 4.8 M parameters are probably megabytes of weights; no public network of this '
            "name is known to reach the printed mIoU; A' is A on images of 512x1024",
        ),
    )


# Title, rows, parameters, and multiply-accumulates at 1024x1024, by both widths.
_PUBLISHED = {
    (48, 32): ('DFANet A', ('DFANet A', "DFANet A'"), 1_824_443, 3_420_678_656),
    (32, 32): ('DFANet B', ('DFANet B',), 1_098_203, 2_054_921_216),
}


# The names are of our own choice: nobody has published weights of this network.
_STAGE = r'(backbone\d)/(enc\d)/block(\d)'
_NAMES = WeightNames(
    (
        *conv_bn('conv1', 'conv1'),
        Rule(rf'{_STAGE}/(sep\d)/depthwise', r'\1.\2.\3.\4.dw'),
        *conv_norm(rf'{_STAGE}/(sep\d)/pointwise', r'\1.\2.\3.\4.pw', r'\1.\2.\3.\4.bn'),
        *conv_bn(rf'{_STAGE}/shortcut', r'\1.\2.\3.shortcut'),
        Rule(r'(backbone\d)/attention/fc', r'\1.attention.fc'),
        *conv_bn(r'(backbone\d)/attention/conv', r'\1.attention'),
        *conv_bn(r'decoder/((?:low|high)\d|fuse)', r'decoder.\1'),
        Rule('decoder/classifier', 'decoder.classifier'),
    )
)

FAMILY = Family(
    DFANet,
    describe,
    {'dfanet_a': {}, 'dfanet': {}, 'dfanet_a_prime': {}, 'dfanet_b': {'width': 32}},
    choices={'attention': ATTENTIONS},
    multiples={'width': 4},
)
