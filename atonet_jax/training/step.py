"""One training step: the state that it carries on, the loss that it follows, and the update. Needs no TensorFlow."""

import functools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh

from atonet_jax.data.augmentation import Augmentation
from atonet_jax.models import apply, network
from atonet_jax.models.terms import Term
from atonet_jax.process.devices import replicated, split_by_batch
from atonet_jax.runs.state import TrainState
from atonet_jax.training.augment import augment
from atonet_jax.training.losses import label_weights, total_loss
from atonet_jax.training.optimizer import Optimizer, Schedule
from atonet_jax.training.remat import rematerialized

_AUGMENTATION, _FIRST_PART = 1, 2  # folded into dropout's key: augmentation and each part of a batch draw other numbers


class StepNumbers(NamedTuple):
    """The numbers of a step. They are arguments of the compiled step, so that other numbers need no other program.

    Attributes:
        learning_rates: float32, of each parameter group.
        weight_decays: float32, of each parameter group.
        ema_decay: float32, of `TrainState.averaged`, reached gradually.
        seed: uint32, of dropout and of augmentation on the device, which depend on it and the step alone.
        class_weights: [C] float32, one a class; None: all alike.
    """

    learning_rates: Mapping[str, jax.Array]
    weight_decays: Mapping[str, jax.Array]
    ema_decay: jax.Array
    seed: jax.Array
    class_weights: jax.Array | None


class StepSchedule(NamedTuple):
    """The numbers of all steps of a run.

    Attributes:
        learning_rates: the schedule of each of `optimizer.RATE_GROUPS`.
        weight_decays: of each.
        ema_decay, seed, class_weights: as in `StepNumbers`. Of a seed, the lowest 32 bits count.
    """

    learning_rates: Mapping[str, Schedule]
    weight_decays: Mapping[str, float]
    ema_decay: float = 0.0
    seed: int = 0
    class_weights: tuple[float, ...] | None = None

    def at(self, step: int) -> StepNumbers:
        """The numbers of the step that follows so many."""
        return StepNumbers(
            {group: np.float32(rate(step)) for group, rate in self.learning_rates.items()},
            {group: np.float32(decay) for group, decay in self.weight_decays.items()},
            np.float32(self.ema_decay),
            np.uint32(self.seed & 0xFFFFFFFF),
            None if self.class_weights is None else np.array(self.class_weights, np.float32),
        )


def create_state(variables: Mapping[str, Any], optimizer: Optimizer, *, averaging: bool, mesh: Mesh) -> TrainState:
    """The state before the first step, on every device of the mesh."""

    def create(variables):
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            variables=variables,
            opt_state=optimizer.init(variables['params']),
            averaged=variables if averaging else None,
        )

    return jax.jit(create, out_shardings=replicated(mesh))(variables)


