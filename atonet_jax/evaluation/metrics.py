"""Scores from a confusion matrix of pixels: one matrix over the whole split, ignored pixels left out."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atonet_jax.data.labels import IGNORE_LABEL


def confusion_matrix(
    labels: jax.Array, predictions: jax.Array, num_classes: int, num_outputs: int | None = None
) -> jax.Array:
    """Counts pixels by [true class, predicted class]: [num_classes, num_outputs] int32.

    Args:
        labels: uint8 train ids of any shape; `IGNORE_LABEL` is left out. At most 2**31 - 1 pixels: add the matrices of
            several batches in 64 bits.
        predictions: uint8 of the same shape, outputs of the network.
        num_classes: of the labels.
        num_outputs: of the network: one more where it tells pixels of no class, which are misses; None: as many.
    """
    num_outputs = num_outputs or num_classes
    num_cells = num_classes * num_outputs
    cells = labels.astype(jnp.int32) * num_outputs + predictions
    cells = jnp.where(labels == IGNORE_LABEL, num_cells, cells)
    return jnp.bincount(cells.ravel(), length=num_cells + 1)[:-1].reshape(num_classes, num_outputs)


def confusion_matrices(
    labels: jax.Array, predictions: jax.Array, num_classes: int, num_outputs: int | None = None
) -> jax.Array:
    """`confusion_matrix` of each image: [B, ...] uint8 twice -> [B, num_classes, num_outputs] int32."""
    return jax.vmap(lambda *pair: confusion_matrix(*pair, num_classes, num_outputs))(labels, predictions)


def image_scores(confusions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """mIoU and pixel accuracy of each image, as `Scores` defines them; NaN if no pixel has a label.

    Args:
        confusions: [B, C, C or C + 1] integer counts by [image, true class, predicted class].

    Returns:
        [B] float64 twice.
    """
    hits = confusions.diagonal(axis1=1, axis2=2).astype(np.float64)
    union = confusions.sum(1)[:, : hits.shape[1]] + confusions.sum(2) - hits
    with np.errstate(invalid='ignore'):
        miou = np.divide(hits, union, out=np.zeros_like(hits), where=union > 0).sum(1) / np.count_nonzero(union, axis=1)
        return miou, hits.sum(1) / confusions.sum((1, 2))


class Scores(NamedTuple):
    """Scores from a confusion matrix, all in 0 .. 1; NaN for a class that does not occur.

    Attributes:
        miou: mean of `class_iou` over the classes that occur in labels or predictions.
        pixel_accuracy: share of pixels that are predicted right.
        mean_accuracy: mean of `class_accuracy` over the classes that occur in the labels.
        frequency_weighted_iou: mean of `class_iou` weighted by the classes' share of the labels.
        class_iou: [C], TP / (TP + FP + FN).
        class_accuracy: [C], TP / (TP + FN).
        class_frequency: [C], share of the labelled pixels.
    """

    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float
    class_iou: np.ndarray
    class_accuracy: np.ndarray
    class_frequency: np.ndarray

    @classmethod
    def from_confusion(cls, confusion: np.ndarray) -> 'Scores':
        """confusion: [C, C or C + 1] integer counts by [true class, predicted class]; the last column may be void."""
        confusion = confusion.astype(np.float64)
        hits, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)[: len(confusion)]
        total = confusion.sum()
        with np.errstate(invalid='ignore', divide='ignore'):
            iou = hits / (true + predicted - hits)
            accuracy = hits / true
            frequency = true / total
        occurs = true > 0
        return cls(
            miou=_mean(iou),
            pixel_accuracy=float(hits.sum() / total) if total else float('nan'),
            mean_accuracy=_mean(accuracy),
            frequency_weighted_iou=float(np.sum(frequency[occurs] * iou[occurs])) if total else float('nan'),
            class_iou=iou,
            class_accuracy=accuracy,
            class_frequency=frequency,
        )

    def to_dict(self, class_names: Sequence[str]) -> dict:
        """A form for JSON; None for a class that does not occur."""
        scalars = {name: _json_number(value) for name, value in self._asdict().items() if np.ndim(value) == 0}
        per_class = {
            name: {
                'iou': _json_number(self.class_iou[i]),
                'accuracy': _json_number(self.class_accuracy[i]),
                'frequency': _json_number(self.class_frequency[i]),
            }
            for i, name in enumerate(class_names)
        }
        return scalars | {'classes': per_class}

    def table(self, class_names: Sequence[str]) -> str:
        """A table of percentages for the screen, one line for each class; '-' for a class that does not occur."""
        width = max(len('frequency-weighted IoU'), *map(len, class_names))
        lines = [f'{"class":{width}}  {"IoU %":>7}  {"accuracy %":>10}  {"of pixels %":>11}']
        for name, iou, accuracy, frequency in zip(
            class_names, self.class_iou, self.class_accuracy, self.class_frequency, strict=True
        ):
            lines.append(f'{name:{width}}  {_percent(iou):>7}  {_percent(accuracy):>10}  {_percent(frequency):>11}')
        lines.append('-' * len(lines[0]))
        lines.append(f'{"mean":{width}}  {_percent(self.miou):>7}  {_percent(self.mean_accuracy):>10}')
        lines.append(f'{"frequency-weighted IoU":{width}}  {_percent(self.frequency_weighted_iou):>7}')
        lines.append(f'{"pixel accuracy":{width}}  {"":7}  {_percent(self.pixel_accuracy):>10}')
        return '\n'.join(lines)


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float('nan')


def _json_number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _percent(share: float) -> str:
    return '-' if np.isnan(share) else f'{100 * share:.2f}'
