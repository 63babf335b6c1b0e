"""Variables of a network and what it gives with them: fresh ones, their shapes, and `apply` for images of any size."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from atonet_jax.errors import InputError
from atonet_jax.models.contract import cut_back, pad_to_multiple
from atonet_jax.models.registry import network

_INIT_SIZE = 64


def apply(
    model: nn.Module, variables: Mapping[str, Any], images: jax.Array, train: bool = False, **options
) -> dict[str, jax.Array] | tuple[dict[str, jax.Array], Mapping[str, Any]]:
    """`model.apply` for images of any size: padded as the network needs it, outputs cut back.

    Args:
        model: the network.
        variables: of it, as `model.init` or `prepare` give them.
        images: [B, H, W, 3] float32, normalised.
        train: as in the module.
        options: of `model.apply`: mutable, rngs, ...

    Returns:
        What `model.apply` does.

    Raises:
        InputError: the images are smaller than the network takes.
    """
    size, contract = images.shape[1:3], network(model)
    check_size(model, size)
    padded = pad_to_multiple(images, contract.multiple_of)
    result = model.apply(variables, padded, train=train, **options)
    if padded.shape == images.shape:
        return result
    cut = partial(cut_back, padded=padded.shape[1:3], size=size, upsampling=contract.upsampling)
    return (cut(result[0]), *result[1:]) if isinstance(result, tuple) else cut(result)


def check_size(model: nn.Module, size: Sequence[int]) -> None:
    """Checks that a network takes images of (height, width).

    Raises:
        InputError: they are smaller than the network takes.
    """
    smallest = network(model).smallest
    if min(size) < smallest:
        nearest = 'x'.join(str(max(length, smallest)) for length in size)
        raise InputError(
            f'images of {size[0]}x{size[1]}: {type(model).__name__} takes heights and widths from {smallest} pixels '
            f'on; the nearest size is {nearest}'
        )


def init_variables(model: nn.Module, seed: int, paths: Iterable[str] | None = None) -> dict[str, Any]:
    """Fresh variables of a network for training: {'params'} and whatever other collections it has.

    Compiled once a network, whatever the seed. With `paths`, such as 'params/stem/conv/kernel', these alone are drawn,
    as they are among all.
    """
    return _draw(jax.random.key(seed), model, None if paths is None else tuple(sorted(paths)))


def abstract_variables(model: nn.Module, train: bool = True) -> dict[str, Any]:
    """Shapes and types of what `init_variables` gives; without `train`, of what inference needs of it."""
    return _abstract(model, train)[1]


def abstract_outputs(model: nn.Module) -> dict[str, jax.ShapeDtypeStruct]:
    """The outputs of training by name, for one small image. Other images change the size alone."""
    return _abstract(model, train=True)[0]


def _abstract(model: nn.Module, train: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    return _initialize.eval_shape(jax.eval_shape(partial(jax.random.key, 0)), model, train)


# Traced once a network, for all that is asked of it.
@partial(jax.jit, static_argnames=('model', 'train'))
def _initialize(key: jax.Array, model: nn.Module, train: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    return model.init_with_output({'params': key}, blank_images(model), train=train)


@partial(jax.jit, static_argnames=('model', 'paths'))
def _draw(key: jax.Array, model: nn.Module, paths: tuple[str, ...] | None) -> dict[str, Any]:
    variables = _initialize(key, model, train=True)[1]  # what nothing reads, as the outputs, is not computed
    if paths is None:
        return variables
    flat = flatten_dict(variables, sep='/')
    return unflatten_dict({path: flat[path] for path in paths}, sep='/')


def blank_images(model: nn.Module) -> jax.Array:
    """One image of zeros, [1, H, W, 3], of a small size that the network takes without padding."""
    contract = network(model)
    side = max(_INIT_SIZE, contract.smallest)
    return jnp.zeros((1, side + -side % contract.multiple_of, side + -side % contract.multiple_of, 3))
