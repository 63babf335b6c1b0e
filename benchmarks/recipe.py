"""Training steps for scripts that time them, look into them or compare them: of the paper's recipe, and of a config."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from atonet_jax.data.augmentation import Augmentation
from atonet_jax.models import abstract_variables, apply, init_variables
from atonet_jax.models.counts import count_conv_macs
from atonet_jax.process.devices import create_mesh, split_by_batch
from atonet_jax.training.optimizer import Optimizer, learning_rate_schedule
from atonet_jax.training.step import Objective, StepSchedule, compile_train_step, create_state
from benchmarks.noise import noise_batch

MOMENTUM, WEIGHT_DECAY, BACKBONE_FACTOR = 0.9, 1e-4, 0.1
_IMAGES = 2975  # of an epoch of Cityscapes; they decide only where the schedule stands


def paper_recipe(
    model: nn.Module,
    augmentation: Augmentation,
    *,
    peak: float,
    total_steps: int,
    seed: int = 0,
    remat: bool = False,
    **of_schedule: Any,
) -> tuple[StepSchedule, dict[str, Any]]:
    """The numbers of the steps, and keyword arguments of `train_step`: SGD, two groups of parameters, cosine.

    Args:
        model: the network.
        augmentation: of the crops.
        peak: the learning rate of all but the backbone.
        total_steps: of the schedule.
        seed: of dropout.
        remat: as in `Objective`.
        of_schedule: further arguments of `learning_rate_schedule`.
    """
    factors = {'backbone': BACKBONE_FACTOR, 'rest': 1.0}
    rates = {
        group: learning_rate_schedule(peak=factor * peak, name='cosine', total_steps=total_steps, **of_schedule)
        for group, factor in factors.items()
    }
    decays = {group: factor * WEIGHT_DECAY for group, factor in factors.items()}
    options = {
        'objective': Objective.of(model, remat=remat),
        'optimizer': Optimizer('sgd', model, momentum=MOMENTUM),
        'augmentation': augmentation,
    }
    return StepSchedule(rates, decays, seed=seed), options


def compiled_step(config: Any, num_classes: int) -> tuple[jax.stages.Compiled, Callable[[], dict[str, jax.Array]], int]:
    """A training step of a config on a batch of noise.

    Returns:
        The compiled program; a call of it, which goes on from the state of the call before and gives metrics that are
        not awaited; and `forward_macs`.
    """
    from atonet_jax.config import create_network  # imports ml_collections, which `paper_recipe` does not need
    from atonet_jax.training.from_config import create_objective, create_schedule, step_options, train_augmentation
    from atonet_jax.training.timeline import Timeline

    mesh, model = create_mesh(), create_network(config, num_classes)
    options = step_options(config, create_objective(config, model))
    timeline = Timeline(config.train.batch_size, _IMAGES, config.train.epochs)
    numbers = create_schedule(config, timeline).at(0)
    variables = jax.jit(lambda: init_variables(model, 0))()
    state = create_state(variables, options['optimizer'], averaging=False, mesh=mesh)
    batch = noise_batch(train_augmentation(config), config.train.batch_size, num_classes)
    batch = jax.device_put(batch, split_by_batch(mesh))
    step = compile_train_step(mesh, **options).lower(state, batch, numbers).compile()

    def call():
        nonlocal state
        state, metrics = step(state, batch, numbers)
        return metrics

    return step, call, forward_macs(model, config.train.batch_size, config.data.crop_size)


def forward_macs(model: nn.Module, batch_size: int, size: tuple[int, int]) -> int:
    """Multiply-accumulates of the convolutions of the forward pass in training, of crops of `size`, (height, width)."""

    def forward(variables, images):
        return apply(model, variables, images, True, mutable=True, rngs={'dropout': jax.random.key(0)})

    images = jax.ShapeDtypeStruct((batch_size, *size, 3), jnp.float32)
    return count_conv_macs(forward, abstract_variables(model), images)
