"""What a data set is to the rest of the package: pairs of files, and how they decode."""

import concurrent.futures
import dataclasses
import functools
import json
import os
import zlib

import numpy as np
import PIL.Image
import tqdm

from atonet_jax.data.labels import IGNORE_LABEL, UNKNOWN_LABEL, ClassTable
from atonet_jax.errors import InputError

_IMAGE_FORMATS = ('PNG', 'JPEG')
_IMAGE_MODES = ('RGB', 'RGBA', 'L', 'LA', 'P')  # 8 bits a channel, and RGB by dropping alpha or repeating grey
_MAX_REPORTED = 3
_SPLIT_PARTS = {'train': ('train',), 'val': ('val',), 'test': ('test',), 'trainval': ('train', 'val')}


class DataError(InputError):
    """Files that are missing, unreadable or inconsistent; the message says which and what to do, in one line."""


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentationDataset:
    """One split of a data set, in a fixed order.

    Attributes:
        name: the data set's name.
        split: 'train', 'val', 'test' or 'trainval'.
        class_table: the classes.
        image_paths: one image file an example.
        label_paths: the label file of each image, or None for a split without labels.
        label_values: 'index' where a label file holds one number a pixel, 'color' where it holds a colour of
            `class_table`.
        raw_to_train: [256] uint8, train id of each number in 'index' files, `UNKNOWN_LABEL` where a number has no
            meaning. None: `class_table.raw_to_train`.
    """

    name: str
    split: str
    class_table: ClassTable
    image_paths: tuple[str, ...]
    label_paths: tuple[str, ...] | None
    label_values: str = 'index'
    raw_to_train: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.image_paths)

    @functools.cached_property
    def train_ids(self) -> np.ndarray:
        """uint8 train id of each value of a label file: [256] by index, or [2**24] by colour as 0xRRGGBB."""
        if self.label_values == 'color':
            table = np.full(2**24, UNKNOWN_LABEL, np.uint8)
            for label in self.class_table.raw_labels:
                table[int.from_bytes(label.color, 'big')] = label.train_id
            return table
        return self.class_table.raw_to_train if self.raw_to_train is None else self.raw_to_train


def split_parts(split: str) -> tuple[str, ...]:
    """The parts on disk that make up a split: its own name, or 'train' and 'val' for 'trainval'.

    Raises:
        DataError: there is no such split.
    """
    if split not in _SPLIT_PARTS:
        raise DataError(f"unknown split '{split}'; known are {', '.join(_SPLIT_PARTS)}")
    return _SPLIT_PARTS[split]


def read_image_size(path: str) -> tuple[int, int]:
    """Height and width, from the file's header alone.

    Raises:
        DataError: the file is missing, or not an 8-bit PNG or JPEG.
    """
    with _open_image(path) as image:
        return image.height, image.width


