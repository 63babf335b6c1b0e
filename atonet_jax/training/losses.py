"""The training loss: main cross-entropy at full resolution plus auxiliary terms, each on labels of its own size.

Every average is over the pixels whose label is not `IGNORE_LABEL`; ignored pixels are weighted 0, so shapes are static.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.ops import phase_factors, phase_weights, resize_bilinear, with_neighbours

_LOG_NORMALIZER = 'log_normalizer'


class HardExampleMining(NamedTuple):
    """Online hard example mining: which pixels a loss term averages over.

    Attributes:
        threshold: a pixel counts where the probability of its true class is below this.
        min_kept: at least this share, 0 .. 1, of the term's pixels counts: the hardest ones.
    """

    threshold: float = 0.7
    min_kept: float = 1 / 16


def segmentation_loss(
    outputs: Mapping,
    labels: jax.Array,
    *,
    aux_weights: Mapping[str, float],
    aux_target: str = 'downsampled_labels',
    mining: HardExampleMining | None = None,
    class_weights: Sequence[float] | None = None,
    total_weights: Mapping[str, jax.Array] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The paper's sum_loss: main_loss + sum of w_i * loss_i.

    Args:
        outputs: a network's training outputs: 'logits' [B, h, w, C] and 'aux': {name: [B, h_i, w_i, C]}, float32.
        labels: [B, H, W] uint8 train ids, `IGNORE_LABEL` where there is none.
        aux_weights: w_i of each auxiliary output, by name.
        aux_target: 'downsampled_labels', the paper's choice, takes the labels to each auxiliary output's size by
            nearest neighbour; 'upsampled_features', Table 4's dagger row, takes the outputs to the labels' size.
        mining: averages over hard pixels alone, in every term.
        class_weights: [C], weighs each pixel by its class in every term's average; 1 each if None.
        total_weights: what the sum of each term's weighted losses is divided by, where this is a part of a batch: of
            `label_weights` over the whole batch. None: the weights of the pixels here. Not with `mining`.

    Returns:
        The loss, and its terms unweighted: {'main_loss': ..., 'aux3_loss': ...}; float32 scalars, 0 where no pixel is
        labelled.
    """

    terms = {}
    for name, logits, target in _terms(outputs, labels, aux_weights, aux_target):
        total = None if total_weights is None else total_weights[name]
        terms[name] = _average(*_pixel_losses(logits, target), mining, class_weights, total)
    loss = terms['main_loss']
    for name, weight in aux_weights.items():
        loss += weight * terms[f'{name}_loss']
    return loss, terms


def label_weights(
    outputs: Mapping,
    labels: jax.Array,
    *,
    aux_weights: Mapping[str, float],
    aux_target: str = 'downsampled_labels',
    class_weights: Sequence[float] | None = None,
) -> dict[str, jax.Array]:
    """The sum of the pixels' weights in each term of `segmentation_loss`, by the term's name: float32 scalars.

    Of `outputs` only the shapes matter, without the first axis.
    """
    return {
        name: jnp.sum(_pixel_weights(target, class_weights))
        for name, _, target in _terms(outputs, labels, aux_weights, aux_target)
    }


def downsample_labels(labels: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Nearest neighbour, [B, H, W] -> [B, *size]: pixel i takes pixel floor((i + 0.5) * H / size[0])."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(labels.shape[1:], size, strict=True)
    )
    return labels[:, rows][:, :, columns]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def cross_entropy(logits: jax.Array, labels: jax.Array, axis: int = -1) -> jax.Array:
    """Softmax cross-entropy, 0 where the label is ignored.

    Args:
        logits: [..., C] float32, the classes on another axis if `axis` says so.
        labels: [...] uint8.
        axis: the classes'.

    Returns:
        float32, of the labels' shape. The gradient needs, beside the arguments, only what is named `_LOG_NORMALIZER`.
    """
    return _cross_entropy_forward(logits, labels, axis)[0]


def _cross_entropy_forward(logits, labels, axis):
    log_normalizer = checkpoint_name(jax.nn.logsumexp(logits, axis=axis), _LOG_NORMALIZER)
    true_logits = jnp.sum(jnp.where(_is_true_class(logits, labels, axis), logits, 0.0), axis=axis)
    losses = jnp.where(labels == IGNORE_LABEL, 0.0, log_normalizer - true_logits)
    return losses, (logits, labels, log_normalizer)


