"""SwiftNet on a pyramid of images: Oršić et al. (CVPR 2019), and Oršić, Šegvić (Pattern Recognition 2021).

One ResNet-18 runs on the image and on smaller ones of it. Maps of one size are added, whatever image they come from,
and a decoder goes from the smallest sum to the largest. The form of 2019 is that of the first paper's code, the form of
2020 that of the second one's.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models.blocks import BatchNorm, Conv, ConvNorm, NormConv, kaiming_fan_out_init
from atonet_jax.models.contract import IMAGENET, Family, Network, Published, Rule, WeightNames, conv_norm
from atonet_jax.models.resnet import BLOCKS, TORCHVISION, Stage, Stem, in_resnet
from atonet_jax.models.swiftnet import BACKBONE_RULES, CITYSCAPES, FORMS, logits, norm_conv_names, with_buffers
from atonet_jax.models.terms import BoundaryWeightedCrossEntropy, CrossEntropy, Term

_STAGES = (1, 2, 3, 4)

_Conv = partial(Conv, kernel_init=kaiming_fan_out_init)
_NormConv = partial(NormConv, kernel_init=kaiming_fan_out_init)


class SwiftNetPyramid(nn.Module):
    """SwiftNetRN-18 on a pyramid of images.

    Attributes:
        num_classes: classes to tell apart.
        form: '2019': images of the pyramid are rounded to whole pixel values, and the encoder is one for all of them.
            '2020': they are not, and each has batch normalisations of its own; the decoder takes levels before their
            last ReLU. The authors' weights of 2020 have `levels` = 3.
        levels: images of the pyramid, each of half the last one's sides.
        width: channels of the decoder.
        backbone_width: channels of the stem and of layer1; layer2 .. layer4 have 2, 4 and 8 times as many.
        dtype: compute type, float32 or bfloat16. Parameters, running statistics and logits are float32 in both.
    """

    num_classes: int
    form: str = '2019'
    levels: int = 2
    width: int = 128
    backbone_width: int = 64
    dtype: jnp.dtype = jnp.float32
    is_sequence = True  # within the ensemble

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """images: [B, H, W, 3] float, normalised; 2^(levels - 1) divides H and W.

        Returns {'logits': [B, ceil(H / 4), ceil(W / 4), num_classes] float32}. With `train`, 'batch_stats' must be
        mutable.
        """
        sums = {}  # by stride, as a power of 2
        encode, laterals = self.encoder(), self.laterals()
        for level in range(self.levels):
            of_stages = encode(shrink(images, level, self.form), level, train)
            for stage, lateral, x in zip(_STAGES, laterals, of_stages, strict=True):
                x, stride = lateral(x, train), stage + 1 + level
                sums[stride] = sums[stride] + x if stride in sums else x

        x = sums.pop(max(sums))
        for i, stride in enumerate(sorted(sums, reverse=True)):
            finer = sums[stride]
            x = ops.resize_bilinear(x, finer.shape[1:3]) + finer
            x = _NormConv(self.width, 3, dtype=self.dtype, name=f'blend{i}')(x, train)
        return {'logits': logits(self.num_classes, self.form, 'logits')(x, train)}

    def encoder(self):
        """(image, level, train) -> what the decoder takes of the four stages."""
        is_first, dtype = self.form == '2019', self.dtype
        make_stem = partial(Stem, kernel_init=kaiming_fan_out_init) if is_first else LevelStem
        make_stage = Stage if is_first else LevelStage
        stem = make_stem(self.backbone_width, 7, stride=2, dtype=dtype, name='stem')
        stages = [
            make_stage(self.backbone_width * 2**i, num_blocks, 1 if i == 0 else 2, dtype=dtype, name=f'layer{i + 1}')
            for i, num_blocks in enumerate(BLOCKS)
        ]

        def encode(x, level, train):
            of_level = () if is_first else (level,)
            x, taken = stem(x, train, *of_level), []
            for stage in stages:
                taken.append(stage(x, train, *of_level))
                x = taken[-1] if is_first else nn.relu(taken[-1])
            return taken

        return encode

    def laterals(self):
        """(map, train) -> [B, H, W, width], for each stage; the levels share them."""
        if self.form == '2019':
            return [_NormConv(self.width, 3, dtype=self.dtype, name=f'lateral{stage}') for stage in _STAGES]
        convs = [_Conv(self.width, 1, dtype=self.dtype, name=f'lateral{stage}') for stage in _STAGES]
        return [lambda x, train, conv=conv: conv(x) for conv in convs]


def shrink(images: jax.Array, level: int, form: str) -> jax.Array:
    """Normalised images, [B, H, W, 3] -> [B, H / 2^level, W / 2^level, 3], bicubic.

    In 2019 as Pillow shrinks pixel values: with antialiasing, and whole numbers after each axis. In 2020 as torch
    resizes normalised images: without antialiasing.
    """
    batch, height, width, channels = images.shape
    if level == 0:
        return images
    if form == '2020':
        return ops.resize_bicubic(images, (height // 2**level, width // 2**level))
    resize = partial(jax.image.resize, method='cubic', antialias=True, precision=jax.lax.Precision.HIGHEST)
    pixels = _whole(IMAGENET.inverse(images))
    pixels = _whole(resize(pixels, (batch, height, width // 2**level, channels)))
    pixels = _whole(resize(pixels, (batch, height // 2**level, width // 2**level, channels)))
    return IMAGENET(pixels)


def _whole(pixels: jax.Array) -> jax.Array:
    return jnp.clip(jnp.floor(pixels + 0.5), 0, 255)


class LevelConvNorm(nn.Module):
    """Convolution, and a batch normalisation for each level of the pyramid."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, level: int) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        x = _Conv(self.features, self.kernel_size, self.stride, dtype=self.dtype, name='conv')(x)
        return BatchNorm(dtype=self.dtype, name=f'bn{level}')(x, train)


