"""FRRN A and B: Pohlen, Hermans, Mathias, Leibe, "Full-Resolution Residual Networks for Semantic Segmentation in Street
Scenes" (CVPR 2017).

Two streams. The residual stream keeps the image's size and is only ever added to; the pooling stream shrinks and grows
again for context. Each unit looks at both and writes to both. Follows the authors' code (github.com/TobyPDE/FRRN,
2004110).
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models.blocks import Classifier, Conv, ConvNorm
from atonet_jax.models.contract import Family, Network, Normalization, Published, Rule, WeightNames, conv_norm
from atonet_jax.models.terms import BootstrappedCrossEntropy, Term

# The stages of the pooling stream, before each a max-pool or an enlargement: (units, channels in multiples of `width`).
ENCODERS = {'a': ((3, 2), (4, 4), (2, 8), (2, 8)), 'b': ((3, 2), (4, 4), (2, 8), (2, 8), (2, 8))}
DECODERS = {'a': ((2, 4), (2, 4), (2, 2)), 'b': ((2, 4), (2, 4), (2, 4), (2, 2))}
UPSAMPLINGS = ('half_pixel', 'original')

# The initialisations of the authors: He's before a ReLU, elsewhere with a gain of 1.
_ConvNorm = partial(ConvNorm, epsilon=1e-4, kernel_init=nn.initializers.he_uniform())
_LinearNorm = partial(ConvNorm, epsilon=1e-4, kernel_init=nn.initializers.lecun_uniform(), activation=None)


class FRRN(nn.Module):
    """The networks of the paper's Table 1.

    Attributes:
        num_classes: classes to tell apart.
        form: 'a' or 'b', which pools once more.
        width: channels of the pooling stream at the image's size; elsewhere it has 2 to 8 times as many.
        lanes: channels of the residual stream.
        upsampling: of the pooling stream: 'half_pixel' is bilinear; 'original' is that of the authors' code, whose
            pixel 2 * i is pixel i itself.
        dtype: compute type, float32 or bfloat16. Parameters, running statistics and logits are float32 in both.
    """

    num_classes: int
    form: str = 'b'
    width: int = 48
    lanes: int = 32
    upsampling: str = 'half_pixel'
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """images: [B, H, W, 3] float, normalised; 16 divides H and W, 32 in form 'b'.

        Returns {'logits': [B, H, W, num_classes] float32}. With `train`, 'batch_stats' must be mutable.
        """
        width, dtype = self.width, self.dtype
        residual_unit, unit = partial(ResidualUnit, width, dtype), partial(FullResolutionUnit, dtype=dtype)
        enlarge = enlarge_half_pixel if self.upsampling == 'half_pixel' else enlarge_as_original

        y = _ConvNorm(width, 5, dtype=dtype, name='stem')(images, train)
        for i in range(1, 4):
            y = residual_unit(name=f'stem_ru{i}')(y, train)
        z = _LinearNorm(self.lanes, 1, dtype=dtype, name='lanes')(y, train)

        for i, (units, multiple) in enumerate(ENCODERS[self.form], 1):
            y = ops.max_pool(y, 2, 2, 0)
            for j in range(units):
                y, z = unit(multiple * width, name=f'encoder{i}_{j}')(y, z, train)
        for i, (units, multiple) in enumerate(DECODERS[self.form], 1):
            y = enlarge(y)
            for j in range(units):
                y, z = unit(multiple * width, name=f'decoder{i}_{j}')(y, z, train)

        x = jnp.concatenate([enlarge(y), z], -1)
        for i in range(1, 4):
            x = residual_unit(name=f'head_ru{i}')(x, train)
        inits = {'kernel_init': nn.initializers.lecun_uniform(), 'bias_init': nn.initializers.zeros}
        return {'logits': Classifier(self.num_classes, **inits, name='classifier')(x)}


class ResidualUnit(nn.Module):
    """Two convolutions and the input itself; the sum is not activated (RU, the paper's Fig. 2a).

    Attributes:
        features: output channels; an input of other channels is added by way of a 1x1 convolution.
        dtype: compute type.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, features]."""
        shortcut = x
        if x.shape[-1] != self.features:
            project = Conv(self.features, 1, kernel_init=nn.initializers.lecun_uniform(), dtype=self.dtype,
                           name='projection')  # fmt: skip
            shortcut = project(x)
        x = _ConvNorm(self.features, dtype=self.dtype, name='conv1')(x, train)
        return _LinearNorm(self.features, dtype=self.dtype, name='conv2')(x, train) + shortcut


class FullResolutionUnit(nn.Module):
    """Two convolutions that see both streams, and what they add to the residual stream (FRRU, the paper's Fig. 3).

    Attributes:
        features: output channels of the pooling stream.
        dtype: compute type.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, y: jax.Array, z: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Pooling stream [B, h, w, C], residual stream [B, H, W, L] -> [B, h, w, features], [B, H, W, L]."""
        scale = z.shape[1] // y.shape[1]
        x = jnp.concatenate([y, ops.max_pool(z, scale, scale, 0)], -1)
        for name in ('conv1', 'conv2'):
            x = _ConvNorm(self.features, dtype=self.dtype, name=name)(x, train)
        lane_conv = Conv(z.shape[-1], 1, use_bias=True, kernel_init=nn.initializers.lecun_uniform(),
                         bias_init=nn.initializers.zeros, dtype=self.dtype, name='lane_conv')  # fmt: skip
        return x, z + ops.resize_nearest(lane_conv(x), z.shape[1:3])


def enlarge_half_pixel(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, 2 * H, 2 * W, C], bilinear."""
    return ops.resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]))


