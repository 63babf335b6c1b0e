"""Networks: images to logits at the network's own stride. Needs JAX and Flax alone."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from atonet_jax.models.atonet import ATONet

_MODELS = {'atonet': ATONet}
MODEL_NAMES = tuple(_MODELS)


def create_model(name: str, num_classes: int, **options) -> nn.Module:
    """Builds the network `name`, one of `MODEL_NAMES`; `options` are its attributes.

    Raises:
        ValueError: no such network, or an option that it does not have.
    """
    if name not in _MODELS:
        raise ValueError(f'model.name={name!r} is no network here; known: {", ".join(MODEL_NAMES)}')
    known = option_names(name)
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f'model {name!r} has no option {", ".join(unknown)}; known: {", ".join(sorted(known))}')
    return _MODELS[name](num_classes=num_classes, **options)


def option_names(name: str) -> set[str]:
    """What `create_model` takes as options of the network `name`."""
    return set(_MODELS[name].__dataclass_fields__) - {'parent', 'name', 'num_classes'}


def init_variables(model: nn.Module, seed: int) -> dict[str, Any]:
    """Fresh {'params', 'batch_stats'} of a network, auxiliary heads included."""
    return model.init({'params': jax.random.key(seed)}, jnp.zeros((1, 64, 64, 3)), train=True)


def abstract_variables(model: nn.Module) -> dict[str, Any]:
    """What `init_variables` gives as shapes and types; nothing is computed."""
    return jax.eval_shape(lambda: init_variables(model, seed=0))
