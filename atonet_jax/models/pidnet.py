"""PIDNet-S: Xu, Xiong, Bhattacharyya, "PIDNet: A Real-time Semantic Segmentation Network Inspired by PID Controllers".

Three branches share a stem. P keeps details at an eighth of the input, I goes down to a 64th for context, D finds the
borders between classes. P and D take from I on the way, and the borders decide where P counts more than I. Follows the
authors' code (github.com/XuJiacong/PIDNet, 4c158cf).
"""

import dataclasses
import logging
import re
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models.blocks import ConvNorm, NormConv, kaiming_fan_out_init
from atonet_jax.models.contract import Family, Network, Published, WeightNames, conv_norm, prefixed
from atonet_jax.models.dual_resolution import Head, averages, head_names, sequence_names
from atonet_jax.models.resnet import BasicBlock, Bottleneck, Stage, block_names
from atonet_jax.models.terms import (
    BalancedBinaryCrossEntropy,
    CrossEntropy,
    Edges,
    HardExampleCount,
    LabelsOnEdges,
    Term,
)

_log = logging.getLogger(__name__)

HEADS = ('final', 'aux_p', 'boundary')

_ConvNorm = partial(ConvNorm, kernel_init=kaiming_fan_out_init)
_NormConv = partial(NormConv, kernel_init=kaiming_fan_out_init)


class PIDNet(nn.Module):
    """The network of the paper's Fig. 4 with the channels of PIDNet-S.

    Attributes:
        num_classes: classes to tell apart.
        width: channels of the stem; all others are multiples of it. 32 is PIDNet-S.
        edge_border: pixels along the border of a label map in which the loss of 'boundary' sees no edge: 6 is for
            Cityscapes, whose images have a frame without labels; on CamVid the authors take 0.
        dtype: compute type, float32 or bfloat16. Parameters, running statistics and outputs are float32 in both.
    """

    num_classes: int
    width: int = 32
    edge_border: int = 6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """images: [B, H, W, 3] float, normalised, of any size.

        Returns {'logits': [B, ceil(H / 8), ceil(W / 8), num_classes] float32}, and with `train` also, at the same size,
        'aux_p': [..., num_classes], logits of the P branch, and 'boundary': [..., 1], logits of lying on the border of
        a class. With `train`, 'batch_stats' must be mutable.
        """
        width, dtype = self.width, self.dtype
        relu_norm, norm = partial(_ConvNorm, dtype=dtype), partial(_ConvNorm, activation=None, dtype=dtype)
        stage, bottleneck = partial(Stage, dtype=dtype), partial(Bottleneck, dtype=dtype)
        head = partial(Head, dtype=dtype)

        x = relu_norm(width, 3, stride=2, use_bias=True, name='stem1')(images, train)
        x = relu_norm(width, 3, stride=2, use_bias=True, name='stem2')(x, train)
        x = stage(width, 2, name='layer1')(x, train)
        x2 = stage(2 * width, 2, stride=2, name='layer2')(x, train)
        size = x2.shape[1:3]

        x3 = stage(4 * width, 3, stride=2, name='layer3')(x2, train)
        context = norm(2 * width, 1, name='compression3')(x3, train)
        p = stage(2 * width, 2, last_activation=False, name='p3')(x2, train)
        p = nn.relu(PixelAttention(width, dtype, name='pag3')(p, context, train))
        difference = ops.resize_bilinear(norm(width, 3, name='diff3')(x3, train), size)
        d = BasicBlock(width, activation=None, dtype=dtype, name='d3')(x2, train)
        d = nn.relu(d + difference)
        p_of_head = p

        x4 = stage(8 * width, 3, stride=2, name='layer4')(x3, train)
        context = norm(2 * width, 1, name='compression4')(x4, train)
        p = stage(2 * width, 2, last_activation=False, name='p4')(p, train)
        p = nn.relu(PixelAttention(width, dtype, name='pag4')(p, context, train))
        difference = ops.resize_bilinear(norm(2 * width, 3, name='diff4')(x4, train), size)
        d = nn.relu(bottleneck(width, name='d4')(d, train) + difference)
        d_of_head = d

        x5 = bottleneck(8 * width, stride=2, name='layer5_block0')(x4, train)
        x5 = bottleneck(8 * width, name='layer5_block1')(x5, train)
        context = PoolingPyramid(3 * width, 4 * width, dtype, name='spp')(x5, train)
        p = bottleneck(2 * width, name='p5')(p, train)
        d = bottleneck(2 * width, name='d5')(d, train)
        x = BoundaryFusion(4 * width, dtype, name='fusion')(p, ops.resize_bilinear(context, size), d, train)

        outputs = {'logits': head(4 * width, self.num_classes, name='final')(x, train)}
        if train:
            outputs['aux_p'] = head(4 * width, self.num_classes, name='aux_p')(p_of_head, train)
            outputs['boundary'] = head(width, 1, name='boundary')(d_of_head, train)
        return outputs


