"""From per-pixel losses to one number: the criteria of `models.terms`.

Losses and labels may come in any shape; ignored pixels have loss 0. Every result is a float32 scalar, 0 with gradient 0
where no pixel counts.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from atonet_jax.data.labels import IGNORE_LABEL


def pixel_weights(labels: jax.Array, class_weights: Sequence[float] | None) -> jax.Array:
    """float32 of the labels' shape: the weight of each pixel's class, 1 without `class_weights`; 0 where ignored."""
    weights = (labels != IGNORE_LABEL).astype(jnp.float32)
    if class_weights is not None:
        weights *= jnp.asarray(class_weights, jnp.float32).at[labels].get(mode='clip')
    return weights


def weighted_mean(losses: jax.Array, weights: jax.Array, total: jax.Array | float | None = None) -> jax.Array:
    """sum(weights * losses) / total; without `total`, which may be 0, the sum of the weights."""
    if total is None:
        total = jnp.sum(weights)
    return jnp.sum(weights * losses) / jnp.where(total > 0, total, 1.0)


def hard_example_share(losses: jax.Array, weights: jax.Array, threshold: float, min_kept: float) -> jax.Array:
    """Weighted mean of the losses that reach min(-log threshold, the k-th largest): `HardExampleShare`."""
    k = min(max(round(min_kept * losses.size), 1), losses.size)
    bound = jnp.minimum(-math.log(threshold), kth_largest(losses.ravel(), k))
    return weighted_mean(losses, weights * (losses >= bound))


def hard_example_count(
    losses: jax.Array, labels: jax.Array, weights: jax.Array, threshold: float, min_kept: int
) -> jax.Array:
    """sum of weight * loss over the losses above min(-log threshold, a rank), by their number: `HardExampleCount`."""
    is_labelled = labels != IGNORE_LABEL
    rank = jnp.minimum(min_kept, jnp.sum(is_labelled) - 1)
    ranked = jnp.where(is_labelled, losses, -1.0).ravel()
    bound = jnp.minimum(-math.log(threshold), kth_largest(ranked, jnp.maximum(rank + 1, 1)))
    counts = is_labelled & (losses > bound)
    return weighted_mean(losses, weights * counts, jnp.sum(counts))


def mean_of_largest(losses: jax.Array, count: int) -> jax.Array:
    """Mean over images of the mean of the `count` largest losses, [B, N] float32: `BootstrappedCrossEntropy`.

    Losses that equal the smallest one of these share its place, and its gradient.
    """
    count = min(count, losses.shape[1])
    smallest = kth_largest(losses, count)[:, None]
    larger, equal = losses > smallest, losses == smallest
    places = count - jnp.sum(larger, 1, keepdims=True)
    shares = jnp.where(equal, places / jnp.maximum(jnp.sum(equal, 1, keepdims=True), 1), larger)
    return jnp.mean(jnp.sum(jax.lax.stop_gradient(shares) * losses, 1) / count)


def focused(losses: jax.Array, focus: float) -> jax.Array:
    """exp(focus * (1 - p)) * -log p for losses -log p; no gradient flows through the exp."""
    return jnp.exp(focus * (1 - jnp.exp(-jax.lax.stop_gradient(losses)))) * losses


def balanced_binary_cross_entropy(logits: jax.Array, is_positive: jax.Array) -> jax.Array:
    """Sigmoid cross-entropy, each kind of pixel weighted by the share of the other: `BalancedBinaryCrossEntropy`.

    Args:
        logits: float32 of any shape.
        is_positive: bool of the same shape.
    """
    share = jnp.mean(is_positive.astype(jnp.float32))
    losses = jnp.where(is_positive, jax.nn.softplus(-logits), jax.nn.softplus(logits))
    return jnp.mean(jnp.where(is_positive, 1 - share, share) * losses)


def excess_of_mean(values: jax.Array, limit: float) -> jax.Array:
    """max(0, mean - limit): `ExcessMean`."""
    return jnp.maximum(jnp.mean(values) - limit, 0.0)


def kth_largest(values: jax.Array, k: int | jax.Array) -> jax.Array:
    """The k-th largest value along the last axis, [..., N] float32 -> [...]; k from 1. No gradient flows through it.

    Bit by bit from the highest, by counting: no sort, so that no device needs the values of another one.
    """
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(values), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    ordered = jnp.where(bits & sign, ~bits, bits | sign)  # unsigned numbers in the order of the floats

    def take_bit(i, found):
        candidate = found | (sign >> i.astype(jnp.uint32))
        return jnp.where(jnp.sum(ordered >= candidate[..., None], -1) >= k, candidate, found)

    found = jax.lax.fori_loop(0, 32, take_bit, jnp.zeros(values.shape[:-1], jnp.uint32))
    bits = jnp.where(found & sign, found ^ sign, ~found)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
