"""DDRNet-23-slim: Hong, Pan, Sun, Jia, "Deep Dual-resolution Networks" (arXiv 2101.06085).

Two branches share a stem. The high one keeps details at an eighth of the input, the low one goes down to a 64th for
context. They exchange their maps twice on the way, and their sum gives the logits. Follows the authors' code
(github.com/ydhongHIT/DDRNet, de0db31).
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models.blocks import ConvNorm, NormConv, kaiming_fan_out_init
from atonet_jax.models.contract import Family, Network, Published, WeightNames, conv_norm, prefixed
from atonet_jax.models.dual_resolution import Head, averages, head_names, sequence_names
from atonet_jax.models.resnet import STAGE_RULES, Bottleneck, Stage, block_names
from atonet_jax.models.terms import CrossEntropy, HardExampleCount, Term

HEADS = ('final', 'aux')

_ConvNorm = partial(ConvNorm, kernel_init=kaiming_fan_out_init)
_NormConv = partial(NormConv, kernel_init=kaiming_fan_out_init)


class DDRNet(nn.Module):
    """The paper's network with the channels and blocks of DDRNet-23-slim.

    Attributes:
        num_classes: classes to tell apart.
        width: channels of the stem; all others are multiples of it. 32 is DDRNet-23-slim.
        dtype: compute type, float32 or bfloat16. Parameters, running statistics and outputs are float32 in both.
    """

    num_classes: int
    width: int = 32
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """images: [B, H, W, 3] float, normalised, of any size.

        Returns {'logits': [B, ceil(H / 8), ceil(W / 8), num_classes] float32}, and with `train` also 'aux', of the same
        shape: logits of the high branch after the first exchange. With `train`, 'batch_stats' must be mutable.
        """
        width, dtype = self.width, self.dtype
        relu_norm, norm = partial(_ConvNorm, dtype=dtype), partial(_ConvNorm, activation=None, dtype=dtype)
        stage, bottleneck = partial(Stage, num_blocks=2, dtype=dtype), partial(Bottleneck, dtype=dtype)
        sum_stage = partial(stage, last_activation=False)
        head = partial(Head, 2 * width, self.num_classes, dtype)

        x = relu_norm(width, 3, stride=2, use_bias=True, name='stem1')(images, train)
        x = relu_norm(width, 3, stride=2, use_bias=True, name='stem2')(x, train)
        x = stage(width, name='layer1')(x, train)
        x = stage(2 * width, stride=2, name='layer2')(x, train)
        size = x.shape[1:3]

        low = sum_stage(4 * width, stride=2, name='layer3')(x, train)
        high = sum_stage(2 * width, name='high3')(x, train)
        details = norm(4 * width, 3, stride=2, name='down3')(nn.relu(high), train)
        context = norm(2 * width, 1, name='compression3')(nn.relu(low), train)
        low, high = low + details, high + ops.resize_bilinear(context, size)
        high_of_head = high

        low = sum_stage(8 * width, stride=2, name='layer4')(nn.relu(low), train)
        high = sum_stage(2 * width, name='high4')(nn.relu(high), train)
        details = relu_norm(4 * width, 3, stride=2, name='down4_1')(nn.relu(high), train)
        details = norm(8 * width, 3, stride=2, name='down4_2')(details, train)
        context = norm(2 * width, 1, name='compression4')(nn.relu(low), train)
        low, high = low + details, high + ops.resize_bilinear(context, size)

        low = bottleneck(8 * width, stride=2, name='layer5')(nn.relu(low), train)
        high = bottleneck(2 * width, name='high5')(nn.relu(high), train)
        context = PoolingPyramid(4 * width, dtype, name='spp')(low, train)
        outputs = {'logits': head(name='final')(ops.resize_bilinear(context, size) + high, train)}
        if train:
            outputs['aux'] = head(name='aux')(high_of_head, train)
        return outputs


class PoolingPyramid(nn.Module):
    """Deep aggregation pyramid pooling (the paper's DAPPM): each level takes the finer ones before it.

    Attributes:
        features: channels of a level, and of the output.
        dtype: compute type.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, features]."""
        norm_conv = partial(_NormConv, self.features, dtype=self.dtype)
        levels = [norm_conv(1, name='scale0')(x, train)]
        for i, level in enumerate(averages(x), 1):
            level = ops.resize_bilinear(norm_conv(1, name=f'scale{i}')(level, train), x.shape[1:3])
            levels.append(norm_conv(3, name=f'process{i}')(level + levels[-1], train))
        pyramid = norm_conv(1, name='compression')(jnp.concatenate(levels, -1), train)
        return pyramid + norm_conv(1, name='shortcut')(x, train)


def describe(model: DDRNet) -> Network:
    return Network(
        terms=(
            Term('logits', criterion=HardExampleCount()),
            Term('aux', weight=0.4, criterion=CrossEntropy(over='all')),
        ),
        training_only=HEADS[1:],
        in_backbone=lambda path: path[0] not in HEADS,
        on_canvas=True,
        weights=(_PUBLISHED_NAMES, _NAMES_BESIDE_LOSSES),
        backbones=(_IMAGENET_NAMES,),
        published=Published(
            title='DDRNet-23-slim',
            source='Hong, Pan, Sun, Jia: arXiv 2101.06085, and their code',
            parameters=5_695_987,
            macs=((1024, 2048), 36_281_319_424),
            license='MIT',
            weights='Cityscapes, CamVid, ImageNet; the authors',
            rows=('DDRNet-23-slim',),
        ),
    )


_LAYER5_RULES = (
    *block_names('layer5', 'layer5.0'),
    *block_names('high5', 'layer5_.0'),
)
_TRUNK_RULES = (
    *conv_norm('stem1', 'conv1.0', 'conv1.1'),
    *conv_norm('stem2', 'conv1.3', 'conv1.4'),
    *STAGE_RULES,
    *block_names(r'high(\d)/block(\d)', r'layer\1_.\2'),
    *conv_norm(r'(compression[34]|down3)', r'\1.0', r'\1.1'),
    *conv_norm('down4_1', 'down4.0', 'down4.1'),
    *conv_norm('down4_2', 'down4.3', 'down4.4'),
)
_PUBLISHED_NAMES = WeightNames(
    (
        *_TRUNK_RULES,
        *_LAYER5_RULES,
        *sequence_names(r'spp/(scale[1-4])', r'spp.\1', first=1),
        *sequence_names(r'spp/(\w+)', r'spp.\1'),
        *head_names('final', 'final_layer'),
        *head_names('aux', 'seghead_extra', optional=True),
    )
)
# Files of ImageNet have a classifier of their own in place of the pyramid and the heads, and may lack layer5.
_IMAGENET_NAMES = WeightNames(
    _TRUNK_RULES + tuple(dataclasses.replace(rule, optional=True) for rule in _LAYER5_RULES),
    ignored=r'(?!(conv1|layer[1-4]_?|compression[34]|down[34])\.).*',
)
# Files of a training in HRNet's code hold the network as 'model', beside the buffers of its loss.
_NAMES_BESIDE_LOSSES = WeightNames(prefixed(_PUBLISHED_NAMES.rules, 'model.'), ignored=r'(\w+_)?loss\..*')

FAMILY = Family(DDRNet, describe, {'ddrnet_23_slim': {}, 'ddrnet': {}})
