"""What DDRNet and PIDNet share, whose branches keep two resolutions: the head, and parts of the pooling pyramid."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.models.blocks import BatchNorm, Conv, ConvNorm, kaiming_fan_out_init
from atonet_jax.models.contract import Rule, conv_norm


class Head(nn.Module):
    """Logits of a map.

    Attributes:
        width: channels within.
        features: output channels.
        dtype: compute type of all but the logits.
    """

    width: int
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, features] float32."""
        x = nn.relu(BatchNorm(dtype=self.dtype, name='bn')(x, train))
        x = ConvNorm(self.width, 3, kernel_init=kaiming_fan_out_init, dtype=self.dtype, name='conv1')(x, train)
        return Conv(self.features, 1, use_bias=True, kernel_init=kaiming_fan_out_init, name='conv2')(x)


def averages(x: jax.Array) -> list[jax.Array]:
    """What a pooling pyramid sees of [B, H, W, C]: means of windows of 5x5, 9x9 and 17x17, then of all."""
    pooled = [ops.avg_pool(x, window, stride, window // 2) for window, stride in ((5, 2), (9, 4), (17, 8))]
    return [*pooled, ops.global_avg_pool(x)]


def sequence_names(path: str, name: str, first: int = 0) -> tuple[Rule, ...]:
    """The rules of a `NormConv`, whose normalisation is the element `first` of a sequence."""
    return conv_norm(path, f'{name}.{first + 2}', f'{name}.{first}')


def head_names(path: str, name: str, optional: bool = False) -> tuple[Rule, ...]:
    """The rules of a `Head`."""
    return (
        Rule(f'{path}/bn', f'{name}.bn1', optional),
        *conv_norm(f'{path}/conv1', f'{name}.conv1', f'{name}.bn2', optional),
        Rule(f'{path}/conv2', f'{name}.conv2', optional),
    )
