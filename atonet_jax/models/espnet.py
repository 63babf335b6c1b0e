"""ESPNet and ESPNet-C: Mehta, Rastegari, Caspi, Shapiro, Hajishirzi, "ESPNet: Efficient Spatial Pyramid of Dilated
Convolutions for Semantic Segmentation" (ECCV 2018).

Each block narrows its map, convolves it with five dilations at once and adds up what they give. The encoder also gets
the shrunk image; a small decoder goes back to the image's size. ESPNet-C is the encoder alone. Follows the authors'
code (github.com/sacmehta/ESPNet, afe71c3), which holds two decoders: those of their Cityscapes and CamVid weights.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models.blocks import BatchNorm, Conv, ConvNorm, ConvTranspose, ConvTransposeNorm, PReLU
from atonet_jax.models.contract import Family, Network, Normalization, Published, Rule, WeightNames, conv_norm
from atonet_jax.models.terms import InverseLogShare, Term

FORMS = ('cityscapes', 'camvid', 'encoder')
DILATIONS = (1, 2, 4, 8, 16)
_EPSILON = 1e-3  # of batch normalisation

_BatchNorm = partial(BatchNorm, _EPSILON)
_ConvNorm = partial(ConvNorm, activation=None, epsilon=_EPSILON)


class ESPNet(nn.Module):
    """The network of the paper's Fig. 4.

    Attributes:
        num_classes: classes to tell apart; 5 or more with a decoder, which shares them out among five dilations.
        form: 'cityscapes' or 'camvid': the decoder of the authors' weights for that data set, whose images are also
            normalised as there; they differ in what the last convolution sees. 'encoder': ESPNet-C.
        blocks: in a row at a quarter and at an eighth of the image, the paper's alpha_2 and alpha_3.
        width: channels of the first level; the other levels have 4 and 8 times as many. 16 is the published network.
        dtype: compute type, float32 or bfloat16. Parameters, running statistics and logits are float32 in both.
    """

    num_classes: int
    form: str = 'cityscapes'
    blocks: tuple[int, int] = (2, 8)
    width: int = 16
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """images: [B, H, W, 3] float, normalised; 8 divides H and W where there is a decoder.

        Returns {'logits': [B, h, w, num_classes] float32}; (h, w) is (H, W), or (ceil(H / 8), ceil(W / 8)) of
        form='encoder'. With `train`, 'batch_stats' must be mutable.
        """
        norm_act, down = partial(NormAct, dtype=self.dtype), partial(Down, dtype=self.dtype)
        classes, is_encoder = self.num_classes, self.form == 'encoder'
        images = images.astype(self.dtype)
        half = ops.avg_pool(images, 3, 2, 1)
        quarter = ops.avg_pool(half, 3, 2, 1)

        level1 = _ConvNorm(self.width, 3, stride=2, dtype=self.dtype, name='level1')(images, train)
        level1 = PReLU(name='level1_act')(level1)
        with_half = norm_act(name='b1')(jnp.concatenate([level1, half], -1), train)

        x = first = down(4 * self.width, name='level2_down')(with_half, train)
        for i in range(self.blocks[0]):
            x = Block(dtype=self.dtype, name=f'level2_block{i}')(x, train)
        level2 = norm_act(name='b2')(jnp.concatenate([x, first, quarter], -1), train)

        x = first = down(8 * self.width, name='level3_down')(level2, train)
        for i in range(self.blocks[1]):
            x = Block(dtype=self.dtype, name=f'level3_block{i}')(x, train)
        x = norm_act(name='b3')(jnp.concatenate([first, x], -1), train)
        dtype = jnp.float32 if is_encoder else self.dtype
        x = Conv(classes, 1, dtype=dtype, name='encoder_classifier')(x)
        if is_encoder:
            return {'logits': x}

        x = _BatchNorm(dtype=self.dtype, name='br')(x, train)
        x = ConvTranspose(classes, 2, 2, 0, 0, dtype=self.dtype, name='up_l3')(x)
        x = jnp.concatenate([Conv(classes, 1, dtype=self.dtype, name='level3_c')(level2), x], -1)
        x = norm_act(name='combine_norm')(x, train)
        x = Block(classes, is_residual=False, dtype=self.dtype, name='combine')(x, train)
        up = ConvTransposeNorm(classes, 2, 2, 0, 0, activation=None, epsilon=_EPSILON, dtype=self.dtype, name='up_l2')
        x = PReLU(name='up_l2_act')(up(x, train))
        x = jnp.concatenate([x, level1 if self.form == 'cityscapes' else with_half], -1)
        x = PReLU(name='conv_act')(_ConvNorm(classes, 3, dtype=self.dtype, name='conv')(x, train))
        return {'logits': ConvTranspose(classes, 2, 2, 0, 0, name='classifier')(x)}


class NormAct(nn.Module):
    """Batch normalisation and PReLU."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        return PReLU(name='act')(_BatchNorm(dtype=self.dtype, name='bn')(x, train))