class Objective(NamedTuple):
    """What training minimises.

    Attributes:
        model: the network.
        terms: of its loss.
        remat: computes most activations again for the gradient instead of keeping them (`training.remat`).
    """

    model: nn.Module
    terms: tuple[Term, ...]
    remat: bool = False

    @classmethod
    def of(cls, model: nn.Module, **options) -> 'Objective':
        """The network with the loss that it declares; `options` are other attributes."""
        return cls(model, network(model).terms, **options)

    @property
    def upsampling(self) -> str:
        """How the outputs' pixels lie on the label map."""
        return network(self.model).upsampling

    def outputs(
        self, variables: Mapping[str, Any], images: jax.Array, dropout_key: jax.Array
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """Training outputs, and the collections beside 'params' after the step.

        Args:
            variables: of the network.
            images: [B, H, W, 3] float32, normalised.
            dropout_key: for dropout.
        """
        mutable = [name for name in variables if name != 'params']
        with rematerialized() if self.remat else nullcontext():
            outputs, updates = apply(
                self.model, variables, images, True, mutable=mutable, rngs={'dropout': dropout_key}
            )
        return outputs, dict(updates)


class Gradient(NamedTuple):
    """What one batch says of the parameters.

    Attributes:
        loss: float32 scalar.
        terms: the loss's terms, unweighted, by name.
        collections: the network's collections beside 'params' after the step, such as batch statistics.
        params: the gradient, as the parameters are.
    """

    loss: jax.Array
    terms: dict[str, jax.Array]
    collections: dict[str, Any]
    params: Any


def step_inputs(
    objective: Objective, state: TrainState, batch: Mapping[str, jax.Array], augmentation: Augmentation, seed: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Images, labels and dropout's key of the step after `state`, as `gradient_of` takes them."""
    dropout_key = jax.random.fold_in(jax.random.key(seed), state.step)
    images, labels = augment(
        batch,
        augmentation,
        jax.random.fold_in(dropout_key, _AUGMENTATION),
        network(objective.model).normalization,
    )
    return images, labels, dropout_key


def gradient_of(
    objective: Objective,
    variables: Mapping[str, Any],
    images: jax.Array,
    labels: jax.Array,
    dropout_key: jax.Array,
    class_weights: jax.Array | None = None,
    **part: Any,
) -> Gradient:
    """The gradient of the loss.

    Args:
        objective: the network and its loss.
        variables: of the network.
        images: [B, H, W, 3] float32, normalised.
        labels: [B, H, W] uint8 train ids.
        dropout_key: for dropout.
        class_weights: as in `StepNumbers`.
        part: `total_weights` and `parts` of `total_loss`, where this is a part of a batch.
    """

    def loss_fn(params):
        outputs, collections = objective.outputs({**variables, 'params': params}, images, dropout_key)
        loss, terms = total_loss(
            outputs, labels, objective.terms, objective.upsampling, class_weights=class_weights, **part
        )
        return loss, (terms, collections)

    (loss, (terms, collections)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(variables['params'])
    return Gradient(loss, terms, collections, gradient)


def in_parts(
    objective: Objective,
    variables: Mapping[str, Any],
    images: jax.Array,
    labels: jax.Array,
    class_weights: jax.Array | None,
    parts: int,
) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """A batch in parts that are taken one after the other.

    Returns:
        images [parts, B / parts, H, W, 3], labels [parts, B / parts, H, W], and `part` of `gradient_of`.
    """
    outputs, _ = jax.eval_shape(lambda: objective.outputs(variables, images, jax.random.key(0)))
    total_weights = label_weights(outputs, labels, objective.terms, objective.upsampling, class_weights=class_weights)
    # Every parts-th example, so that each device holds its share of every part.
    images, labels = (array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1) for array in (images, labels))
    return images, labels, {'total_weights': total_weights, 'parts': parts}


def key_of_part(dropout_key: jax.Array, i: jax.Array | int) -> jax.Array:
    """Dropout's key of part `i` of a batch."""
    return jax.random.fold_in(dropout_key, _FIRST_PART + i)


def accumulated_gradient(
    objective: Objective,
    variables: Mapping[str, Any],
    images: jax.Array,
    labels: jax.Array,
    dropout_key: jax.Array,
    class_weights: jax.Array | None,
    parts: int,
) -> Gradient:
    """`gradient_of` a batch that is taken in `parts` parts one after the other, in the memory of one.

    Plain cross-entropy is the average over the labelled pixels of the whole batch, as without parts. Terms that choose
    or weigh pixels by the part's own, such as hard example mining, are means over the parts. Batch normalisation
    normalises by the statistics of a part, and its running statistics take `parts` small steps instead of one.
    """
    images, labels, part = in_parts(objective, variables, images, labels, class_weights, parts)

    def gradient_of_part(collections, images, labels, key):
        return gradient_of(objective, {**variables, **collections}, images, labels, key, class_weights, **part)

    def take(carry, inputs):
        collections, sums = carry
        images, labels, i = inputs
        gradient = gradient_of_part(collections, images, labels, key_of_part(dropout_key, i))
        sums = jax.tree.map(jnp.add, sums, gradient._replace(collections=None))
        return (gradient.collections, sums), None

    collections = {name: tree for name, tree in variables.items() if name != 'params'}
    shapes = jax.eval_shape(lambda: gradient_of_part(collections, images[0], labels[0], dropout_key))
    zeros = jax.tree.map(jnp.zeros_like, shapes._replace(collections=None))
    (collections, sums), _ = jax.lax.scan(take, (collections, zeros), (images, labels, jnp.arange(parts)))
    return sums._replace(collections=collections)


def train_step(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    numbers: StepNumbers,
    *,
    objective: Objective,
    optimizer: Optimizer,
    augmentation: Augmentation,
    accumulation: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Augments a batch and follows its gradient once.

    Args:
        state: before the step.
        batch: of `data.pipeline.train_batches`: windows of images and labels as bytes, and their geometry.
        numbers: of the step.
        objective: the network and its loss.
        optimizer: of the network's parameters.
        augmentation: what the crops are.
        accumulation: how many parts the batch is taken in (`accumulated_gradient`).

    Returns:
        The state after the step, and float32 scalars: the loss, its terms, the gradient's norm, and the learning rate
        of each group that has parameters.
    """
    inputs = step_inputs(objective, state, batch, augmentation, numbers.seed)
    arguments = objective, state.variables, *inputs, numbers.class_weights
    gradient = gradient_of(*arguments) if accumulation == 1 else accumulated_gradient(*arguments, accumulation)
    params, rates = state.variables['params'], numbers.learning_rates
    updates, opt_state = optimizer.update(gradient.params, state.opt_state, params, rates, numbers.weight_decays)
    variables = {'params': optax.apply_updates(params, updates), **gradient.collections}

    averaged = state.averaged
    if averaged is not None:
        decay = jnp.minimum(numbers.ema_decay, (1 + state.step) / (10 + state.step))
        averaged = optax.incremental_update(variables, averaged, 1 - decay)

    metrics = {'loss': gradient.loss, **gradient.terms, 'gradient_norm': optax.tree.norm(gradient.params)}
    groups = set(jax.tree.leaves(optimizer.groups(params)))
    metrics |= {f'learning_rate_{group}': rate for group, rate in rates.items() if group in groups}
    return TrainState(state.step + 1, variables, opt_state, averaged), metrics


@functools.cache  # runs of one process that differ in numbers alone share the program
def compile_train_step(mesh: Mesh, *, donate: bool = True, **options) -> Callable:
    """`train_step` with its keyword arguments bound, jitted: state replicated, batch split over the devices.

    The state given is used up, unless `donate` is False: then both states take memory at once.
    """

    def step(state, batch, numbers):
        return train_step(state, batch, numbers, **options)

    whole = replicated(mesh)
    return jax.jit(
        step,
        donate_argnums=0 if donate else (),
        in_shardings=(whole, split_by_batch(mesh), whole),
        out_shardings=(whole, whole),
    )
