"""PyTorch names and layouts of weights <-> ours; the only place that knows them.

Two vocabularies: the published ATONet's, and torchvision's of ResNet-18 for its backbone. Files of either are read by
torch_files.py.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from atonet_jax.errors import InputError
from atonet_jax.models import abstract_variables
from atonet_jax.models.atonet import LEVELS
from atonet_jax.torch_files import read_state_dict

_log = logging.getLogger(__name__)

_SHOWN = 3  # names of each kind that a message lists


class _Rule(NamedTuple):
    """A module of ours, as a pattern of its path, and the PyTorch modules that are its convolution and its BN."""

    path: str
    conv: str
    norm: str = ''


_STAGE_RULES = (
    _Rule(r'(layer\d)/block(\d)/conv(\d)', r'\1.\2.conv\3', r'\1.\2.bn\3'),
    _Rule(r'(layer\d)/block(\d)/shortcut', r'\1.\2.downsample.0', r'\1.\2.downsample.1'),
)
_TORCHVISION_RULES = (_Rule('stem', 'conv1', 'bn1'), *_STAGE_RULES)
_PUBLISHED_RULES = (
    _Rule('stem', 'layer0.0', 'layer0.1'),
    *_STAGE_RULES,
    _Rule(r'spp/conv(\d)', r'spp.conv\1.0', r'spp.conv\1.1'),
    _Rule(r'spp/pool(\d)', r'spp.features.\1.0', r'spp.features.\1.1'),
    _Rule(r'up(\d)', r'up\1.blend_conv.0', r'up\1.blend_conv.1'),
    _Rule('final', 'final_ocnv.0', 'final_ocnv.1'),  # spelt so
    _Rule('seg', 'cls.0', 'cls.1'),
    _Rule('classifier', 'cls.4'),
    _Rule(r'aux(\d)/conv', r'aux_cls\1.0', r'aux_cls\1.1'),
    _Rule(r'aux(\d)/classifier', r'aux_cls\1.3'),
)
_LEAVES = {
    'conv/kernel': 'weight',
    'conv/bias': 'bias',
    'bn/scale': 'weight',
    'bn/bias': 'bias',
    'bn/mean': 'running_mean',
    'bn/var': 'running_var',
}
_COUNTER = '.num_batches_tracked'  # beside every BN of a file; says nothing about the network


def from_torch(
    state_dict: Mapping[str, np.ndarray], model: nn.Module, *, fresh: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The variables of `model` from the published network's names and layouts.

    Auxiliary heads of levels that `model` does not have are passed over: all five are in every published file.

    Args:
        state_dict: {name: array}, numpy or torch CPU tensors.
        model: an ATONet.
        fresh: variables of `model`. If given, heads (`cls`, `aux_cls*`) that are not in `state_dict`, or that are
            there for other classes, stay as they are in `fresh`, each as a whole, and this is logged.

    Returns:
        {'params', 'batch_stats'}: numpy arrays, float32.

    Raises:
        MismatchError: an InputError that counts missing, unexpected and misshapen names and lists the first of each;
            nothing is loaded by halves.
    """
    expected = _flatten(abstract_variables(model))
    others = tuple(f'aux_cls{level}.' for level in LEVELS if level not in model.aux_levels)
    return unflatten_dict(_convert(state_dict, expected, _PUBLISHED_RULES, others, fresh and _flatten(fresh)), sep='/')


