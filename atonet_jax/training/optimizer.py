"""SGD, Adam and AdamW; rates and weight decays of two groups of parameters; the schedule of the learning rate."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import linen as nn

from atonet_jax.models import network
from atonet_jax.models.contract import Network

Schedule = Callable[[int], float]

RATE_GROUPS = ('backbone', 'rest')


def parameter_group(path: tuple[str, ...], network: Network, frozen: Sequence[str] = ()) -> str:
    """'frozen', or the one of `RATE_GROUPS` whose rate and decay a parameter takes.

    Args:
        path: of the parameter.
        network: the contract that says so.
        frozen: groups of the contract that stay as they are.
    """
    if ('backbone' if network.in_backbone(path) else 'head') in frozen:
        return 'frozen'
    return 'backbone' if network.reduced(path) else 'rest'


def learning_rate_schedule(
    *,
    peak: float,
    name: str,
    total_steps: int,
    epoch_of_step: Callable[[int], int] | None = None,
    total_epochs: float = 0.0,
    floor: float = 1e-6,
    power: float = 0.9,
    step_epochs: float = 100.0,
    step_factor: float = 0.1,
    warmup_steps: int = 0,
    ahead: float = 0,
) -> Schedule:
    """Steps taken -> learning rate of the next one.

    Args:
        peak: the rate that it starts from, after the warm-up.
        name: 'cosine' falls to `floor` as half a cosine, 'poly' as (1 - progress) ** power, 'steps' is multiplied by
            `step_factor` after every `step_epochs`, 'constant' stays.
        total_steps: steps of the whole run, with `ahead`.
        epoch_of_step: if given, the rate is constant over each epoch, as torch's schedulers stepped once an epoch are;
            otherwise it changes at every step.
        total_epochs: the length of the run in epochs; used with `epoch_of_step`, and by 'steps'.
        floor: the lowest rate.
        power: of 'poly'.
        step_epochs: of 'steps'.
        step_factor: of 'steps'.
        warmup_steps: the rate rises linearly from 0 over this many steps, to what the schedule then says.
        ahead: steps that the run is further than `step` says, because earlier steps had other batches.

    Raises:
        ValueError: no such schedule.
    """
    shapes = {
        'cosine': lambda progress: 0.5 * (1 + np.cos(np.pi * progress)),
        'poly': lambda progress: (1 - progress) ** power,
        'steps': lambda progress: step_factor ** np.floor(progress * total_epochs / step_epochs + 1e-4),
        'constant': lambda progress: 1.0,
    }
    if name not in shapes:
        raise ValueError(f'schedule.name={name!r} is unknown; known: {", ".join(shapes)}')

    def schedule(step):
        if epoch_of_step is None:
            progress = (step + ahead) / total_steps
        else:
            progress = epoch_of_step(step) / total_epochs
        rate = floor + (peak - floor) * shapes[name](min(max(progress, 0.0), 1.0))
        return rate * min(1.0, (step + ahead + 1) / (warmup_steps + 1))

    return schedule


class Optimizer(NamedTuple):
    """The update rule of each parameter group. Rates and decays are arguments of `update`, which may be traced.

    Attributes:
        name: 'sgd' computes what torch.optim.SGD does: decay added to the gradient, then momentum, then the rate.
            'adam' what torch.optim.Adam does, whose decay is added to the gradient too. 'adamw' learns faster from
            scratch; its decay is decoupled from the gradient.
        model: the network, whose contract says what belongs to which group.
        momentum: of both groups; Adam's first beta.
        second_beta: of Adam.
        decayed: 'all' parameters, or 'kernels' alone: no biases, scales of batch normalisation and slopes.
        frozen: groups of the contract that stay as they are.
        fresh: modules of the backbone that are trained as the rest, because its file lacks them.
    """

    name: str
    model: nn.Module
    momentum: float
    second_beta: float = 0.99
    decayed: str = 'all'
    frozen: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()

    def init(self, params: Any) -> optax.OptState:
        """The state before the first update."""
        zeros = dict.fromkeys(RATE_GROUPS, 0.0)
        return self._transformation(zeros, zeros).init(params)

    def update(
        self,
        gradient: Any,
        opt_state: optax.OptState,
        params: Any,
        learning_rates: Mapping[str, jax.Array],
        weight_decays: Mapping[str, jax.Array],
    ) -> tuple[Any, optax.OptState]:
        """What is added to the parameters, and the next state. Rates and decays are those of each of `RATE_GROUPS`."""
        return self._transformation(learning_rates, weight_decays).update(gradient, opt_state, params)

    def groups(self, params: Any) -> Any:
        """`parameter_group` of each parameter."""
        contract = network(self.model).with_fresh(self.fresh)

        def group_of(path, _):
            return parameter_group(tuple(key.key for key in path), contract, self.frozen)

        return jax.tree_util.tree_map_with_path(group_of, params)

    def _transformation(self, learning_rates, weight_decays) -> optax.GradientTransformation:
        rules = {group: self._rule(learning_rates[group], weight_decays[group]) for group in RATE_GROUPS}
        return optax.multi_transform(rules | {'frozen': optax.set_to_zero()}, self.groups)

    def _rule(self, learning_rate, weight_decay) -> optax.GradientTransformation:
        def add_decay(updates, params):
            return jax.tree.map(
                lambda update, array: (
                    update + weight_decay * array if self.decayed == 'all' or array.ndim > 1 else update
                ),
                updates,
                params,
            )

        parts = [optax.stateless(add_decay), optax.trace(self.momentum)]
        if self.name in ('adam', 'adamw'):
            parts[1] = optax.scale_by_adam(self.momentum, self.second_beta)
        if self.name == 'adamw':
            parts.reverse()
        # A schedule, so that the state counts steps, as the checkpoints of all runs do.
        return optax.chain(*parts, optax.scale_by_learning_rate(lambda _: learning_rate))
