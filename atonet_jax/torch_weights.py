"""PyTorch names and layouts of weights <-> ours: the engine. The names live with each network (models/contract.py).

Files are read by torch_files.py.
"""

import functools
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from atonet_jax.errors import InputError
from atonet_jax.models import (
    MODEL_NAMES,
    abstract_variables,
    create_model,
    init_variables,
    network,
)
from atonet_jax.models.contract import WeightNames
from atonet_jax.torch_files import read_state_dict

_log = logging.getLogger(__name__)

_SHOWN = 3  # names of each kind that a message lists
_LEAVES = {
    'kernel': 'weight',
    'transposed_kernel': 'weight',
    'scale': 'weight',
    'slope': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
}
_COUNTER = '.num_batches_tracked'  # beside every BN of a file; says nothing about the network


def from_torch(
    state_dict: Mapping[str, np.ndarray],
    model: nn.Module,
    *,
    fresh: Mapping[str, Any] | None = None,
    strict: bool = True,
) -> dict[str, Any]:
    """The variables of `model` from a file's names and layouts, in any vocabulary that the network knows.

    Args:
        state_dict: {name: array}, numpy or torch CPU tensors.
        model: a network of this package.
        fresh: variables of `model`, for what the file need not hold: modules of training alone. Without it, such
            modules are left out where the file lacks them.
        strict: False: layers that depend on the number of classes, and are not in `state_dict` or are there for other
            classes, stay as they are in `fresh`, and this is logged.

    Returns:
        Variables, numpy arrays, float32.

    Raises:
        MismatchError: an InputError that counts missing, unexpected and misshapen names and lists the first of each;
            nothing is loaded by halves.
    """
    expected = _flatten(abstract_variables(model))
    names = _vocabulary(state_dict, model, expected)
    free = set() if strict else class_layers(model)
    loaded = _convert(state_dict, expected, names, free, _flatten(fresh or {}))
    return unflatten_dict(loaded, sep='/')


def backbone_from_torch(
    state_dict: Mapping[str, np.ndarray], model: nn.Module, variables: Mapping[str, Any]
) -> dict[str, Any]:
    """`variables` of `model` with the backbone from a file of it alone, such as torchvision's ResNet-18.

    Raises:
        MismatchError: as `from_torch`.
        InputError: the network has no backbone that is published alone.
    """
    names = network(model).backbone
    if names is None:
        name = type(model).__name__
        raise InputError(f'config.model.pretrained_backbone: {name} has no backbone that is published alone')
    flat = _flatten(variables)
    backbone = {path: array for path, array in flat.items() if names.name_of(_module(path)) is not None}
    return unflatten_dict(flat | _convert(state_dict, backbone, names, set(), {}), sep='/')


def to_torch(variables: Mapping[str, Any], model: nn.Module) -> dict[str, np.ndarray]:
    """{name: array} in the names and layouts of the network's first vocabulary.

    Modules that such a file holds and `variables` lack, as auxiliary heads that were not trained, are given as freshly
    drawn, the same at every call: the original loads the file with strict=True.

    Raises:
        InputError: the network has no vocabulary.
    """
    names = next(iter(network(model).weights.values()), None)
    if names is None:
        raise InputError(f'{type(model).__name__} has no names in PyTorch; export it as weights')
    flat = _flatten(variables)
    whole = names.whole(model)
    if not flat.keys() >= _flatten(abstract_variables(whole)).keys():
        drawn = _flatten(jax.jit(lambda: init_variables(whole, seed=0))())
        flat = {path: flat.get(path, array) for path, array in drawn.items()}
    state_dict = {}
    for path, array in flat.items():
        name = _file_name(path, names)
        state_dict[name] = _to_torch_layout(path, np.array(array, np.float32))
        if name.endswith('.running_var'):
            state_dict[name.removesuffix('.running_var') + _COUNTER] = np.zeros((), np.int64)
    return state_dict


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
        known = identify(state_dict)
        likeness = _likeness(state_dict, _names_in_files(model))
        if known is not None and _likeness(state_dict, _known_names(known)) > likeness:
            raise InputError(f'{path}: holds another network, {known}; give --config.model.name={known}') from error
        of_classes = not error.unexpected and error.paths <= class_layers(model)
        hint = '; --config.init_strict=false leaves such layers fresh' if of_classes else ''
        raise InputError(f'{path}: does not fit the network: {error}{hint}') from error
    _log.info('network from %s', path)
    return variables


