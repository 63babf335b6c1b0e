"""BiSeNet: Yu et al., "BiSeNet: Bilateral Segmentation Network for Real-time Semantic Segmentation" (ECCV 2018).

A shallow spatial path keeps details at an eighth of the input. A context path goes down to a 32nd and comes back. A
fusion module joins the two. The first form follows the authors' code (github.com/ycszen/TorchSeg, 62eeb15), the other
one the port whose weights are used most (github.com/CoinCheung/BiSeNet, 6b4b67a).
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models import resnet, xception
from atonet_jax.models.blocks import Conv, ConvNorm, SqueezeAttention, kaiming_fan_in_init
from atonet_jax.models.contract import (
    IMAGENET,
    Family,
    Network,
    Normalization,
    Published,
    Rule,
    WeightNames,
    conv_bn,
    conv_norm,
    prefixed,
)
from atonet_jax.models.terms import HardExampleShare, Term

BACKBONES = ('resnet18', 'xception39')
FORMS = ('torchseg', 'coincheung')
COINCHEUNG = Normalization((0.3257, 0.3690, 0.3223), (0.2112, 0.2148, 0.2115))
AUX_HEADS = ('aux_r16', 'aux_r32')

# Of all but the backbone, in each form. The port's classifiers begin without bias.
_INITS = {'torchseg': kaiming_fan_in_init, 'coincheung': nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')}


class BiSeNet(nn.Module):
    """The paper's network (its Fig. 2) on one of its backbones.

    Attributes:
        num_classes: classes to tell apart.
        backbone: 'resnet18' or 'xception39'.
        form: 'torchseg', the authors' code, or 'coincheung', the port. The port enlarges by nearest neighbour within
            the context path, has one convolution in the fusion's attention, and other widths in the heads.
        width: channels of the spatial path; all others are multiples of it, but Xception39's stem has an eighth.
        dtype: compute type, float32 or bfloat16. Parameters, running statistics and outputs are float32 in both.
    """

    num_classes: int
    backbone: str = 'resnet18'
    form: str = 'torchseg'
    width: int = 64
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """images: [B, H, W, 3] float, normalised, of any size.

        Returns {'logits': [B, ceil(H / 8), ceil(W / 8), num_classes] float32}, and with `train` also 'aux_r16', of the
        same shape, and 'aux_r32', [B, ceil(H / 16), ceil(W / 16), num_classes]: logits of the context path after each
        step back. With `train`, 'batch_stats' must be mutable.
        """
        width, is_port = self.width, self.form == 'coincheung'
        options = {'kernel_init': _INITS[self.form], 'dtype': self.dtype}
        block = partial(ConvNorm, 2 * width, **options)
        attention = partial(AttentionRefinement, 2 * width, **options)
        head = partial(
            Head, num_classes=self.num_classes, bias_init=nn.initializers.zeros if is_port else None, **options
        )
        enlarge = ops.resize_nearest if is_port else ops.resize_align_corners

        details = SpatialPath(width, **options, name='spatial')(images, train)
        if self.backbone == 'resnet18':
            _, c8, c16, c32 = resnet.resnet18(images, train, width, self.dtype)
        else:
            c8, c16, c32 = xception.xception39(images, train, width // 8, self.dtype)

        x = block(1, name='global_context')(ops.global_avg_pool(c32), train)
        x += attention(name='arm32')(c32, train)
        r32 = block(3, name='refine32')(enlarge(x, c16.shape[1:3]), train)
        x = r32 + attention(name='arm16')(c16, train)
        r16 = block(3, name='refine16')(enlarge(x, c8.shape[1:3]), train)
        x = FeatureFusion(4 * width, is_port, **options, name='fusion')(details, r16, train)

        main_width, aux_width = (4 * width, width) if is_port else (width, 2 * width)
        outputs = {'logits': head(main_width, name='head')(x, train)}
        if train:
            outputs['aux_r16'] = head(aux_width, name='aux_r16')(r16, train)
            outputs['aux_r32'] = head(aux_width, name='aux_r32')(r32, train)
        return outputs


class SpatialPath(nn.Module):
    """Three convolutions of stride 2 and one of 1x1.

    Attributes:
        width: channels within; the output has twice as many.
        kernel_init: of all kernels.
        dtype: compute type.
    """

    width: int
    kernel_init: nn.initializers.Initializer
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, 3] -> [B, ceil(H / 8), ceil(W / 8), 2 * width]."""
        block = partial(ConvNorm, kernel_init=self.kernel_init, dtype=self.dtype)
        x = block(self.width, 7, stride=2, name='conv1')(x, train)
        x = block(self.width, 3, stride=2, name='conv2')(x, train)
        x = block(self.width, 3, stride=2, name='conv3')(x, train)
        return block(2 * self.width, 1, name='conv4')(x, train)