def read_example(dataset: SegmentationDataset, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Example `i` as (image [H, W, 3] uint8 RGB, labels [H, W] uint8 train ids).

    Raises:
        DataError: a file is missing, unreadable or of a wrong kind, or the two do not fit each other.
    """
    path = dataset.image_paths[i]
    with _open_image(path) as file:
        try:
            image = np.asarray(file.convert('RGB'))
        except (OSError, SyntaxError) as error:
            raise DataError(f'{path}: cannot be decoded ({error}); replace the file') from error
    return image, read_labels(dataset, i, image.shape[:2])


def read_labels(dataset: SegmentationDataset, i: int, image_size: tuple[int, int]) -> np.ndarray:
    """Labels of example `i`, whose image is `image_size` = (height, width): [H, W] uint8 train ids.

    A split without labels gives `IGNORE_LABEL` everywhere.

    Raises:
        DataError: the file is missing or unreadable, has another size, or holds values that the class table lacks.
    """
    if dataset.label_paths is None:
        return np.full(image_size, IGNORE_LABEL, np.uint8)
    path = dataset.label_paths[i]
    values = _decode_label_values(path, dataset.label_values)
    if values.shape != tuple(image_size):
        raise DataError(
            f'{path}: label is {_size_text(values.shape)} but its image {dataset.image_paths[i]} is '
            f'{_size_text(image_size)}; they must be equal'
        )
    labels = dataset.train_ids[values]
    unknown = labels == UNKNOWN_LABEL
    if unknown.any():
        raise DataError(f'{path}: {_describe_unknown(dataset, values[unknown])}')
    return labels


def verify(dataset: SegmentationDataset, cache_path: str | None = None) -> None:
    """Checks every image's header and decodes every label.

    Args:
        dataset: the split to check.
        cache_path: JSON file that remembers which unchanged files were found good, so that they are not read again.

    Raises:
        DataError: some file is unusable, or a labelled split has no labelled pixel (save 'test', which some data sets
            publish with blank labels). One line names the first few problems and counts the others.
    """
    known_good = _read_cache(cache_path)
    decoding = f'{dataset.label_values} {zlib.crc32(dataset.train_ids)}'

    def check(i):
        """Returns (labelled pixels, fingerprint of the files), or the DataError."""
        image_path = dataset.image_paths[i]
        try:
            fingerprint = f'{decoding} {_fingerprint(image_path)}'
            if dataset.label_paths is not None:
                fingerprint += f' {_fingerprint(dataset.label_paths[i])}'
            labelled, checked = known_good.get(image_path, (0, None))
            if checked != fingerprint:
                labels = read_labels(dataset, i, read_image_size(image_path))
                labelled = int(np.count_nonzero(labels != IGNORE_LABEL))
            return labelled, fingerprint
        except DataError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor() as pool:
        checks = pool.map(check, range(len(dataset)))
        description = f'checking {dataset.name} {dataset.split}'
        # disable=None: no bar where stderr is not a terminal; delay: none where all is cached.
        results = list(tqdm.tqdm(checks, description, total=len(dataset), disable=None, delay=1, leave=False))

    problems = [str(result) for result in results if isinstance(result, DataError)]
    if problems:
        others = len(problems) - _MAX_REPORTED
        more = f'; and {others} more such problems' if others > 0 else ''
        raise DataError('; '.join(problems[:_MAX_REPORTED]) + more)
    if dataset.label_paths is not None and dataset.split != 'test' and not any(labelled for labelled, _ in results):
        raise DataError(
            f'{dataset.name} {dataset.split}: all pixels of all {len(dataset)} label files are ignored, '
            f'for example {dataset.label_paths[0]}; check that these are the label files'
        )
    _write_cache(cache_path, known_good | dict(zip(dataset.image_paths, results)))


def _open_image(path: str) -> PIL.Image.Image:
    try:
        image = PIL.Image.open(path)
    except FileNotFoundError as error:
        raise DataError(f'{path}: no such file') from error
    except (OSError, SyntaxError) as error:
        raise DataError(f'{path}: not a readable image ({error}); replace the file') from error
    if image.format not in _IMAGE_FORMATS or image.mode not in _IMAGE_MODES:
        image.close()
        raise DataError(f'{path}: image is {image.format} of mode {image.mode}; convert it to an 8-bit RGB PNG or JPEG')
    return image


def _decode_label_values(path: str, label_values: str) -> np.ndarray:
    """[H, W] integer values of a label file, as `SegmentationDataset.train_ids` is indexed by them."""
    try:
        with PIL.Image.open(path) as image:
            if label_values == 'color' and image.mode in ('RGB', 'RGBA', 'P'):
                rgb = np.asarray(image.convert('RGB')).astype(np.int32)
                return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
            if label_values == 'index' and image.mode in ('L', 'P'):
                return np.asarray(image)
            mode = image.mode
    except FileNotFoundError as error:
        raise DataError(f'{path}: no such file') from error
    except (OSError, SyntaxError) as error:
        raise DataError(f'{path}: label cannot be decoded ({error}); replace the file') from error
    wanted = 'an RGB or palette image of class colours' if label_values == 'color' else 'one 8-bit channel of class ids'
    raise DataError(f'{path}: label is of mode {mode} but should be {wanted}; convert it')


def _describe_unknown(dataset: SegmentationDataset, values: np.ndarray) -> str:
    """Says which of `values`, none of which has a train id, occurs most, and which ones are known."""
    found, counts = np.unique(values, return_counts=True)
    worst = counts.argmax()
    if dataset.label_values == 'color':
        red, green, blue = int(found[worst]).to_bytes(3, 'big')
        value = f'colour ({red}, {green}, {blue})'
        known = f'the {len(dataset.class_table.raw_labels)} colours of the {dataset.class_table.name} class table'
    else:
        value = f'label value {found[worst]}'
        known = _ranges_text(np.flatnonzero(dataset.train_ids != UNKNOWN_LABEL))
    others = f' and {len(found) - 1} other unknown values' if len(found) > 1 else ''
    return f'{value} ({counts[worst]} pixels){others}, but known are {known}'


def _ranges_text(values: np.ndarray) -> str:
    """Sorted integers as text, such as '0..18, 255'."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ', '.join(f'{run[0]}..{run[-1]}' if len(run) > 1 else f'{run[0]}' for run in runs)


def _size_text(shape: tuple[int, ...]) -> str:
    return f'{shape[0]}x{shape[1]} (height x width)'


def _fingerprint(path: str) -> str:
    try:
        stat = os.stat(path)
    except FileNotFoundError as error:
        raise DataError(f'{path}: no such file') from error
    return f'{path} {stat.st_size} {stat.st_mtime_ns}'


def _read_cache(cache_path: str | None) -> dict:
    """{image path: [labelled pixels, fingerprint]}; empty where there is no usable cache."""
    if cache_path is None:
        return {}
    try:
        with open(cache_path) as file:
            return json.load(file)
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _write_cache(cache_path: str | None, known_good: dict) -> None:
    if cache_path is None:
        return
    os.makedirs(os.path.dirname(os.path.abspath(cache_path)), exist_ok=True)
    # A reader, or a second process that verifies too, never sees half a file.
    temporary = f'{cache_path}.{os.getpid()}'
    with open(temporary, 'w') as file:
        json.dump(known_good, file)
    os.replace(temporary, cache_path)
