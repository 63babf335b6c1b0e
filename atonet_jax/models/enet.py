"""ENet: Paszke et al., "ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation" (2016).

Bottlenecks from the first layer to the last. The encoder halves the image three times early on; the decoder is small
and puts values back where the encoder's max-pools found them. The paper's form follows its authors' trained model
(github.com/e-lab/ENet-training, f762144). The two others are of the port that most people use
(github.com/davidtvs/PyTorch-ENet), and differ from the paper and from each other.
"""

import dataclasses
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models.blocks import (
    BatchNorm,
    Conv,
    ConvNorm,
    ConvTranspose,
    ConvTransposeNorm,
    PReLU,
)
from atonet_jax.models.contract import Family, Network, Normalization, Published, Rule, WeightNames, conv_norm
from atonet_jax.models.terms import InverseLogShare, Term
from atonet_jax.ops.window import IntOrPair


@dataclasses.dataclass(frozen=True)
class Form:
    """In what the published definitions differ.

    Attributes:
        use_bias: of the first convolution, the middle one of each bottleneck, and the last one.
        fan: of transposed convolutions at their start: 'input' in Torch7, 'output' in PyTorch.
        epsilon: of batch normalisation.
        narrow_by: a bottleneck's middle has a quarter of the channels of its 'output' or of its 'input'.
        image_pool: window of the pool beside the first convolution.
        pool: window of the pools with indices.
        up_kernel_size: of the transposed convolutions in the decoder's bottlenecks.
        last_kernel_size: of the one that gives the logits.
        asymmetric: kernels in the order of the two convolutions.
        is_asymmetric_split: these two have a normalisation and an activation between them.
        shared_slopes: one slope a layer, not a channel, in a bottleneck's convolutions.
        shared_slopes_of_sums: likewise after the sums, and in the first block.
        activates_branch: the convolutions of a bottleneck end in an activation, before the sum.
        activates_up_branch: likewise in the bottlenecks that enlarge.
        dropout: rates of the five stages.
    """

    use_bias: bool
    fan: str
    epsilon: float
    narrow_by: str
    image_pool: int
    pool: int
    up_kernel_size: int
    last_kernel_size: int
    asymmetric: tuple[IntOrPair, IntOrPair]
    is_asymmetric_split: bool
    shared_slopes: bool
    shared_slopes_of_sums: bool
    activates_branch: bool
    activates_up_branch: bool
    dropout: tuple[float, float, float, float, float]


_PAPER = Form(
    use_bias=True,
    fan='input',
    epsilon=1e-3,
    narrow_by='output',
    image_pool=2,
    pool=2,
    up_kernel_size=3,
    last_kernel_size=2,
    asymmetric=((1, 5), (5, 1)),
    is_asymmetric_split=False,
    shared_slopes=False,
    shared_slopes_of_sums=False,
    activates_branch=False,
    activates_up_branch=False,
    dropout=(0.01, 0.1, 0.1, 0.0, 0.0),
)
_DAVIDTVS_2018_03 = Form(
    use_bias=False,
    fan='output',
    epsilon=1e-5,
    narrow_by='input',
    image_pool=3,
    pool=3,
    up_kernel_size=3,
    last_kernel_size=3,
    asymmetric=((5, 1), (1, 5)),
    is_asymmetric_split=True,
    shared_slopes=True,
    shared_slopes_of_sums=False,
    activates_branch=True,
    activates_up_branch=True,
    dropout=(0.01, 0.1, 0.1, 0.1, 0.1),
)
_DAVIDTVS_HEAD = dataclasses.replace(
    _DAVIDTVS_2018_03, pool=2, up_kernel_size=2, shared_slopes_of_sums=True, activates_up_branch=False
)
FORMS = {'paper': _PAPER, 'davidtvs_2018_03': _DAVIDTVS_2018_03, 'davidtvs_head': _DAVIDTVS_HEAD}