class AttentionRefinement(nn.Module):
    """Attention refinement module (ARM): a convolution, then channel attention."""

    features: int
    kernel_init: nn.initializers.Initializer
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, features]."""
        options = {'kernel_init': self.kernel_init, 'dtype': self.dtype}
        x = ConvNorm(self.features, 3, **options, name='conv')(x, train)
        return SqueezeAttention(**options, name='attention')(x, train)


class FeatureFusion(nn.Module):
    """Feature fusion module (FFM): both paths in one convolution, then channel attention on top of its result.

    Attributes:
        features: output channels.
        is_attention_normalized: the attention is one convolution with batch normalisation, instead of two without.
        kernel_init: of all kernels.
        dtype: compute type.
    """

    features: int
    is_attention_normalized: bool
    kernel_init: nn.initializers.Initializer
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, details: jax.Array, context: jax.Array, train: bool) -> jax.Array:
        """Two maps [B, H, W, C] -> [B, H, W, features]."""
        options = {'kernel_init': self.kernel_init, 'dtype': self.dtype}
        x = jnp.concatenate([details, context], -1)
        x = ConvNorm(self.features, 1, **options, name='conv')(x, train)
        if self.is_attention_normalized:
            return x + SqueezeAttention(**options, name='attention')(x, train)
        conv = partial(Conv, self.features, 1, **options)
        gate = nn.relu(conv(name='attention1')(ops.global_avg_pool(x)))
        return x + x * nn.sigmoid(conv(name='attention2')(gate))


class Head(nn.Module):
    """Logits of a map.

    Attributes:
        width: channels within.
        num_classes: output channels.
        bias_init: of the logits; None: torch's default.
        kernel_init: of all kernels.
        dtype: compute type of all but the logits.
    """

    width: int
    num_classes: int
    bias_init: nn.initializers.Initializer | None
    kernel_init: nn.initializers.Initializer
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, num_classes] float32."""
        x = ConvNorm(self.width, 3, kernel_init=self.kernel_init, dtype=self.dtype, name='conv')(x, train)
        classifier = Conv(self.num_classes, 1, use_bias=True, kernel_init=self.kernel_init, bias_init=self.bias_init,
                          name='classifier')  # fmt: skip
        return classifier(x)


def check(model: BiSeNet) -> None:
    """Raises ValueError where an option cannot work."""
    if model.form == 'coincheung' and model.backbone != 'resnet18':
        raise ValueError(f"form='coincheung': goes with backbone='resnet18', not {model.backbone!r}")
    if model.backbone == 'xception39' and model.width % 8:
        raise ValueError(f"width={model.width!r}: must be a multiple of 8 with backbone='xception39'")


def describe(model: BiSeNet) -> Network:
    is_port = model.form == 'coincheung'
    title, parameters, *macs = _PUBLISHED[model.form, model.backbone]
    return Network(
        # The port takes its share of the labelled pixels, not of all.
        terms=tuple(Term(output, criterion=HardExampleShare()) for output in ('logits', *AUX_HEADS)),
        training_only=AUX_HEADS,
        in_backbone=resnet.in_resnet,
        # The authors train all but the backbone at ten times its rate, the port the fusion and the heads alone.
        reduced=(lambda path: path[0] not in ('fusion', 'head', *AUX_HEADS)) if is_port else resnet.in_resnet,
        normalization=COINCHEUNG if is_port else IMAGENET,
        upsampling='half_pixel' if is_port else 'align_corners',
        on_canvas=True,
        weights=(_COINCHEUNG_NAMES if is_port else _TORCHSEG_NAMES[model.backbone],),
        backbones=(resnet.TORCHVISION,) if model.backbone == 'resnet18' else (),
        published=Published(
            title=title,
            source='github.com/CoinCheung/BiSeNet' if is_port else 'Yu et al.: ECCV 2018, and their code',
            parameters=parameters,
            macs=tuple(macs),
            notes="the paper's 5.8 M and 49.0 M parameters are MiB of float32 weights",
            license='MIT',
            weights='Cityscapes; the port' if is_port else 'Cityscapes; the authors',
            rows=() if is_port else ({'xception39': 'BiSeNet', 'resnet18': 'BiSeNet (ResNet-18)'}[model.backbone],),
        ),
    )