def _cross_entropy_backward(axis, saved, cotangent):
    logits, labels, log_normalizer = saved
    cotangent = jnp.expand_dims(jnp.where(labels == IGNORE_LABEL, 0.0, cotangent), axis)
    probabilities = jnp.exp(logits - jnp.expand_dims(log_normalizer, axis))
    is_true_class = _is_true_class(logits, labels, axis)
    return cotangent * jnp.where(is_true_class, probabilities - 1, probabilities), None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def _is_true_class(logits, labels, axis):
    classes = jax.lax.broadcasted_iota(labels.dtype, logits.shape, axis % logits.ndim)
    return classes == jnp.expand_dims(labels, axis)


def _pixel_losses(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of every labelled pixel, the logits enlarged to the labels' size, and the labels in its order.

    Where the enlargement goes by phases they never become one full-resolution array: each is a strided slice of the
    labels' pixels, and the losses come out in that order.
    """
    factors = phase_factors(logits.shape[1:3], labels.shape[1:])
    if factors in (None, (1, 1)):
        return cross_entropy(resize_bilinear(logits, labels.shape[1:]), labels), labels
    batch, height, width = logits.shape[:3]
    labels = labels.reshape(batch, height, factors[0], width, factors[1]).transpose(2, 4, 0, 1, 3)

    # Neighbours that are written down take a GPU 1.7 times the time, and those formed in each phase CPUs 3 times.
    on_cpu, elsewhere = (functools.partial(_losses_by_phase, neighbours_once=once) for once in (True, False))
    return jax.lax.platform_dependent(logits, labels, cpu=on_cpu, default=elsewhere), labels


def _losses_by_phase(logits: jax.Array, labels: jax.Array, neighbours_once: bool) -> jax.Array:
    """[B, h, w, C], labels [row phases, column phases, B, h, w] -> cross-entropy of the labels' shape.

    One phase is taken after the other, and again for the gradient, so that only one lives at a time; of each the
    gradient keeps a number a pixel. Classes come before columns, so that sums over them add whole rows.
    """
    row_factor, column_factor = labels.shape[:2]
    logits = logits.swapaxes(2, 3)
    once_more = functools.partial(
        jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(_LOG_NORMALIZER)
    )

    def blender(x, axis):
        """A function of a phase's weights that blends the pixels of `x` along `axis`."""
        pixels = with_neighbours(x, axis) if neighbours_once else None

        def blend(weights):
            parts = zip(weights, pixels or with_neighbours(x, axis), strict=True)
            return sum(weight * part for weight, part in parts)

        return blend

    blend_rows = blender(logits, axis=1)

    @once_more
    def of_row_phase(weights_and_labels):
        weights, labels = weights_and_labels
        blend_columns = blender(blend_rows(weights), axis=3)

        @once_more
        def of_phase(weights_and_labels):
            weights, labels = weights_and_labels
            return cross_entropy(blend_columns(weights), labels, 2)

        return jax.lax.map(of_phase, (phase_weights(column_factor), labels))

    return jax.lax.map(of_row_phase, (phase_weights(row_factor), labels))


def _terms(outputs, labels, aux_weights, aux_target):
    """(name, logits, labels as they are compared with) of each term."""
    yield 'main_loss', outputs['logits'], labels
    for name in aux_weights:
        logits = outputs['aux'][name]
        target = downsample_labels(labels, logits.shape[1:3]) if aux_target == 'downsampled_labels' else labels
        yield f'{name}_loss', logits, target


def _average(
    losses: jax.Array,
    labels: jax.Array,
    mining: HardExampleMining | None,
    class_weights: Sequence[float] | None,
    total: jax.Array | None,
) -> jax.Array:
    """Weighted sum of `losses` over the labelled pixels, the hard ones alone with `mining`, by `total` or their mean.

    0 if there are no such pixels.
    """
    weights = _pixel_weights(labels, class_weights)
    if mining is not None:
        weights *= losses >= _mining_bound(losses, mining)
    if total is None:
        total = jnp.sum(weights)
    return jnp.sum(weights * losses) / jnp.where(total > 0, total, 1.0)


def _pixel_weights(labels: jax.Array, class_weights: Sequence[float] | None) -> jax.Array:
    """float32 of the labels' shape: 0 where the label is ignored."""
    weights = (labels != IGNORE_LABEL).astype(jnp.float32)
    if class_weights is not None:
        weights *= jnp.asarray(class_weights, jnp.float32).at[labels].get(mode='clip')
    return weights


def _mining_bound(losses: jax.Array, mining: HardExampleMining) -> jax.Array:
    """The loss from which on a pixel counts: the threshold's, or less where too few pixels would reach it."""
    losses = jax.lax.stop_gradient(losses).ravel()
    min_kept = min(max(round(mining.min_kept * losses.size), 1), losses.size)
    hardest = jnp.sort(losses)[losses.size - min_kept]
    return jnp.minimum(-jnp.log(mining.threshold), hardest)
