"""SQNet: Treml et al., "Speeding up Semantic Segmentation for Autonomous Driving" (MLITS workshop at NIPS 2016).

A SqueezeNet with ELU, four dilations in parallel at a 16th of the image, and a decoder that refines its map with each
level of the encoder. The paper's widths are in no source that could be read. The default takes those of SqueezeNet 1.1;
the form 'zh320' is that of the port whose weights are published
(github.com/zh320/realtime-semantic-segmentation-pytorch, c77b1b6).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models.blocks import (
    Conv,
    ConvNorm,
    ConvTranspose,
    ConvTransposeNorm,
    kaiming_fan_in_init,
    torch_default_init,
)
from atonet_jax.models.contract import Family, Network, Published, Rule, WeightNames, conv_norm
from atonet_jax.models.terms import CrossEntropy, HardExampleShare, Term

FORMS = ('biases', 'bn', 'zh320')
DILATIONS = (1, 2, 4, 8)
# Channels of each fire module, in quarters of the network's width: of its squeeze, and of each of its two expansions.
FIRES = {2: (1, 4), 3: (1, 4), 4: (2, 8), 5: (2, 8), 6: (3, 12), 7: (3, 12), 8: (4, 16), 9: (4, 16)}
AFTER_POOL = (2, 4, 6)  # the fire modules before which the map is halved

# Each output pixel of a transposed 3x3 convolution of stride 2 meets a quarter of the kernel's taps.
_transposed_init = nn.initializers.variance_scaling(8.0, 'fan_in', 'normal')


class SQNet(nn.Module):
    """The network of the paper's Fig. 2, as far as it is known.

    Attributes:
        num_classes: classes to tell apart.
        form: 'biases': convolutions have biases and no batch normalisation follows them. 'bn': the other way round, but
            for the logits. 'zh320': as 'bn', but the last refinement already has a channel for each class, and the
            logits have batch normalisation and ELU, so that none is below -1.
        width: channels of the first convolution, a multiple of 4; all others are multiples of a quarter of it.
        dtype: compute type, float32 or bfloat16. Parameters, running statistics and logits are float32 in both.
    """

    num_classes: int
    form: str = 'biases'
    width: int = 64
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """images: [B, H, W, 3] float, normalised, of any size.

        Returns {'logits': [B, H, W, num_classes] float32}. With `train`, 'batch_stats' must be mutable unless
        form='biases'.
        """
        width, is_zh320 = self.width, self.form == 'zh320'
        x = self.conv(width, 'conv1', stride=2)(images, train)
        levels = []  # what the decoder takes: at a half, a quarter and an eighth of the image
        for i, (squeeze, expand) in FIRES.items():
            if i in AFTER_POOL:
                levels.append(x)
                x = ops.max_pool(x)
            x = self.fire(x, squeeze * width // 4, expand * width // 4, f'fire{i}', train)
        branches = [self.conv(2 * width, f'pdc{i}', dilation=d)(x, train) for i, d in enumerate(DILATIONS)]
        x = sum(branches[1:], branches[0])

        merged_widths = 2 * width, width, self.num_classes if is_zh320 else width
        for i, (skip, merged) in enumerate(zip(reversed(levels), merged_widths, strict=True), 1):
            x = self.double(x, x.shape[-1], skip.shape[1:3], f'up{i}', train)
            skip = self.conv(skip.shape[-1], f'refine{i}_skip')(skip, train)
            x = self.conv(merged, f'refine{i}_merge')(jnp.concatenate([skip, x], -1), train)
        if is_zh320:
            return {'logits': self.double(x, self.num_classes, images.shape[1:3], 'out', train, jnp.float32)}
        x = ConvTranspose(self.num_classes, use_bias=True, kernel_init=_transposed_init, name='out')(x)
        return {'logits': _cut(x, images.shape[1:3])}

    def conv(self, features: int, name: str, kernel_size: int = 3, stride: int = 1, dilation: int = 1):
        """A convolution and its ELU: (x, train) -> [B, ceil(H / stride), ceil(W / stride), features]."""
        shape = {'features': features, 'kernel_size': kernel_size, 'stride': stride, 'dilation': dilation}
        init = torch_default_init if self.form == 'zh320' else kaiming_fan_in_init
        options = {'kernel_init': init, 'dtype': self.dtype, 'name': name}
        if self.form != 'biases':
            return ConvNorm(**shape, **options, activation=nn.elu)
        conv = Conv(**shape, **options, use_bias=True, bias_init=nn.initializers.zeros)
        return lambda x, train: nn.elu(conv(x))

    def fire(self, x: jax.Array, squeeze: int, expand: int, name: str, train: bool) -> jax.Array:
        """SqueezeNet's module: a narrow 1x1 convolution, then one of 1x1 beside one of 3x3, joined.

        [B, H, W, C] -> [B, H, W, 2 * expand].
        """
        x = self.conv(squeeze, f'{name}_squeeze', 1)(x, train)
        parts = (self.conv(expand, f'{name}_expand{size}x{size}', size)(x, train) for size in (1, 3))
        return jnp.concatenate([*parts], -1)

    def double(
        self, x: jax.Array, features: int, size: tuple[int, int], name: str, train: bool, dtype: jnp.dtype | None = None
    ) -> jax.Array:
        """A transposed convolution and its ELU, cut to [B, *size, features], at most a row and a column less."""
        dtype = dtype or self.dtype
        if self.form == 'biases':
            conv = ConvTranspose(features, use_bias=True, kernel_init=_transposed_init, dtype=dtype, name=name)
            x = nn.elu(conv(x))
        else:
            has_bias = self.form == 'zh320'
            x = ConvTransposeNorm(features, use_bias=has_bias, activation=nn.elu, dtype=dtype, name=name)(x, train)
        return _cut(x, size)


def _cut(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    return x[:, : size[0], : size[1]]


def describe(model: SQNet) -> Network:
    title, source, parameters, macs = _PUBLISHED[model.form]
    criterion = HardExampleShare() if model.form == 'zh320' else CrossEntropy()
    return Network(
        terms=(Term('logits', criterion=criterion),),
        in_backbone=lambda path: path[0].startswith(('conv1', 'fire')),
        weights=(_ZH320_NAMES if model.form == 'zh320' else _names(model.form == 'bn'),),
        backbones=(_TORCHVISION,) if model.form == 'biases' else (),
        published=Published(
            title=title,
            source=source,
            parameters=parameters,
            macs=((1024, 2048), macs),
            license='Apache-2.0' if model.form == 'zh320' else 'no code',
            weights='Cityscapes; the port' if model.form == 'zh320' else '',
            rows=() if model.form == 'zh320' else ('SQNet',),
            notes="the paper's widths are not known: no reading of it gives the printed 270 G at 1024x2048",
        ),
    )


# Title, source, parameters, and multiply-accumulates at 1024x2048.
_SOURCE = 'Treml et al.: MLITS 2016, a reading of it'
_PUBLISHED = {
    'biases': ('SQNet', _SOURCE, 4_863_763, 178_392_137_728),
    'bn': ('SQNet (batch normalisation)', _SOURCE, 4_868_243, 178_392_137_728),
    'zh320': ('SQNet (zh320)', 'github.com/zh320/realtime-semantic-segmentation-pytorch', 4_808_976, 147_178_651_648),
}


def _names(has_bn: bool) -> WeightNames:
    """The names of the forms 'biases' and 'bn'. They are of our own choice: nobody has published such weights."""
    places = (
        (r'(conv1|up\d|out)', r'\1'),
        (r'(fire\d)_(squeeze|expand1x1|expand3x3)', r'\1.\2'),
        (r'pdc(\d)', r'pdc.\1'),
        (r'(refine\d)_(skip|merge)', r'\1.\2'),
    )
    rules = [Rule(*place) for place in places]
    if has_bn:
        rules = [rule for path, name in places for rule in conv_norm(path, f'{name}.conv', f'{name}.bn')] + rules
    return WeightNames(tuple(rules))


def _sequence(path: str, name: str) -> tuple[Rule, ...]:
    """The rules of a convolution and its normalisation that are elements 0 and 1 of a sequence."""
    return conv_norm(path, f'{name}.0', f'{name}.1')


_ZH320_FIRES = {2: '1.0', 3: '1.1', 4: '2.0', 5: '2.1', 6: '3.0', 7: '3.1', 8: '3.2', 9: '3.3'}
_ZH320_NAMES = WeightNames(
    (
        *_sequence('conv1', 'conv'),
        *(
            rule
            for i, place in _ZH320_FIRES.items()
            for ours, theirs in (('squeeze', 'squeeze'), ('expand1x1', 'expand1'), ('expand3x3', 'expand3'))
            for rule in _sequence(f'fire{i}_{ours}', f'fire{place}.conv_{theirs}')
        ),
        *_sequence(r'pdc(\d)', r'pdc.conv\1'),
        *_sequence(r'(up\d)', r'\1.up_conv'),
        *_sequence('out', 'up4.up_conv'),
        *_sequence(r'(refine\d)_skip', r'\1.conv_low'),
        *_sequence(r'(refine\d)_merge', r'\1.conv_cat'),
    )
)
# torchvision's SqueezeNet 1.1. It has ReLU, and pads its first convolution and its pools otherwise: only a start.
_TORCHVISION_FIRES = {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12}
_TORCHVISION = WeightNames(
    (
        Rule('conv1', 'features.0'),
        *(Rule(rf'fire{i}_(\w+)', rf'features.{place}.\1') for i, place in _TORCHVISION_FIRES.items()),
    ),
    ignored=r'classifier\..*',
)

FAMILY = Family(
    SQNet,
    describe,
    {'sqnet': {}, 'sqnet_zh320': {'form': 'zh320'}},
    choices={'form': FORMS},
    multiples={'width': 4},
)
