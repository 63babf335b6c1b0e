"""Encoded files to arrays: images as RGB bytes, labels as train ids."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import PIL.Image

from atonet_jax.data.dataset import DataError, SegmentationDataset
from atonet_jax.data.image_files import check_label_pixels, check_label_size, read_image, upright_labels
from atonet_jax.data.labels import IGNORE_LABEL, UNKNOWN_LABEL, ClassTable

_MOST_PALETTES = 20  # files that are read to find out what palettes mean
_UNDECODABLE = (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError)  # what Pillow raises for bad files


def read_example(dataset: SegmentationDataset, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Example `i` as (image [H, W, 3] uint8 RGB, labels [H, W] uint8 train ids).

    Raises:
        DataError: a file is missing, unreadable or of a wrong kind, or the two do not fit each other.
    """
    image = read_image(dataset, i)
    return image, read_labels(dataset, i, image.shape[:2])


def read_labels(dataset: SegmentationDataset, i: int, image_size: tuple[int, int]) -> np.ndarray:
    """Labels of example `i`, whose image is `image_size` = (height, width): [H, W] uint8 train ids.

    A split without labels gives `IGNORE_LABEL` everywhere.

    Raises:
        DataError: the file is missing or unreadable, has another size, or holds values that the class table lacks.
    """
    if dataset.label_paths is None:
        return np.full(image_size, IGNORE_LABEL, np.uint8)
    values = read_label_values(dataset, i)
    check_label_size(dataset, i, values.shape, image_size)
    labels = _look_up(dataset.train_ids, upright_labels(dataset, i, values))
    unknown = labels == UNKNOWN_LABEL
    if unknown.any():
        raise unknown_values(dataset, i, *np.unique(values[unknown], return_counts=True))
    return labels


def read_label_values(dataset: SegmentationDataset, i: int) -> np.ndarray:
    """[H, W] integer values of label file `i`, which index `SegmentationDataset.train_ids`.

    Raises:
        DataError: the file is missing, unreadable or of a wrong kind.
    """
    path = dataset.label_paths[i]
    with dataset.storage.open(path) as file, _decoding(path), PIL.Image.open(file) as image:
        check_label_pixels(dataset, i, image)
        if dataset.label_values == 'color' and image.mode in ('RGB', 'RGBA', 'P'):
            rgb = np.asarray(image.convert('RGB')).astype(np.int32)
            return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
        if dataset.label_values == 'index' and image.mode in ('L', 'P'):
            return np.asarray(image)
        mode = image.mode
    if dataset.label_values == 'color':
        wanted = 'an RGB or palette image of class colours'
    else:
        wanted = 'one 8-bit channel of class ids'
    raise DataError(f'{path}: label is of mode {mode} but should be {wanted}; convert it', 'wrong kind of label file')


def _look_up(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`table[values]` for a uint8 table. Takes half the time if the values are bytes."""
    if values.dtype == np.uint8:
        return np.frombuffer(values.tobytes().translate(table.tobytes()), np.uint8).reshape(values.shape)
    return table[values]


def detect_label_values(paths: Iterable[str], table: ClassTable) -> str:
    """Whether label files hold 'index' or 'color'. The first file that is clear decides.

    A file with a palette holds colours if all colours of the palette are classes' and their order is not that of the
    class table. If colours and indices mean the same, the next file decides. If no file decides, the files hold
    indices.
    """
    colors = {label.color for label in table.raw_labels}
    color_of_value = {label.raw_id: label.color for label in table.raw_labels}
    palettes = 0
    for path in paths:
        try:
            with open(path, 'rb') as file, PIL.Image.open(file) as image:
                if image.mode != 'P':
                    return 'color' if image.mode in ('RGB', 'RGBA') else 'index'
                indices, places = np.unique(np.asarray(image), return_index=True)
                shown = np.asarray(image.convert('RGB')).reshape(-1, 3)[places]
        except _UNDECODABLE:
            continue
        shown = [tuple(color) for color in shown.tolist()]
        if not colors.issuperset(shown):
            return 'index'
        if any(color_of_value.get(index) != color for index, color in zip(indices.tolist(), shown)):
            return 'color'
        palettes += 1
        if palettes == _MOST_PALETTES:
            break
    return 'index'


def unknown_values(dataset: SegmentationDataset, i: int, values: np.ndarray, counts: np.ndarray) -> DataError:
    """The error for `values` of label `i` without a train id: it names the most frequent one and the known ones."""
    worst = counts.argmax()
    if dataset.label_values == 'color':
        red, green, blue = int(values[worst]).to_bytes(3, 'big')
        value = f'colour ({red}, {green}, {blue})'
        known = f'the {len(dataset.class_table.raw_labels)} colours of the {dataset.class_table.name} class table'
    else:
        value = f'label value {values[worst]}'
        known = _ranges_text(np.flatnonzero(dataset.train_ids != UNKNOWN_LABEL))
    others = f' and {len(values) - 1} other unknown values' if len(values) > 1 else ''
    return DataError(
        f'{dataset.label_paths[i]}: {value} ({counts[worst]} pixels){others}, but known are {known}',
        'unknown label value',
    )


@contextmanager
def _decoding(path: str) -> Iterator[None]:
    try:
        yield
    except DataError:  # a ValueError, as some of _UNDECODABLE
        raise
    except _UNDECODABLE as error:
        raise _cannot_decode(path, error) from error


def _cannot_decode(path: str, error: Exception) -> DataError:
    if isinstance(error, PIL.UnidentifiedImageError):  # whose text is the name of an object
        reason = 'not an image'
    else:
        reason = str(error).splitlines()[0]
    return DataError(f'{path}: cannot be decoded ({reason}); replace the file', 'file cannot be decoded')


def _ranges_text(values: np.ndarray) -> str:
    """Sorted integers as text, such as '0..18, 255'."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ', '.join(f'{run[0]}..{run[-1]}' if len(run) > 1 else f'{run[0]}' for run in runs)
