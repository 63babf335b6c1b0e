"""ICNet: Zhao, Qi, Shen, Shi, Jia, "ICNet for Real-Time Semantic Segmentation on High-Resolution Images" (ECCV 2018).

A pruned PSPNet on ResNet-50 sees the image at half its size, and goes down to a 32nd there. What it finds is joined
step by step with its own map at a 16th and with a small branch of the full image. The network is the one that the
authors published (github.com/hszhao/ICNet, dd2bf78, for Caffe), where sides are halved with rounding down.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models.blocks import Conv, ConvNorm, kaiming_fan_in_init
from atonet_jax.models.contract import Family, Network, Published, Rule, WeightNames, conv_norm
from atonet_jax.models.terms import Term

BINS = (1, 2, 3, 6)
AUX_HEADS = ('aux_sub4', 'aux_sub2')
HEADS = ('conv1_sub1', 'conv2_sub1', 'conv3_sub1', 'fusion_sub2', 'fusion_sub1', 'classifier', *AUX_HEADS)

_ConvNorm = partial(ConvNorm, momentum=0.95, kernel_init=kaiming_fan_in_init)
_Conv = partial(Conv, kernel_size=1, use_bias=True, kernel_init=kaiming_fan_in_init, bias_init=nn.initializers.zeros)


class ICNet(nn.Module):
    """The network of the paper's Fig. 2.

    Attributes:
        num_classes: classes to tell apart.
        width: channels of the first convolution; all others of the trunk are multiples of it. 32 is the published
            network, 64 has the widths that it had before it was pruned.
        head_width: channels of the first convolution on the full image; those of this branch and of the fusions are
            multiples of it.
        dtype: compute type, float32 or bfloat16. Parameters, running statistics and outputs are float32 in both.
    """

    num_classes: int
    width: int = 32
    head_width: int = 32
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """images: [B, H, W, 3] float, normalised, of 18x18 pixels or more.

        Returns {'logits': [B, h, w, num_classes] float32}; (h, w) is (2 * ceil(H / 8), 2 * ceil(W / 8)). With `train`
        also 'aux_sub2', [B, ceil(H / 8), ceil(W / 8), num_classes], and 'aux_sub4', at about a 16th, logits of what
        the coarser branch brings to each fusion. With `train`, 'batch_stats' must be mutable.
        """
        width, dtype = self.width, self.dtype
        block, fusion = partial(_ConvNorm, dtype=dtype), partial(Fusion, 4 * self.head_width, dtype)
        classifier = partial(_Conv, self.num_classes)

        x = _halved(images)
        x = block(width, 3, stride=2, name='conv1_1')(x, train)
        x = block(width, 3, name='conv1_2')(x, train)
        x = ops.max_pool(block(2 * width, 3, name='conv1_3')(x, train))
        x = self.stage(x, 'conv2', 3, width, 1, train)
        sub2 = self.bottleneck(2 * width, name='conv3_1', stride=2, has_projection=True)(x, train)
        x = _halved(sub2)
        for i in (2, 3, 4):
            x = self.bottleneck(2 * width, name=f'conv3_{i}')(x, train)
        x = self.stage(x, 'conv4', 6, 4 * width, 2, train)
        x = self.stage(x, 'conv5', 3, 8 * width, 4, train)
        size = x.shape[1:3]
        x += sum(ops.resize_align_corners(ops.adaptive_avg_pool(x, (bins, bins)), size) for bins in BINS)
        x = block(8 * width, 1, name='conv5_4')(x, train)

        sub1 = images
        for i, features in enumerate((self.head_width, self.head_width, 2 * self.head_width), 1):
            sub1 = block(features, 3, stride=2, name=f'conv{i}_sub1')(sub1, train)
        x, of_sub4 = fusion(name='fusion_sub2')(x, sub2, train)
        x, of_sub2 = fusion(name='fusion_sub1')(x, sub1, train)
        x = ops.resize_align_corners(x, (2 * x.shape[1], 2 * x.shape[2]))

        outputs = {'logits': classifier(name='classifier')(x)}
        if train:
            outputs['aux_sub4'] = classifier(name='aux_sub4')(of_sub4)
            outputs['aux_sub2'] = classifier(name='aux_sub2')(of_sub2)
        return outputs

    def bottleneck(self, width: int, **options) -> nn.Module:
        return Bottleneck(width, **options, dtype=self.dtype)

    def stage(self, x: jax.Array, name: str, blocks: int, width: int, dilation: int, train: bool) -> jax.Array:
        """Bottlenecks in a row, the first one with a projection: -> [B, H, W, 4 * width]."""
        for i in range(1, blocks + 1):
            block = self.bottleneck(width, dilation=dilation, has_projection=i == 1, name=f'{name}_{i}')
            x = block(x, train)
        return x


class Bottleneck(nn.Module):
    """ResNet-50's block: 1x1, 3x3 and 1x1 convolutions and a shortcut. Its stride is that of the first convolution.

    Attributes:
        width: channels within; the output has four times as many.
        stride: of the first convolution and of the projection.
        dilation: of the 3x3.
        has_projection: whether the shortcut is a 1x1 convolution.
        dtype: compute type.
    """

    width: int
    stride: int = 1
    dilation: int = 1
    has_projection: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), 4 * width]."""
        block, shortcut = partial(_ConvNorm, dtype=self.dtype), x
        if self.has_projection:
            projection = block(4 * self.width, 1, stride=self.stride, activation=None, name='projection')
            shortcut = projection(x, train)
        x = block(self.width, 1, stride=self.stride, name='reduce')(x, train)
        x = block(self.width, 3, dilation=self.dilation, name='conv')(x, train)
        return nn.relu(block(4 * self.width, 1, activation=None, name='increase')(x, train) + shortcut)


