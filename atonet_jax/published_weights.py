"""Files of published weights: their arrays as a network's variables, and what such a file needs or has of its own."""

import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from atonet_jax.errors import InputError
from atonet_jax.identification import holds_backbone, identify, named_otherwise, num_outputs, suits_better
from atonet_jax.models import create_model, network
from atonet_jax.torch_files import read_state_dict
from atonet_jax.torch_weights import (
    MismatchError,
    backbone_from_torch,
    backbone_names,
    class_layers,
    fresh_modules,
    from_torch,
    names_in_file,
)

_log = logging.getLogger(__name__)


def load_network(
    path: str, model: nn.Module, fresh: Mapping[str, Any] | None = None, strict: bool = True
) -> dict[str, Any]:
    """The variables of `model` from a file.

    Args:
        path: a file that `torch_files.read_state_dict` reads.
        model: a network of this package.
        fresh, strict: as in `from_torch`.

    Raises:
        InputError: names the file, and what is wrong with it or does not fit.
    """
    state_dict = read_state_dict(path)
    try:
        variables = from_torch(state_dict, model, fresh=fresh, strict=strict)
    except MismatchError as error:
        raise InputError(f'{path}: {_misfit_text(state_dict, model, error, fresh is not None)}') from error
    _log.info('network from %s', path)
    outputs = num_outputs(state_dict, model) or model.num_classes
    needed = needed_options(model.clone(num_classes=outputs))  # those of the file, whatever the classes here are
    if needed:
        _log.warning('%s: published weights for %d classes need %s', path, outputs, ' '.join(needed))
    other = named_otherwise(path, model)
    if other:
        _log.warning("%s: is named after %s, but its arrays are not that network's; the arrays count", path, other)
    return variables


def _misfit_text(
    state_dict: Mapping[str, np.ndarray], model: nn.Module, error: MismatchError, can_start_fresh: bool
) -> str:
    """Why a file does not fit a network, and what to do."""
    known = identify(state_dict)
    if known is not None and suits_better(state_dict, create_model(known, 19), model):
        return f'holds another network, {known}; give --config=FILE:{known}'
    if known is None and holds_backbone(state_dict):
        return 'holds a backbone alone; give it as --config.model.pretrained_backbone, not init_from'
    of_classes = not error.unexpected and error.missing | error.misshapen <= class_layers(model)
    hint = '; --config.init_strict=false leaves such layers fresh' if of_classes and can_start_fresh else ''
    outputs = num_outputs(state_dict, model)
    if of_classes and outputs not in (None, model.num_classes):
        void = ', the last one for pixels of no class' if has_void_output(model.clone(num_classes=outputs)) else ''
        classes = f'{outputs} outputs{void}, but there are {model.num_classes} classes'
        return f'has {classes}; give the data that it is for{hint}'
    return f'does not fit the network: {error}{hint}'


def load_backbone(
    path: str, model: nn.Module, variables: Mapping[str, Any], strict: bool = True
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`variables` of `model` with the backbone of a file, and `fresh_modules`, none if `strict`.

    Raises:
        InputError: names the file, and what is wrong with it or does not fit.
    """
    state_dict = read_state_dict(path)
    try:
        loaded = backbone_from_torch(state_dict, model, variables, strict)
    except MismatchError as error:
        lacks = strict and not error.unexpected and error.misshapen <= class_layers(model)
        hint = '; --config.model.pretrained_strict=false starts such parts fresh' if lacks else ''
        raise InputError(f'{path}: does not fit the backbone of {type(model).__name__}: {error}{hint}') from error
    fresh = () if strict else fresh_modules(state_dict, model)
    names = backbone_names(state_dict, model)
    known = names_in_file(model, names)
    ignored = [name for name in names.adapt(state_dict) if name not in known and re.fullmatch(names.ignored, name)]
    said = f'; ignored: {", ".join(ignored)}' if ignored else ''
    said += f'; fresh, at the full learning rate: {", ".join(fresh)}' if fresh else ''
    _log.info('backbone from %s%s', path, said)
    return loaded, fresh


def needed_options(model: nn.Module) -> list[str]:
    """Settings that the published weights of a network with so many outputs need, and that it does not have."""
    options = {}
    for names in network(model).weights:
        options |= names.options.get(model.num_classes, {})
    return [f'--config.model.{key}={value}'.lower() for key, value in options.items() if getattr(model, key) != value]


def has_void_output(model: nn.Module) -> bool:
    """Whether the last output of a network with so many is for pixels of no class, as that of the published weights."""
    return any(model.num_classes in names.void for names in network(model).weights)
