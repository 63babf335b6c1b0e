"""The architectures that Table 3 and Fig. 1 of ATONet's paper compare, each on one ResNet-18.

Cao, Huang, Shao, "Aggregation Architecture and All-To-One Network for Real-Time Semantic Segmentation". None has an SPP
module or auxiliary heads. Only the aggregation is public as code; the others are the plain networks of their kind that
come nearest to the printed parameters and operations.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models.blocks import Classifier, ConvNorm
from atonet_jax.models.contract import Family, Network, Published, Rule, WeightNames, conv_norm
from atonet_jax.models.resnet import STAGE_RULES, TORCHVISION, in_resnet, is_stage_kernel, resnet18
from atonet_jax.models.terms import Term

_TITLES = {
    'aggregation': 'Aggregation',
    'encoder_decoder': 'Encoder-decoder',
    'encoder_decoder_b': 'Encoder-decoder B',
    'multi_pathway': 'Multi-pathway',
    'multi_pathway_b': 'Multi-pathway B',
    'multi_pathway_c': 'Multi-pathway C',
    'dilation': 'Dilation',
}
DESIGNS = tuple(_TITLES)


class Table3(nn.Module):
    """One of the four architectures.

    Attributes:
        num_classes: classes to tell apart.
        design: 'aggregation': every stage is brought to one width at a quarter of the image, and all are summed.
            'encoder_decoder': one finer stage at a time is added to the deepest one. 'multi_pathway': a shallow path
            for details beside the ResNet-18. 'dilation': the last two stages keep the size of the second one. Other
            readings of the printed figures: 'encoder_decoder_b' has a second convolution on the deepest stage, and
            comes nearest to them; 'multi_pathway_b' adds its path to what 'encoder_decoder' decodes, and
            'multi_pathway_c' adds BiSeNet's to the aggregation.
        final_kernel_size: of the aggregation's convolution on the sum: 3 gives the parameters of Table 3, 1 its
            operations. Designs that do not aggregate have none.
        width: channels of all but the ResNet-18.
        backbone_width: channels of the stem and of layer1; layer2 .. layer4 have 2, 4 and 8 times as many.
        dropout_rate: share of the feature maps before the classifier that training zeroes.
        dtype: compute type, float32 or bfloat16. Parameters, running statistics and logits are float32 in both.
    """

    num_classes: int
    design: str = 'aggregation'
    final_kernel_size: int = 3
    width: int = 128
    backbone_width: int = 64
    dropout_rate: float = 0.1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """images: [B, H, W, 3] float, normalised, of any size.

        Returns {'logits': [B, ceil(H / s), ceil(W / s), num_classes] float32}; s is 8 for 'dilation', else 4. With
        `train`, 'batch_stats' must be mutable and a 'dropout' key be given.
        """
        dilations = (1, 1, 2, 4) if self.design == 'dilation' else (1, 1, 1, 1)
        levels = resnet18(images, train, self.backbone_width, self.dtype, dilations)
        half = -(-self.width // 2)
        if self.design == 'aggregation':
            x = self.aggregate(levels, train)
        elif self.design in ('encoder_decoder', 'encoder_decoder_b'):
            x = self.decode(levels, train)
        elif self.design == 'multi_pathway':
            x = self.fuse(images, levels, train)
        elif self.design == 'multi_pathway_b':
            units = ((half, 3, 2), (half, 3, 1), (half, 3, 2), (half, 3, 1), (self.width, 1, 1))
            path = self.spatial_path(images, units, train)
            x = self.unit(3, 'final', transform=False)(path + self.decode(levels, train), train)
        elif self.design == 'multi_pathway_c':
            path = self.spatial_path(images, ((half, 7, 2), (half, 3, 2), (half, 3, 2), (self.width, 1, 1)), train)
            x = self.aggregate(levels, train, path)
        else:
            x = self.unit(3, 'top')(levels[-1], train)
        return {'logits': Head(self.width, self.num_classes, self.dropout_rate, self.dtype, name='head')(x, train)}

    def unit(self, kernel_size: int, name: str, features: int | None = None, **options) -> ConvNorm:
        """Convolution, to the common width by default, batch normalisation and ReLU."""
        return ConvNorm(features or self.width, kernel_size, dtype=self.dtype, name=name, **options)

    def spatial_path(self, images: jax.Array, units: Sequence[tuple[int, int, int]], train: bool) -> jax.Array:
        """Units in a row, of (features, kernel size, stride), on the images: [B, h, w, features of the last one]."""
        for i, (features, kernel_size, stride) in enumerate(units, 1):
            images = self.unit(kernel_size, f'spatial{i}', features, stride=stride)(images, train)
        return images

    def aggregate(self, levels: Sequence[jax.Array], train: bool, path: jax.Array | None = None) -> jax.Array:
        """The sum of all levels and the path, and a convolution: [B, h, w, width], (h, w) of the first level."""
        size = levels[0].shape[1:3]
        ups = [self.unit(3, f'up{i}', activation=None)(level, train) for i, level in enumerate(levels, 1)]
        maps = ups if path is None else [*ups, path]
        x = nn.relu(sum(ops.resize_bilinear(x, size) for x in maps))
        return self.unit(self.final_kernel_size, 'final', transform=False)(x, train)

    def decode(self, levels: Sequence[jax.Array], train: bool) -> jax.Array:
        """From the last level to the first: [B, h, w, width], (h, w) of the first level."""
        x = self.unit(3, 'top')(levels[3], train)
        if self.design == 'encoder_decoder_b':
            x += self.unit(1, 'top_beside')(levels[3], train)
        for i in (3, 2, 1):
            lateral = self.unit(1, f'lateral{i}')(levels[i - 1], train)
            x = lateral + ops.resize_bilinear(x, lateral.shape[1:3])
            x = self.unit(3, f'blend{i}', transform=False)(x, train)
        return x

    def fuse(self, images: jax.Array, levels: Sequence[jax.Array], train: bool) -> jax.Array:
        """A path of four convolutions beside the last level: [B, h, w, width], (h, w) of the first level."""
        width = self.width
        x = self.spatial_path(images, ((width, 7, 2), (width, 3, 2), (width, 3, 2), (width, 3, 1)), train)
        context = self.unit(3, 'top', activation=None)(levels[3], train)
        size = levels[0].shape[1:3]
        x = jnp.concatenate([ops.resize_bilinear(path, size) for path in (x, context)], -1)
        return self.unit(3, 'fuse', transform=False)(x, train)


class Head(nn.Module):
    """From features to logits."""

    width: int
    num_classes: int
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, num_classes] float32."""
        x = ConvNorm(self.width, 3, dtype=self.dtype, transform=False, name='conv')(x, train)
        x = nn.Dropout(self.dropout_rate, broadcast_dims=(1, 2), deterministic=not train)(x)
        return Classifier(self.num_classes, name='classifier')(x)


