"""The sum of a network's loss terms."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from atonet_jax import ops
from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.errors import InputError
from atonet_jax.models.terms import (
    BootstrappedCrossEntropy,
    BoundaryWeightedCrossEntropy,
    CrossEntropy,
    Edges,
    ExcessMean,
    HardExampleCount,
    HardExampleShare,
    LabelsOnEdges,
    Term,
)
from atonet_jax.training.losses import criteria
from atonet_jax.training.losses.cross_entropy import PixelOrder, pixel_losses
from atonet_jax.training.losses.edges import boundary_weights, edge_map


def total_loss(
    outputs: Mapping[str, jax.Array],
    labels: jax.Array,
    terms: Sequence[Term],
    upsampling: str = 'half_pixel',
    *,
    class_weights: Sequence[float] | None = None,
    total_weights: Mapping[str, jax.Array] | None = None,
    parts: int = 1,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of the terms.

    Args:
        outputs: a network's training outputs, {name: [B, h, w, C] float32}.
        labels: [B, H, W] uint8 train ids, `IGNORE_LABEL` where there is none.
        terms: of the network.
        upsampling: of the network: how its outputs' pixels lie on the label map, 'half_pixel' or 'align_corners'. It is
            the enlargement of outputs, which is bilinear; and where labels are reduced instead, pixel i of n takes that
            one of N which lies where the enlargement would put it: floor((i + 0.5) * N / n), or
            round(i * (N - 1) / (n - 1)).
        class_weights: [C], weighs each labelled pixel by its class in every term that meets labels; 1 each if None.
        total_weights: where this is one of `parts` equal parts of a batch: `label_weights` of the whole batch.
        parts: of the batch. The sums over all parts are the loss and the terms of the whole batch, for terms that are
            in `total_weights`; for others, which choose or weigh pixels by the part's, they are means over parts.

    Returns:
        The loss, and its terms unweighted by name: {'main_loss': ..., 'aux3_loss': ...}; float32 scalars. Terms in
        which no pixel counts are 0, and so are their gradients.

    Raises:
        InputError: as `check_terms`.
    """
    check_terms(outputs, terms)
    losses = {}  # of pixels, shared by the terms of one output
    loss, values = 0.0, {}
    for term in terms:
        key = dataclasses.replace(term, weight=0.0, target='labels', criterion=CrossEntropy(), name='')
        if isinstance(term.target, Edges):
            value = _edge_loss(outputs[term.output], labels, term, upsampling)
        elif isinstance(term.criterion, ExcessMean):
            value = criteria.excess_of_mean(outputs[term.output], term.criterion.limit)
        else:
            target = _at_size(labels, outputs[term.output], term, upsampling)
            if key not in losses:
                losses[key] = pixel_losses(outputs[term.output], target, upsampling)
            if isinstance(term.target, LabelsOnEdges):
                target = _on_edges(target, outputs[term.target.output], term.target.threshold, upsampling)
            total = None if total_weights is None else total_weights.get(term.loss_name)
            value = _label_loss(*losses[key], target, term.criterion, class_weights, total)
        if term.loss_name not in (total_weights or ()):
            value /= parts
        values[term.loss_name] = value
        loss += term.weight * value
    return loss, values


def label_weights(
    outputs: Mapping[str, jax.Array],
    labels: jax.Array,
    terms: Sequence[Term],
    upsampling: str = 'half_pixel',
    *,
    class_weights: Sequence[float] | None = None,
) -> dict[str, jax.Array]:
    """What each term's sum over pixels is divided by, by the term's name: float32 scalars.

    Only of terms for which the labels alone decide it: mining, bootstrapping and edges are left out.
    Of `outputs` only the shapes matter, without the first axis.
    """
    totals = {}
    for term in terms:
        target = _at_size(labels, outputs[term.output], term, upsampling)
        if isinstance(term.target, str) and isinstance(term.criterion, CrossEntropy | BoundaryWeightedCrossEntropy):
            totals[term.loss_name] = _total(target, term.criterion, class_weights)
    return totals


def configured_terms(terms: Sequence[Term], config: Any) -> tuple[Term, ...]:
    """A network's terms as the user wants them.

    Args:
        terms: of the network. The term named 'main_loss' is the main one, the others are auxiliary.
        config: `config.loss`, or any object with its attributes.
            aux_weights: one an auxiliary term; () for the network's own.
            aux_target: where auxiliary outputs meet labels: 'downsampled_labels' or 'upsampled_features'; '' for the
                network's own choice.
            mining, mining_threshold, mining_min_kept: with `mining` every `CrossEntropy` becomes a `HardExampleShare`.

    Raises:
        InputError: the number of weights is not that of the auxiliary terms, none of these is compared with labels, or
            no term can be mined.
    """
    auxiliary = [term.loss_name for term in terms if term.loss_name != 'main_loss']
    weights = tuple(config.aux_weights)
    if weights and len(weights) != len(auxiliary):
        names = ', '.join(name.removesuffix('_loss') for name in auxiliary) or 'none here'
        raise InputError(
            f'config.loss.aux_weights={weights!r}: must be () or {len(auxiliary)} numbers, one an auxiliary term '
            f'of the network ({names})'
        )
    on_labels = [term for term in terms if term.loss_name in auxiliary and term.target == 'labels']
    if config.aux_target and not on_labels:
        raise InputError(
            f'config.loss.aux_target={config.aux_target!r}: the network has no auxiliary term that is compared with '
            'labels; leave it out'
        )
    if config.mining and not any(isinstance(term.criterion, CrossEntropy) for term in terms):
        raise InputError(
            'config.loss.mining=True: the network has no plain cross-entropy that could become one of hard examples; '
            'leave it out'
        )
    weight_of = dict(zip(auxiliary, weights, strict=False))
    at = {'': None, 'downsampled_labels': 'output', 'upsampled_features': 'labels'}[config.aux_target]

    def configured(term):
        changes = {}
        if term.loss_name in weight_of:
            changes['weight'] = weight_of[term.loss_name]
        if at and term in on_labels:
            changes['at'] = at
        if config.mining and isinstance(term.criterion, CrossEntropy):
            changes['criterion'] = HardExampleShare(config.mining_threshold, config.mining_min_kept)
        return dataclasses.replace(term, **changes)

    return tuple(configured(term) for term in terms)


