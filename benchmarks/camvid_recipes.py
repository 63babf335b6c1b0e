"""How benchmarks/camvid.py trains: its recipes, and the changes to them that were tried."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from atonet_jax.data.labels import CAMVID
from atonet_jax.errors import InputError

FRAME = 360, 480  # height and width in the repack
EVEN = (1.0,) * CAMVID.num_classes


def base_settings() -> dict[str, Any]:
    """What every recipe begins with, over configs/camvid.py, on the devices at hand."""
    on_cpu = jax.default_backend() == 'cpu'
    return {
        'model.dtype': 'float32' if on_cpu else 'bfloat16',
        'data.cache': 'device',
        'data.crop_size': FRAME,
        'eval.batch_size': 4 if on_cpu else 16,
        'eval.pictures': 0,
    }


_PRETRAINED = {'optimizer.backbone_factor': 0.5}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        start: 'scratch', or 'pretrained' from the backbone of --backbone.
        settings: over `base_settings`, by the config's keys.
    """

    start: str
    settings: dict[str, Any]


RECIPES = {
    'scratch': Recipe('scratch', {}),
    'pretrained': Recipe('pretrained', _PRETRAINED),
    # Frames are enlarged in training and in inference; a step takes as long as with the others.
    'pretrained_enlarged': Recipe('pretrained', _PRETRAINED | {'data.scale_range': (1.0, 2.25), 'eval.height': 720}),
    # The same in crops of three quarters of an enlarged frame, which have 2.25 times as many pixels.
    'pretrained_enlarged_wide': Recipe(
        'pretrained',
        _PRETRAINED | {'data.crop_size': (540, 720), 'data.scale_range': (1.5, 2.25), 'eval.height': 720},
    ),
    # For tests: in crops of 64x96.
    'tiny': Recipe(
        'scratch', {'model.dtype': 'float32', 'data.crop_size': (64, 96), 'schedule.warmup_epochs': 0.0}
    ),
}  # fmt: skip


def _colours(strength: float) -> dict[str, Any]:
    return {f'data.augmentation.{name}': strength for name in ('brightness', 'contrast', 'saturation')}


# Each changes one thing in a recipe.
TRIALS = {
    'strong_colours': _colours(0.5),
    'mining': {'loss.mining': True, 'loss.mining_min_kept': 0.25},
    'rate_double': {'optimizer.learning_rate': 2e-3},
    'even': {'loss.class_weights': EVEN},
    'sgd': {'optimizer.name': 'sgd', 'optimizer.learning_rate': 0.02, 'optimizer.weight_decay': 5e-4},
    'rate_half': {'optimizer.learning_rate': 5e-4},
    'poly': {'schedule.name': 'poly'},
    'backbone_slow': {'optimizer.backbone_factor': 0.2},
    'plain_colours': _colours(0.0),
    'decay_high': {'optimizer.weight_decay': 0.1},
    'rate_triple': {'optimizer.learning_rate': 3e-3},
}


def _table4() -> dict[str, dict[str, Any]]:
    """The rows of the paper's Table 4 that are trained alike: three sets of bins, nine of auxiliary levels, and the
    dagger, where auxiliary features are enlarged instead of labels reduced."""

    def name(kind, numbers):
        return '_'.join([kind, *map(str, numbers)])

    rows = {name('bins', bins): {'model.spp_bins': bins, 'model.aux_levels': ()}
            for bins in ((6, 3, 2, 1), (8, 4, 2, 1), (8, 4, 2))}  # fmt: skip
    sets = [tuple(range(1, last + 1)) for last in range(1, 6)] + [tuple(range(first, 6)) for first in range(2, 6)]
    rows |= {name('aux', levels): {'model.spp_bins': (8, 4, 2), 'model.aux_levels': levels} for levels in sets}
    dagger = rows[name('aux', (3, 4, 5))] | {'loss.aux_target': 'upsampled_features'}
    return rows | {name('dagger', (3, 4, 5)): dagger}


SETS = {'table4': _table4(), 'trials': TRIALS}
VARIANTS = {name: settings for variants in SETS.values() for name, settings in variants.items()}


def chosen(text: str, best_of: Callable[[str], str]) -> list[tuple[str, Recipe, dict[str, Any]]]:
    """Names, recipes and settings over them that RECIPE+VARIANT@EPOCHS, or a part of it, stands for.

    best_of: from a start to the name of its best recipe.

    Raises:
        InputError: there is no such recipe or variant, or no result that tells the best.
    """
    name, _, epochs = text.partition('@')
    name, plus, variant = name.partition('+')
    name = best_of(name.removeprefix('best:')) if name.startswith('best:') else name
    try:
        over = {'train.epochs': float(epochs)} if epochs else {}
    except ValueError as error:
        raise InputError(f'{text!r}: what follows @ is a number of epochs') from error
    base, _, own = name.partition('+')  # the best may be a variant itself
    if base not in RECIPES:
        raise InputError(f'{name!r} is no recipe here; known: {", ".join(RECIPES)}')
    if plus and variant not in SETS | VARIANTS:
        raise InputError(f'{variant!r} is no variant here; known: {", ".join(SETS | VARIANTS)}')
    variants = list(SETS[variant]) if variant in SETS else [variant or own]
    return [
        (f'{base}+{one}' if one else base, RECIPES[base], (VARIANTS[one] if one else {}) | over) for one in variants
    ]