# The bottlenecks of each stage: kind, and the dilation of the middle convolution (the paper's Table 1).
_CONTEXT = (
    ('regular', 1),
    ('dilated', 2),
    ('asymmetric', 1),
    ('dilated', 4),
    ('regular', 1),
    ('dilated', 8),
    ('asymmetric', 1),
    ('dilated', 16),
)
STAGES = (
    (('down', 1), *4 * (('regular', 1),)),
    (('down', 1), *_CONTEXT),
    _CONTEXT,
    (('up', 1), *2 * (('regular', 1),)),
    (('up', 1), ('regular', 1)),
)
ENCODER = ('initial', 'stage1', 'stage2', 'stage3')


class ENet(nn.Module):
    """The network of the paper's Table 1.

    Attributes:
        num_classes: classes to tell apart.
        form: 'paper'; or 'davidtvs_2018_03' or 'davidtvs_head', the port as of March 2018 and of today.
        decoder_act: activation of the decoder, 'prelu' as in the authors' trained model or 'relu' as in their code.
        width: channels of stage 1, a multiple of 16; the other stages have a quarter as many to twice as many.
        dtype: compute type, float32 or bfloat16. Parameters, running statistics and logits are float32 in both.
    """

    num_classes: int
    form: str = 'paper'
    decoder_act: str = 'prelu'
    width: int = 64
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """images: [B, H, W, 3] float, normalised; 8 divides H and W.

        Returns {'logits': [B, H, W, num_classes] float32}. With `train`, 'batch_stats' must be mutable and a 'dropout'
        key be given.
        """
        form, widths = FORMS[self.form], (self.width, 2 * self.width, 2 * self.width, self.width, self.width // 4)
        x = Initial(self.width // 4, form, self.dtype, name='initial')(images.astype(self.dtype), train)
        indices_of_pools = []
        for s, (blocks, features) in enumerate(zip(STAGES, widths, strict=True), 1):
            act = self.decoder_act if s > 3 else 'prelu'
            options = {'form': form, 'act': act, 'dropout': form.dropout[s - 1], 'dtype': self.dtype}
            for i, (kind, dilation) in enumerate(blocks):
                name = f'stage{s}_{i}'
                if kind == 'down':
                    x, indices = Down(features, **options, name=name)(x, train)
                    indices_of_pools.append(indices)
                elif kind == 'up':
                    x = Up(features, **options, name=name)(x, indices_of_pools.pop(), train)
                else:
                    middle = {'is_asymmetric': kind == 'asymmetric', 'dilation': dilation}
                    x = Bottleneck(features, **options, **middle, name=name)(x, train)
        shape = _doubling(form.last_kernel_size)
        classifier = ConvTranspose(self.num_classes, *shape, form.use_bias, form.fan, name='classifier')
        return {'logits': classifier(x)}


class Initial(nn.Module):
    """The first block: a convolution of stride 2 beside the pooled image (the paper's Fig. 2a)."""

    features: int
    form: Form
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, 3] -> [B, H / 2, W / 2, features]."""
        form = self.form
        conv = Conv(self.features - 3, 3, stride=2, use_bias=form.use_bias, dtype=self.dtype, name='conv')
        x = jnp.concatenate([conv(x), ops.max_pool(x, *_halving(form.image_pool))], -1)
        x = BatchNorm(form.epsilon, dtype=self.dtype, name='bn')(x, train)
        return PReLU(form.shared_slopes_of_sums, name='act')(x)


class _Bottleneck(nn.Module):
    """What the bottlenecks share: narrow, convolve, widen; add the shortcut (the paper's Fig. 2b).

    Attributes:
        features: output channels.
        form: of the network.
        act: activation, 'prelu' or 'relu'.
        dropout: share of the feature maps that training zeroes before the sum.
        dtype: compute type.
    """

    features: int
    form: Form
    act: str
    dropout: float
    dtype: jnp.dtype

    def middle_width(self, x: jax.Array) -> int:
        return (self.features if self.form.narrow_by == 'output' else x.shape[-1]) // 4

    def conv_norm(self, features: int, kernel_size: IntOrPair, name: str, **options) -> ConvNorm:
        return ConvNorm(features, kernel_size, **options, activation=None, epsilon=self.form.epsilon, dtype=self.dtype,
                        name=name)  # fmt: skip

    def activate(self, x: jax.Array, name: str) -> jax.Array:
        return PReLU(self.form.shared_slopes, name=name)(x) if self.act == 'prelu' else nn.relu(x)

    def widen_and_add(self, x: jax.Array, shortcut: jax.Array, is_activated: bool, train: bool) -> jax.Array:
        """The last convolution, activated or not, and the activated sum with the shortcut."""
        x = self.conv_norm(self.features, 1, 'widen')(x, train)
        if is_activated:
            x = self.activate(x, 'widen_act')
        x = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)(x) + shortcut
        return PReLU(self.form.shared_slopes_of_sums, name='act')(x) if self.act == 'prelu' else nn.relu(x)


class Bottleneck(_Bottleneck):
    """A bottleneck that keeps size and channels.

    Attributes:
        is_asymmetric: its middle is two convolutions, along one axis each, instead of a 3x3.
        dilation: of the 3x3.
    """

    is_asymmetric: bool = False
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        form, shortcut, width = self.form, x, self.middle_width(x)
        x = self.conv_norm(width, 1, 'narrow')(x, train)
        x = self.activate(x, 'narrow_act')
        if self.is_asymmetric:
            first, kernel_size = form.asymmetric
            if form.is_asymmetric_split:
                x = self.conv_norm(width, first, 'first')(x, train)
                x = self.activate(x, 'first_act')
            else:
                x = Conv(width, first, dtype=self.dtype, name='first')(x)
        else:
            kernel_size = 3
        middle = self.conv_norm(width, kernel_size, 'middle', dilation=self.dilation, use_bias=form.use_bias)
        x = self.activate(middle(x, train), 'middle_act')
        return self.widen_and_add(x, shortcut, form.activates_branch, train)


class Down(_Bottleneck):
    """A bottleneck that halves the map; its shortcut is a max-pool, with channels of zeros at the end."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """[B, H, W, C] -> [B, H / 2, W / 2, features], and the pool's indices, [B, H / 2, W / 2, C]."""
        form, width = self.form, self.middle_width(x)
        shortcut, indices = ops.max_pool_with_indices(x, *_halving(form.pool))
        shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, self.features - x.shape[-1])))
        x = self.conv_norm(width, 2, 'narrow', stride=2, padding=0)(x, train)
        x = self.activate(x, 'narrow_act')
        x = self.conv_norm(width, 3, 'middle', use_bias=form.use_bias)(x, train)
        x = self.activate(x, 'middle_act')
        return self.widen_and_add(x, shortcut, form.activates_branch, train), indices