# Title, parameters, and multiply-accumulates at a size.
_PUBLISHED = {
    ('torchseg', 'resnet18'): ('BiSeNet (ResNet-18)', 12_894_163, (360, 640), 11_581_049_856),
    ('torchseg', 'xception39'): ('BiSeNet (Xception39)', 1_541_963, (768, 1536), 15_616_081_920),
    ('coincheung', 'resnet18'): ('BiSeNet (CoinCheung)', 13_275_539, (1024, 2048), 118_338_256_896),
}


def _torchseg_head(path: str, name: str, optional: bool = False) -> tuple[Rule, ...]:
    return (
        *conv_bn(f'{path}/conv', f'{name}.conv_3x3', optional),
        Rule(f'{path}/classifier', f'{name}.conv_1x1', optional),
    )


def _coincheung_head(path: str, name: str, optional: bool = False) -> tuple[Rule, ...]:
    return (
        *conv_bn(f'{path}/conv', f'{name}.conv', optional),
        Rule(f'{path}/classifier', f'{name}.conv_out', optional),
    )


_TORCHSEG_RULES = (
    *conv_bn('spatial/conv1', 'spatial_path.conv_7x7'),
    *conv_bn('spatial/conv2', 'spatial_path.conv_3x3_1'),
    *conv_bn('spatial/conv3', 'spatial_path.conv_3x3_2'),
    *conv_bn('spatial/conv4', 'spatial_path.conv_1x1'),
    *conv_bn('global_context', 'global_context.1'),
    *conv_bn('arm32/conv', 'arms.0.conv_3x3'),
    *conv_bn('arm32/attention/conv', 'arms.0.channel_attention.1'),
    *conv_bn('arm16/conv', 'arms.1.conv_3x3'),
    *conv_bn('arm16/attention/conv', 'arms.1.channel_attention.1'),
    *conv_bn('refine32', 'refines.0'),
    *conv_bn('refine16', 'refines.1'),
    *conv_bn('fusion/conv', 'ffm.conv_1x1'),
    Rule(r'fusion/attention(\d)', r'ffm.channel_attention.\1.conv'),
    *_torchseg_head('head', 'heads.2'),
    *_torchseg_head('aux_r16', 'heads.1', optional=True),
    *_torchseg_head('aux_r32', 'heads.0', optional=True),
)
_BACKBONE_RULES = {
    'resnet18': resnet.TORCHVISION.rules,
    'xception39': (*conv_bn('stem', 'conv1'), *xception.STAGE_RULES),
}
_TORCHSEG_NAMES = {
    backbone: WeightNames(prefixed(rules, 'context_path.') + _TORCHSEG_RULES)
    for backbone, rules in _BACKBONE_RULES.items()
}
_COINCHEUNG_NAMES = WeightNames(
    (
        *prefixed(resnet.TORCHVISION.rules, 'cp.resnet.'),
        *conv_bn(r'spatial/(conv[123])', r'sp.\1'),
        *conv_bn('spatial/conv4', 'sp.conv_out'),
        *conv_bn('global_context', 'cp.conv_avg'),
        *conv_bn(r'(arm\d\d)/conv', r'cp.\1.conv'),
        *conv_norm(r'(arm\d\d)/attention/conv', r'cp.\1.conv_atten', r'cp.\1.bn_atten'),
        *conv_bn(r'refine(\d\d)', r'cp.conv_head\1'),
        *conv_bn('fusion/conv', 'ffm.convblk'),
        *conv_bn('fusion/attention/conv', 'ffm'),
        *_coincheung_head('head', 'conv_out'),
        *_coincheung_head(r'aux_r(\d\d)', r'conv_out\1', optional=True),
    )
)

FAMILY = Family(
    BiSeNet,
    describe,
    {
        'bisenet_r18': {},
        'bisenet': {},
        'bisenet_x39': {'backbone': 'xception39'},
        'bisenet_coincheung': {'form': 'coincheung'},
    },
    choices={'backbone': BACKBONES, 'form': FORMS},
    check=check,
)
