"""SwiftNet: Oršić, Krešo, Bevandić, Šegvić, "In Defense of Pre-trained ImageNet Architectures" (CVPR 2019).

A ResNet-18, spatial pyramid pooling on its last level, and a light decoder that adds one finer level at a time. This is
the form for a single scale; `swiftnet_pyramid` has the one for a pyramid of images. There is a form of 2019, of the
paper's code, and one of 2020: they differ in the last convolution and in the normalisation of images.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models.blocks import NormConv, kaiming_fan_out_init
from atonet_jax.models.contract import (
    IMAGENET,
    Family,
    Network,
    Normalization,
    Published,
    Rule,
    WeightNames,
    conv_norm,
    prefixed,
)
from atonet_jax.models.resnet import STAGE_RULES, TORCHVISION, in_resnet, resnet18
from atonet_jax.models.terms import Term

FORMS = ('2019', '2020')
CITYSCAPES = Normalization((73.15, 82.90, 72.3), (47.67, 48.49, 47.73), scale=1.0)
_GRIDS = (8, 4, 2)  # rows of the pooled maps; they have as many columns as keep their cells square
_SPP_MOMENTUM = 0.995

_NormConv = partial(NormConv, kernel_init=kaiming_fan_out_init)


class SwiftNet(nn.Module):
    """SwiftNetRN-18 for a single scale.

    Attributes:
        num_classes: classes to tell apart.
        form: '2019' or '2020'.
        width: channels of the decoder.
        backbone_width: channels of the stem and of layer1; layer2 .. layer4 have 2, 4 and 8 times as many.
        dtype: compute type, float32 or bfloat16. Parameters, running statistics and logits are float32 in both.
    """

    num_classes: int
    form: str = '2019'
    width: int = 128
    backbone_width: int = 64
    dtype: jnp.dtype = jnp.float32
    is_sequence = True  # within the ensemble

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """images: [B, H, W, 3] float, normalised, of any size.

        Returns {'logits': [B, ceil(H / 4), ceil(W / 4), num_classes] float32}. With `train`, 'batch_stats' must be
        mutable.
        """
        *skips, x = resnet18(images, train, self.backbone_width, self.dtype)
        x = SPP(self.width, dtype=self.dtype, name='spp')(x, train)
        for i, skip in enumerate(reversed(skips)):
            x = Up(self.width, self.dtype, name=f'up{i}')(x, skip, train)
        return {'logits': logits(self.num_classes, self.form, 'logits')(x, train)}


def logits(num_classes: int, form: str, name: str) -> NormConv:
    """The last convolution, in float32: 3x3 without bias in 2019, 1x1 with bias in 2020.

    It starts as torch draws it: the authors' code draws anew the convolutions before it alone.
    """
    return NormConv(num_classes, 3 if form == '2019' else 1, use_bias=form == '2020', name=name)


class SPP(nn.Module):
    """Spatial pyramid pooling: the map beside its averages over grids.

    Attributes:
        width: output channels; a grid has a third as many.
        dtype: compute type.
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, width]."""
        norm_conv = partial(_NormConv, kernel_size=1, momentum=_SPP_MOMENTUM, dtype=self.dtype)
        x = norm_conv(self.width, name='first')(x, train)
        pyramid = [x]
        for i, rows in enumerate(_GRIDS):
            pooled, grid = ops.pool_to_grid(x, rows)
            pooled = norm_conv(self.width // len(_GRIDS), name=f'pool{i}')(pooled, train)
            pyramid.append(ops.enlarge_grid(pooled, grid, x.shape[1:3], 'half_pixel'))
        return norm_conv(self.width, name='fuse')(jnp.concatenate(pyramid, -1), train)


class Up(nn.Module):
    """A step of the decoder: the coarse map, enlarged, plus a finer level."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array, train: bool) -> jax.Array:
        """x: [B, h, w, width]. skip: [B, H, W, C] -> [B, H, W, width]."""
        norm_conv = partial(_NormConv, self.width, dtype=self.dtype)
        lateral = norm_conv(kernel_size=1, name='lateral')(skip, train)
        return norm_conv(kernel_size=3, name='blend')(ops.resize_bilinear(x, skip.shape[1:3]) + lateral, train)


def describe(model: SwiftNet) -> Network:
    is_first = model.form == '2019'
    return Network(
        terms=(Term('logits'),),
        in_backbone=in_resnet,
        reduced=in_resnet,
        normalization=IMAGENET if is_first else CITYSCAPES,
        on_canvas=True,
        weights=(with_buffers(_NAMES) if model.form == '2020' else _NAMES,),
        backbones=(TORCHVISION,),
        published=Published(
            title=f'SwiftNetRN-18 ss ({model.form})',
            source='Oršić et al.: CVPR 2019, arXiv 1903.08469, and their code',
            parameters=11_816_508 if is_first else 11_797_071,
            macs=((1024, 2048), 106_116_270_080 if is_first else 103_566_133_248),
            license='GPL-3.0',
            weights='' if is_first else 'Cityscapes; the authors',
            rows=('SwiftNetRN-18',),
            notes='104.0 GFLOPs of Table 1 are multiply-accumulates of the form of 2020, and an operation a normalised '
            'value or two',
        ),
    )


def norm_conv_names(path: str, name: str) -> tuple[Rule, Rule]:
    """The rules of a `NormConv`."""
    return conv_norm(path, f'{name}.conv', f'{name}.norm')


BACKBONE_RULES = prefixed((*conv_norm('stem', 'conv1', 'bn1'), *STAGE_RULES), 'backbone.')
_NAMES = WeightNames(
    (
        *BACKBONE_RULES,
        *norm_conv_names('spp/first', 'backbone.spp.spp.spp_bn'),
        *norm_conv_names(r'spp/pool(\d)', r'backbone.spp.spp.spp\1'),
        *norm_conv_names('spp/fuse', 'backbone.spp.spp.spp_fuse'),
        *norm_conv_names(r'up(\d)/lateral', r'backbone.upsample.\1.bottleneck'),
        *norm_conv_names(r'up(\d)/blend', r'backbone.upsample.\1.blend_conv'),
        *norm_conv_names('logits', 'logits'),
    ),
    ignored=r'backbone\.img_(mean|std)',
)


def with_buffers(names: WeightNames) -> WeightNames:
    """For the authors' code of 2020, which keeps the normalisation of images among the weights."""
    buffers = {'img_mean': CITYSCAPES.mean, 'img_std': CITYSCAPES.std}
    arrays = {f'backbone.{name}': np.array(a, np.float32).reshape(1, 3, 1, 1) for name, a in buffers.items()}
    return dataclasses.replace(names, fixed=lambda num_classes: arrays)


FAMILY = Family(
    SwiftNet,
    describe,
    {'swiftnet_ss_2019': {}, 'swiftnet_ss': {}, 'swiftnet': {}, 'swiftnet_ss_2020': {'form': '2020'}},
    choices={'form': FORMS},
    least={'width': len(_GRIDS)},
)