def load_backbone(path: str, model: nn.Module, variables: Mapping[str, Any]) -> dict[str, Any]:
    """`variables` of `model` with the backbone of a file.

    Raises:
        InputError: names the file, and what is wrong with it or does not fit.
    """
    state_dict = read_state_dict(path)
    try:
        loaded = backbone_from_torch(state_dict, model, variables)
    except MismatchError as error:
        raise InputError(f'{path}: does not fit the backbone of {type(model).__name__}: {error}') from error
    ignored = [name for name in state_dict if re.fullmatch(network(model).backbone.ignored, name)]
    _log.info('backbone from %s%s', path, f'; ignored: {", ".join(ignored)}' if ignored else '')
    return loaded


def identify(state_dict: Iterable[str]) -> str | None:
    """The registered network whose names a file holds; None where none shares half of them, or a backbone is all."""
    likeness = {name: _likeness(state_dict, _known_names(name)) for name in MODEL_NAMES}
    best = max(likeness, key=likeness.get)
    return best if likeness[best] > 0.5 and _holds_head(state_dict, best) else None


def _holds_head(state_dict: Iterable[str], name: str) -> bool:
    """Whether a file has any name of a network beside those of its backbone, where the network has such names."""
    backbone = network(name).backbone
    if backbone is None:
        return True
    paths = list(_flatten(abstract_variables(create_model(name, 19))))
    alone = {_file_name(path, backbone) for path in paths if backbone.name_of(_module(path)) is not None}
    return any(not names - alone or set(state_dict) & names - alone for names in _known_names(name))


def _likeness(state_dict: Iterable[str], vocabularies: Sequence[set[str]]) -> float:
    """Names that a file shares with one of the vocabularies, of those that either has: 0 .. 1."""
    given = {name for name in state_dict if not name.endswith(_COUNTER)}
    return max((len(given & names) / len(given | names) for names in vocabularies), default=0.0)


@functools.cache  # networks are traced for it
def _known_names(name: str) -> list[set[str]]:
    return _names_in_files(create_model(name, 19))


def _names_in_files(model: nn.Module) -> list[set[str]]:
    """The names of a network's variables in files, in each of its vocabularies."""
    paths = list(_flatten(abstract_variables(model)))
    return [{_file_name(path, names) for path in paths} for names in network(model).weights.values()]


def class_layers(model: nn.Module) -> set[str]:
    """Paths of the variables in modules whose shapes depend on the number of classes."""
    ours = _flatten(abstract_variables(model))
    others = _flatten(abstract_variables(model.clone(num_classes=model.num_classes + 1)))
    modules = {_module(path) for path, array in ours.items() if array.shape != others[path].shape}
    return {path for path in ours if _module(path) in modules}


class MismatchError(InputError):
    """Names or shapes that are not the network's.

    Attributes:
        paths: of our variables that are missing or misshapen.
        unexpected: names of the file that are not the network's.
    """

    def __init__(self, missing: Mapping[str, str], unexpected: Sequence[str], misshapen: Mapping[str, str]):
        """missing: {path: name}. misshapen: {path: name, and what is wrong with it}."""
        self.paths, self.unexpected = missing.keys() | misshapen.keys(), unexpected
        kinds = {'missing': [*missing.values()], 'unexpected': unexpected, 'misshapen': [*misshapen.values()]}
        super().__init__('; '.join(f'{len(names)} {kind}: {_first(names)}' for kind, names in kinds.items() if names))


def _vocabulary(state_dict: Mapping[str, Any], model: nn.Module, expected: Mapping[str, Any]) -> WeightNames:
    """The network's vocabulary that shares most names with the file."""

    def shared(names):
        return sum(_file_name(path, names) in state_dict for path in expected)

    vocabularies = network(model).weights.values()
    if not vocabularies:
        raise InputError(f'{type(model).__name__} has no names in PyTorch; start it from a run of its own')
    return max(vocabularies, key=shared)