def check(model: Table3) -> None:
    """Raises ValueError where an option cannot work."""
    if model.design not in ('aggregation', 'multi_pathway_c') and model.final_kernel_size != 3:
        raise ValueError(f'final_kernel_size={model.final_kernel_size}: {model.design} has no such convolution')


def describe(model: Table3) -> Network:
    is_aggregation = model.design == 'aggregation'
    form = model.design, model.final_kernel_size if model.design in ('aggregation', 'multi_pathway_c') else 3
    parameters, macs, printed = _COUNTS.get(form, (None, None, ''))
    return Network(
        terms=(Term('logits'),),
        in_backbone=in_resnet,
        reduced=is_stage_kernel,  # as in ATONet
        on_canvas=True,
        weights=(_NAMES,),
        backbones=(TORCHVISION,),
        published=Published(
            title=f'{_TITLES[model.design]} on a ResNet-18',
            source='Cao, Huang, Shao: Table 3' + (', and the public code of ATONet' if is_aggregation else ', rebuilt'),
            parameters=parameters,
            macs=macs and ((1024, 1024), macs),
            license='none',
            rows=() if model.design == 'dilation' else (model.design.removesuffix('_b').removesuffix('_c'),),
            notes=f'Table 3 prints {printed}' if printed else '',
        ),
    )


# Parameters, multiply-accumulates at 1024x1024, and what Table 3 prints.
_COUNTS = {
    ('aggregation', 3): (12_581_331, 66_446_163_968, '12.58 M, as here, and 58.05 G, as with final_kernel_size=1'),
    ('aggregation', 1): (12_450_259, 57_856_229_376, '58.05 G, as here, and 12.58 M, as with final_kernel_size=3'),
    ('encoder_decoder', 3): (12_418_003, 61_949_870_080, '12.49 M and 62.02 G'),
    ('encoder_decoder_b', 3): (12_483_795, 62_016_978_944, '12.49 M and 62.02 G'),
    ('multi_pathway', 3): (12_674_131, 87_082_139_648, '12.67 M and 87.42 G'),
    ('multi_pathway_b', 3): (12_686_995, 87_098_916_864, '12.67 M and 87.42 G'),
    ('multi_pathway_c', 3): (12_673_299, 72_066_531_328, '12.67 M and 87.42 G'),
    ('dilation', 3): (11_916_755, 204_637_995_008, ''),
}
_NAMES = WeightNames(
    (
        *conv_norm('stem', 'conv1', 'bn1'),
        *STAGE_RULES,
        *conv_norm('head/conv', 'head.conv', 'head.bn'),
        Rule('head/classifier/conv', 'head.classifier'),
        *conv_norm(r'(\w+)', r'\1.conv', r'\1.bn'),
    )
)

FAMILY = Family(
    Table3,
    describe,
    {
        'table3_aggregation': {},
        'aggregation': {},
        'table3_aggregation_final1x1': {'final_kernel_size': 1},
        **{f'table3_{design}': {'design': design} for design in DESIGNS if design != 'aggregation'},
    },
    choices={'design': DESIGNS},
    changeable=('dropout_rate',),
    check=check,
)
