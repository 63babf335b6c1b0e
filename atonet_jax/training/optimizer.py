"""The recipe's optimiser: SGD with momentum, coupled weight decay, and two parameter groups."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from atonet_jax.models.contract import Network

GROUPS = ('backbone', 'rest')
ADAM_SECOND_BETA = 0.99  # runs of a few hundred steps are too short for the usual 0.999


def parameter_group(path: tuple[str, ...], network: Network, frozen: Sequence[str] = ()) -> str:
    """'frozen', or the one of `GROUPS` whose rate and decay a parameter takes.

    Args:
        path: of the parameter.
        network: the contract that says so.
        frozen: groups of the contract that stay as they are.
    """
    group = network.group(path)
    if group in frozen:
        return 'frozen'
    is_reduced = network.reduced(path) if network.reduced is not None else group == 'backbone'
    return 'backbone' if is_reduced else 'rest'


def learning_rate_schedule(
    *,
    peak: float,
    name: str,
    total_steps: int,
    epoch_of_step: Callable[[jax.Array], jax.Array] | None = None,
    total_epochs: float = 0.0,
    floor: float = 1e-6,
    power: float = 0.9,
    warmup_steps: int = 0,
    ahead: float = 0,
) -> optax.Schedule:
    """step -> learning rate.

    Args:
        peak: the rate that it starts from, after the warm-up.
        name: 'cosine' falls to `floor` as half a cosine, 'poly' as (1 - progress) ** power, 'constant' stays.
        total_steps: steps of the whole run, with `ahead`.
        epoch_of_step: if given, the rate is constant over each epoch, as torch's schedulers stepped once an epoch are;
            otherwise it changes at every step.
        total_epochs: the length of the run in epochs; used with `epoch_of_step`.
        floor: the lowest rate.
        power: of 'poly'.
        warmup_steps: the rate rises linearly from 0 over this many steps, to what the schedule then says.
        ahead: steps that the run is further than `step` says, because earlier steps had other batches.

    Raises:
        ValueError: no such schedule.
    """
    shapes = {
        'cosine': lambda progress: 0.5 * (1 + jnp.cos(math.pi * progress)),
        'poly': lambda progress: (1 - progress) ** power,
        'constant': jnp.ones_like,
    }
    if name not in shapes:
        raise ValueError(f'schedule.name={name!r} is unknown; known: {", ".join(shapes)}')

    def schedule(step):
        if epoch_of_step is None:
            progress = (step + ahead) / total_steps
        else:
            progress = epoch_of_step(step) / total_epochs
        rate = floor + (peak - floor) * shapes[name](jnp.clip(progress, 0.0, 1.0))
        return rate * jnp.minimum(1.0, (step + ahead + 1) / (warmup_steps + 1))

    return schedule


def create_optimizer(
    name: str,
    learning_rates: dict[str, optax.Schedule],
    network: Network,
    *,
    momentum: float,
    weight_decays: dict[str, float],
    frozen: Sequence[str] = (),
) -> optax.GradientTransformation:
    """The update rule of each parameter group.

    Args:
        name: 'sgd' computes what torch.optim.SGD does: decay added to the gradient, then momentum, then the rate.
            'adamw' learns faster from scratch; its decay is decoupled from the gradient.
        learning_rates: schedule of each of `GROUPS`.
        network: the contract of the network, which says what belongs to which group.
        momentum: of both groups; Adam's first beta.
        weight_decays: of each of `GROUPS`.
        frozen: groups of the contract that stay as they are.
    """

    def rule(group):
        if name == 'adamw':
            return optax.adamw(
                learning_rates[group], b1=momentum, b2=ADAM_SECOND_BETA, weight_decay=weight_decays[group]
            )
        return optax.chain(
            optax.add_decayed_weights(weight_decays[group]),
            optax.trace(momentum),
            optax.scale_by_learning_rate(learning_rates[group]),
        )

    def groups(params):
        def group_of(path, _):
            return parameter_group(tuple(key.key for key in path), network, frozen)

        return jax.tree_util.tree_map_with_path(group_of, params)

    rules = {group: rule(group) for group in GROUPS}
    return optax.multi_transform(rules | {'frozen': optax.set_to_zero()}, groups)
