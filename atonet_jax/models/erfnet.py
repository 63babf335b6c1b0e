"""ERFNet: Romera, Alvarez, Bergasa, Arroyo, "ERFNet: Efficient Residual Factorized ConvNet for Real-time Semantic
Segmentation" (T-ITS 2018).

Residual blocks whose 3x3 convolutions are split into a vertical and a horizontal one. The encoder goes down to an
eighth, where dilations widen its view; a small decoder goes back to the image's size. Follows the authors' PyTorch code
(github.com/Eromera/erfnet_pytorch, d4a46fa), whose weights do not fit their older Torch7 code.
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models.blocks import BatchNorm, Conv, ConvNorm, ConvTranspose, ConvTransposeNorm
from atonet_jax.models.contract import Family, Network, Normalization, Published, Rule, WeightNames, conv_norm
from atonet_jax.models.terms import InverseLogShare, Term

HEADS = ('decoder', 'encoder', 'both')
ENCODER = tuple(f'layer{i}' for i in range(1, 17))
_EPSILON = 1e-3  # of batch normalisation


class ERFNet(nn.Module):
    """The network of the paper's Table I.

    Attributes:
        num_classes: classes to tell apart.
        head: where logits come from. 'decoder': the whole network. 'encoder': the encoder and a head of its own, which
            the authors train first. 'both': the whole network, and training also has the encoder's head; both losses
            then have the class weights of the decoder.
        width: channels of the first layer; the other levels have 4 and 8 times as many. 16 is the published network.
        dropout_rates: shares of a block's maps that training zeroes, at a quarter and at an eighth of the image.
        dtype: compute type, float32 or bfloat16. Parameters, running statistics and logits are float32 in both.
    """

    num_classes: int
    head: str = 'decoder'
    width: int = 16
    dropout_rates: tuple[float, float] = (0.03, 0.3)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """images: [B, H, W, 3] float, normalised; 8 divides H and W.

        Returns {'logits': [B, h, w, num_classes] float32}; (h, w) is (H, W), or (H / 8, W / 8) of head='encoder'. With
        head='both' and `train` also 'encoder_logits', [B, H / 8, W / 8, num_classes]. With `train`, 'batch_stats' must
        be mutable and a 'dropout' key be given.
        """
        down, up = partial(Down, dtype=self.dtype), partial(Up, dtype=self.dtype)
        block = partial(FactorizedBlock, dtype=self.dtype)
        at_quarter, at_eighth = self.dropout_rates

        x = down(self.width, name='layer1')(images.astype(self.dtype), train)
        x = down(4 * self.width, name='layer2')(x, train)
        for i in range(3, 8):
            x = block(dropout_rate=at_quarter, name=f'layer{i}')(x, train)
        x = down(8 * self.width, name='layer8')(x, train)
        for i, dilation in enumerate((2, 4, 8, 16, 2, 4, 8, 16), 9):
            x = block(dilation, at_eighth, name=f'layer{i}')(x, train)

        outputs = {}
        if self.head == 'encoder' or self.head == 'both' and train:
            outputs['encoder_logits'] = Conv(self.num_classes, 1, use_bias=True, name='encoder_head')(x)
        if self.head == 'encoder':
            return {'logits': outputs['encoder_logits']}

        x = up(4 * self.width, name='layer17')(x, train)
        x = block(name='layer18')(x, train)
        x = block(name='layer19')(x, train)
        x = up(self.width, name='layer20')(x, train)
        x = block(name='layer21')(x, train)
        x = block(name='layer22')(x, train)
        outputs['logits'] = ConvTranspose(self.num_classes, 2, 2, 0, 0, use_bias=True, name='layer23')(x)
        return outputs


class Down(nn.Module):
    """Halves the map: a 3x3 convolution beside a max-pool, then batch normalisation and ReLU.

    Attributes:
        features: output channels; the pool gives as many as the input has, the convolution the others.
        dtype: compute type.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H / 2, W / 2, features]."""
        conv = Conv(self.features - x.shape[-1], 3, stride=2, use_bias=True, dtype=self.dtype, name='conv')
        x = jnp.concatenate([conv(x), ops.max_pool(x, 2, 2, 0)], -1)
        return nn.relu(BatchNorm(_EPSILON, dtype=self.dtype, name='bn')(x, train))


class FactorizedBlock(nn.Module):
    """Non-bottleneck-1D (the paper's Fig. 2c): two 3x3 convolutions, each as a 3x1 and a 1x3 one, and a shortcut.

    Attributes:
        dilation: of the second pair.
        dropout_rate: share of the branch's maps that training zeroes.
        dtype: compute type.
    """

    dilation: int = 1
    dropout_rate: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        features, dilation, shortcut = x.shape[-1], self.dilation, x
        vertical = partial(Conv, features, (3, 1), use_bias=True, dtype=self.dtype)
        horizontal = partial(ConvNorm, features, (1, 3), use_bias=True, epsilon=_EPSILON, dtype=self.dtype)
        x = nn.relu(vertical(name='vertical1')(x))
        x = horizontal(name='horizontal1')(x, train)
        x = nn.relu(vertical(dilation=(dilation, 1), name='vertical2')(x))
        x = horizontal(dilation=(1, dilation), activation=None, name='horizontal2')(x, train)
        x = nn.Dropout(self.dropout_rate, broadcast_dims=(1, 2), deterministic=not train)(x)
        return nn.relu(x + shortcut)


class Up(ConvTransposeNorm):
    """Doubles the map: a transposed 3x3 convolution, batch normalisation and ReLU."""

    use_bias: bool = True
    epsilon: float = _EPSILON


def check(model: ERFNet) -> None:
    """Raises ValueError where an option cannot work."""
    if model.width < 4:
        raise ValueError(f'width={model.width!r}: must be 4 or more, as three are of the image')
    if len(model.dropout_rates) != 2 or not all(0 <= rate < 1 for rate in model.dropout_rates):
        raise ValueError(f'dropout_rates={model.dropout_rates!r}: must be two numbers from 0 to below 1')


def describe(model: ERFNet) -> Network:
    is_encoder, has_both = model.head == 'encoder', model.head == 'both'
    at_eighth = partial(Term, at='output')  # the authors shrink the labels
    terms = (at_eighth('logits'),) if is_encoder else (Term('logits'),)
    is_published = model.width == 16
    return Network(
        terms=(*terms, at_eighth('encoder_logits')) if has_both else terms,
        training_only=('encoder_head',) if has_both else (),
        in_backbone=lambda path: path[0] in ENCODER,
        normalization=Normalization(),
        multiple_of=8,
        on_canvas=True,
        class_weights=InverseLogShare(1.2 if is_encoder else 1.1),
        weights=(_ENCODER_NAMES if is_encoder else _WHOLE_NAMES,),
        backbones=(_BACKBONE_NAMES,),
        published=Published(
            title="ERFNet's encoder" if is_encoder else 'ERFNet',
            source='Romera et al.: T-ITS 19(1), 2018, and their PyTorch code',
            parameters=_PARAMETERS[is_encoder] if is_published else None,
            macs=((512, 1024), _MACS[is_encoder]) if is_published else None,
            license='CC BY-NC 4.0',
            weights='Cityscapes, ImageNet; the authors',
            rows=() if is_encoder else ('ERFNet',),
            notes="27.7 GFLOPs of tables are multiply-accumulates, most likely with the transposed convolutions' twice",
        ),
    )


# Of the whole network and of the encoder with its head.
_PARAMETERS = (2_064_191, 1_876_495)
_MACS = (26_604_339_200, 21_532_377_088)


def _encoder_rules() -> tuple[Rule, ...]:
    rules = [*_layer_rules('layer1', 'encoder.initial_block')]
    for i in range(2, 17):
        rules += _layer_rules(f'layer{i}', f'encoder.layers.{i - 2}')
    return tuple(rules)


def _decoder_rules() -> tuple[Rule, ...]:
    rules = []
    for i in range(17, 23):
        rules += _layer_rules(f'layer{i}', f'decoder.layers.{i - 17}')
    return (*rules, Rule('layer23', 'decoder.output_conv'))


def _layer_rules(ours: str, theirs: str) -> tuple[Rule, ...]:
    """The rules of a layer, whatever it is."""
    return (
        *conv_norm(ours, f'{theirs}.conv', f'{theirs}.bn'),
        Rule(rf'{ours}/vertical(\d)', rf'{theirs}.conv3x1_\1'),
        *conv_norm(rf'{ours}/horizontal(\d)', rf'{theirs}.conv1x3_\1', rf'{theirs}.bn\1'),
    )


_HEAD_NAME, _HEAD_ENTRIES, _DECODER_ENTRIES = 'encoder.output_conv', r'encoder\.output_conv\..*', r'decoder\..*'
_names = partial(WeightNames, void=(20,), heights={20: 512})  # of the authors' weights for Cityscapes
# The authors' files always hold the encoder's head: the whole network does not read it, and is written with it.
_WHOLE_NAMES = _names(
    (*_encoder_rules(), *_decoder_rules(), Rule('encoder_head', _HEAD_NAME, optional=True)),
    ignored=_HEAD_ENTRIES,
    whole=lambda model: model.clone(head='both'),
)
_ENCODER_NAMES = _names((*_encoder_rules(), Rule('encoder_head', _HEAD_NAME)), ignored=_DECODER_ENTRIES)


def _without_classifier(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The encoder of the authors' ImageNet file, which has it in a module `features` before a classifier."""
    prefix = 'features.'
    is_imagenet = any(name.startswith(f'{prefix}encoder.') for name in arrays)
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)} if is_imagenet else arrays


_BACKBONE_NAMES = WeightNames(
    _encoder_rules(), ignored=f'{_HEAD_ENTRIES}|{_DECODER_ENTRIES}', adapt=_without_classifier
)

FAMILY = Family(
    ERFNet,
    describe,
    {'erfnet': {}, 'erfnet_encoder': {'head': 'encoder'}},
    choices={'head': HEADS},
    changeable=('dropout_rates',),
    check=check,
)
