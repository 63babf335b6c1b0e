"""ATONet: Cao, Huang, Shao, "Aggregation Architecture and All-To-One Network for Real-Time Semantic Segmentation".

Every stage of a ResNet-18, and an SPP module on top of it, is brought to one width at a quarter of the input and
summed. Auxiliary heads sit on the same five levels and exist in training only.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models.blocks import Classifier, ConvNorm
from atonet_jax.models.contract import Family, Network, Published, Rule, WeightNames, conv_norm
from atonet_jax.models.resnet import STAGE_RULES, TORCHVISION, in_resnet, is_stage_kernel, resnet18
from atonet_jax.models.terms import Term

LEVELS = (1, 2, 3, 4, 5)  # layer1 .. layer4 and spp


class ATONet(nn.Module):
    """The paper's network (its Fig. 2 and Table 1's parameter count).

    Attributes:
        num_classes: classes to tell apart.
        spp_bins: rows of each pooled grid in the SPP module (Table 4); a grid has as many columns as keep cells square.
        aux_levels: the levels, of 1 .. 5, with an auxiliary head in training (Table 4).
        up_kernel_size: kernel of the convolutions that bring a level to the common width: 3 gives the published
            counts, 1 is what the paper's prose says.
        width: the common width.
        backbone_width: channels of the stem and of layer1; layer2 .. layer4 have 2, 4 and 8 times as many.
        dropout_rate: share of the feature maps before the classifier that training zeroes.
        dtype: compute type, float32 or bfloat16. Parameters, running statistics and logits are float32 in both.
    """

    num_classes: int
    spp_bins: Sequence[int] = (8, 4, 2)
    aux_levels: Sequence[int] = (3, 4, 5)
    up_kernel_size: int = 3
    width: int = 128
    backbone_width: int = 64
    dropout_rate: float = 0.1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """images: [B, H, W, 3] float, normalised, of any size (below 33 the deepest map is a single pixel).

        Returns {'logits': [B, ceil(H / 4), ceil(W / 4), num_classes] float32}, and with `train` also
        'aux3': [B, ceil(H / 16), ceil(W / 16), num_classes] and the like, one a level, at the level's own stride
        (4, 8, 16, 32, 32). With `train`, 'batch_stats' must be mutable and a 'dropout' key be given.
        """
        conv_norm = partial(ConvNorm, dtype=self.dtype)
        levels = resnet18(images, train, self.backbone_width, self.dtype)
        levels.append(SPP(self.width, self.spp_bins, self.dtype, name='spp')(levels[-1], train))

        size = levels[0].shape[1:3]
        summed = {}  # by size: maps of one size are added before the resizing that they share
        for level, features in zip(LEVELS, levels, strict=True):
            up = conv_norm(self.width, self.up_kernel_size, activation=None, name=f'up{level}')(features, train)
            summed[up.shape] = summed.get(up.shape, 0.0) + up
        x = sum(ops.resize_bilinear(up, size) for up in summed.values())

        head = Head(self.width, self.num_classes, self.dropout_rate, self.dtype, name='head')
        outputs = {'logits': head(x, train)}
        if train:
            for level in self.aux_levels:
                width = self.width // 2 if level == 1 else self.width
                head = AuxiliaryHead(width, self.num_classes, self.dtype, name=f'aux{level}')
                outputs[f'aux{level}'] = head(levels[level - 1], train)
        return outputs


class SPP(nn.Module):
    """Spatial pyramid pooling: the map beside its averages over grids, coarse to fine (the paper's Fig. 2)."""

    width: int
    bins: Sequence[int]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, width]."""
        conv_norm = partial(ConvNorm, kernel_size=1, dtype=self.dtype)
        x = conv_norm(x.shape[-1], name='conv1')(x, train)
        pyramid = [x]
        for i, rows in enumerate(self.bins):
            pooled, grid = ops.pool_to_grid(x, rows)
            pooled = conv_norm(self.width, name=f'pool{i}')(pooled, train)
            pyramid.append(ops.enlarge_grid(pooled, grid, x.shape[1:3], 'align_corners'))
        return conv_norm(self.width, name='conv2')(jnp.concatenate(pyramid, -1), train)


class Head(nn.Module):
    """From the sum of all levels to logits."""

    width: int
    num_classes: int
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, num_classes] float32."""
        # The transforms of Winograd's convolution would be the largest arrays of inference here.
        conv_norm = partial(ConvNorm, self.width, 3, dtype=self.dtype, transform=False)
        x = conv_norm(name='final')(nn.relu(x), train)
        x = conv_norm(name='seg')(x, train)
        x = nn.Dropout(self.dropout_rate, broadcast_dims=(1, 2), deterministic=not train)(x)
        return Classifier(self.num_classes, name='classifier')(x)


class AuxiliaryHead(nn.Module):
    """A classifier on one level's features, for its loss alone."""

    width: int
    num_classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, num_classes] float32."""
        x = ConvNorm(self.width, 3, dtype=self.dtype, name='conv')(x, train)
        return Classifier(self.num_classes, name='classifier')(x)


def check(model: ATONet) -> None:
    """Raises ValueError where an option cannot work."""
    if not all(isinstance(rows, int) and rows > 0 for rows in model.spp_bins):
        raise ValueError(f'spp_bins={model.spp_bins!r}: must be whole numbers greater than 0')
    if not set(model.aux_levels) <= set(LEVELS) or len(set(model.aux_levels)) < len(model.aux_levels):
        raise ValueError(f'aux_levels={model.aux_levels!r}: must be levels of 1 .. 5')


def describe(model: ATONet) -> Network:
    heads = tuple(f'aux{level}' for level in model.aux_levels)
    return Network(
        terms=(Term('logits', at='labels'), *(Term(head, at='output') for head in heads)),
        training_only=heads,
        in_backbone=in_resnet,
        reduced=is_stage_kernel,  # the stem and every batch normalisation take the full rate (the published recipe)
        on_canvas=True,
        weights=(_PUBLISHED_NAMES,),
        backbones=(TORCHVISION,),
        published=Published(
            title='ATONet',
            source='Cao, Huang, Shao: Table 1, and its public code',
            parameters=13_304_531,
            macs=((1024, 2048), 133_977_079_808),
            notes='GFLOPs of Table 1 are multiply-accumulates',
            license='none',
            rows=('ATONet',),
        ),
    )


_PUBLISHED_NAMES = WeightNames(
    (
        *conv_norm('stem', 'layer0.0', 'layer0.1'),
        *STAGE_RULES,
        *conv_norm(r'spp/conv(\d)', r'spp.conv\1.0', r'spp.conv\1.1'),
        *conv_norm(r'spp/pool(\d)', r'spp.features.\1.0', r'spp.features.\1.1'),
        *conv_norm(r'up(\d)', r'up\1.blend_conv.0', r'up\1.blend_conv.1'),
        *conv_norm('head/final', 'final_ocnv.0', 'final_ocnv.1'),  # spelt so
        *conv_norm('head/seg', 'cls.0', 'cls.1'),
        Rule('head/classifier/conv', 'cls.4'),
        *conv_norm(r'aux(\d)/conv', r'aux_cls\1.0', r'aux_cls\1.1', optional=True),
        Rule(r'aux(\d)/classifier/conv', r'aux_cls\1.3', optional=True),
    ),
    ignored=r'aux_cls\d\..*',
    whole=lambda model: model.clone(aux_levels=LEVELS),  # all five heads are in every published file
)

FAMILY = Family(ATONet, describe, {'atonet': {}}, changeable=('dropout_rate',), check=check)
