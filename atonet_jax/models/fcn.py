"""FCN-8s: Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation" (CVPR 2015).

A VGG16 whose fully connected layers are convolutions. Its scores at a 32nd of the image are enlarged step by step, and
those of two finer levels are added. The original form follows the authors' code
(github.com/shelhamer/fcn.berkeleyvision.org, 1305c73); the form without its padding is what later papers run.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models.blocks import Classifier, Conv, kaiming_fan_in_init
from atonet_jax.models.contract import IMAGENET, Family, Network, Normalization, Published, Rule, WeightNames
from atonet_jax.models.terms import Term
from atonet_jax.models.vgg import CAFFE_RULES, TORCHVISION_RULES, vgg16

FORMS = ('resized', 'original')
CAFFE = Normalization((104.00699, 116.66877, 122.67892), scale=1.0, channels='BGR')
_PADDING = 100  # of the original form, at each side of the image
_OFFSETS = {'pool4': 5, 'pool3': 9, 'image': 31}  # where maps are cut so that their pixels lie on each other


class FCN8s(nn.Module):
    """FCN-8s without padding, or in its original form.

    Attributes:
        num_classes: classes to tell apart.
        form: 'resized': maps keep their places, and scores are resized to the next map; logits at an eighth.
            'original': 100 pixels of padding, transposed convolutions with fixed bilinear kernels, and crops; logits at
            the image's size.
        has_fc: False: without fc6 and fc7.
        fc_features: channels of these two.
        fc_kernel_size: of fc6.
        width: channels of the first block; all others but those of fc6 and fc7 are multiples of it.
        caffe_images: images are BGR minus a mean, as weights from Caffe take them, instead of ImageNet's usual RGB.
        dropout_rate: share of the channels of fc6 and fc7 that training zeroes; in the original form of the values.
        dtype: compute type, float32 or bfloat16. Parameters, scores and logits are float32 in both.
    """

    num_classes: int
    form: str = 'resized'
    has_fc: bool = True
    fc_features: int = 4096
    fc_kernel_size: int = 7
    width: int = 64
    caffe_images: bool = False
    dropout_rate: float = 0.5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """images: [B, H, W, 3] float, normalised, of any size.

        Returns {'logits': [B, h, w, num_classes] float32}; (h, w) is (ceil(H / 8), ceil(W / 8)), or (H, W) of the
        original form. With `train`, a 'dropout' key must be given.
        """
        is_original, score = self.form == 'original', functools.partial(Classifier, self.num_classes)
        if is_original:
            score = functools.partial(score, kernel_init=nn.initializers.zeros, bias_init=nn.initializers.zeros)
        *_, pool3, pool4, x = vgg16(images, self.width, _PADDING if is_original else 1, self.dtype)
        if self.has_fc:
            padding = 0 if is_original else self.fc_kernel_size // 2
            x = self.fully_connected(x, self.fc_kernel_size, padding, 'fc6', train)
            x = self.fully_connected(x, 1, 0, 'fc7', train)
        x = score(name='score_fr')(x)
        of_pool4, of_pool3 = score(name='score_pool4')(pool4), score(name='score_pool3')(pool3)
        if is_original:
            x = enlarge(x, 2)
            x = enlarge(x + crop(of_pool4, x.shape[1:3], _OFFSETS['pool4']), 2)
            x = enlarge(x + crop(of_pool3, x.shape[1:3], _OFFSETS['pool3']), 8)
            x = crop(x, images.shape[1:3], _OFFSETS['image'])
        else:
            x = of_pool4 + ops.resize_bilinear(x, of_pool4.shape[1:3])
            x = of_pool3 + ops.resize_bilinear(x, of_pool3.shape[1:3])
        return {'logits': x}

    def fully_connected(self, x: jax.Array, kernel_size: int, padding: int, name: str, train: bool) -> jax.Array:
        """A fully connected layer as a convolution, with its ReLU and dropout: of channels, originally of values."""
        conv = Conv(self.fc_features, kernel_size, padding=padding, use_bias=True, kernel_init=kaiming_fan_in_init,
                    bias_init=nn.initializers.zeros, dtype=self.dtype, name=name)  # fmt: skip
        of_channels = () if self.form == 'original' else (1, 2)
        return nn.Dropout(self.dropout_rate, broadcast_dims=of_channels, deterministic=not train)(nn.relu(conv(x)))


def enlarge(x: jax.Array, factor: int) -> jax.Array:
    """Transposed convolution with the bilinear kernel of 2 * factor: [B, h, w, C] -> [B, (h + 1) * factor, ..., C].

    Inside it is the bilinear half-pixel resize, with factor / 2 more rows and columns at each side; outer ones fade.
    """
    channels = x.shape[-1]
    kernel = np.broadcast_to(bilinear_kernel(factor)[:, :, None, None], (2 * factor, 2 * factor, channels, 1))
    # Of NumPy, and so a constant of every export: int8 of TensorFlow Lite is wrong with a kernel that it computes.
    return ops.conv_transpose(x, kernel, factor, 0, groups=channels)


def bilinear_kernel(factor: int) -> np.ndarray:
    """[2 * factor, 2 * factor] float32."""
    line = 1 - np.abs(np.arange(2 * factor) + 0.5 - factor) / factor
    return np.outer(line, line).astype(np.float32)


def crop(x: jax.Array, size: tuple[int, int], offset: int) -> jax.Array:
    """[B, H, W, C] -> [B, *size, C], from row and column `offset` on."""
    return x[:, offset : offset + size[0], offset : offset + size[1]]


def check(model: FCN8s) -> None:
    """Raises ValueError where an option cannot work."""
    if model.form == 'original' and (not model.has_fc or model.fc_kernel_size != 7):
        raise ValueError("form='original': its crops are those of has_fc=True and fc_kernel_size=7")


def describe(model: FCN8s) -> Network:
    is_original = model.form == 'original'
    fc = (model.fc_features, model.fc_kernel_size) if model.has_fc else None
    counts = _COUNTS.get((model.form, fc), (None, None))
    backbone = WeightNames(
        TORCHVISION_RULES + (_TORCHVISION_FC_RULES if fc == (4096, 7) else ()), ignored=r'classifier\..*'
    )

    def in_backbone(path: tuple[str, ...]) -> bool:
        return backbone.name_of('/'.join(path[:-1])) is not None

    return Network(
        terms=(Term('logits'),),
        in_backbone=in_backbone,
        reduced=in_backbone,
        normalization=CAFFE if model.caffe_images else IMAGENET,
        on_canvas=not is_original,
        weights=(_ORIGINAL_NAMES if is_original else _CAFFE_NAMES,),
        backbones=(backbone,),
        published=Published(
            title='FCN-8s',
            source=f'Long, Shelhamer, Darrell: CVPR 2015, {"and their code" if is_original else "without its padding"}',
            parameters=counts[0],
            macs=counts[1] and ((512, 1024), counts[1]),
            notes='tables print 136.2 GFLOPs at 512x1024, less than the convolutions of VGG16 alone take there; their '
            "63.1 % is DeepLab-LargeFOV's, and FCN-8s has 61.9 % at this size",
            license='BSD-2-Clause',
            weights='PASCAL VOC; the authors' if fc == (4096, 7) else '',
            rows=('FCN-8s',) if fc == (4096, 7) else (),
        ),
    )


# Parameters, and multiply-accumulates at 512x1024.
_COUNTS = {
    ('resized', (4096, 7)): (134_353_017, 221_659_529_216),
    ('resized', (1024, 3)): (20_518_009, 163_379_150_848),
    ('resized', None): (14_739_065, 160_421_380_096),
    ('original', (4096, 7)): (134_353_017, 333_871_471_920),
}


def _without_kernels(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Without the fixed kernels of the original, which its files hold."""
    return {name: array for name, array in arrays.items() if not name.startswith('upscore')}