def enlarge_as_original(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, 2 * H, 2 * W, C]: between pixels lie their means, and the last pixel is repeated (Theano)."""
    for axis in (1, 2):
        following = jnp.concatenate([x, jax.lax.slice_in_dim(x, -1, None, axis=axis)], axis)
        following = jax.lax.slice_in_dim(following, 1, None, axis=axis)
        shape = [2 * length if i == axis else length for i, length in enumerate(x.shape)]
        x = jnp.stack([x, (x + following) / 2], axis + 1).reshape(shape)
    return x


def describe(model: FRRN) -> Network:
    parameters, macs = _COUNTS[model.form]
    return Network(
        terms=(Term('logits', criterion=BootstrappedCrossEntropy()),),
        in_backbone=lambda path: path[0].startswith(_ENCODER),
        normalization=Normalization(),  # RGB: both loaders of the authors turn OpenCV's BGR round
        multiple_of=2 ** len(ENCODERS[model.form]),
        on_canvas=True,
        weights=(_NAMES,),
        published=Published(
            title=f'FRRN {model.form.upper()}',
            source='Pohlen, Hermans, Mathias, Leibe: CVPR 2017, and their code',
            parameters=parameters,
            macs=((512, 1024), macs),
            license='MIT',
            weights='Cityscapes; the authors, for Theano, not read here',
            rows=('FRRN',) if model.form == 'b' else (),
            notes='tables print 235 GFLOPs at 512x1024, which fit about 500x500; 71.8 % on Cityscapes are those of B',
        ),
    )


# Parameters, and multiply-accumulates at 512x1024.
_COUNTS = {'a': (17_746_803, 492_394_512_384), 'b': (24_755_699, 496_169_385_984)}
_ENCODER = ('stem', 'lanes', 'encoder')


def _unit(path: str, name: str) -> tuple[Rule, ...]:
    """The rules of a `ResidualUnit` or a `FullResolutionUnit`."""
    return (
        *conv_norm(rf'{path}/conv(?P<i>\d)', rf'{name}.conv\g<i>', rf'{name}.bn\g<i>'),
        Rule(rf'{path}/(?P<conv>projection|lane_conv)', rf'{name}.\g<conv>'),
    )


# The authors' files have no names; these are ours.
_NAMES = WeightNames(
    (
        *conv_norm('(stem|lanes)', r'\1.conv', r'\1.bn'),
        *_unit(r'((?:stem|head)_ru\d)', r'\1'),
        *_unit(r'((?:en|de)coder\d)_(\d)', r'\1.\2'),
        Rule('classifier/conv', 'classifier'),
    )
)

FAMILY = Family(
    FRRN,
    describe,
    {'frrn_a': {'form': 'a'}, 'frrn_b': {}, 'frrn': {}},
    choices={'form': tuple(ENCODERS), 'upsampling': UPSAMPLINGS},
)