class Pyramid(nn.Module):
    """The spatial pyramid of dilated convolutions (the paper's Fig. 1): five at once, hierarchically added up.

    Attributes:
        features: output channels. Each dilation gives a fifth of them, rounded down; dilation 1 gives the others.
        dtype: compute type.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, features]."""
        part = self.features // len(DILATIONS)
        rest = self.features - part * (len(DILATIONS) - 1)
        first, *others = (
            Conv(rest if dilation == 1 else part, 3, dilation=dilation, dtype=self.dtype, name=f'd{dilation}')(x)
            for dilation in DILATIONS
        )
        return jnp.concatenate([first, *itertools.accumulate(others)], -1)


class Block(nn.Module):
    """ESP (the paper's Fig. 1): a 1x1 convolution to a fifth of the channels, the pyramid, a shortcut.

    Attributes:
        features: output channels; None: those of the input.
        is_residual: whether there is a shortcut.
        dtype: compute type.
    """

    features: int | None = None
    is_residual: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, features]."""
        features, shortcut = self.features or x.shape[-1], x
        x = Conv(features // len(DILATIONS), 1, dtype=self.dtype, name='c1')(x)
        x = Pyramid(features, self.dtype, name='pyramid')(x)
        return NormAct(self.dtype, name='norm')(x + shortcut if self.is_residual else x, train)


class Down(nn.Module):
    """An ESP that halves the map: its first convolution is a 3x3 one of stride 2, and there is no shortcut.

    Attributes:
        features: output channels.
        dtype: compute type.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), features]."""
        x = Conv(self.features // len(DILATIONS), 3, stride=2, dtype=self.dtype, name='c1')(x)
        x = Pyramid(self.features, self.dtype, name='pyramid')(x)
        return NormAct(self.dtype, name='norm')(x, train)


def check(model: ESPNet) -> None:
    """Raises ValueError where an option cannot work."""
    if model.form != 'encoder' and model.num_classes < len(DILATIONS):
        raise ValueError(f"num_classes={model.num_classes!r}: must be 5 or more; form='encoder' takes fewer")
    if model.width < 2:
        raise ValueError(f'width={model.width!r}: must be 2 or more, which gives each dilation a channel')
    if len(model.blocks) != 2 or min(model.blocks) < 0:
        raise ValueError(f'blocks={model.blocks!r}: must be two numbers, 0 or more')


def describe(model: ESPNet) -> Network:
    is_encoder = model.form == 'encoder'
    parameters, macs = _COUNTS[model.form] if (model.width, model.blocks) == (16, (2, 8)) else (None, None)

    def in_backbone(path: tuple[str, ...]) -> bool:
        in_encoder = _ENCODER_NAMES.name_of('/'.join(path[:-1])) is not None
        return in_encoder and not (is_encoder and path[0] == 'encoder_classifier')

    return Network(
        terms=(Term('logits', at='output' if is_encoder else 'labels'),),
        in_backbone=in_backbone,
        normalization=_CAMVID if model.form == 'camvid' else _CITYSCAPES,
        multiple_of=1 if is_encoder else 8,
        upsampling='align_corners',  # of ESPNet-C; the other logits have the image's size
        on_canvas=True,
        class_weights=InverseLogShare(1.1),
        weights=(_ENCODER_NAMES if is_encoder else _NAMES,),
        backbones=(_ENCODER_NAMES,),
        published=Published(
            title='ESPNet-C' if is_encoder else 'ESPNet',
            source='Mehta et al.: arXiv 1803.06815, and their code',
            parameters=parameters,
            macs=macs and ((512, 1024), macs),
            license='MIT',
            weights='CamVid; the authors' if model.form == 'camvid' else 'Cityscapes; the authors',
            rows=('ESPNet',) if model.form == 'cityscapes' else (),
            notes='the published weights have one class more, of all pixels without a label',
        ),
    )


# Parameters, and multiply-accumulates at 512x1024.
_COUNTS = {
    'cityscapes': (362_949, 4_603_043_840),
    'camvid': (363_462, 4_670_283_776),
    'encoder': (349_193, 3_468_058_624),
}


def _normalization(mean: tuple[float, float, float], std: tuple[float, float, float]) -> Normalization:
    """(value - mean) / std of pixel values in the order BGR; the authors divide by 255 once more."""
    return Normalization(mean, tuple(255 * deviation for deviation in std), scale=1.0, channels='BGR')


_CITYSCAPES = _normalization((72.3923111, 82.90893555, 73.15840149), (45.3192215, 46.15289307, 44.91483307))
# Not in the authors' repository: the mean of the values of each of CamVid's training images, as they count it.
_CAMVID = _normalization((110.331024, 108.40886, 105.033195), (72.12571, 72.69074, 69.90435))


def _norm_act(ours: str, theirs: str) -> tuple[Rule, ...]:
    return Rule(f'{ours}/bn', f'{theirs}.bn'), Rule(f'{ours}/act', f'{theirs}.act')


def _pyramid(ours: str, theirs: str, norm: str) -> tuple[Rule, ...]:
    """The rules of a `Block` or a `Down`."""
    return (
        Rule(f'{ours}/c1', f'{theirs}.c1.conv'),
        Rule(rf'{ours}/pyramid/(?P<d>d\d+)', rf'{theirs}.\g<d>.conv'),
        *_norm_act(f'{ours}/norm', norm),
    )


def _encoder_rules(prefix: str) -> tuple[Rule, ...]:
    return (
        *conv_norm('level1', f'{prefix}level1.conv', f'{prefix}level1.bn'),
        Rule('level1_act', f'{prefix}level1.act'),
        *_norm_act(r'(b\d)', rf'{prefix}\1'),
        *_pyramid(r'(level\d)_down', rf'{prefix}\1_0', rf'{prefix}\1_0'),
        *_pyramid(r'(level\d)_block(\d+)', rf'{prefix}\1.\2', rf'{prefix}\1.\2.bn'),
        Rule('encoder_classifier', f'{prefix}classifier.conv'),
    )


_PUBLISHED = {'void': (12, 20), 'heights': {12: 360, 20: 512}}  # outputs of the weights for CamVid and Cityscapes
_ENCODER_NAMES = WeightNames(_encoder_rules(''), **_PUBLISHED)
_NAMES = WeightNames(
    (
        *_encoder_rules('encoder.'),
        Rule('br', 'br'),
        Rule('up_l3', 'up_l3.0'),
        Rule('level3_c', 'level3_C.conv'),
        *_norm_act('combine_norm', 'combine_l2_l3.0'),
        *_pyramid('combine', 'combine_l2_l3.1', 'combine_l2_l3.1.bn'),
        *conv_norm('up_l2', 'up_l2.0', 'up_l2.1.bn'),
        Rule('up_l2_act', 'up_l2.1.act'),
        *conv_norm('conv', 'conv.conv', 'conv.bn'),
        Rule('conv_act', 'conv.act'),
        Rule('classifier', 'classifier'),
    ),
    **_PUBLISHED,
)

FAMILY = Family(
    ESPNet,
    describe,
    {'espnet': {}, 'espnet_camvid': {'form': 'camvid'}, 'espnet_c': {'form': 'encoder'}},
    choices={'form': FORMS},
    check=check,
)
