"""The image files of a data set. `pictures` decodes them, as it does the pictures of users."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import PIL.Image

from atonet_jax.data.dataset import DataError, SegmentationDataset
from atonet_jax.data.pictures import Header, TooManyPixels, check_pixels, read_header, read_picture, turn
from atonet_jax.errors import InputError

_ENDS = {b'\x89PNG': b'IEND\xaeB`\x82', b'\xff\xd8\xff': b'\xff\xd9'}  # of PNG and JPEG, by how they begin
_LIMIT = 'config.data.max_pixels'


def read_image(dataset: SegmentationDataset, i: int) -> np.ndarray:
    """Image of example `i`: [H, W, 3] uint8 RGB, turned as EXIF says. `pictures.read_picture` reads it.

    Raises:
        DataError: the file is missing, unreadable, or larger than `dataset.max_pixels`.
    """
    path = dataset.image_paths[i]
    with dataset.storage.open(path) as file, _as_data_errors():
        return read_picture(file, path, dataset.max_pixels, _LIMIT, sample_range=dataset.sample_range)


def read_image_size(dataset: SegmentationDataset, i: int) -> tuple[int, int]:
    """Height and width of image `i`, upright. Reads its header if they are not known yet.

    Raises:
        DataError: as `read_image_header`.
    """
    if dataset.sizes is not None and dataset.sizes[i] is not None:
        return dataset.sizes[i]
    return read_image_header(dataset, i).size


def read_image_header(dataset: SegmentationDataset, i: int) -> Header:
    """Size and EXIF orientation of image `i`.

    Raises:
        DataError: the file is missing, unreadable, or larger than `dataset.max_pixels`.
    """
    path = dataset.image_paths[i]
    with dataset.storage.open(path) as file, _as_data_errors():
        return read_header(file, path, dataset.max_pixels, _LIMIT)


def check_image_end(dataset: SegmentationDataset, i: int) -> None:
    """Decodes image `i` unless it ends as a PNG or JPEG does. This finds most truncated files at little cost.

    Raises:
        DataError: it cannot be decoded.
    """
    with dataset.storage.open(dataset.image_paths[i]) as file:
        start = file.read(4)
        end = next((end for magic, end in _ENDS.items() if start.startswith(magic)), None)
        file.seek(0, 2)
        file.seek(max(0, file.tell() - len(end or b'')))
        ends_well = file.read() == end
    if not ends_well:
        read_image(dataset, i)


def check_label_size(
    dataset: SegmentationDataset, i: int, label_size: tuple[int, ...], image_size: tuple[int, int]
) -> None:
    """Checks that the label of example `i` is as large as its image, upright or stored as `label_orientation` says.

    Args:
        dataset: the split.
        i: the example.
        label_size: (height, width) in the label file.
        image_size: (height, width) of the image, upright.

    Raises:
        DataError: it has another size.
    """
    label_size, image_size = tuple(label_size), tuple(image_size)
    is_stored = dataset.label_orientation == 'stored'
    if label_size == image_size and not is_stored:  # nearly always; needs no header
        return
    header = read_image_header(dataset, i)
    expected, turned = (header.stored_size, header.size) if is_stored else (header.size, header.stored_size)
    if label_size == expected:
        return
    text = (
        f'{dataset.label_paths[i]}: label is {_size_text(label_size)} but its image {dataset.image_paths[i]} is '
        f'{_size_text(expected)}'
    )
    if label_size != turned:
        raise DataError(f'{text}; they must be equal', 'label and image differ in size')
    if is_stored:
        raise DataError(
            f'{text} as stored; the label fits the image as its EXIF orientation {header.orientation} turns it: for '
            'such labels leave --config.data.label_orientation=upright',
            'label fits only the upright image',
        )
    raise DataError(
        f'{text} as its EXIF orientation {header.orientation} turns it; the label fits only the image as stored: if '
        'all labels were drawn so, give --config.data.label_orientation=stored, which turns them with the images',
        'label fits only the image without its EXIF orientation',
    )


def upright_labels(dataset: SegmentationDataset, i: int, labels: np.ndarray) -> np.ndarray:
    """The content [H, W] of label file `i`, turned to lie as its image does.

    Raises:
        DataError: as `read_image_header`.
    """
    if dataset.label_orientation == 'upright':
        return labels
    return turn(labels, read_image_header(dataset, i).orientation)


def check_label_pixels(dataset: SegmentationDataset, path: str, label: PIL.Image.Image) -> None:
    """Raises DataError if the label file `path`, opened and not yet decoded, has more than `dataset.max_pixels`."""
    with _as_data_errors():
        check_pixels(label, path, dataset.max_pixels, _LIMIT)


@contextmanager
def _as_data_errors() -> Iterator[None]:
    try:
        yield
    except TooManyPixels as error:
        raise DataError(str(error), 'image is too large') from error
    except DataError:
        raise
    except InputError as error:
        raise DataError(str(error), 'file cannot be decoded') from error


def _size_text(shape: tuple[int, ...]) -> str:
    return f'{shape[0]}x{shape[1]} (height x width)'
