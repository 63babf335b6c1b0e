"""Networks: images to logits at the network's own stride. Needs JAX, Flax and ops/ alone."""

from atonet_jax.models.preparing import prepare
from atonet_jax.models.registry import (
    FAMILIES,
    MODEL_NAMES,
    create_model,
    default_options,
    distinct_networks,
    family,
    network,
)
from atonet_jax.models.variables import abstract_outputs, abstract_variables, apply, check_size, init_variables

__all__ = [
    'FAMILIES',
    'MODEL_NAMES',
    'abstract_outputs',
    'abstract_variables',
    'apply',
    'check_size',
    'create_model',
    'default_options',
    'distinct_networks',
    'family',
    'init_variables',
    'network',
    'prepare',
]