class Up(_Bottleneck):
    """A bottleneck that doubles the map; its shortcut goes back where a pool of the encoder found its values."""

    @nn.compact
    def __call__(self, x: jax.Array, indices: jax.Array, train: bool) -> jax.Array:
        """x: [B, h, w, C]. indices: [B, h, w, features], of the pool -> [B, 2 * h, 2 * w, features]."""
        form, width = self.form, self.middle_width(x)
        size = 2 * x.shape[1], 2 * x.shape[2]
        shortcut = self.conv_norm(self.features, 1, 'shortcut')(x, train)
        shortcut = ops.max_unpool(shortcut, indices, size, *_halving(form.pool))
        x = self.conv_norm(width, 1, 'narrow')(x, train)
        x = self.activate(x, 'narrow_act')
        middle = ConvTransposeNorm(width, *_doubling(form.up_kernel_size), form.use_bias, form.fan, activation=None,
                                   epsilon=form.epsilon, dtype=self.dtype, name='middle')  # fmt: skip
        x = self.activate(middle(x, train), 'middle_act')
        return self.widen_and_add(x, shortcut, form.activates_up_branch, train)


def _halving(window: int) -> tuple[int, int, int]:
    """Window, stride and padding of a pool, of a 2x2 or 3x3 window, that halves a map."""
    return window, 2, (window - 1) // 2


