"""The training loss: main cross-entropy at full resolution plus auxiliary terms, each on labels of its own size.

Every average is over the pixels whose label is not `IGNORE_LABEL`; ignored pixels are weighted 0, so shapes are static.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.models.layers import phase_factors, phase_weights, resize_bilinear, with_neighbours


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


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """[..., C] float, [...] uint8 -> [...] float32 softmax cross-entropy; 0 where the label is ignored."""
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    is_true_class = jnp.arange(logits.shape[-1], dtype=labels.dtype) == labels[..., None]
    return jnp.where(
        labels == IGNORE_LABEL, 0.0, log_normalizer - jnp.sum(jnp.where(is_true_class, logits, 0.0), axis=-1)
    )


def _pixel_losses(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of every labelled pixel, the logits enlarged to the labels' size, and the labels in its order.

    Where the enlargement goes by phases they never become one full-resolution array: each is a strided slice of the
    labels' pixels, and the losses come out in that order. One phase is taken after the other, and again for the
    gradient, so that only one lives at a time.
    """
    factors = phase_factors(logits.shape[1:3], labels.shape[1:])
    if factors in (None, (1, 1)):
        return cross_entropy(resize_bilinear(logits, labels.shape[1:]), labels), labels

    row_factor, column_factor = factors
    batch, height, width = logits.shape[:3]
    labels = labels.reshape(batch, height, row_factor, width, column_factor).transpose(2, 4, 0, 1, 3)
    above_and_below = with_neighbours(logits, axis=1)

    def blend(weights, pixels):
        return sum(weight * part for weight, part in zip(weights, pixels, strict=True))

    @jax.checkpoint
    def of_row_phase(weights_and_labels):
        weights, labels = weights_and_labels
        left_and_right = with_neighbours(blend(weights, above_and_below), axis=2)

        @jax.checkpoint
        def of_phase(weights_and_labels):
            weights, labels = weights_and_labels
            return cross_entropy(blend(weights, left_and_right), labels)

        return jax.lax.map(of_phase, (phase_weights(column_factor), labels))

    return jax.lax.map(of_row_phase, (phase_weights(row_factor), labels)), labels


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