class PixelAttention(nn.Module):
    """Pixel-attention-guided fusion (PAG, the paper's Fig. 5): each pixel takes from the context what resembles it.

    Attributes:
        width: channels in which pixels are compared.
        dtype: compute type.
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, train: bool) -> jax.Array:
        """x: [B, H, W, C]. context: [B, h, w, C] -> [B, H, W, C]."""
        compared = partial(_ConvNorm, self.width, 1, activation=None, dtype=self.dtype)
        size = x.shape[1:3]
        of_context = ops.resize_bilinear(compared(name='f_y')(context, train), size)
        likeness = nn.sigmoid(jnp.sum(compared(name='f_x')(x, train) * of_context, -1, keepdims=True))
        return (1 - likeness) * x + likeness * ops.resize_bilinear(context, size)


class PoolingPyramid(nn.Module):
    """Parallel aggregation pyramid pooling (PAPPM, the paper's Fig. 6).

    Attributes:
        width: channels of a level.
        features: output channels.
        dtype: compute type.
    """

    width: int
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, features]."""
        norm_conv = partial(_NormConv, dtype=self.dtype)
        size = x.shape[1:3]
        whole = norm_conv(self.width, 1, name='scale0')(x, train)
        levels = [
            ops.resize_bilinear(norm_conv(self.width, 1, name=f'scale{i}')(level, train), size) + whole
            for i, level in enumerate(averages(x), 1)
        ]
        pyramid = jnp.concatenate(levels, -1)
        pyramid = norm_conv(pyramid.shape[-1], 3, groups=len(levels), name='scale_process')(pyramid, train)
        pyramid = norm_conv(self.features, 1, name='compression')(jnp.concatenate([whole, pyramid], -1), train)
        return pyramid + norm_conv(self.features, 1, name='shortcut')(x, train)


class BoundaryFusion(nn.Module):
    """Boundary-attention-guided fusion, Light-Bag (the paper's Fig. 7): details on borders, context elsewhere."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, details: jax.Array, context: jax.Array, boundary: jax.Array, train: bool) -> jax.Array:
        """Three maps [B, H, W, features] -> [B, H, W, features]."""
        norm = partial(_ConvNorm, self.features, 1, activation=None, dtype=self.dtype)
        edge = nn.sigmoid(boundary)
        x = norm(name='conv_p')((1 - edge) * context + details, train)
        return x + norm(name='conv_i')(context + edge * details, train)


def describe(model: PIDNet) -> Network:
    return Network(
        terms=(
            Term('logits', criterion=HardExampleCount()),
            Term('aux_p', weight=0.4, criterion=CrossEntropy(over='all')),
            Term('boundary', weight=20.0, target=Edges(model.edge_border), criterion=BalancedBinaryCrossEntropy()),
            Term('logits', target=LabelsOnEdges(), criterion=HardExampleCount()),
        ),
        training_only=HEADS[1:],
        in_backbone=lambda path: path[0] not in HEADS,
        upsampling='align_corners',
        on_canvas=True,
        weights=(_PUBLISHED_NAMES, _NAMES_BESIDE_LOSSES),
        backbones=(_IMAGENET_NAMES,),
        published=Published(
            title='PIDNet-S',
            source='Xu, Xiong, Bhattacharyya: CVPR 2023, and their code',
            parameters=7_625_715,
            macs=((1024, 2048), 47_194_226_688),
            license='MIT',
            weights='Cityscapes, CamVid, ImageNet; the authors',
            rows=('PIDNet-S',),
        ),
    )


_CONTEXT_RULES = (
    *conv_norm('stem1', 'conv1.0', 'conv1.1'),
    *conv_norm('stem2', 'conv1.3', 'conv1.4'),
    *block_names(r'(layer[1-4])[/_]block(\d)', r'\1.\2'),
)
_BRANCH_RULES = (
    *block_names(r'(layer5)[/_]block(\d)', r'\1.\2'),
    *block_names(r'p([34])/block(\d)', r'layer\1_.\2'),
    *block_names('p5', 'layer5_.0'),
    *block_names('d3', 'layer3_d'),
    *block_names(r'd([45])', r'layer\1_d.0'),
    *conv_norm(r'((?:compression|diff)[34])', r'\1.0', r'\1.1'),
    *conv_norm(r'(pag[34])/(f_[xy])', r'\1.\2.0', r'\1.\2.1'),
)
# The authors' order of CamVid's classes, in places of data.labels.CAMVID.
_AUTHORS_CAMVID = (10, 1, 8, 2, 7, 9, 3, 4, 6, 0, 5)


def _from_authors(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The authors' CamVid networks with their outputs in the order of the classes here; other files as they are.

    Theirs have eleven outputs, and counters of the batches that they were trained on, which no file of ours has.
    """
    of_classes = {name: a for name, a in arrays.items() if re.search(r'(final_layer|seghead_p)\.conv2\.', name)}
    counted = any(np.any(a) for name, a in arrays.items() if name.endswith('.num_batches_tracked'))
    if not counted or {len(array) for array in of_classes.values()} != {len(_AUTHORS_CAMVID)}:
        return arrays
    _log.warning("the file's eleven outputs are taken for CamVid's classes in the authors' order, and reordered")
    return dict(arrays) | {name: np.asarray(a)[np.argsort(_AUTHORS_CAMVID)] for name, a in of_classes.items()}


_PUBLISHED_NAMES = WeightNames(
    (
        *_CONTEXT_RULES,
        *_BRANCH_RULES,
        *conv_norm(r'fusion/(conv_[pi])', r'dfm.\1.0', r'dfm.\1.1'),
        *sequence_names(r'spp/(scale[1-4])', r'spp.\1', first=1),
        *sequence_names(r'spp/(\w+)', r'spp.\1'),
        *head_names('final', 'final_layer'),
        *head_names('aux_p', 'seghead_p', optional=True),
        *head_names('boundary', 'seghead_d', optional=True),
    ),
    adapt=_from_authors,
)
# Checkpoints of the authors' training hold the network as 'model', beside the buffers of its losses.
_NAMES_BESIDE_LOSSES = WeightNames(
    prefixed(_PUBLISHED_NAMES.rules, 'model.'), ignored=r'(sem|bd)_loss\..*', adapt=_from_authors
)
# Files of ImageNet: the authors take of them what the network has. Their heads and pyramids are other ones.
_IMAGENET_NAMES = WeightNames(
    _CONTEXT_RULES + tuple(dataclasses.replace(rule, optional=True) for rule in _BRANCH_RULES),
    ignored=r'(?!(conv1|layer\d_?d?|compression[34]|diff[34]|pag[34])\.).*',
)

FAMILY = Family(
    PIDNet,
    describe,
    {'pidnet_s': {}, 'pidnet': {}},
    least={'edge_border': 0},
    changeable=('edge_border',),
)