def _doubling(kernel_size: int) -> tuple[int, int, int, int]:
    """Kernel size, stride, padding and output padding of a transposed convolution, 2x2 or 3x3, that doubles a map."""
    return kernel_size, 2, (kernel_size - 1) // 2, (kernel_size - 1) // 2


def describe(model: ENet) -> Network:
    is_paper = model.form == 'paper'
    parameters, macs = _COUNTS.get((model.form, model.decoder_act), (None, None))
    return Network(
        terms=(Term('logits'),),
        in_backbone=lambda path: path[0].split('_')[0] in ENCODER,
        normalization=Normalization(),  # all the published weights take images of 0 .. 1
        multiple_of=8,
        on_canvas=True,
        class_weights=InverseLogShare(1.02),
        weights=(_PAPER_NAMES if is_paper else _davidtvs_names(model.form == 'davidtvs_head'),),
        published=Published(
            title='ENet' if is_paper else f'ENet ({model.form})',
            source='Paszke et al.: arXiv 1606.02147' if is_paper else 'github.com/davidtvs/PyTorch-ENet',
            parameters=parameters,
            macs=macs and ((360, 640), macs),
            notes="3.83 GFLOPs of the paper's Table 3 count operations: two for each multiply-accumulate",
            license='CC BY-NC 4.0' if is_paper else 'MIT',
            weights=_WEIGHTS[model.form],
            rows=('ENet',) if is_paper else (),
        ),
    )


_WEIGHTS = {
    'paper': 'Cityscapes; the authors, for Torch7',
    'davidtvs_2018_03': 'CamVid; the port',
    'davidtvs_head': 'CamVid; the port',
}
# Parameters, and multiply-accumulates at 360x640.
_COUNTS = {
    ('paper', 'prelu'): (364_647, 1_723_564_800),
    ('paper', 'relu'): (364_311, 1_723_564_800),
    ('davidtvs_2018_03', 'prelu'): (360_788, 1_811_116_800),
    ('davidtvs_head', 'relu'): (351_660, 1_774_252_800),
}


def _paper_names() -> WeightNames:
    """The names of the authors' trained model, as its layers are numbered here."""
    rules = [*conv_norm('initial', 'initial.conv', 'initial.bn'), Rule('initial/act', 'initial.prelu')]
    for s, blocks in enumerate(STAGES, 1):
        for i, (kind, _) in enumerate(blocks):
            ours, theirs, middle = f'stage{s}_{i}', f'stage{s}.{i}', 3 if kind == 'asymmetric' else 2
            rules += (
                *conv_norm(f'{ours}/narrow', f'{theirs}.conv1', f'{theirs}.bn1'),
                Rule(f'{ours}/narrow_act', f'{theirs}.prelu1'),
                Rule(f'{ours}/first', f'{theirs}.conv2'),
                *conv_norm(f'{ours}/middle', f'{theirs}.conv{middle}', f'{theirs}.bn2'),
                Rule(f'{ours}/middle_act', f'{theirs}.prelu2'),
                *conv_norm(f'{ours}/widen', f'{theirs}.conv{middle + 1}', f'{theirs}.bn3'),
                *conv_norm(f'{ours}/shortcut', f'{theirs}.skip_conv', f'{theirs}.skip_bn'),
                Rule(f'{ours}/act', f'{theirs}.prelu_out'),
            )
    rules.append(Rule('classifier', 'fullconv'))
    return WeightNames(tuple(rules), void=(_AUTHORS_OUTPUTS,), heights={_AUTHORS_OUTPUTS: 512}, adapt=_from_authors)


