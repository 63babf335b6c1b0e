"""Encoded files to arrays: images as RGB bytes, labels as train ids."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import PIL.Image

from atonet_jax.data.dataset import DataError, SegmentationDataset, decoding
from atonet_jax.data.label_files import read_labels

_IMAGE_FORMATS = ('PNG', 'JPEG')
_IMAGE_MODES = ('RGB', 'RGBA', 'L', 'LA', 'P')  # 8 bits a channel, and RGB by dropping alpha or repeating grey
_PNG_END = b'IEND\xaeB`\x82'
_JPEG_END = b'\xff\xd9'


def read_example(dataset: SegmentationDataset, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Example `i` as (image [H, W, 3] uint8 RGB, labels [H, W] uint8 train ids).

    Raises:
        DataError: a file is missing, unreadable or of a wrong kind, or the two do not fit each other.
    """
    image = read_image(dataset, i)
    return image, read_labels(dataset, i, image.shape[:2])


def read_image(dataset: SegmentationDataset, i: int) -> np.ndarray:
    """Image of example `i`: [H, W, 3] uint8 RGB. Alpha is dropped, grey repeated, a palette looked up.

    Raises:
        DataError: the file is missing, unreadable, or not an 8-bit PNG or JPEG.
    """
    path = dataset.image_paths[i]
    with _open_image(dataset, path) as image, decoding(path):
        return np.asarray(image if image.mode == 'RGB' else image.convert('RGB'))


def read_image_size(dataset: SegmentationDataset, i: int) -> tuple[int, int]:
    """Height and width of image `i`. Reads its header if they are not known yet.

    Raises:
        DataError: the file is missing, or not an 8-bit PNG or JPEG.
    """
    if dataset.sizes is not None and dataset.sizes[i] is not None:
        return dataset.sizes[i]
    with _open_image(dataset, dataset.image_paths[i]) as image:
        return image.height, image.width


def check_image_end(dataset: SegmentationDataset, i: int) -> None:
    """Decodes image `i` if its end is not that of a PNG or JPEG. This finds most truncated files at little cost.

    Raises:
        DataError: it cannot be decoded.
    """
    with dataset.storage.open(dataset.image_paths[i]) as file:
        end = _PNG_END if file.read(4) == b'\x89PNG' else _JPEG_END
        file.seek(0, 2)
        file.seek(max(0, file.tell() - len(end)))
        ends_well = file.read() == end
    if not ends_well:
        read_image(dataset, i)


@contextmanager
def _open_image(dataset: SegmentationDataset, path: str) -> Iterator[PIL.Image.Image]:
    """The image file, opened. Only its header is read."""
    with dataset.storage.open(path) as file:
        with decoding(path):
            image = PIL.Image.open(file)
        if image.format not in _IMAGE_FORMATS or image.mode not in _IMAGE_MODES:
            raise DataError(
                f'{path}: image is {image.format} of mode {image.mode}; convert it to an 8-bit RGB PNG or JPEG',
                'wrong kind of image file',
            )
        yield image
