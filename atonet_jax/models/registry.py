"""The registered networks: names to modules, and modules to their contracts."""

from numbers import Integral
from typing import Any

from flax import linen as nn

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
from atonet_jax.models.contract import Family, Network, Published
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
_MOST_CLASSES = 255  # labels are of 8 bits, and 255 is no class
MODEL_NAMES = tuple(name for family in FAMILIES for name in family.variants)


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
    if not isinstance(num_classes, Integral) or not 1 <= num_classes <= _MOST_CLASSES:
        raise ValueError(f'num_classes={num_classes!r}: must be a whole number from 1 to {_MOST_CLASSES}')
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
