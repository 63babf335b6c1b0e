"""Sparse two-column network: a design of our own, not a reproduction.

Wu, Shen, van den Hengel ("Real-time Semantic Image Segmentation via Spatial Sparsity", arXiv 1712.00213) have two
columns. One sees the image at half its size, and says where the other one looks at it in full. What could be read of
the paper is not enough to build its network. Here the second column looks at a fixed number of square cells, so that
all shapes follow from the image's size. Every number below is our own choice.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models import resnet
from atonet_jax.models.blocks import Classifier, Conv
from atonet_jax.models.contract import Family, Network, Published, Rule, WeightNames, conv_norm
from atonet_jax.models.terms import ExcessMean, Term

FORMS = ('sparse', 'dense')
COLUMNS = ('coarse', 'fine')
CELL = 128  # side of a cell, in pixels
STRIDE = 8  # of the fine column's map


class SparseTwoColumn(nn.Module):
    """Two ResNet-18s of two and three stages, the shorter one on a few cells of the full image.

    Attributes:
        num_classes: classes to tell apart.
        form: of inference. 'sparse': the fine column sees the cells with the highest gates. 'dense': it sees the image.
        train_form: of training. 'dense'; or 'sparse' for a second training, in which the fine column's running
            statistics stay as they are, because crops have others than images.
        share: of the cells that the fine column sees, rounded up; also the mean of the gate from which the loss
            counts it.
        margin: pixels around a cell that the fine column also sees; 8, 16, 32, 64 or 128.
        width: channels of the first stage; the others have 2 and 4 times as many.
        dtype: compute type, float32 or bfloat16. Parameters, running statistics and outputs are float32 in both.
    """

    num_classes: int
    form: str = 'sparse'
    train_form: str = 'dense'
    share: float = 3 / 16
    margin: int = 32
    width: int = 64
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """images: [B, H, W, 3] float, normalised; 128 divides H and W.

        Returns {'logits': [B, H / 8, W / 8, num_classes] float32}, and with `train` also, at half that size, 'coarse':
        [..., num_classes], logits of the coarse column, and 'gate': [..., 1], 0 .. 1, how much the fine column counts.
        With `train`, 'batch_stats' must be mutable.
        """
        width = self.width
        is_sparse = (self.train_form if train else self.form) == 'sparse'
        size = images.shape[1] // STRIDE, images.shape[2] // STRIDE

        half = ops.avg_pool(images, 2, 2)
        context = Column((width, 2 * width, 4 * width), (1, 2, 1), (1, 1, 2), self.dtype, name='coarse')(half, train)
        coarse = Classifier(self.num_classes, name='coarse_score')(context)
        gate = nn.sigmoid(Classifier(1, name='gate')(context))
        cross = Conv(2 * width, 1, use_bias=True, dtype=self.dtype, name='cross')(context)
        scores, weight, cross = (ops.resize_bilinear(x, size) for x in (coarse, gate, cross))

        fine = Column((width, 2 * width), (1, 2), (1, 1), self.dtype, name='fine')
        fine_score = Classifier(self.num_classes, name='fine_score')
        margins, cut = (self.margin, self.margin), self.margin // STRIDE
        surrounded = jnp.pad(images, ((0, 0), margins, margins, (0, 0)))

        def refined(maps: Sequence[jax.Array], crops: jax.Array, train: bool) -> jax.Array:
            """Scores, weight and cross-column input of regions, and these with their margins -> their new scores."""
            scores, weight, cross = maps
            x = nn.relu(fine(crops, train)[:, cut:-cut, cut:-cut] + cross)
            return scores + weight * (fine_score(x) - scores)

        if is_sparse:
            in_cells = [to_cells(x, CELL // STRIDE) for x in (scores, weight, cross)]
            gates = jnp.mean(to_cells(gate, CELL // (2 * STRIDE)), (2, 3, 4))
            places = largest(gates, math.ceil(self.share * gates.shape[1] - 1e-9))
            chosen = jnp.arange(images.shape[0])[:, None], places
            maps = [_flat(x[chosen]) for x in in_cells]
            new = refined(maps, _flat(crop_cells(surrounded, places, self.margin)), train=False)
            new = new.reshape(*places.shape, *new.shape[1:])
            logits = from_cells(in_cells[0].at[chosen].set(new, unique_indices=True), size)
        else:
            logits = refined((scores, weight, cross), surrounded, train)
        return {'logits': logits} | ({'coarse': coarse, 'gate': gate} if train else {})


class Column(nn.Module):
    """A ResNet-18's stem and some of its stages, two blocks each.

    Attributes:
        widths, strides, dilations: of the stages.
        dtype: compute type.
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    dtype: jnp.dtype
    is_sequence = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, 3] -> [B, H / 8, W / 8, widths[-1]]; 8 divides H and W."""
        init = resnet.kaiming_fan_out_init
        x = resnet.Stem(self.widths[0], 7, stride=2, kernel_init=init, dtype=self.dtype, name='stem')(x, train)
        for i, shape in enumerate(zip(self.widths, self.strides, self.dilations, strict=True), 1):
            width, stride, dilation = shape
            stage = resnet.Stage(width, 2, stride, dtype=self.dtype, dilation=dilation, name=f'layer{i}')
            x = stage(x, train)
        return x


def to_cells(x: jax.Array, side: int) -> jax.Array:
    """[B, H, W, C] -> [B, cells, side, side, C], row by row."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, side, side, channels)


