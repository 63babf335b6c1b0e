"""One training step: the state that it carries on, the loss that it follows, and the update. Needs JAX alone."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from atonet_jax.data.augmentation import Augmentation
from atonet_jax.process.devices import replicated, split_by_batch
from atonet_jax.training.augment import augment
from atonet_jax.training.losses import label_weights, total_loss

_AUGMENTATION = 1  # sets its random numbers apart from dropout's


class TrainState(flax.struct.PyTreeNode):
    """All that changes from step to step.

    Attributes:
        step: int32 scalar, steps taken.
        variables: {'params', 'batch_stats'} of the network, float32.
        opt_state: the optimiser's.
        averaged: an exponential moving average of `variables`, or None.
    """

    step: jax.Array
    variables: Mapping[str, Any]
    opt_state: optax.OptState
    averaged: Mapping[str, Any] | None


def create_state(
    variables: Mapping[str, Any], optimizer: optax.GradientTransformation, *, averaging: bool, mesh: Mesh
) -> TrainState:
    """The state before the first step, on every device of the mesh."""

    def create(variables):
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            variables=variables,
            opt_state=optimizer.init(variables['params']),
            averaged=variables if averaging else None,
        )

    return jax.jit(create, out_shardings=replicated(mesh))(variables)


def loss_fn(
    params: Any,
    batch_stats: Any,
    images: jax.Array,
    labels: jax.Array,
    dropout_key: jax.Array,
    model: nn.Module,
    loss_options: Mapping[str, Any],
) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
    """The loss, and beside it the new batch statistics and the loss's terms.

    Args:
        params: of `model`.
        batch_stats: running statistics before the step.
        images: [B, H, W, 3] float32, normalised.
        labels: [B, H, W] uint8 train ids.
        dropout_key: for channel dropout.
        model: the network.
        loss_options: keyword arguments of `total_loss`.
    """
    outputs, updates = model.apply(
        {'params': params, 'batch_stats': batch_stats},
        images,
        train=True,
        mutable=['batch_stats'],
        rngs={'dropout': dropout_key},
    )
    loss, terms = total_loss(outputs, labels, **loss_options)
    return loss, (updates['batch_stats'], terms)


def step_inputs(
    state: TrainState, batch: Mapping[str, jax.Array], augmentation: Augmentation, seed: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Images, labels and dropout's key of the step after `state`, as `loss_fn` takes them."""
    dropout_key = jax.random.fold_in(jax.random.key(seed), state.step)
    images, labels = augment(batch, augmentation, jax.random.fold_in(dropout_key, _AUGMENTATION))
    return images, labels, dropout_key


def gradient_of(
    variables: Mapping[str, Any],
    images: jax.Array,
    labels: jax.Array,
    dropout_key: jax.Array,
    model: nn.Module,
    loss_options: Mapping[str, Any],
) -> tuple[jax.Array, dict[str, jax.Array], Any, Any]:
    """Loss, its terms, the new batch statistics, and the gradient of the parameters; arguments as in `loss_fn`."""
    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (batch_stats, terms)), gradients = gradient_fn(
        variables['params'], variables['batch_stats'], images, labels, dropout_key, model, loss_options
    )
    return loss, terms, batch_stats, gradients


def accumulated_gradient(
    variables: Mapping[str, Any],
    images: jax.Array,
    labels: jax.Array,
    dropout_key: jax.Array,
    model: nn.Module,
    loss_options: Mapping[str, Any],
    parts: int,
) -> tuple[jax.Array, dict[str, jax.Array], Any, Any]:
    """`gradient_of` a batch that is taken in `parts` parts one after the other, in the memory of one.

    Plain cross-entropy is the average over the labelled pixels of the whole batch, as without parts. Terms that choose
    or weigh pixels by the part's own, such as hard example mining, are means over the parts. Batch normalisation
    normalises by the statistics of a part, and its running statistics take `parts` small steps instead of one.
    """
    rngs = {'dropout': dropout_key}
    outputs, _ = jax.eval_shape(lambda: model.apply(variables, images, train=True, mutable=['batch_stats'], rngs=rngs))
    totals = label_weights(outputs, labels, **loss_options)
    loss_options = dict(loss_options) | {'total_weights': totals, 'parts': parts}
    # Every parts-th example, so that each device holds its share of every part.
    images, labels = (array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1) for array in (images, labels))

    def take(carry, part):
        batch_stats, sums = carry
        images, labels, i = part
        loss, terms, batch_stats, gradients = gradient_of(
            {'params': variables['params'], 'batch_stats': batch_stats},
            images,
            labels,
            jax.random.fold_in(dropout_key, i),
            model,
            loss_options,
        )
        return (batch_stats, jax.tree.map(jnp.add, sums, (loss, terms, gradients))), None

    shapes = jax.eval_shape(lambda: gradient_of(variables, images[0], labels[0], dropout_key, model, loss_options))
    loss, terms, _, gradients = jax.tree.map(jnp.zeros_like, shapes)
    carry = variables['batch_stats'], (loss, terms, gradients)
    (batch_stats, sums), _ = jax.lax.scan(take, carry, (images, labels, jnp.arange(parts)))
    loss, terms, gradients = sums
    return loss, terms, batch_stats, gradients


def train_step(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    learning_rates: Mapping[str, optax.Schedule],
    loss_options: Mapping[str, Any],
    augmentation: Augmentation,
    seed: int,
    ema_decay: float,
    accumulation: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Augments a batch and follows its gradient once.

    Args:
        state: before the step.
        batch: of `data.pipeline.train_batches`: windows of images and labels as bytes, and their geometry.
        model: the network.
        optimizer: of its parameters.
        learning_rates: the schedules that `optimizer` follows, by group, to report.
        loss_options: keyword arguments of `total_loss`.
        augmentation: what the crops are.
        seed: of dropout and of augmentation on the device, which depend on it and the step alone.
        ema_decay: of `state.averaged`, reached gradually.
        accumulation: how many parts the batch is taken in (`accumulated_gradient`).

    Returns:
        The state after the step, and float32 scalars: the loss, its terms, the gradient's norm, the learning rates.
    """
    images, labels, dropout_key = step_inputs(state, batch, augmentation, seed)
    arguments = state.variables, images, labels, dropout_key, model, loss_options
    loss, terms, batch_stats, gradients = (
        gradient_of(*arguments) if accumulation == 1 else accumulated_gradient(*arguments, accumulation)
    )
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.variables['params'])
    variables = {'params': optax.apply_updates(state.variables['params'], updates), 'batch_stats': batch_stats}

    averaged = state.averaged
    if averaged is not None:
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        averaged = optax.incremental_update(variables, averaged, 1 - decay)

    metrics = {'loss': loss, **terms, 'gradient_norm': optax.global_norm(gradients)}
    metrics |= {f'learning_rate_{group}': rate(state.step) for group, rate in learning_rates.items()}
    return TrainState(state.step + 1, variables, opt_state, averaged), metrics


def compile_train_step(mesh: Mesh, *, donate: bool = True, **options) -> Callable:
    """`train_step` with its keyword arguments bound, jitted: state replicated, batch split over the devices.

    The state given is used up, unless `donate` is False: then both states take memory at once.
    """

    def step(state, batch):
        return train_step(state, batch, **options)

    return jax.jit(
        step,
        donate_argnums=0 if donate else (),
        in_shardings=(replicated(mesh), split_by_batch(mesh)),
        out_shardings=(replicated(mesh), replicated(mesh)),
    )
