"""A data set: pairs of encoded files in a fixed order, and their meaning."""

import dataclasses
import functools
import hashlib
import os
import zlib
from collections.abc import Mapping
from typing import BinaryIO, NoReturn, Protocol

import numpy as np

from atonet_jax.data.labels import IGNORE_LABEL, UNKNOWN_LABEL, ClassTable
from atonet_jax.data.pictures import MAX_PIXELS
from atonet_jax.errors import InputError

VOID_INDEX = 2**24  # beyond all colours: a void pixel of a palette that is read by colour
_LONGEST_SPLIT = 200  # bytes of a split that a file may be named after; file systems take names of up to 255


class DataError(InputError):
    """Files that are missing, unreadable or inconsistent; the message says which and what to do, in one line.

    Attributes:
        kind: the kind of fault in two or three words; '' if the fault is not that of a single file.
    """

    def __init__(self, message: str, kind: str = ''):
        super().__init__(message)
        self.kind = kind


class Storage(Protocol):
    """Where the encoded files of a data set are."""

    def open(self, path: str) -> BinaryIO:
        """Raises DataError if there is no such file."""

    def fingerprint(self, path: str) -> str:
        """A text that changes when the file does. Raises DataError if there is no such file."""


class LocalFiles:
    """Files of the file system."""

    def open(self, path: str) -> BinaryIO:
        try:
            return open(path, 'rb')
        except OSError as error:
            raise _cannot_open(path, error) from error

    def fingerprint(self, path: str) -> str:
        try:
            stat = os.stat(path)
        except OSError as error:
            raise _cannot_open(path, error) from error
        return f'{path} {stat.st_size} {stat.st_mtime_ns}'


@dataclasses.dataclass(frozen=True)
class LabelReading:
    """How the label files of a split are read. `label_reading.decide_reading` finds it out.

    Attributes:
        by_color: the kinds of label file (`label_files.KINDS`) whose pixels are colours of the class table. In files of
            the other kinds they are numbers.
        by_level: whether the numbers of files of kind 'grey_palette' are the greys and not the indices.
        ways: {kind of label file that was found: how it is read}; empty if there was nothing to decide.
        text: how label files are read and why, in a sentence; '' if there was nothing to decide.
        doubt: what speaks against it, or ''.
    """

    by_color: frozenset[str] = frozenset()
    by_level: bool = False
    ways: Mapping[str, str] = dataclasses.field(default_factory=dict)
    text: str = ''
    doubt: str = ''


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentationDataset:
    """One split of a data set, in a fixed order.

    Attributes:
        name: the data set's name.
        split: such as 'train', or several parts as in 'train+val'.
        class_table: the classes.
        image_paths: the image file of each example. A missing file is reported when it is read.
        label_paths: the label file of each image, or None for a split without labels.
        reading: how label files are read.
        raw_to_train: [256] uint8, train id of each number, `UNKNOWN_LABEL` if a number has no meaning. None:
            `class_table.raw_to_train`.
        unknown_as_void: the share of a label file's pixels that may have other values; these are then ignored.
        storage: opens the paths.
        max_pixels: of an image.
        sample_range: `read_picture`'s, for images of more than 8 bits.
        label_orientation: 'upright' if the labels fit the image as EXIF turns it, 'stored' if they fit it as its file
            stores it.
        sizes: (height, width) of each image, None for an unusable one. None altogether before `verify` has read them.
        unusable: {index: reason} of the examples that a list names in vain, or that `verify` found unusable.
    """

    name: str
    split: str
    class_table: ClassTable
    image_paths: tuple[str, ...]
    label_paths: tuple[str, ...] | None
    reading: LabelReading = LabelReading()
    raw_to_train: np.ndarray | None = None
    unknown_as_void: float = 0.0
    storage: Storage = LocalFiles()
    max_pixels: int = MAX_PIXELS
    sample_range: tuple[float, ...] = ()
    label_orientation: str = 'upright'
    sizes: tuple[tuple[int, int] | None, ...] | None = None
    unusable: Mapping[int, DataError] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.image_paths)

    @property
    def usable(self) -> list[int]:
        """The examples that are not in `unusable`."""
        return [i for i in range(len(self)) if i not in self.unusable]

    def require_labels(self) -> None:
        """Raises DataError if the split has no labels."""
        if self.label_paths is None:
            raise DataError(
                f'{self.name} {self.split}: has no labels, which training and evaluation need; choose another split'
            )

    @functools.cached_property
    def train_ids(self) -> np.ndarray:
        """[256] uint8 train id of each number of a label file."""
        return self.class_table.raw_to_train if self.raw_to_train is None else self.raw_to_train

    @functools.cached_property
    def color_train_ids(self) -> np.ndarray:
        """[2**24 + 1] uint8 train id of each colour 0xRRGGBB of a label file, and of `VOID_INDEX`."""
        table = np.full(VOID_INDEX + 1, UNKNOWN_LABEL, np.uint8)
        table[VOID_INDEX] = IGNORE_LABEL
        for label in self.class_table.raw_labels:
            if label.color is not None:
                table[int.from_bytes(label.color, 'big')] = label.train_id
        return table

    def fingerprint(self, i: int) -> str:
        """A text that changes when example `i` decodes to something else.

        Raises:
            DataError: one of its files is missing.
        """
        text = f'{self._decoding} {self.storage.fingerprint(self.image_paths[i])}'
        return text if self.label_paths is None else f'{text} {self.storage.fingerprint(self.label_paths[i])}'

    @functools.cached_property
    def _decoding(self) -> str:
        tables, by_color, by_level = zlib.crc32(self.train_ids), self.reading.by_color, self.reading.by_level
        if by_color:
            tables = zlib.crc32(self.color_train_ids, tables)
        kinds = '+'.join(sorted(by_color))
        return f'{kinds} {by_level} {tables} {self.unknown_as_void} {self.label_orientation} {self.sample_range}'


