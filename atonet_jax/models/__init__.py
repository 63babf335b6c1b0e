"""Networks: images to logits at the network's own stride. Needs JAX, Flax and ops/ alone."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.extend.core import Jaxpr

from atonet_jax.errors import InputError
from atonet_jax.models import (
    atonet,
    bisenet,
    ddrnet,
    deeplab_largefov,
    dfanet,
    enet,
    erfnet,
    espnet,
    fcn,
    frrn,
    icnet,
    pidnet,
    segnet,
    sqnet,
    swiftnet,
    swiftnet_ensemble,
    swiftnet_pyramid,
    table3,
    two_column,
)
from atonet_jax.models.contract import Family, Network, Published, cut_back, pad_to_multiple
from atonet_jax.models.terms import Term

FAMILIES: list[Family] = [
    atonet.FAMILY,
    pidnet.FAMILY,
    enet.FAMILY,
    fcn.FAMILY,
    bisenet.FAMILY,
    ddrnet.FAMILY,
    erfnet.FAMILY,
    espnet.FAMILY,
    swiftnet.FAMILY,
    swiftnet_pyramid.FAMILY,
    swiftnet_ensemble.FAMILY,
    table3.FAMILY,
    segnet.FAMILY,
    segnet.BASIC_FAMILY,
    deeplab_largefov.FAMILY,
    frrn.FAMILY,
    sqnet.FAMILY,
    icnet.FAMILY,
    dfanet.FAMILY,
    two_column.FAMILY,
]
MODEL_NAMES = tuple(name for family in FAMILIES for name in family.variants)
_INIT_SIZE = 64


def family(name: str) -> Family:
    """The family that registers the network `name`.

    Raises:
        ValueError: no such network.
    """
    for candidate in FAMILIES:
        if name in candidate.variants:
            return candidate
    known = ', '.join(name for candidate in FAMILIES for name in candidate.variants)
    raise ValueError(f'name={name!r}: must be one of {known}')


def distinct_networks() -> dict[str, tuple[str, ...]]:
    """{name of each network: other names of the same}, in the order of `FAMILIES`."""
    names = {}
    for name in MODEL_NAMES:
        names.setdefault(create_model(name, 19), []).append(name)
    return {first: tuple(others) for first, *others in names.values()}


def create_model(name: str, num_classes: int, **options) -> nn.Module:
    """Builds the network `name`, one of `MODEL_NAMES`; `options` are its attributes.

    Raises:
        ValueError: no such network, an option that it does not have, or a value that cannot work.
    """
    known = default_options(name)
    unknown = sorted(set(options) - set(known) - {'dtype'})
    if unknown:
        raise ValueError(f'{unknown[0]}: {name} has no such option; it has {", ".join(sorted(known))}')
    members = family(name)
    model = members.module(num_classes=num_classes, **dict(members.variants[name]) | options)
    members.check_options(model)
    return model


def default_options(name: str) -> dict[str, Any]:
    """The options of the network `name` beside `num_classes` and `dtype`, with their defaults."""
    members = family(name)
    return members.options() | dict(members.variants[name])


def network(model: str | nn.Module) -> Network:
    """The contract of a network, given by name (19 classes) or as a module.

    A module of another package has the simplest one: a loss on its logits, ImageNet's normalisation.

    Raises:
        ValueError: no network of this name.
    """
    if isinstance(model, str):
        model = create_model(model, 19)
    for candidate in FAMILIES:
        if type(model) is candidate.module:
            return candidate.describe(model)
    return Network(terms=(Term('logits'),), published=Published(type(model).__name__, source=''))


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
    return model.init_with_output({'params': key}, _blank_images(model), train=train)


@partial(jax.jit, static_argnames=('model', 'paths'))
def _draw(key: jax.Array, model: nn.Module, paths: tuple[str, ...] | None) -> dict[str, Any]:
    variables = _initialize(key, model, train=True)[1]  # what nothing reads, as the outputs, is not computed
    if paths is None:
        return variables
    flat = flatten_dict(variables, sep='/')
    return unflatten_dict({path: flat[path] for path in paths}, sep='/')


def prepare(model: nn.Module, variables: Mapping[str, Any], transform_kernels: bool = False) -> dict[str, Any]:
    """Variables for inference: `apply` computes with them what it does with `variables`, in less time.

    Each module prepares what it owns: a batch normalisation becomes scale and shift, within the convolution before it
    where one module owns both; kernels are cast to `model.dtype`. What inference does not read, as auxiliary heads, is
    left out.

    Args:
        model: the network.
        variables: of training.
        transform_kernels: also transforms kernels where CPUs convolve faster with that (`ops.prepare_kernel`): up to
            twice as fast, four times the memory of these kernels.
    """
    collections = ('prepared', 'transformed') if transform_kernels else ('prepared',)
    prepared = dict(_prepared(variables, model, collections))
    # The outputs depend on what inference reads beside the prepared variables, which are blank while they are made
    # (`blocks`).
    traced = _apply.trace(variables, model, collections)
    count = len(jax.tree.leaves(traced.out_info[0]))
    return prepared | _kept(variables, _inputs_of(traced.jaxpr.jaxpr, traced.jaxpr.jaxpr.outvars[:count]))


@partial(jax.jit, static_argnames=('model', 'collections'))
def _apply(variables, model, collections):
    return model.apply(variables, _blank_images(model), train=False, mutable=collections)


@partial(jax.jit, static_argnames=('model', 'collections'))
def _prepared(variables, model, collections):
    return _apply(variables, model, collections)[1]  # of which nothing but this is compiled


def _inputs_of(jaxpr: Jaxpr, outputs: Iterable[Any]) -> list[bool]:
    """Of each input of a traced program, whether these outputs depend on it."""
    needed = {id(variable) for variable in outputs}
    for equation in reversed(jaxpr.eqns):
        if any(id(variable) in needed for variable in equation.outvars):
            needed |= {id(variable) for variable in equation.invars}
    return [id(variable) in needed for variable in jaxpr.invars]


def _kept(variables: Mapping[str, Any], kept: Sequence[bool]) -> dict[str, Any]:
    """Those leaves of nested dictionaries that `kept` says, in the order of `jax.tree.leaves`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(dict(variables))
    found = [(tuple(key.key for key in path), leaf) for path, leaf in leaves]
    return unflatten_dict({path: leaf for (path, leaf), is_kept in zip(found, kept, strict=True) if is_kept})


def _blank_images(model: nn.Module) -> jax.Array:
    contract = network(model)
    side = max(_INIT_SIZE, contract.smallest)
    return jnp.zeros((1, side + -side % contract.multiple_of, side + -side % contract.multiple_of, 3))
