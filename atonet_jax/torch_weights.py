"""PyTorch names and layouts of weights <-> ours: the engine. The names live with each network (models/contract.py).

Files are read by torch_files.py; identification.py finds out which network they hold.
"""

import functools
import logging
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from atonet_jax.errors import InputError
from atonet_jax.models import abstract_variables, init_variables, network
from atonet_jax.models.contract import WeightNames

_log = logging.getLogger(__name__)

_MORE_CLASSES = 60
_SHOWN = 3  # names of each kind that a message lists
LEAVES = {
    'kernel': 'weight',
    'transposed_kernel': 'weight',
    'scale': 'weight',
    'slope': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
}
COUNTER = '.num_batches_tracked'  # beside every BN of a file; says nothing about the network


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
        InputError: the file has learned what is constant in this network.
    """
    names = vocabulary_of(state_dict, model)
    _check_fixed(state_dict, names, model.num_classes)
    state_dict = names.adapt(state_dict)
    free = set() if strict else class_layers(model)
    loaded = _convert(state_dict, shapes(model), names, free)
    left = {module_of(path) for path in free - loaded.keys()}
    if left:
        _log.info('left fresh: %s', ', '.join(sorted(left)))
    kept = {path: array for path, array in _flatten(fresh or {}).items() if path in shapes(model)}
    return unflatten_dict(kept | loaded, sep='/')


def _check_fixed(state_dict: Mapping[str, np.ndarray], names: WeightNames, num_classes: int) -> None:
    """Checks that kernels which are constant here were not learned in the file, which may be of other classes."""
    for name in names.fixed(num_classes):
        if name not in state_dict or not name.endswith('.weight'):  # others are a normalisation's buffers
            continue
        array = np.asarray(state_dict[name])
        constant = names.fixed(len(array))[name]
        if array.shape != constant.shape or not np.allclose(array, constant, atol=1e-3):
            raise InputError(f'{name}: was learned, and the network has a fixed kernel there: it cannot use this file')


def backbone_from_torch(
    state_dict: Mapping[str, np.ndarray], model: nn.Module, variables: Mapping[str, Any], strict: bool = True
) -> dict[str, Any]:
    """`variables` of `model` with the backbone from a file of it alone, such as torchvision's ResNet-18.

    Args:
        state_dict: {name: array}.
        model: a network of this package.
        variables: of `model`.
        strict: False: `fresh_modules` stay as in `variables`.

    Raises:
        MismatchError: as `from_torch`.
        InputError: the network has no backbone that is published alone.
    """
    names = backbone_names(state_dict, model)
    state_dict, backbone = names.adapt(state_dict), _named(model, names)
    free = set() if strict else _left_fresh(state_dict, names, backbone, model)
    return unflatten_dict(_flatten(variables) | _convert(state_dict, backbone, names, free), sep='/')


def fresh_modules(state_dict: Mapping[str, np.ndarray], model: nn.Module) -> tuple[str, ...]:
    """Modules of the backbone of which a file lacks an array, or has one for another number of classes.

    By the shortest paths that name them all and no other.
    """
    names = backbone_names(state_dict, model)
    backbone = _named(model, names)
    modules = {module_of(path) for path in backbone}
    fresh = {module_of(path) for path in _left_fresh(names.adapt(state_dict), names, backbone, model)}
    roots = set()
    for module in fresh:
        parts = module.split('/')
        prefixes = ('/'.join(parts[:depth]) for depth in range(1, len(parts) + 1))
        roots.add(next(p for p in prefixes if all(m in fresh for m in modules if f'{m}/'.startswith(f'{p}/'))))
    return tuple(sorted(roots))


def _left_fresh(
    state_dict: Mapping[str, np.ndarray],
    names: WeightNames,
    backbone: Mapping[str, tuple[int, ...]],
    model: nn.Module,
) -> set[str]:
    """Paths of the arrays of `fresh_modules`; none where a file holds no part of a backbone: it is another file."""
    given = {path: state_dict.get(file_name(path, names)) for path in backbone}
    missing = {path for path, array in given.items() if array is None}
    if missing == backbone.keys():
        return set()
    needed = {path: torch_shape(path, backbone[path]) for path in class_layers(model) & backbone.keys() - missing}
    return missing | {path for path, shape in needed.items() if not fits(given[path].shape, shape)}


def backbone_names(state_dict: Mapping[str, Any], model: nn.Module) -> WeightNames:
    """The network's vocabulary of files of its backbone alone that shares most names with the file.

    Raises:
        InputError: the network has no backbone that is published alone.
    """
    vocabularies = network(model).backbones
    if not vocabularies:
        name = type(model).__name__
        raise InputError(f'config.model.pretrained_backbone: {name} has no backbone that is published alone')
    return max(vocabularies, key=lambda names: len(names_in_file(model, names) & names.adapt(state_dict).keys()))


def _named(model: nn.Module, names: WeightNames) -> dict[str, tuple[int, ...]]:
    """{path: shape} of the variables that a vocabulary names: all, or those of the backbone."""
    return {path: shape for path, shape in shapes(model).items() if names.name_of(module_of(path)) is not None}


def to_torch(variables: Mapping[str, Any], model: nn.Module) -> dict[str, np.ndarray]:
    """{name: array} in the names and layouts of the network's first vocabulary.

    Modules that such a file holds and `variables` lack, as auxiliary heads that were not trained, are given as freshly
    drawn, the same at every call: the original loads the file with strict=True.

    Raises:
        InputError: the network has no vocabulary, or `variables` are not whole, or not of this network.
    """
    if not network(model).weights:
        raise InputError(f'{type(model).__name__} has no names in PyTorch; export it as weights')
    names = network(model).weights[0]
    flat = _flatten(variables)
    whole = names.whole(model)
    expected = shapes(whole).keys()
    missing, held = expected - flat.keys(), {module_of(path) for path in flat}
    lacks = sorted(path for path in missing if module_of(path) in held or not names.is_optional(module_of(path)))
    if wrong := lacks or sorted(flat.keys() - expected):
        what = 'lack' if lacks else 'have, beyond those of the network,'
        raise InputError(f'{type(model).__name__}: the variables {what} {len(wrong)}: {_first(wrong)}')
    if missing:
        flat |= _flatten(init_variables(whole, 0, missing))
        flat = {path: flat[path] for path in expected}
    state_dict = dict(names.fixed(model.num_classes))
    for path, array in flat.items():
        name = file_name(path, names)
        state_dict[name] = _to_torch_layout(path, np.array(array, np.float32))
        if name.endswith('.running_var'):
            state_dict[name.removesuffix('.running_var') + COUNTER] = np.zeros((), np.int64)
    return state_dict


@functools.cache  # the network is traced for it
def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """{path: shape} of a network's variables."""
    return {path: array.shape for path, array in _flatten(abstract_variables(model)).items()}


