"""SegNet and SegNet-Basic: Badrinarayanan, Kendall, Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder Architecture
for Image Segmentation" (PAMI 2017).

The decoder mirrors the encoder. Each max-pool of the encoder remembers where it found its values, and the decoder puts
values back there; nothing else is passed across. SegNet's encoder is a VGG16 with batch normalisation; SegNet-Basic has
four levels of one 7x7 convolution. Layers follow the authors' definitions for Caffe
(github.com/alexgkendall/SegNet-Tutorial, bb68b64). Their batch normalisation has no running average; this one has.
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models.blocks import Classifier, Conv, ConvNorm, kaiming_fan_in_init
from atonet_jax.models.contract import IMAGENET, Family, Network, Normalization, Published, Rule, WeightNames, conv_norm
from atonet_jax.models.terms import MedianFrequency, Term
from atonet_jax.models.vgg import BLOCKS, TORCHVISION_BN_RULES, TORCHVISION_RULES, block_width

CAFFE = Normalization(scale=1.0, channels='BGR')
BASIC_LEVELS = 4

_ConvNorm = partial(ConvNorm, use_bias=True, kernel_init=kaiming_fan_in_init)
_CLASSIFIER_INITS = {'kernel_init': kaiming_fan_in_init, 'bias_init': nn.initializers.zeros}
_pool = partial(ops.max_pool_with_indices, window=2, stride=2, padding=0, ceil=True)
_unpool = partial(ops.max_unpool, window=2)


class SegNet(nn.Module):
    """The network of the paper's Fig. 2: the 13 convolutions of a VGG16, and as many back.

    Attributes:
        num_classes: classes to tell apart.
        width: channels of the first level; all others are multiples of it.
        caffe_images: images are BGR 0..255 without a mean, as weights from Caffe take them, instead of ImageNet's
            usual RGB, as torchvision's VGG16 takes them.
        dtype: compute type, float32 or bfloat16. Parameters, running statistics and logits are float32 in both.
    """

    num_classes: int
    width: int = 64
    caffe_images: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """images: [B, H, W, 3] float, normalised, of any size.

        Returns {'logits': [B, H, W, num_classes] float32}. With `train`, 'batch_stats' must be mutable.
        """
        conv_norm, width_of = partial(_ConvNorm, dtype=self.dtype), partial(block_width, width=self.width)
        x, pools = images, []
        for level, num_convs in enumerate(BLOCKS, 1):
            for i in range(1, num_convs + 1):
                x = conv_norm(width_of(level), name=f'conv{level}_{i}')(x, train)
            size = x.shape[1:3]
            x, indices = _pool(x)
            pools.append((indices, size))
        for level in range(len(BLOCKS), 0, -1):
            x = _unpool(x, *pools.pop())
            for i in range(BLOCKS[level - 1], 1, -1):
                x = conv_norm(width_of(level), name=f'conv{level}_{i}_D')(x, train)
            if level > 1:  # the last one has the channels of the next level
                x = conv_norm(width_of(level - 1), name=f'conv{level}_1_D')(x, train)
        classifier = Conv(self.num_classes, 3, use_bias=True, **_CLASSIFIER_INITS, name='conv1_1_D')
        return {'logits': classifier(x)}


class SegNetBasic(nn.Module):
    """The smaller network of the paper's Section 4.1.

    Attributes:
        num_classes: classes to tell apart.
        width: channels of every level.
        dtype: compute type, float32 or bfloat16. Parameters, running statistics and logits are float32 in both.
    """

    num_classes: int
    width: int = 64
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """images: [B, H, W, 3] float, BGR 0..255, of any size.

        Returns {'logits': [B, H, W, num_classes] float32}. With `train`, 'batch_stats' must be mutable.
        """
        conv_norm, pools = partial(_ConvNorm, self.width, 7, dtype=self.dtype), []
        x = normalize_locally(images)
        for level in range(1, BASIC_LEVELS + 1):
            x = conv_norm(name=f'conv{level}')(x, train)
            size = x.shape[1:3]
            x, indices = _pool(x)
            pools.append((indices, size))
        for level in range(BASIC_LEVELS, 0, -1):
            x = _unpool(x, *pools.pop())
            x = conv_norm(activation=None, name=f'conv_decode{level}')(x, train)
        return {'logits': Classifier(self.num_classes, **_CLASSIFIER_INITS, name='classifier')(x)}


def normalize_locally(images: jax.Array) -> jax.Array:
    """Caffe's local response normalisation of [B, H, W, 3], float32: size 5, alpha 1e-4, beta 0.75.

    Its window of five channels holds all three, whichever is in the middle.
    """
    images = images.astype(jnp.float32)
    squares = jnp.sum(jnp.square(images), -1, keepdims=True)
    return images / (1 + 1e-4 / 5 * squares) ** 0.75


def describe(model: SegNet) -> Network:
    return Network(
        terms=(Term('logits'),),
        in_backbone=lambda path: not path[0].endswith('_D'),
        normalization=CAFFE if model.caffe_images else IMAGENET,
        on_canvas=True,
        class_weights=MedianFrequency(),
        weights=(_NAMES, _SHORT_NAMES, _SAY4N_NAMES),
        backbones=_TORCHVISION_NAMES,
        published=Published(
            title='SegNet',
            source='Badrinarayanan, Kendall, Cipolla: PAMI 2017, and their Caffe code',
            parameters=29_453_971,
            macs=((360, 640), 143_344_926_720),
            notes='the printed 286 GFLOPs count operations, two for each multiply-accumulate; the printed 57.0 % on '
            'Cityscapes are those of SegNet-Basic at 256x512',
            license='CC BY-NC 4.0',
            weights='CamVid and other roads; the authors, for Caffe, not read here',
            rows=('SegNet',),
        ),
    )


def describe_basic(model: SegNetBasic) -> Network:
    return Network(
        terms=(Term('logits'),),
        in_backbone=lambda path: path[0] in _BASIC_ENCODER,
        normalization=CAFFE,
        on_canvas=True,
        class_weights=MedianFrequency(),
        weights=(_BASIC_NAMES,),
        published=Published(
            title='SegNet-Basic',
            source='Badrinarayanan, Kendall, Cipolla: PAMI 2017, and their Caffe code',
            parameters=1_417_107,
            macs=((360, 640), 79_036_416_000),
            license='CC BY-NC 4.0',
            weights='CamVid; the authors, for Caffe, not read here',
        ),
    )


# Caffe's names of layers; `i` counts down in the decoder, and conv1_1_D is the classifier.
_NAMES = WeightNames((*conv_norm(r'(conv\d_\d(?:_D)?)', r'\1', r'\1_bn'), Rule('conv1_1_D', 'conv1_1_D')))
_BASIC_ENCODER = tuple(f'conv{level}' for level in range(1, BASIC_LEVELS + 1))
_BASIC_NAMES = WeightNames(
    (*conv_norm(r'(conv(?:_decode)?\d)', r'\1', r'\1_bn'), Rule('classifier/conv', 'conv_classifier'))
)
# github.com/xiaoyufenfei/Efficient-Segmentation-Networks
_SHORT_NAMES = WeightNames(
    (
        *conv_norm(r'conv(\d)_(\d)', r'conv\1\2', r'bn\1\2'),
        *conv_norm(r'conv(\d)_(\d)_D', r'conv\1\2d', r'bn\1\2d'),
        Rule('conv1_1_D', 'conv11d'),
    )
)


def _upright(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """With the decoder's transposed convolutions, [in, out, 3, 3], as the convolutions of stride 1 that they are."""
    return {
        name: np.flip(np.asarray(array), (2, 3)).swapaxes(0, 1)
        if name.startswith('decoder_convtr_') and np.ndim(array) == 4
        else array
        for name, array in arrays.items()
    }


# github.com/say4n/pytorch-segnet, which counts from 0.
_SAY4N_NAMES = WeightNames(
    tuple(
        rule
        for level, convs in enumerate(BLOCKS)
        for i in range(convs)
        for ours, theirs in (('', 'encoder_conv'), ('_D', 'decoder_convtr'))
        for rule in conv_norm(f'conv{level + 1}_{i + 1}{ours}', f'{theirs}_{level}{i}.0', f'{theirs}_{level}{i}.1')
    )
    + (Rule('conv1_1_D', 'decoder_convtr_00.0'),),
    adapt=_upright,
)
_CLASSIFIER = r'classifier\..*'
_TORCHVISION_NAMES = (
    WeightNames(TORCHVISION_BN_RULES, ignored=_CLASSIFIER),
    # Without batch normalisation, which starts fresh.
    WeightNames(tuple(Rule(f'{rule.path}/conv', rule.name) for rule in TORCHVISION_RULES), ignored=_CLASSIFIER),
)

FAMILY = Family(SegNet, describe, {'segnet': {}})
BASIC_FAMILY = Family(SegNetBasic, describe_basic, {'segnet_basic': {}})
