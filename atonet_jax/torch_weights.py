"""PyTorch names and layouts of weights <-> ours: the engine. The names live with each network (models/contract.py).

Files are read by torch_files.py.
"""

import collections
import functools
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import jax.numpy as jnp
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
from atonet_jax.models.contract import Rule, WeightNames
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
    state_dict = names.adapt(state_dict)
    free = set() if strict else class_layers(model)
    loaded = _convert(state_dict, expected, names, free)
    left = {_module(path) for path in free - loaded.keys()}
    if left:
        _log.info('left fresh: %s', ', '.join(sorted(left)))
    kept = {path: array for path, array in _flatten(fresh or {}).items() if path in expected}
    return unflatten_dict(kept | loaded, sep='/')


def backbone_from_torch(
    state_dict: Mapping[str, np.ndarray], model: nn.Module, variables: Mapping[str, Any], strict: bool = True
) -> dict[str, Any]:
    """`variables` of `model` with the backbone from a file of it alone, such as torchvision's ResNet-18.

    Args:
        state_dict: {name: array}.
        model: a network of this package.
        variables: of `model`.
        strict: False: `missing_modules` stay as in `variables`.

    Raises:
        MismatchError: as `from_torch`.
        InputError: the network has no backbone that is published alone.
    """
    names, backbone = _backbone(model, variables)
    state_dict = names.adapt(state_dict)
    missing = {path for path in backbone if _file_name(path, names) not in state_dict}
    # A file that holds no part at all is none of a backbone.
    free = set() if strict or missing == backbone.keys() else missing
    return unflatten_dict(_flatten(variables) | _convert(state_dict, backbone, names, free), sep='/')


def missing_modules(
    state_dict: Mapping[str, np.ndarray], model: nn.Module, variables: Mapping[str, Any]
) -> tuple[str, ...]:
    """Modules of the backbone of which a file lacks an array, by the shortest paths that name them all and no other."""
    names, backbone = _backbone(model, variables)
    state_dict = names.adapt(state_dict)
    modules = {_module(path) for path in backbone}
    missing = {_module(path) for path in backbone if _file_name(path, names) not in state_dict}
    roots = set()
    for module in missing:
        parts = module.split('/')
        prefixes = ('/'.join(parts[:depth]) for depth in range(1, len(parts) + 1))
        roots.add(next(p for p in prefixes if all(m in missing for m in modules if f'{m}/'.startswith(f'{p}/'))))
    return tuple(sorted(roots))


def _backbone(model: nn.Module, variables: Mapping[str, Any]) -> tuple[WeightNames, dict[str, Any]]:
    """The names of a file of the backbone alone, and the variables that it holds, by path."""
    names = network(model).backbone
    if names is None:
        name = type(model).__name__
        raise InputError(f'config.model.pretrained_backbone: {name} has no backbone that is published alone')
    return names, {path: a for path, a in _flatten(variables).items() if names.name_of(_module(path)) is not None}


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
        drawn = _flatten(init_variables(whole, seed=0))
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
        if known is not None and _suits_better(state_dict, create_model(known, 19), model):
            raise InputError(f'{path}: holds another network, {known}; give --config=FILE:{known}') from error
        if known is None and holds_backbone(state_dict):
            raise InputError(
                f'{path}: holds a backbone alone; give it as --config.model.pretrained_backbone, not init_from'
            ) from error
        of_classes = not error.unexpected and error.missing | error.misshapen <= class_layers(model)
        hint = '; --config.init_strict=false leaves such layers fresh' if of_classes and fresh is not None else ''
        outputs = num_outputs(state_dict, model)
        if of_classes and outputs not in (None, model.num_classes):
            void = ', the last one for pixels of no class' if has_void_output(model.clone(num_classes=outputs)) else ''
            what = f'has {outputs} outputs{void}, but there are {model.num_classes} classes'
            raise InputError(f'{path}: {what}; give the data that it is for{hint}') from error
        raise InputError(f'{path}: does not fit the network: {error}{hint}') from error
    _log.info('network from %s', path)
    other = named_otherwise(path, model)
    if other:
        _log.warning("%s: is named after %s, but its arrays are not that network's; the arrays count", path, other)
    return variables


