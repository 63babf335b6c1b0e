"""The files that `--mode=predict` writes for a label map."""

import functools
import os
from collections.abc import Sequence

import numpy as np
import PIL.Image

from atonet_jax.data import visualize
from atonet_jax.data.labels import ClassTable
from atonet_jax.errors import InputError
from atonet_jax.process.files import replacing


class Drawing:
    """The pictures of a prediction to look at. What several of them share is computed once."""

    def __init__(self, image: np.ndarray, labels: np.ndarray, table: ClassTable, legend: Sequence[int]):
        """
        Args:
            image: [H, W, 3] uint8.
            labels: [H, W] uint8 train ids, as the network gives them.
            table: the classes.
            legend: train ids in the legend.
        """
        self._image, self._labels, self._table, self._legend = image, labels, table, legend

    def picture(self, kind: str) -> np.ndarray:
        """[H', W', 3] uint8. `kind` is 'color', the class colours; 'overlay', over the image, with a legend; or
        'side_by_side', image and overlay."""
        if kind == 'color':
            return self._table.palette.take(self._labels, axis=0)
        overlay = self._overlay
        if kind == 'side_by_side':
            overlay = visualize.grid([self._image, overlay], columns=2)
        return np.asarray(visualize.with_legend(overlay, self._table, self._legend))

    @functools.cached_property
    def _overlay(self) -> np.ndarray:
        return visualize.overlay(self._image, self._table.train_ids(self._labels), self._table.palette)


def write_label_png(labels: np.ndarray, path: str, table: ClassTable, ids: str) -> None:
    """Writes labels, [H, W] uint8 train ids, as a grey PNG of train ids or raw ids (`ids`: 'train', 'raw')."""
    write_png(table.train_to_raw[labels] if ids == 'raw' else table.train_ids(labels), path)


def write_png(pixels: np.ndarray, path: str) -> None:
    """Writes [H, W] or [H, W, 3] uint8, completely or not at all. Makes missing folders.

    Raises:
        InputError: it cannot be written.
    """
    try:
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        with replacing(path, durable=False) as temporary:
            PIL.Image.fromarray(pixels).save(temporary, 'PNG', compress_level=4)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: str, error: OSError) -> InputError:
    return InputError(f'{path}: cannot be written ({error.strerror or error}); choose another --config.predict.output')