_CAFFE_NAMES = WeightNames(
    (*CAFFE_RULES, Rule('(fc[67])', r'\1'), Rule('(score_fr|score_pool[34])/conv', r'\1')),
    options={21: {'caffe_images': True}},  # of the authors' weights for PASCAL VOC
    adapt=_without_kernels,
)


def _fixed_kernels(num_classes: int) -> dict[str, np.ndarray]:
    """Those of the original, [C, C, k, k]: each class from itself alone."""
    factors = {'upscore2': 2, 'upscore_pool4': 2, 'upscore8': 8}
    each = np.eye(num_classes, dtype=np.float32)[:, :, None, None]
    return {f'{name}.weight': each * bilinear_kernel(factor) for name, factor in factors.items()}


_ORIGINAL_NAMES = dataclasses.replace(_CAFFE_NAMES, ignored=r'upscore\w*\.weight', fixed=_fixed_kernels)
_TORCHVISION_FC_RULES = (Rule('fc6', 'classifier.0'), Rule('fc7', 'classifier.3'))

FAMILY = Family(
    FCN8s,
    describe,
    {
        'fcn8s': {},
        'fcn8s_fc1024': {'fc_features': 1024, 'fc_kernel_size': 3},
        'fcn8s_original': {'form': 'original'},
    },
    choices={'form': FORMS},
    changeable=('dropout_rate',),
    check=check,
)