def from_cells(cells: jax.Array, size: tuple[int, int]) -> jax.Array:
    """What `to_cells` made of a map of `size`: -> [B, *size, C]."""
    batch, _, side, _, channels = cells.shape
    x = cells.reshape(batch, size[0] // side, size[1] // side, side, side, channels)
    return x.swapaxes(2, 3).reshape(batch, *size, channels)


def largest(scores: jax.Array, count: int) -> jax.Array:
    """Places of the `count` largest of [B, N], the largest first: [B, count] int32, as `jax.lax.top_k` gives them.

    Made of comparisons, which every export has.
    """
    places = np.arange(scores.shape[1], dtype=np.int32)
    own, other = scores[:, :, None], scores[:, None, :]
    is_behind = (other > own) | ((other == own) & (places < places[:, None]))
    ranks = jnp.sum(is_behind, 2, dtype=jnp.int32)
    has_rank = ranks[:, None, :] == np.arange(count, dtype=np.int32)[:, None]
    return jnp.sum(jnp.where(has_rank, places, 0), 2, dtype=jnp.int32)


def crop_cells(surrounded: jax.Array, places: jax.Array, margin: int) -> jax.Array:
    """Cells with their margins.

    Args:
        surrounded: [B, H + 2 * margin, W + 2 * margin, C], images with a margin.
        places: [B, K] int32, of cells, row by row.
        margin: a divisor of `CELL`.

    Returns:
        [B, K, side, side, C], side = CELL + 2 * margin.
    """
    batch, height, width, channels = surrounded.shape
    tiles = surrounded.reshape(batch, height // margin, margin, width // margin, margin, channels).swapaxes(2, 3)
    cells_in_row, tiles_in_cell = (width - 2 * margin) // CELL, CELL // margin
    rows = jax.lax.div(places, np.int32(cells_in_row))
    columns = places - rows * cells_in_row
    offsets = np.arange(tiles_in_cell + 2, dtype=np.int32)
    rows = (rows * tiles_in_cell)[:, :, None, None] + offsets[:, None]
    columns = (columns * tiles_in_cell)[:, :, None, None] + offsets
    crops = tiles[jnp.arange(batch)[:, None, None, None], rows, columns]  # [B, K, n, n, margin, margin, C]
    side = CELL + 2 * margin
    return crops.swapaxes(3, 4).reshape(batch, -1, side, side, channels)


def _flat(x: jax.Array) -> jax.Array:
    """[B, K, ...] -> [B * K, ...]."""
    return x.reshape(-1, *x.shape[2:])


def check(model: SparseTwoColumn) -> None:
    """Raises ValueError where an option cannot work."""
    if not 0 < model.share <= 1:
        raise ValueError(f'share={model.share!r}: must be greater than 0 and at most 1')
    if model.margin not in (8, 16, 32, 64, 128):
        raise ValueError(f'margin={model.margin!r}: must be 8, 16, 32, 64 or 128')


def describe(model: SparseTwoColumn) -> Network:
    is_default = (model.width, model.share, model.margin) == (64, 3 / 16, 32)
    return Network(
        terms=(
            Term('logits'),
            Term('coarse'),
            Term('gate', target='nothing', criterion=ExcessMean(model.share)),
        ),
        in_backbone=lambda path: path[0] in COLUMNS,
        reduced=lambda path: path[0] in COLUMNS,
        multiple_of=CELL,
        weights=(_NAMES,),
        backbones=(_TORCHVISION,),
        published=Published(
            title='Sparse two-column (ours)',
            source='our own design, after the idea of Wu, Shen, van den Hengel: arXiv 1712.00213; not their network',
            parameters=3_506_343 if model.width == 64 else None,
            macs=((1024, 2048), _MACS[model.form]) if is_default else None,
            license='Apache-2.0, ours',
            notes='the fine column sees 24 of the 128 cells of 1024x2048; figures printed for TwoColumn are of another '
            'network, whose definition is not public',
        ),
    )


# Multiply-accumulates at 1024x2048.
_MACS = {'sparse': 45_347_504_128, 'dense': 73_335_504_896}


def _names(prefix: str = '', **options) -> WeightNames:
    """torchvision's names of a ResNet-18 for both columns, with a prefix."""
    block = r'(coarse|fine)/(layer\d)/block(\d)'
    return WeightNames(
        (
            *conv_norm('(coarse|fine)/stem', f'{prefix}conv1', f'{prefix}bn1'),
            *conv_norm(rf'{block}/conv(\d)', rf'{prefix}\2.\3.conv\4', rf'{prefix}\2.\3.bn\4'),
            *conv_norm(rf'{block}/shortcut', rf'{prefix}\2.\3.downsample.0', rf'{prefix}\2.\3.downsample.1'),
        ),
        **options,
    )


# The names are of our own choice, except those within a column.
_NAMES = WeightNames(
    (*_names(r'\1.').rules, Rule('(coarse_score|gate|fine_score)/conv', r'\1'), Rule('cross', 'cross'))
)
_TORCHVISION = _names(ignored=r'(fc|layer4)\..*')  # one file starts both columns

FAMILY = Family(
    SparseTwoColumn,
    describe,
    {'sparse_two_column': {}},
    choices={'form': FORMS, 'train_form': FORMS},
    changeable=('form', 'train_form'),
    check=check,
)
