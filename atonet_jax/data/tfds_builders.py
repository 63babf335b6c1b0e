"""Writes TFDS copies of data sets: `--mode=prepare`.

A copy keeps the encoded bytes of image and label files, so it decodes to the pixels of its source. Label files that
TensorFlow would read differently become PNGs of the same values. It is an ordinary TFDS data set. Its `metadata.json`
holds what TFDS has no place for: class table and meaning of the label values.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from etils import epath

from atonet_jax.data.dataset import DataError, SegmentationDataset
from atonet_jax.data.label_files import KINDS, read_label_pixels, to_train_ids
from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.data.tfds_copy import INFO, METADATA, read_metadata
from atonet_jax.data.tfds_records import foreign_errors
from atonet_jax.process.progress import watched

_log = logging.getLogger(__name__)

_RUNS = 64  # a split is written in so many parts, each of which TFDS holds in memory for a while
_KEY_BITS = 128  # of TFDS's keys
_PNG, _GREY = b'\x89PNG', b'\x08\x00'  # what a PNG begins with, and bytes 24 and 25 of one of 8-bit grey
_RESERVED_PARTS = ('all',)


class CopyBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes splits unchanged and in order. It needs the data, so TFDS cannot build it by name."""

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'First.'}
    code_path = None  # the place of download checksums; TFDS would look for it with an extra package

    def __init__(self, datasets: Mapping[str, SegmentationDataset], **options):
        """
        Args:
            datasets: labelled splits by part, such as 'train'; of one data set.
            **options: of `tfds.core.DatasetBuilder`; `data_dir`.
        """
        self._datasets = datasets
        self._kept = _description(datasets)
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        colored = self._kept['label_values'] == 'color'
        label = tfds.features.Image(
            shape=(None, None, 3 if colored else 1), encoding_format='png', use_colormap=not colored
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=f'{self._kept["name"]} for semantic segmentation; metadata.json says what label values mean.',
            features=tfds.features.FeaturesDict(
                {'id': tfds.features.Text(), 'image': tfds.features.Image(), 'label': label}
            ),
            supervised_keys=('image', 'label'),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(self._kept),
        )

    def _split_generators(self, dl_manager):
        return {part: self._generate_examples(part, dataset) for part, dataset in self._datasets.items()}

    def _generate_examples(self, part, dataset):
        digest = hashlib.sha256()
        for position, (i, name, image, label) in enumerate(_encoded_examples(dataset)):
            _add(digest, name, image, label)
            label = _plain_label(dataset, i, label, self._kept['label_values'])
            yield _key(position, len(dataset)), {'id': name, 'image': image, 'label': label}
        self._kept['splits'][part]['sha256'] = digest.hexdigest()


class AtonetCityscapes(CopyBuilder, skip_registration=True):
    """Cityscapes, from its folders."""


class AtonetCamvid(CopyBuilder, skip_registration=True):
    """CamVid, from any of its layouts."""


class AtonetFolder(CopyBuilder, skip_registration=True):
    """A user's own images and label files."""


class AtonetSynthetic(CopyBuilder, skip_registration=True):
    """Generated street scenes."""


_BUILDERS = {
    builder.name.removeprefix('atonet_'): builder
    for builder in (AtonetCityscapes, AtonetCamvid, AtonetFolder, AtonetSynthetic)
}


def prepare(datasets: Mapping[str, SegmentationDataset], tfds_dir: str) -> str:
    """Writes a TFDS copy, or finds that it exists already.

    After an interruption there is no copy; at most a folder `incomplete.*`, which nothing reads.

    Args:
        datasets: splits of one data set by part, such as 'train' and 'val'. Splits without labels and examples that
            `verify` found unusable are left out.
        tfds_dir: folder or bucket of TFDS data sets.

    Returns:
        The copy's own directory, `<tfds_dir>/atonet_<name>/<version>`.

    Raises:
        DataError: no split has labels, a file is missing, `tfds_dir` cannot be written, or it holds a copy of other
            examples.
    """
    labelled = {part: dataset for part, dataset in datasets.items() if dataset.label_paths is not None}
    for part, dataset in datasets.items():
        if part not in labelled:
            _log.warning('%s %s: has no labels and is left out of the copy', dataset.name, part)
        if part in _RESERVED_PARTS:
            raise DataError(f"'{part}': TFDS keeps this name of a split for itself; rename that part of the data")
    if not labelled:
        raise DataError(f'{tfds_dir}: nothing to prepare, none of the splits {", ".join(datasets)} has labels')
    name = next(iter(labelled.values())).name
    if name not in _BUILDERS:
        raise DataError(f"'{name}': only {', '.join(_BUILDERS)} can be prepared")
    builder = _BUILDERS[name]
    root = epath.Path(tfds_dir).expanduser()
    directory = root / builder.name / str(builder.VERSION)
    with foreign_errors(tfds_dir, 'cannot be read', 'choose another config.data.tfds_dir'):
        exists = directory.exists()
    if exists:
        _check_holds(directory, labelled)
        _log.info('%s: holds these examples already', directory)
    else:
        with (
            foreign_errors(directory, 'cannot be written', 'choose another config.data.tfds_dir'),
            _tfds_output(),
            tempfile.TemporaryDirectory() as downloads,  # TFDS wants a place for them
        ):
            builder(labelled, data_dir=os.fspath(root)).download_and_prepare(download_dir=downloads)
    return os.fspath(directory)