def names_in_file(model: nn.Module, names: WeightNames) -> set[str]:
    """The names that a vocabulary gives to a network's variables, or to those of its backbone."""
    return {file_name(path, names) for path in _named(model, names)}


def class_layers(model: nn.Module) -> set[str]:
    """Paths of the variables in modules whose shapes depend on the number of classes."""
    ours = shapes(model)
    # Some have a share of the classes as channels, rounded down: one class more would not show.
    others = shapes(model.clone(num_classes=model.num_classes + _MORE_CLASSES))
    modules = {module_of(path) for path, shape in ours.items() if shape != others[path]}
    return {path for path in ours if module_of(path) in modules}


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


def vocabulary_of(state_dict: Mapping[str, Any], model: nn.Module) -> WeightNames:
    """The network's vocabulary that shares most names with the file.

    Raises:
        InputError: the network has none.
    """
    vocabularies = network(model).weights
    if not vocabularies:
        raise InputError(f'{type(model).__name__} has no names in PyTorch; start it from a run of its own')
    return max(vocabularies, key=lambda names: len(names_in_file(model, names) & state_dict.keys()))


def _convert(
    state_dict: Mapping[str, np.ndarray],
    expected: Mapping[str, tuple[int, ...]],
    names: WeightNames,
    free: Set[str],
) -> dict[str, Any]:
    """{path: array} of the variables that a file holds.

    Args:
        state_dict: {name: array}.
        expected: {path: shape} of the variables that it should hold.
        names: its vocabulary.
        free: paths that it may lack or have in other shapes. Modules in which this is so are left out whole, and so
            are optional ones of which it holds nothing.

    Raises:
        MismatchError: anything else does not fit.
    """
    by_path = {path: file_name(path, names) for path in expected}
    missing = {path: name for path, name in by_path.items() if name not in state_dict}
    misshapen = {}
    for path, name in by_path.items():
        needed = torch_shape(path, expected[path])
        if path not in missing and not fits(state_dict[name].shape, needed):
            misshapen[path] = f'{name} is {_by(state_dict[name].shape)}, not {_by(needed)}'

    held = {module_of(path) for path in by_path.keys() - missing.keys()}
    left = {module_of(path) for path in (missing.keys() | misshapen.keys()) & free}
    left |= {module_of(path) for path in missing if names.is_optional(module_of(path))} - held
    taken = {path: name for path, name in by_path.items() if module_of(path) not in left}

    known = set(by_path.values())
    unexpected = [name for name in state_dict if name not in known and not name.endswith(COUNTER)]
    unexpected = [name for name in unexpected if not re.fullmatch(names.ignored, name)]
    missing = {path: name for path, name in missing.items() if path in taken}
    misshapen = {path: text for path, text in misshapen.items() if path not in free}
    if missing or unexpected or misshapen:
        raise MismatchError(missing, unexpected, misshapen)
    return {
        path: _from_torch_layout(path, np.array(state_dict[name], np.float32), expected[path])
        for path, name in taken.items()
    }


def file_name(path: str, names: WeightNames) -> str:
    """'params/spp/pool0/bn/scale' -> 'spp.features.0.1.weight'."""
    name = names.name_of(module_of(path))
    if name is None:
        raise ValueError(f'{path}: no rule names it')
    return f'{name}.{LEAVES[path.rpartition("/")[2]]}'


def module_of(path: str) -> str:
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
    array = array.reshape(torch_shape(path, shape))
    return array.transpose(2, 3, 0, 1) if _is_transposed(path) else array.transpose(2, 3, 1, 0)


def _to_torch_layout(path: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 2:
        return np.ascontiguousarray(array.T)
    if array.ndim != 4:
        return array
    return np.ascontiguousarray(array.transpose(2, 3, 0, 1) if _is_transposed(path) else array.transpose(3, 2, 0, 1))


def torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in a file of a variable of ours."""
    if len(shape) != 4:
        return tuple(reversed(shape))
    return (*shape[2:], *shape[:2]) if _is_transposed(path) else (shape[3], shape[2], *shape[:2])


def fits(shape: Sequence[int], needed: tuple[int, ...]) -> bool:
    """Whether a shape in a file is the needed one, or that of a fully connected layer for a convolution."""
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
