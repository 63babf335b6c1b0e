"""Which network a file of weights holds: by the names and shapes of its arrays."""

import collections
import os
import re
from collections.abc import Iterable, Mapping
from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from atonet_jax.models import MODEL_NAMES, create_model, network
from atonet_jax.models.contract import Rule, WeightNames
from atonet_jax.torch_weights import (
    COUNTER,
    LEAVES,
    file_name,
    fits,
    names_in_file,
    shapes,
    torch_shape,
    vocabulary_of,
)


def identify(state_dict: Mapping[str, np.ndarray]) -> str | None:
    """The registered network whose names a file holds, or whose shapes fit best where several have these names.

    None if no network shares more than half of the names, or if the file holds a backbone alone.
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
    # Shapes choose among networks that share their names. They take two more traces of each.
    found = alike[0] if len(alike) == 1 else max(alike, key=partial(_match, state_dict))
    return models[found] if _holds_head(state_dict, found) else None


def suits_better(state_dict: Mapping[str, np.ndarray], known: nn.Module, model: nn.Module) -> bool:
    """Whether a file is rather one of `known`: by its names, or by its shapes if both are registered networks."""
    match, ours = (_match(state_dict, candidate)[:2] for candidate in (known, model))
    usual = model.clone(num_classes=19, dtype=known.dtype)
    is_registered = any(usual == create_model(name, 19) for name in MODEL_NAMES)
    return match > ours and (is_registered or match[0] > ours[0])


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
    models = {create_model(name, 19) for name in MODEL_NAMES}
    for model, names in ((each, names) for each in models for names in network(each).backbones):
        given = {name for name in names.adapt(state_dict) if not name.endswith(COUNTER)}
        pattern = _names_of_modules(names)
        if sum(pattern.fullmatch(name) is not None for name in given) <= 0.9 * len(given):
            continue  # most networks are never traced
        known = names_in_file(model, names)
        if len(given & known) > 0.9 * max(len(given), len(known)):
            return True
    return False


def num_outputs(state_dict: Mapping[str, np.ndarray], model: nn.Module) -> int | None:
    """The number of outputs of the network in a file; None if no layer tells. `model`: for any number of outputs."""
    base, votes = 19, collections.Counter()
    ours, more = (shapes(model.clone(num_classes=base + n)) for n in (0, 1))
    for names in network(model).weights:
        for path, needed in ours.items():
            given = state_dict.get(file_name(path, names))
            if needed == more[path] or given is None or len(given.shape) != len(needed):
                continue
            for length, old, new in zip(given.shape, *(torch_shape(path, shape) for shape in (needed, more[path]))):
                if new != old and (length - old) % (new - old) == 0:
                    votes[base + (length - old) // (new - old)] += 1
    return votes.most_common(1)[0][0] if votes else None


def _match(state_dict: Mapping[str, np.ndarray], model: nn.Module) -> tuple[float, int, int]:
    """How well a file suits a network: by its names, then by shapes, then by names that the network passes over."""
    return _likeness(state_dict, model), _fitting(state_dict, model), _ignored(state_dict, model)


def _recognised(state_dict: Iterable[str], model: nn.Module) -> float:
    """The share of a file's names that look like one of the network's: at least its likeness, at almost no cost."""
    given = [name for name in state_dict if not name.endswith(COUNTER)]
    patterns = map(_names_of_modules, network(model).weights)
    most = max((sum(pattern.fullmatch(name) is not None for name in given) for pattern in patterns), default=0)
    return most / max(len(given), 1)


def _names_of_modules(names: WeightNames) -> re.Pattern:
    """A regular expression for all names that a vocabulary can give, and maybe more."""
    leaves = '|'.join(sorted(set(LEAVES.values())))
    return re.compile(rf'(?:{"|".join(map(_names_by, names.rules))})\.(?:{leaves})')


def _names_by(rule: Rule) -> str:
    """A regular expression for all names that a rule can give, and maybe more."""
    return '.+'.join(map(re.escape, re.split(r'\\(?:\d+|g<\w+>)', rule.name)))


def _fitting(state_dict: Mapping[str, np.ndarray], model: nn.Module) -> int:
    """How many arrays of a file have the shapes that they have in a network, for the file's number of outputs."""
    try:
        expected = shapes(model.clone(num_classes=num_outputs(state_dict, model) or model.num_classes))
    except ValueError:  # a number that no file of this network can have
        return 0
    names = vocabulary_of(state_dict, model)
    given = {path: state_dict.get(file_name(path, names)) for path in expected}
    return sum(
        array is not None and fits(array.shape, torch_shape(path, expected[path])) for path, array in given.items()
    )


def _ignored(state_dict: Iterable[str], model: nn.Module) -> int:
    """How many of a file's names the network knows as such that it passes over."""
    vocabularies = network(model).weights
    return max(sum(re.fullmatch(names.ignored, name) is not None for name in state_dict) for names in vocabularies)


def _holds_head(state_dict: Iterable[str], model: nn.Module) -> bool:
    """Whether a file has any name of a network beside those of its backbone, where the network has such names."""
    alone = set().union(*(names_in_file(model, names) for names in network(model).backbones))
    return any(not names - alone or set(state_dict) & names - alone for names in _names_in_files(model))


def _likeness(state_dict: Iterable[str], model: nn.Module) -> float:
    """Names that a file shares with the network, in one of its vocabularies, of those that either has: 0 .. 1."""
    given = {name for name in state_dict if not name.endswith(COUNTER)}
    return max((len(given & names) / len(given | names) for names in _names_in_files(model)), default=0.0)


def _names_in_files(model: nn.Module) -> list[set[str]]:
    """The names of a network's variables in files, in each of its vocabularies."""
    return [names_in_file(model, names) for names in network(model).weights]