class LevelStem(LevelConvNorm):
    """`resnet.Stem` with a batch normalisation for each level."""

    def __call__(self, x: jax.Array, train: bool, level: int) -> jax.Array:
        """[B, H, W, 3] -> [B, ceil(H / 4), ceil(W / 4), features] with a convolution of stride 2."""
        return ops.max_pool(nn.relu(super().__call__(x, train, level)))


class LevelBlock(nn.Module):
    """`resnet.BasicBlock` without its last ReLU; both 3x3 convolutions have a batch normalisation for each level."""

    features: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, level: int) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        shortcut = x
        if self.stride != 1 or x.shape[-1] != self.features:
            shortcut = ConvNorm(self.features, 1, self.stride, activation=None, kernel_init=kaiming_fan_out_init,
                                dtype=self.dtype, name='shortcut')(x, train)  # fmt: skip
        x = LevelConvNorm(self.features, 3, self.stride, self.dtype, name='conv1')(x, train, level)
        x = LevelConvNorm(self.features, 3, dtype=self.dtype, name='conv2')(nn.relu(x), train, level)
        return x + shortcut


class LevelStage(nn.Module):
    """Blocks in a row; the first one takes the stride, and the last one's sum stays before its ReLU."""

    features: int
    num_blocks: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, level: int) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        for block in range(self.num_blocks):
            x, stride = (nn.relu(x), 1) if block else (x, self.stride)
            x = LevelBlock(self.features, stride, self.dtype, name=f'block{block}')(x, train, level)
        return x


def describe(model: SwiftNetPyramid) -> Network:
    is_first = model.form == '2019'
    parameters, macs = _COUNTS.get((model.form, model.levels), (None, None))
    return Network(
        terms=(Term('logits', criterion=CrossEntropy() if is_first else BoundaryWeightedCrossEntropy()),),
        in_backbone=in_resnet,
        reduced=in_resnet,
        normalization=IMAGENET if is_first else CITYSCAPES,
        multiple_of=2 ** (model.levels - 1),
        weights=(_NAMES[model.form],),
        backbones=(TORCHVISION if is_first else _TORCHVISION_FOR_LEVELS,),
        published=Published(
            title=f'SwiftNetRN-18 pyr ({model.form})',
            source='Oršić et al.: CVPR 2019, arXiv 1903.08469, and their code'
            if is_first
            else 'Oršić, Šegvić: Pattern Recognition 2021, and their code',
            parameters=parameters,
            macs=macs and ((1024, 2048), macs),
            license='GPL-3.0',
            weights='' if is_first else 'Cityscapes; the authors',
            rows=('SwiftNetRN-18 pyr',),
            notes='114.0 GFLOPs of Table 1 are those of no form that is public',
        ),
    )


# Parameters, and multiply-accumulates at 1024x2048.
_COUNTS = {
    ('2019', 2): (12_897_344, 145_936_613_376),
    ('2019', 3): (13_045_056, 151_882_039_296),
    ('2020', 3): (12_056_275, 128_192_610_304),
}


def _level_rules(prefix: str, level: str) -> tuple[Rule, ...]:
    """The rules of a backbone with batch normalisations for levels; `level`: what their names end in."""
    return (
        Rule('stem/conv', f'{prefix}conv1'),
        Rule(r'stem/bn(?P<level>\d+)', f'{prefix}bn1{level}'),
        *conv_norm(r'(layer\d)/block(\d)/shortcut', rf'{prefix}\1.\2.downsample.0', rf'{prefix}\1.\2.downsample.1'),
        Rule(r'(layer\d)/block(\d)/conv(\d)/conv', rf'{prefix}\1.\2.conv\3'),
        Rule(r'(layer\d)/block(\d)/conv(\d)/bn(?P<level>\d+)', rf'{prefix}\1.\2.bn\3{level}'),
    )


_TORCHVISION_FOR_LEVELS = WeightNames(_level_rules('', ''), ignored=TORCHVISION.ignored)  # all levels start as one


def _names(form: str) -> WeightNames:
    laterals = [f'backbone.upsample_bottlenecks.{_STAGES[-1] - stage}' for stage in _STAGES]
    if form == '2019':
        rules = list(BACKBONE_RULES)
        for stage, name in zip(_STAGES, laterals, strict=True):
            rules += norm_conv_names(f'lateral{stage}', name)
    else:
        rules = list(_level_rules('backbone.', r'.\g<level>'))
        rules += [Rule(f'lateral{stage}', name) for stage, name in zip(_STAGES, laterals, strict=True)]
    rules += norm_conv_names(r'blend(\d+)', r'backbone.upsample_blends.\1.blend_conv')
    rules += norm_conv_names('logits', 'logits')
    return WeightNames(tuple(rules), ignored=r'backbone\.img_(mean|std)')


_NAMES = {'2019': _names('2019'), '2020': with_buffers(_names('2020'))}

FAMILY = Family(
    SwiftNetPyramid,
    describe,
    {'swiftnet_pyr_2019': {}, 'swiftnet_pyr': {}, 'swiftnet_pyr_2020': {'form': '2020', 'levels': 3}},
    choices={'form': FORMS},
)