def load_backbone(
    path: str, model: nn.Module, variables: Mapping[str, Any], strict: bool = True
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`variables` of `model` with the backbone of a file, and `missing_modules`, none if `strict`.

    Raises:
        InputError: names the file, and what is wrong with it or does not fit.
    """
    state_dict = read_state_dict(path)
    try:
        loaded = backbone_from_torch(state_dict, model, variables, strict)
    except MismatchError as error:
        lacks = strict and not (error.unexpected or error.misshapen)
        hint = '; --config.model.pretrained_strict=false starts such parts fresh' if lacks else ''
        raise InputError(f'{path}: does not fit the backbone of {type(model).__name__}: {error}{hint}') from error
    fresh = () if strict else missing_modules(state_dict, model, variables)
    ignored = [name for name in state_dict if re.fullmatch(network(model).backbone.ignored, name)]
    said = f'; ignored: {", ".join(ignored)}' if ignored else ''
    said += f'; fresh, at the full learning rate: {", ".join(fresh)}' if fresh else ''
    _log.info('backbone from %s%s', path, said)
    return loaded, fresh


def identify(state_dict: Mapping[str, np.ndarray]) -> str | None:
    """The registered network whose names a file holds, or whose shapes fit best where several have these names.

    None where none shares half of the names, or those of its backbone are all.
    """
    models = {}
    for name in MODEL_NAMES:  # of several names of a network, the first one
        models.setdefault(create_model(name, 19), name)
    shares = {model: _recognised(state_dict, model) for model in models}
    likeness = {}
    for model in sorted(shares, key=shares.get, reverse=True):
        if shares[model] < max([0.5, *likeness.values()]):
            break  # no better than what is found already; most networks are never traced
        likeness[model] = _likeness(state_dict, model)
    best = max(likeness.values(), default=0)
    if best <= 0.5:
        return None
    alike = [model for model in models if likeness.get(model) == best]
    found = alike[0]
    if len(alike) > 1:
        found = max(alike, key=lambda model: (_fitting(state_dict, model), _ignored(state_dict, model)))
    return models[found] if _holds_head(state_dict, found) else None


def named_otherwise(path: str, model: nn.Module) -> str | None:
    """The registered network that a file's name names, if `model` is another one.

    A name that several variants share, as 'enet' or 'swiftnet_ss', names each of them.
    """
    file = os.path.basename(path).lower()
    patterns = {name: f'(?<![a-z0-9]){name.replace("_", "[-_.]?")}(?![a-z0-9])' for name in MODEL_NAMES}
    named = max((name for name, pattern in patterns.items() if re.search(pattern, file)), key=len, default=None)
    if named is None:
        return None
    usual = model.clone(num_classes=19, dtype=jnp.float32)
    ours = [name for name in MODEL_NAMES if create_model(name, 19) == usual]
    is_alike = isinstance(model, type(create_model(named, 19)))
    return None if is_alike and (not ours or any(named in name for name in ours)) else named


def holds_backbone(state_dict: Mapping[str, np.ndarray]) -> bool:
    """Whether a file holds the backbone of a registered network and nothing else of one."""
    for model in {create_model(name, 19) for name in MODEL_NAMES}:
        names = network(model).backbone
        if names is None:
            continue
        given = {name for name in names.adapt(state_dict) if not name.endswith(_COUNTER)}
        pattern = _names_of_modules(names)
        if sum(pattern.fullmatch(name) is not None for name in given) <= 0.9 * len(given):
            continue  # most networks are never traced
        known = {_file_name(path, names) for path in _shapes(model) if names.name_of(_module(path)) is not None}
        if len(given & known) > 0.9 * max(len(given), len(known)):
            return True
    return False


def _suits_better(state_dict: Mapping[str, np.ndarray], known: nn.Module, model: nn.Module) -> bool:
    """Whether a file is rather one of `known`: by its names, or by its shapes if both are registered networks."""
    known_likeness, likeness = (_likeness(state_dict, candidate) for candidate in (known, model))
    if known_likeness != likeness:
        return known_likeness > likeness
    usual = model.clone(num_classes=19, dtype=known.dtype)
    is_registered = any(usual == create_model(name, 19) for name in MODEL_NAMES)
    return is_registered and _fitting(state_dict, known) > _fitting(state_dict, model)


def num_outputs(state_dict: Mapping[str, np.ndarray], model: nn.Module) -> int | None:
    """The number of outputs of the network in a file; None if no layer tells. `model`: for any number of outputs."""
    base, votes = 19, collections.Counter()
    ours, more = (_shapes(model.clone(num_classes=base + n)) for n in (0, 1))
    for names in network(model).weights.values():
        for path, needed in ours.items():
            given = state_dict.get(_file_name(path, names))
            if needed == more[path] or given is None or len(given.shape) != len(needed):
                continue
            for length, old, new in zip(given.shape, *(_torch_shape(path, shape) for shape in (needed, more[path]))):
                if new != old and (length - old) % (new - old) == 0:
                    votes[base + (length - old) // (new - old)] += 1
    return votes.most_common(1)[0][0] if votes else None


def has_void_output(model: nn.Module) -> bool:
    """Whether the last output of a network with so many is for pixels of no class, as that of the published weights."""
    return any(model.num_classes in names.void for names in network(model).weights.values())


def _recognised(state_dict: Iterable[str], model: nn.Module) -> float:
    """The share of a file's names that look like one of the network's: at least its likeness, at almost no cost."""
    given = [name for name in state_dict if not name.endswith(_COUNTER)]
    patterns = map(_names_of_modules, network(model).weights.values())
    most = max((sum(pattern.fullmatch(name) is not None for name in given) for pattern in patterns), default=0)
    return most / max(len(given), 1)


def _names_of_modules(names: WeightNames) -> re.Pattern:
    """A regular expression for all names that a vocabulary can give, and maybe more."""
    leaves = '|'.join(sorted(set(_LEAVES.values())))
    return re.compile(rf'(?:{"|".join(map(_names_by, names.rules))})\.(?:{leaves})')


def _names_by(rule: Rule) -> str:
    """A regular expression for all names that a rule can give, and maybe more."""
    return '.+'.join(map(re.escape, re.split(r'\\(?:\d+|g<\w+>)', rule.name)))


def _fitting(state_dict: Mapping[str, np.ndarray], model: nn.Module) -> int:
    """How many arrays of a file have the shapes that they have in a network, for the file's number of outputs."""
    try:
        expected = _shapes(model.clone(num_classes=num_outputs(state_dict, model) or model.num_classes))
    except ValueError:  # a number that no file of this network can have
        return 0
    names = _vocabulary(state_dict, model, expected)
    given = {path: state_dict.get(_file_name(path, names)) for path in expected}
    return sum(
        array is not None and _fits(array.shape, _torch_shape(path, expected[path])) for path, array in given.items()
    )


def _ignored(state_dict: Iterable[str], model: nn.Module) -> int:
    """How many of a file's names the network knows as such that it passes over."""
    vocabularies = network(model).weights.values()
    return max(sum(re.fullmatch(names.ignored, name) is not None for name in state_dict) for names in vocabularies)


def _holds_head(state_dict: Iterable[str], model: nn.Module) -> bool:
    """Whether a file has any name of a network beside those of its backbone, where the network has such names."""
    backbone = network(model).backbone
    if backbone is None:
        return True
    alone = {_file_name(path, backbone) for path in _shapes(model) if backbone.name_of(_module(path)) is not None}
    return any(not names - alone or set(state_dict) & names - alone for names in _names_in_files(model))


def _likeness(state_dict: Iterable[str], model: nn.Module) -> float:
    """Names that a file shares with the network, in one of its vocabularies, of those that either has: 0 .. 1."""
    given = {name for name in state_dict if not name.endswith(_COUNTER)}
    return max((len(given & names) / len(given | names) for names in _names_in_files(model)), default=0.0)


def _names_in_files(model: nn.Module) -> list[set[str]]:
    """The names of a network's variables in files, in each of its vocabularies."""
    return [{_file_name(path, names) for path in _shapes(model)} for names in network(model).weights.values()]


@functools.cache  # the network is traced for it
def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """{path: shape} of a network's variables."""
    return {path: array.shape for path, array in _flatten(abstract_variables(model)).items()}


def class_layers(model: nn.Module) -> set[str]:
    """Paths of the variables in modules whose shapes depend on the number of classes."""
    ours = _flatten(abstract_variables(model))
    others = _flatten(abstract_variables(model.clone(num_classes=model.num_classes + 1)))
    modules = {_module(path) for path, array in ours.items() if array.shape != others[path].shape}
    return {path for path in ours if _module(path) in modules}


class MismatchError(InputError):
    """Names or shapes that are not the network's.

    Attributes:
        missing: paths of our variables that the file lacks.
        misshapen: paths of those that have other shapes there.
        unexpected: names of the file that are not the network's.
    """

    def __init__(self, missing: Mapping[str, str], unexpected: Sequence[str], misshapen: Mapping[str, str]):
        """missing: {path: name}. misshapen: {path: name, and what is wrong with it}."""
        self.missing, self.misshapen, self.unexpected = missing.keys(), misshapen.keys(), unexpected
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
    free: Set[str],
) -> dict[str, Any]:
    """{path: array} for each path of `expected`, which must fit; modules of `free` that do not are left out whole."""
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
    missing = {path: name for path, name in missing.items() if path not in skipped}
    misshapen = {path: text for path, text in misshapen.items() if path not in free}
    if missing or unexpected or misshapen:
        raise MismatchError(missing, unexpected, misshapen)
    return {
        path: _from_torch_layout(path, np.array(state_dict[name], np.float32), expected[path].shape)
        for path, name in by_path.items()
        if path not in skipped
    }


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