def split_parts(split: str, known: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """The parts of a split: ('train', 'val') for 'train+val'.

    Raises:
        DataError: one of them is empty, is not in `known` (if that is given), or occurs twice.
    """
    parts = tuple(split.split('+'))
    if not all(parts):
        raise DataError(f"split '{split}' has an empty part; write such as train, or train+val")
    for part in parts:
        if known is not None and part not in known:
            raise DataError(f"unknown split '{part}'; known are {', '.join(known)}, and several joined by '+'")
    if len(set(parts)) < len(parts):
        raise DataError(f"split '{split}' names a part twice; name each once")
    return parts


def split_file_name(what: str, split: str) -> str:
    """The name of a JSON file of a split in the workdir: 'verified_train.json' for what='verified', split='train'.

    A split may name many parts, and file systems take no long names. So a long split is cut, and a hash follows.
    """
    encoded = os.fsencode(split)
    if len(encoded) > _LONGEST_SPLIT:
        split = f'{split[:40]}-{hashlib.sha256(encoded).hexdigest()[:16]}'
    return f'{what}_{split}.json'


def names_in(folder: str) -> list[str]:
    """The names in a folder, sorted, without hidden ones.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith('.'))
    except OSError as error:
        refuse_folder(error)


def refuse_folder(error: OSError) -> NoReturn:
    """Raises DataError for a folder that cannot be listed. Otherwise its files would be left out silently."""
    raise DataError(f'{error.filename}: cannot be read ({error.strerror}); check its permissions') from error


def _cannot_open(path: str, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f'{path}: no such file; every image needs its label and the reverse', 'missing file')
    return DataError(f'{path}: cannot be opened ({error.strerror}); check its permissions', 'file cannot be opened')


def shared_images_text(train: SegmentationDataset, evaluated: SegmentationDataset) -> str:
    """One line if images of the evaluation are trained on; '' if not."""
    shared = sorted(set(train.image_paths) & set(evaluated.image_paths))
    if not shared:
        return ''
    return (
        f'config.data.eval_split={evaluated.split}: {len(shared)} of its {len(evaluated)} images are in '
        f'config.data.train_split={train.split} too, such as {shared[0]}; the scores say nothing of other images'
    )