def check_terms(outputs: Mapping[str, jax.Array], terms: Sequence[Term]) -> None:
    """Checks that outputs and terms belong together.

    Raises:
        InputError: an output that no term takes, a term without its output, two terms of one name, or an edge output
            that has not one channel.
    """
    for name in _taken(terms):
        if name not in outputs:
            raise InputError(f'loss terms: the network has no training output {name!r}; it has {", ".join(outputs)}')
    for name in outputs:
        if name not in set(_taken(terms)):
            raise InputError(f'loss terms: none takes the training output {name!r}; declare a Term({name!r}, ...)')
    names = [term.loss_name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f'loss terms: two are named {name!r}; give one of them another name: Term(..., name=...)')
    edge_outputs = {term.output for term in terms if isinstance(term.target, Edges)}
    edge_outputs |= {term.target.output for term in terms if isinstance(term.target, LabelsOnEdges)}
    for name in sorted(edge_outputs):
        if outputs[name].shape[-1] != 1:
            raise InputError(f'loss terms: the edge output {name!r} is {outputs[name].shape}; must have one channel')


def downsample_labels(labels: jax.Array, size: tuple[int, int], upsampling: str = 'half_pixel') -> jax.Array:
    """Nearest neighbour, [B, H, W] -> [B, *size]: the labels of those places to which `upsampling` moves the pixels."""
    rows, columns = (_nearest(old, new, upsampling) for old, new in zip(labels.shape[1:], size, strict=True))
    return labels[:, rows][:, :, columns]


def _nearest(old: int, new: int, upsampling: str) -> np.ndarray:
    pixels = np.arange(new)
    if upsampling == 'align_corners':
        return np.floor(pixels * ((old - 1) / max(new - 1, 1)) + 0.5).astype(int)
    return (2 * pixels + 1) * old // (2 * new)


def _at_size(target: jax.Array, output: jax.Array, term: Term, upsampling: str) -> jax.Array:
    """[B, H, W] at the size of the comparison."""
    return downsample_labels(target, output.shape[1:3], upsampling) if term.at == 'output' else target


def _edge_loss(logits: jax.Array, labels: jax.Array, term: Term, upsampling: str) -> jax.Array:
    edges = _at_size(edge_map(labels, term.target.border, term.target.width), logits, term, upsampling)
    return criteria.balanced_binary_cross_entropy(ops.resize(logits, edges.shape[1:], upsampling)[..., 0], edges)


def _on_edges(labels: jax.Array, edge_logits: jax.Array, threshold: float, upsampling: str) -> jax.Array:
    """The labels where the network sees an edge, ignored elsewhere."""
    edge_logits = ops.resize(jax.lax.stop_gradient(edge_logits), labels.shape[1:], upsampling)[..., 0]
    return jnp.where(jax.nn.sigmoid(edge_logits) > threshold, labels, IGNORE_LABEL)


def _label_loss(
    losses: jax.Array,
    order: PixelOrder,
    label_map: jax.Array,
    criterion,
    class_weights: Sequence[float] | None,
    total: jax.Array | None,
) -> jax.Array:
    """The criterion of per-pixel losses in `order`, of the pixels that [B, H, W] `label_map` has labels for."""
    labels = order.take(label_map)
    losses = jnp.where(labels == IGNORE_LABEL, 0.0, losses)
    weights = criteria.pixel_weights(labels, class_weights)
    match criterion:
        case CrossEntropy():
            if total is None:
                total = _total(label_map, criterion, class_weights)
            return criteria.weighted_mean(losses, weights, total)
        case HardExampleShare(threshold, min_kept):
            return criteria.hard_example_share(losses, weights, threshold, min_kept)
        case HardExampleCount(threshold, min_kept):
            return criteria.hard_example_count(losses, labels, weights, threshold, min_kept)
        case BootstrappedCrossEntropy(count):
            return criteria.mean_of_largest(order.by_image(weights * losses), count)
        case BoundaryWeightedCrossEntropy(distances, by_distance, focus):
            if total is None:
                total = _total(label_map, criterion, class_weights)
            weights *= order.take(boundary_weights(label_map, distances, by_distance))
            return criteria.weighted_mean(criteria.focused(losses, focus), weights, total)
    raise TypeError(f'{criterion!r} is no criterion for labels')


def _total(labels: jax.Array, criterion, class_weights: Sequence[float] | None) -> jax.Array:
    """What a criterion that depends on labels alone divides its sum by."""
    match criterion:
        case CrossEntropy('all'):
            return jnp.float32(labels.size)
        case CrossEntropy():
            return jnp.sum(criteria.pixel_weights(labels, class_weights))
        case BoundaryWeightedCrossEntropy():
            return jnp.sum(criteria.pixel_weights(labels, None))


def _taken(terms: Sequence[Term]) -> Iterator[str]:
    """The outputs that the terms need."""
    for term in terms:
        yield term.output
        if isinstance(term.target, LabelsOnEdges):
            yield term.target.output