_AUTHORS_OUTPUTS = 20  # of their model for Cityscapes, the first of them for pixels of no class


def _from_authors(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The authors' model for Cityscapes as the network takes it; arrays of any other file stay as they are.

    Their Torch7 does not scale up what dropout leaves in training, but scales all of it down in inference: a factor on
    the last normalisation of each bottleneck of the encoder. Their output for pixels of no class is the first one. Its
    file is the one without the counters that PyTorch keeps beside batch normalisations.
    """
    outputs = arrays.get('fullconv.bias', np.zeros(0)).shape[0]
    if outputs != _AUTHORS_OUTPUTS or any(name.endswith('.num_batches_tracked') for name in arrays):
        return arrays

    def adapted(name, array):
        if match := re.fullmatch(r'stage([123])\.\d+\.bn3\.(weight|bias)', name):
            return np.float32(1 - _PAPER.dropout[int(match[1]) - 1]) * array
        return np.roll(array, -1, axis=min(1, array.ndim - 1)) if name.startswith('fullconv.') else array

    return {name: adapted(name, np.asarray(array)) for name, array in arrays.items()}


def _davidtvs_names(is_head: bool) -> WeightNames:
    """The port's names: as of today, or as of March 2018."""
    act = 'out_activation' if is_head else 'out_prelu'
    rules = [
        Rule('initial/conv', 'initial_block.main_branch'),
        Rule('initial/bn', 'initial_block.batch_norm'),
        Rule('initial/act', f'initial_block.{act}'),
    ]
    for s, blocks in enumerate(STAGES, 1):
        for i, (kind, _) in enumerate(blocks):
            ours, theirs = f'stage{s}_{i}', f'{_DAVIDTVS_KINDS.get(kind, kind)}{s}_{i}'
            first = 3 if kind == 'asymmetric' else 0  # of the middle, in its sequence
            if kind == 'up' and is_head:
                rules += (
                    *conv_norm(f'{ours}/middle', f'{theirs}.ext_tconv1', f'{theirs}.ext_tconv1_bnorm'),
                    Rule(f'{ours}/middle_act', f'{theirs}.ext_tconv1_activation'),
                    *_sequence(f'{ours}/widen', f'{theirs}.ext_conv2'),
                )
            rules += (
                *_sequence(f'{ours}/narrow', f'{theirs}.ext_conv1'),
                *_sequence(f'{ours}/first', f'{theirs}.ext_conv2'),
                *_sequence(f'{ours}/middle', f'{theirs}.ext_conv2', first),
                *_sequence(f'{ours}/widen', f'{theirs}.ext_conv3'),
                *_sequence(f'{ours}/shortcut', f'{theirs}.main_conv1'),
                Rule(f'{ours}/act', f'{theirs}.{act}'),
            )
    rules.append(Rule('classifier', 'transposed_conv'))
    return WeightNames(tuple(rules), void=(12,), heights={12: 360})  # of the weights for CamVid


_DAVIDTVS_KINDS = {'down': 'downsample', 'up': 'upsample'}


def _sequence(ours: str, theirs: str, first: int = 0) -> tuple[Rule, ...]:
    """The rules of a convolution, its normalisation and its activation, from element `first` of a sequence on."""
    return (
        *conv_norm(ours, f'{theirs}.{first}', f'{theirs}.{first + 1}'),
        Rule(f'{ours}_act', f'{theirs}.{first + 2}'),
    )


_PAPER_NAMES = _paper_names()

FAMILY = Family(
    ENet,
    describe,
    {
        'enet_paper': {},
        'enet': {},
        'enet_davidtvs_2018_03': {'form': 'davidtvs_2018_03'},
        'enet_davidtvs_head': {'form': 'davidtvs_head', 'decoder_act': 'relu'},
    },
    choices={'form': FORMS, 'decoder_act': ('prelu', 'relu')},
    multiples={'width': 16},
)