def _description(datasets: Mapping[str, SegmentationDataset]) -> dict:
    """The content of metadata.json, without the digests of the examples. These are known after writing."""
    first = next(iter(datasets.values()))
    for part, dataset in datasets.items():
        if (dataset.name, dataset.class_table) != (first.name, first.class_table):
            raise DataError(
                f'{dataset.name} {part}: has other classes than {first.name} {first.split}; prepare them in different '
                'folders'
            )
    label_values = _label_values(datasets)
    return {
        'name': first.name,
        'class_table': first.class_table.to_dict(),
        'label_values': label_values,
        'splits': {
            part: {'raw_to_train': None if label_values == 'color' else dataset.train_ids.tolist()}
            for part, dataset in datasets.items()
        },
    }


def _encoded_examples(dataset: SegmentationDataset) -> Iterator[tuple[int, str, bytes, bytes]]:
    """(index, id, image file, label file) of each usable example; the id is the image's path in the data set."""
    folder = os.path.commonprefix(dataset.image_paths).rpartition('/')[0]
    for i, (image_path, label_path) in enumerate(zip(dataset.image_paths, dataset.label_paths)):
        if i in dataset.unusable:
            continue
        with dataset.storage.open(image_path) as image, dataset.storage.open(label_path) as label:
            # Names of files need not be text.
            name = image_path.removeprefix(folder).lstrip('/').encode(errors='replace').decode()
            yield i, name, image.read(), label.read()


def _add(digest, name: str, image: bytes, label: bytes) -> None:
    for value in (name.encode(), image, label):
        digest.update(len(value).to_bytes(8, 'little'))
        digest.update(value)


def _key(position: int, count: int) -> int:
    """TFDS's sort key of an example: in order, and spread over the range of keys.

    TFDS distributes data that exceeds its memory over files by the highest bits of the keys, and sorts one file at a
    time. Small numbers would all be in one file.
    """
    run = position * _RUNS // count
    return (run << _KEY_BITS) // _RUNS + position


def _label_values(datasets: Mapping[str, SegmentationDataset]) -> str:
    """What the label files of a copy hold: 'color' if all of the sources do, else 'index'."""
    return 'color' if all(dataset.reading.by_color == set(KINDS) for dataset in datasets.values()) else 'index'


def _plain_label(dataset: SegmentationDataset, i: int, label: bytes, label_values: str) -> bytes:
    """Label file `i` as a PNG of `label_values` that TensorFlow reads as this package does."""
    if label_values == 'color':
        return label if label.startswith(_PNG) else _as_png(PIL.Image.open(io.BytesIO(label)))
    if label.startswith(_PNG) and label[24:26] == _GREY and 'grey' not in dataset.reading.by_color:
        return label
    pixels = read_label_pixels(dataset, i)
    values = pixels.values
    if pixels.colored:  # beside others of numbers
        values = _number_of_train_id(dataset)[to_train_ids(dataset, pixels)]
    return _as_png(PIL.Image.fromarray(np.where((values < 0) | (values > 255), IGNORE_LABEL, values).astype(np.uint8)))


def _number_of_train_id(dataset: SegmentationDataset) -> np.ndarray:
    """[256] uint8: train id -> a number of it; others -> `IGNORE_LABEL`."""
    numbers = np.full(256, IGNORE_LABEL, np.uint8)
    for number in range(IGNORE_LABEL):
        if dataset.train_ids[number] < dataset.class_table.num_classes:
            numbers[dataset.train_ids[number]] = number
    return numbers


def _as_png(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, 'PNG')
    return file.getvalue()


def _check_holds(directory: epath.Path, datasets: Mapping[str, SegmentationDataset]) -> None:
    """Raises DataError if the copy in `directory` holds other examples than `datasets`."""
    wanted = _description(datasets)
    if not all((directory / file).exists() for file in (INFO, METADATA)):
        raise _other_data(directory, f'no {INFO} or no {METADATA}')
    kept = read_metadata(directory, wanted['name'])
    if any(kept[key] != json.loads(json.dumps(wanted[key])) for key in ('class_table', 'label_values')):
        raise _other_data(directory, 'other classes, or another kind of label files')
    for part, dataset in datasets.items():
        if part not in kept['splits']:
            raise _other_data(directory, f"no split '{part}'")
        if kept['splits'][part]['raw_to_train'] != wanted['splits'][part]['raw_to_train']:
            raise _other_data(directory, f"other label values in split '{part}'")
        digest = hashlib.sha256()
        examples = _encoded_examples(dataset)
        for _, *example in watched(examples, f'comparing {dataset.name} {part}', len(dataset), 'example'):
            _add(digest, *example)
        if kept['splits'][part]['sha256'] != digest.hexdigest():
            raise _other_data(directory, f"other examples in split '{part}'")


def _other_data(directory: epath.Path, what: str) -> DataError:
    return DataError(
        f'{directory}: holds a copy already, but it has {what}; delete it or choose another config.data.tfds_dir'
    )


@contextlib.contextmanager
def _tfds_output() -> Iterator[None]:
    """Shows TFDS's progress bars on terminals only, and none of its other messages."""
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