def backbone_from_torch(state_dict: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> dict[str, Any]:
    """`variables` with stem and layer1 .. layer4 from torchvision's ResNet-18; its classifier `fc` is passed over.

    Raises:
        MismatchError: as `from_torch`.
    """
    flat = _flatten(variables)
    backbone = {path: array for path, array in flat.items() if re.match('[^/]+/(stem|layer[1-4])/', path)}
    return unflatten_dict(flat | _convert(state_dict, backbone, _TORCHVISION_RULES, ('fc.',), None), sep='/')


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{name: array} in the published network's names and layouts, which that network loads with strict=True.

    It has all five auxiliary heads whatever was trained: those that `variables` lack are given as freshly drawn.
    """
    flat = _flatten(variables)
    state_dict = {}
    for path, array in flat.items():
        name = _torch_name(path, _PUBLISHED_RULES)
        state_dict[name] = _to_torch_layout(np.array(array, np.float32))
        if name.endswith('.running_var'):
            state_dict[name.removesuffix('.running_var') + _COUNTER] = np.zeros((), np.int64)
    for level in LEVELS:
        if f'aux_cls{level}.0.weight' not in state_dict:
            state_dict |= _untrained_head(level, state_dict)
    return state_dict


def load_network(path: str, model: nn.Module, fresh: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The variables of `model` from a file of the published network.

    Args:
        path: a file that `torch_files.read_state_dict` reads.
        model: an ATONet.
        fresh: as in `from_torch`; None: all must fit.

    Raises:
        InputError: names the file, and what is wrong with it or does not fit.
    """
    state_dict = read_state_dict(path)
    try:
        variables = from_torch(state_dict, model, fresh=fresh)
    except MismatchError as error:
        hint = '; --config.init_strict=false leaves such heads fresh' if error.in_heads_alone else ''
        raise InputError(f'{path}: does not fit the network: {error}{hint}') from error
    _log.info('network from %s', path)
    return variables


def load_backbone(path: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """`variables` with the backbone of a file of torchvision's ResNet-18.

    Raises:
        InputError: names the file, and what is wrong with it or does not fit.
    """
    state_dict = read_state_dict(path)
    try:
        loaded = backbone_from_torch(state_dict, variables)
    except MismatchError as error:
        raise InputError(f'{path}: does not fit a ResNet-18 in torchvision\'s names: {error}') from error
    ignored = [name for name in state_dict if name.startswith('fc.')]
    _log.info('backbone from %s%s', path, f'; ignored: {", ".join(ignored)}' if ignored else '')
    return loaded


class MismatchError(InputError):
    """Names or shapes that are not the network's."""

    def __init__(self, missing: Sequence[str], unexpected: Sequence[str], misshapen: Mapping[str, str]):
        """misshapen: what is wrong with each such name."""
        kinds = {'missing': missing, 'unexpected': unexpected, 'misshapen': [f'{n} {t}' for n, t in misshapen.items()]}
        super().__init__('; '.join(f'{len(names)} {kind}: {_first(names)}' for kind, names in kinds.items() if names))
        self.in_heads_alone = all(_head(name) for name in [*missing, *unexpected, *misshapen])


def _convert(
    state_dict: Mapping[str, np.ndarray],
    expected: Mapping[str, Any],
    rules: Sequence[_Rule],
    passed_over: tuple[str, ...],
    fresh: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """{path: array} for each path of `expected`, whose shapes must fit; heads that do not may stay as in `fresh`."""
    names = {path: _torch_name(path, rules) for path in expected}
    missing = [name for name in names.values() if name not in state_dict]
    unexpected = [name for name in state_dict if not name.startswith(passed_over) and not name.endswith(_COUNTER)]
    unexpected = [name for name in unexpected if name not in names.values()]
    misshapen = {}
    for path, name in names.items():
        needed = _torch_shape(expected[path].shape)
        if name in state_dict and tuple(state_dict[name].shape) != needed:
            misshapen[name] = f'is {_by(state_dict[name].shape)}, not {_by(needed)}'

    left = set()
    if fresh is not None:
        left = {_head(name) for name in [*missing, *unexpected, *misshapen]} - {''}
        missing, unexpected = ([name for name in list if _head(name) not in left] for list in (missing, unexpected))
        misshapen = {name: text for name, text in misshapen.items() if _head(name) not in left}
    if missing or unexpected or misshapen:
        raise MismatchError(missing, unexpected, misshapen)
    if left:
        _log.info('left fresh: %s', ', '.join(sorted(left)))
    return {
        path: fresh[path] if _head(name) in left else _from_torch_layout(np.array(state_dict[name], np.float32))
        for path, name in names.items()
    }


def _torch_name(path: str, rules: Sequence[_Rule]) -> str:
    """'params/spp/pool0/bn/scale' -> 'spp.features.0.1.weight'."""
    module, leaf = re.fullmatch('[^/]+/(.+)/([^/]+/[^/]+)', path).groups()
    for rule in rules:
        if match := re.fullmatch(rule.path, module):
            return f'{match.expand(rule.conv if leaf.startswith("conv") else rule.norm)}.{_LEAVES[leaf]}'
    raise ValueError(f'{path}: PyTorch has no name for it')


def _head(name: str) -> str:
    """The head that a published name belongs to, or nothing."""
    module = name.partition('.')[0]
    return module if module == 'cls' or module.startswith('aux_cls') else ''


def _from_torch_layout(array: np.ndarray) -> np.ndarray:
    """Kernels [out, in, height, width] -> [height, width, in, out]; vectors as they are."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def _to_torch_layout(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1)) if array.ndim == 4 else array


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else tuple(shape)


def _untrained_head(level: int, state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An auxiliary head as torch's default initialisation draws it, the same at every call."""
    num_classes, width = state_dict['cls.4.weight'].shape[:2]
    inputs = state_dict[f'up{level}.blend_conv.0.weight'].shape[1]
    width = width // 2 if level == 1 else width
    generator = np.random.default_rng(level)

    def draw(fan_in, *shape):
        return generator.uniform(-(fan_in**-0.5), fan_in**-0.5, shape).astype(np.float32)

    head = {
        '0.weight': draw(inputs * 9, width, inputs, 3, 3),
        '1.weight': np.ones(width, np.float32),
        '1.bias': np.zeros(width, np.float32),
        '1.running_mean': np.zeros(width, np.float32),
        '1.running_var': np.ones(width, np.float32),
        '1' + _COUNTER: np.zeros((), np.int64),
        '3.weight': draw(width, num_classes, width, 1, 1),
        '3.bias': draw(width, num_classes),
    }
    return {f'aux_cls{level}.{name}': array for name, array in head.items()}


def _flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    return flatten_dict(variables, sep='/')


def _first(names: Sequence[str]) -> str:
    return ', '.join(names[:_SHOWN]) + (', ...' if len(names) > _SHOWN else '')


def _by(shape: Sequence[int]) -> str:
    return 'x'.join(map(str, shape)) or 'a single number'
