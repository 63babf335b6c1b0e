"""ATONet: Cao, Huang, Shao, "Aggregation Architecture and All-To-One Network for Real-Time Semantic Segmentation".

Every stage of a ResNet-18, and an SPP module on top of it, is brought to one width at a quarter of the input and
summed. Auxiliary heads sit on the same five levels and exist in training only.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from atonet_jax.models.layers import Classifier, ConvNorm, kaiming_fan_out_init
from atonet_jax.models.resnet import BLOCKS, Stage
from atonet_jax.ops import adaptive_avg_pool, max_pool, resize_align_corners, resize_bilinear

LEVELS = (1, 2, 3, 4, 5)  # layer1 .. layer4 and spp


class ATONet(nn.Module):
    """The paper's network (its Fig. 2 and Table 1's parameter count).

    Attributes:
        num_classes: classes to tell apart.
        spp_bins: rows of each pooled grid in the SPP module (Table 4); a grid has as many columns as keep cells square.
        aux_levels: the levels, of 1 .. 5, with an auxiliary head in training (Table 4).
        up_kernel_size: kernel of the convolutions that bring a level to the common width: 3 gives the published
            counts, 1 is what the paper's prose says.
        width: the common width.
        backbone_width: channels of the stem and of layer1; layer2 .. layer4 have 2, 4 and 8 times as many.
        dropout_rate: share of the feature maps before the classifier that training zeroes.
        dtype: compute type, float32 or bfloat16. Parameters, running statistics and logits are float32 in both.
        remat: in training, computes most activations again for the gradient instead of keeping them: a fifth more time,
            two fifths of the temporary memory or less (benchmarks/training_memory.py). XLA undoes it on CPUs.
    """

    num_classes: int
    spp_bins: Sequence[int] = (8, 4, 2)
    aux_levels: Sequence[int] = (3, 4, 5)
    up_kernel_size: int = 3
    width: int = 128
    backbone_width: int = 64
    dropout_rate: float = 0.1
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict:
        """images: [B, H, W, 3] float, normalised, of any size (below 33 the deepest map is a single pixel).

        Returns {'logits': [B, ceil(H / 4), ceil(W / 4), num_classes] float32}, and with `train` also
        'aux': {'aux3': [B, ceil(H / 16), ceil(W / 16), num_classes], ...}, one a level, at the level's own stride
        (4, 8, 16, 32, 32). With `train`, 'batch_stats' must be mutable and a 'dropout' key be given.
        """
        conv_norm = partial(ConvNorm, dtype=self.dtype)

        def stem(_, images, train):
            x = images.astype(self.dtype)
            x = conv_norm(self.backbone_width, 7, stride=2, kernel_init=kaiming_fan_out_init, name='stem')(x, train)
            return max_pool(x)

        def aggregate(_, levels, train):
            size = levels[0].shape[1:3]
            summed = {}  # by size: maps of one size are added before the resizing that they share
            for level, features in zip(LEVELS, levels, strict=True):
                up = conv_norm(self.width, self.up_kernel_size, relu=False, name=f'up{level}')(features, train)
                summed[up.shape] = summed.get(up.shape, 0.0) + up
            return nn.relu(sum(resize_bilinear(up, size) for up in summed.values()))

        def classify(_, x, train):
            x = conv_norm(self.width, 3, winograd=False, name='final')(x, train)
            x = conv_norm(self.width, 3, winograd=False, name='seg')(x, train)
            x = nn.Dropout(self.dropout_rate, broadcast_dims=(1, 2), deterministic=not train)(x)
            return Classifier(self.num_classes, name='classifier')(x, train)

        if self.remat and train:  # SPP and auxiliary heads are too small to matter
            stem, aggregate, classify = (nn.remat(part, static_argnums=(2,)) for part in (stem, aggregate, classify))

        x = stem(self, images, train)
        levels = []
        for i, num_blocks in enumerate(BLOCKS):
            stage = Stage(self.backbone_width * 2**i, num_blocks, stride=1 if i == 0 else 2, dtype=self.dtype,
                          remat=self.remat, name=f'layer{i + 1}')  # fmt: skip
            x = stage(x, train)
            levels.append(x)
        levels.append(SPP(self.width, self.spp_bins, self.dtype, name='spp')(x, train))
        outputs = {'logits': classify(self, aggregate(self, levels, train), train)}

        if train:
            outputs['aux'] = {
                f'aux{level}': AuxiliaryHead(
                    self.width // 2 if level == 1 else self.width, self.num_classes, self.dtype, name=f'aux{level}'
                )(levels[level - 1], train)
                for level in self.aux_levels
            }
        return outputs


class SPP(nn.Module):
    """Spatial pyramid pooling: the map beside its averages over grids, coarse to fine (the paper's Fig. 2)."""

    width: int
    bins: Sequence[int]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, width]."""
        conv_norm = partial(ConvNorm, kernel_size=1, dtype=self.dtype)
        height, width = x.shape[1:3]
        x = conv_norm(x.shape[-1], name='conv1')(x, train)
        pyramid = [x]
        for i, rows in enumerate(self.bins):
            pooled = adaptive_avg_pool(x, spp_grid(rows, (height, width)))
            pooled = conv_norm(self.width, name=f'pool{i}')(pooled, train)
            pyramid.append(resize_align_corners(pooled, (height, width)))
        return conv_norm(self.width, name='conv2')(jnp.concatenate(pyramid, -1), train)


def spp_grid(rows: int, size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of a pooled grid over a map of (height, width), whose cells are as square as can be."""
    return rows, max(1, round(rows * size[1] / size[0]))


class AuxiliaryHead(nn.Module):
    """A classifier on one level's features, for its loss alone."""

    width: int
    num_classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, num_classes] float32."""
        x = ConvNorm(self.width, 3, dtype=self.dtype, name='conv')(x, train)
        return Classifier(self.num_classes, name='classifier')(x, train)