class Fusion(nn.Module):
    """Cascade feature fusion (the paper's Fig. 3): a coarse map, enlarged and convolved, joins a finer one.

    Attributes:
        features: output channels.
        dtype: compute type.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, coarse: jax.Array, fine: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """coarse: [B, h, w, C]. fine: [B, H, W, c] -> their fusion, and what the coarse one brings to it.

        Both are [B, H, W, features].
        """
        block = partial(_ConvNorm, self.features, activation=None, dtype=self.dtype)
        coarse = ops.resize_align_corners(coarse, fine.shape[1:3])
        coarse = block(3, dilation=2, name='coarse')(coarse, train)
        return nn.relu(coarse + block(1, name='fine')(fine, train)), coarse


def _halved(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, floor(H / 2), floor(W / 2), C]."""
    return ops.resize_align_corners(x, (x.shape[1] // 2, x.shape[2] // 2))


def describe(model: ICNet) -> Network:
    parameters, macs = _COUNTS.get((model.width, model.head_width), (None, None))
    return Network(
        terms=(
            Term('logits', at='output'),
            Term('aux_sub4', weight=0.16, at='output'),
            Term('aux_sub2', weight=0.4, at='output'),
        ),
        training_only=AUX_HEADS,
        in_backbone=lambda path: path[0] not in HEADS,
        smallest=18,  # of less, nothing is left at a 32nd
        upsampling='align_corners',
        weights=(_NAMES,),
        published=Published(
            title='ICNet',
            source="Zhao, Qi, Shen, Shi, Jia: ECCV 2018, and the authors' network for Caffe",
            parameters=parameters,
            macs=macs and ((1024, 2048), macs),
            license='none',
            weights='Cityscapes; the authors, for Caffe, not read here' if parameters == _COUNTS[32, 32][0] else '',
            rows=('ICNet',) if parameters == _COUNTS[32, 32][0] else (),
            notes='the printed 26.5 M parameters are its weights in megabytes, or those before pruning; '
            'for the 70.6 % mIoU of tables, the authors give 69.5 % of this network',
        ),
    )


# Parameters, and multiply-accumulates at 1024x2048, by both widths.
_COUNTS = {(32, 32): (6_699_987, 29_028_777_984), (64, 32): (25_524_659, 87_468_015_616)}


def _block(path: str, name: str) -> tuple[Rule, ...]:
    """The rules of a `ConvNorm`."""
    return conv_norm(path, name, f'{name}_bn')


# The names of the authors' network for Caffe, except those of the heads that only training has.
_NAMES = WeightNames(
    (
        *_block('conv1_1', 'conv1_1_3x3_s2'),
        *_block(r'(conv1_[23])', r'\1_3x3'),
        *_block(r'(conv\d_\d)/(reduce|increase)', r'\1_1x1_\2'),
        *_block(r'(conv\d_\d)/conv', r'\1_3x3'),
        *_block(r'(conv\d_\d)/projection', r'\1_1x1_proj'),
        *_block('conv5_4', 'conv5_4_k1'),
        *_block(r'(conv\d_sub1)', r'\1'),
        *_block('fusion_sub2/coarse', 'conv_sub4'),
        *_block('fusion_sub2/fine', 'conv3_1_sub2_proj'),
        *_block('fusion_sub1/coarse', 'conv_sub2'),
        *_block('fusion_sub1/fine', 'conv3_sub1_proj'),
        Rule('classifier', 'conv6_cls'),
        Rule(r'aux_(sub[24])', r'conv_\1_cls', optional=True),
    )
)

FAMILY = Family(ICNet, describe, {'icnet': {}})