def _convert(
    state_dict: Mapping[str, np.ndarray],
    expected: Mapping[str, Any],
    names: WeightNames,
    free: set[str],
    fresh: Mapping[str, Any],
) -> dict[str, Any]:
    """{path: array} for each path of `expected`, which must fit; those of `free` may stay as in `fresh`."""
    by_path = {path: _file_name(path, names) for path in expected}
    missing = {path: name for path, name in by_path.items() if name not in state_dict}
    known = set(by_path.values())
    unexpected = [name for name in state_dict if name not in known and not name.endswith(_COUNTER)]
    unexpected = [name for name in unexpected if not re.fullmatch(names.ignored, name)]
    misshapen = {}
    for path, name in by_path.items():
        needed = _torch_shape(path, expected[path].shape)
        if name in state_dict and not _fits(state_dict[name].shape, needed):
            misshapen[path] = f'{name} is {_by(state_dict[name].shape)}, not {_by(needed)}'

    left = (missing.keys() | misshapen.keys()) & free
    modules = {_module(path) for path in left}
    left = {path for path in by_path if _module(path) in modules}
    skipped = left | {path for path in missing if names.is_optional(_module(path))}
    missing, misshapen = ({path: d[path] for path in d if path not in skipped} for d in (missing, misshapen))
    if missing or unexpected or misshapen:
        raise MismatchError(missing, unexpected, misshapen)
    if left:
        _log.info('left fresh: %s', ', '.join(sorted(modules)))
    converted = {
        path: _from_torch_layout(path, np.array(state_dict[name], np.float32), expected[path].shape)
        for path, name in by_path.items()
        if path not in skipped
    }
    return converted | {path: fresh[path] for path in skipped if path in fresh}


def _file_name(path: str, names: WeightNames) -> str:
    """'params/spp/pool0/bn/scale' -> 'spp.features.0.1.weight'."""
    name = names.name_of(_module(path))
    if name is None:
        raise ValueError(f'{path}: no rule names it')
    return f'{name}.{_LEAVES[path.rpartition("/")[2]]}'


def _module(path: str) -> str:
    """'params/spp/pool0/bn/scale' -> 'spp/pool0/bn'."""
    return path.partition('/')[2].rpartition('/')[0]


def _from_torch_layout(path: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Kernels [out, in, height, width] -> [height, width, in, out], transposed ones from [in, out, height, width].

    A fully connected layer is [out, in] -> [in, out]. One that we have as a convolution, [out, in * height * width], is
    read as that.
    """
    if len(shape) == 2:
        return array.T
    if len(shape) != 4:
        return array
    array = array.reshape(_torch_shape(path, shape))
    return array.transpose(2, 3, 0, 1) if _is_transposed(path) else array.transpose(2, 3, 1, 0)


def _to_torch_layout(path: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 2:
        return np.ascontiguousarray(array.T)
    if array.ndim != 4:
        return array
    return np.ascontiguousarray(array.transpose(2, 3, 0, 1) if _is_transposed(path) else array.transpose(3, 2, 0, 1))


def _torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != 4:
        return tuple(reversed(shape))
    return (*shape[2:], *shape[:2]) if _is_transposed(path) else (shape[3], shape[2], *shape[:2])


def _fits(shape: Sequence[int], needed: tuple[int, ...]) -> bool:
    shape = tuple(shape)
    is_fully_connected = len(shape) == 2 and len(needed) == 4 and shape == (needed[0], int(np.prod(needed[1:])))
    return shape == needed or is_fully_connected


def _is_transposed(path: str) -> bool:
    return path.endswith('/transposed_kernel')


def _flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    return flatten_dict(variables, sep='/')


def _first(names: Sequence[str]) -> str:
    return ', '.join(names[:_SHOWN]) + (', ...' if len(names) > _SHOWN else '')


def _by(shape: Sequence[int]) -> str:
    return 'x'.join(map(str, shape)) or 'a single number'
