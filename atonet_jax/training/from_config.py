"""From the config of a run to what its steps take: augmentation, objective, optimiser, and the numbers of each step."""

from collections.abc import Mapping, Sequence, Set
from typing import Any

from flax import linen as nn
from ml_collections import ConfigDict

from atonet_jax.data.augmentation import SMALLEST_CROP, Augmentation
from atonet_jax.errors import InputError
from atonet_jax.models import abstract_outputs, check_size, network
from atonet_jax.training.losses import check_terms, configured_terms
from atonet_jax.training.optimizer import Optimizer, learning_rate_schedule
from atonet_jax.training.step import Objective, StepSchedule
from atonet_jax.training.timeline import Timeline


def with_crop_size(config: ConfigDict, sizes: Mapping[tuple[int, int], int]) -> ConfigDict:
    """The config with `data.crop_size` filled in where it is (): the size that most training images have.

    Args:
        config: of the run.
        sizes: {(height, width): how many training images have it}.

    Raises:
        InputError: that size is too small for a crop.
    """
    if config.data.crop_size:
        return config
    size = max(sizes, key=sizes.get)
    if min(size) < SMALLEST_CROP:
        raise InputError(
            f'config.data.crop_size=(): most training images have {size[0]}x{size[1]} pixels; give a crop size of at '
            f'least {SMALLEST_CROP} both ways'
        )
    config = config.copy_and_resolve_references()
    config.data.crop_size = size
    return config


def train_augmentation(config: ConfigDict) -> Augmentation:
    """What the config's section `data` makes of a training image."""
    data = config.data
    return Augmentation(
        crop_size=tuple(data.crop_size), scale_range=tuple(data.scale_range), flip=data.flip, **data.augmentation
    )


def create_objective(config: ConfigDict, model: nn.Module) -> Objective:
    """What the config's section `loss` makes of the terms that the network declares.

    Raises:
        InputError: the settings do not fit the terms, the terms not the network's outputs, or the network takes no
            crops of that size.
    """
    terms = configured_terms(network(model).terms, config.loss)
    check_terms(abstract_outputs(model), terms)
    if config.data.crop_size:
        check_size(model, config.data.crop_size)
    return Objective(model, terms, remat=config.train.remat)


def step_options(config: ConfigDict, objective: Objective, fresh: Sequence[str] = ()) -> dict[str, Any]:
    """Keyword arguments of `train_step` as a run of this config has them.

    fresh: modules that the backbone's file lacks.
    """
    optimizer = Optimizer(
        config.optimizer.name,
        objective.model,
        momentum=config.optimizer.momentum,
        second_beta=config.optimizer.second_beta,
        decayed=config.optimizer.decayed,
        frozen=tuple(config.optimizer.frozen),
        fresh=tuple(fresh),
    )
    return {
        'objective': objective,
        'optimizer': optimizer,
        'augmentation': train_augmentation(config),
        'accumulation': config.train.accumulation,
    }


def check_floor(config: ConfigDict, groups: Set[str]) -> None:
    """Checks that the backbone's learning rate, where parameters have it, starts above the floor of the schedule.

    Raises:
        InputError: it does not, and would rise to it.
    """
    options, schedule = config.optimizer, config.schedule
    rate = options.learning_rate * options.backbone_factor
    if 'backbone' in groups and schedule.name != 'constant' and schedule.floor >= rate:
        raise InputError(
            f"config.schedule.floor={schedule.floor:g}: must be below {rate:g}, the backbone's learning rate "
            '(optimizer.learning_rate times optimizer.backbone_factor)'
        )


def backbone_rate_warning(config: ConfigDict, groups: Set[str], starts_fresh: bool) -> str:
    """What to say of `optimizer.backbone_factor` where it does not fit what the run starts from; '' where it does.

    Args:
        config: of the run.
        groups: the rate groups that the network's parameters have.
        starts_fresh: whether a new run starts from no file of weights.
    """
    factor, is_frozen = config.optimizer.backbone_factor, 'backbone' in config.optimizer.frozen
    if is_frozen:
        return 'config.optimizer.frozen: the backbone stays as it is drawn, at random' if starts_fresh else ''
    if factor != 1 and 'backbone' not in groups:
        return f'config.optimizer.backbone_factor has no effect: {config.model.name} trains all at one rate'
    if factor < 1 and starts_fresh:
        return (
            f'config.optimizer.backbone_factor={factor:g} is for a trained backbone, and this one starts from random '
            'weights: give its file as config.model.pretrained_backbone, or backbone_factor=1.0'
        )
    return ''


def create_schedule(
    config: ConfigDict, timeline: Timeline, class_weights: tuple[float, ...] | None = None
) -> StepSchedule:
    """The numbers of the steps of a run.

    Args:
        config: of the run.
        timeline: of the run, from this start on.
        class_weights: one a class; None: all alike.
    """
    ahead = timeline.offset / timeline.batch_size
    factors = {'backbone': config.optimizer.backbone_factor, 'rest': 1.0}
    learning_rates = {
        group: learning_rate_schedule(
            peak=factor * config.optimizer.learning_rate,
            name=config.schedule.name,
            total_steps=timeline.total_steps + ahead,
            # The published run steps torch's scheduler once an epoch, so that the rate is constant within it.
            epoch_of_step=timeline.whole_epochs if config.schedule.per == 'epoch' else None,
            total_epochs=timeline.epochs,
            floor=config.schedule.floor,
            power=config.schedule.power,
            step_epochs=config.schedule.step_epochs,
            step_factor=config.schedule.step_factor,
            warmup_steps=round(config.schedule.warmup_epochs * timeline.num_images / timeline.batch_size),
            ahead=ahead,
        )
        for group, factor in factors.items()
    }
    decay_factors = factors if config.optimizer.backbone_factor_on == 'both' else dict.fromkeys(factors, 1.0)
    weight_decays = {group: factor * config.optimizer.weight_decay for group, factor in decay_factors.items()}
    return StepSchedule(learning_rates, weight_decays, config.optimizer.ema_decay, config.seed, class_weights)
