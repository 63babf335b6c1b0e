"""TFDS copies of data sets: prepared once, in few large files, read at random from a disk or a bucket.

The encoded bytes of image and label files are kept, so that a copy decodes to the very pixels of its source. It is a
data set of TFDS like any other; what TFDS has no place for (class table, meaning of the label values) is in its
`metadata.json`. TFDS's own Cityscapes copy (`cityscapes/semantic_segmentation`) is read too.
"""

import array
import concurrent.futures
import contextlib
import hashlib
import io
import json
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import BinaryIO, NamedTuple

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds  # imports TensorFlow when that is needed, and not before
import tqdm
from etils import epath

from atonet_jax.data.dataset import DataError, SegmentationDataset, split_parts
from atonet_jax.data.decode import read_label_values
from atonet_jax.data.labels import CITYSCAPES, ClassTable

_log = logging.getLogger(__name__)

_METADATA = 'metadata.json'  # TFDS's name for what a builder wants to keep
_INFO = 'dataset_info.json'  # TFDS writes it last
_ANEW = 'copy or prepare it anew'
_RUNS = 64  # a split is written as so many runs of examples, each of which TFDS holds in memory for a while
_KEY_BITS = 128  # of TFDS's keys
_PALETTE = 3  # byte 25 of a PNG
_STOCK = {  # by config of TFDS's Cityscapes builder: our parts, and its name for each
    'semantic_segmentation': {'train': 'train', 'val': 'validation', 'test': 'test'},
    'semantic_segmentation_extra': {'train_coarse': 'train', 'val_coarse': 'validation', 'train_extra': 'train_extra'},
}


class CopyBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes splits as they are, in their order. Cannot be made by name: it has to be given the data."""

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'First.'}
    code_path = None  # where TFDS would look for the checksums of downloads, by a package that it need not have

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
            if dataset.label_values == 'index' and label[25:26] == bytes([_PALETTE]):
                # TensorFlow would decode the colours of the palette.
                label = _gray_png(read_label_values(dataset, i))
            yield _key(position, len(dataset)), {'id': name, 'image': image, 'label': label}
        self._kept['splits'][part]['sha256'] = digest.hexdigest()


class AtonetCityscapes(CopyBuilder, skip_registration=True):
    """Cityscapes, from its folders."""


class AtonetCamvid(CopyBuilder, skip_registration=True):
    """CamVid, from any of its shapes."""


class AtonetFolder(CopyBuilder, skip_registration=True):
    """Anyone's images and label files."""


class AtonetSynthetic(CopyBuilder, skip_registration=True):
    """Generated street scenes."""


_BUILDERS = {
    builder.name.removeprefix('atonet_'): builder
    for builder in (AtonetCityscapes, AtonetCamvid, AtonetFolder, AtonetSynthetic)
}


def prepare(datasets: Mapping[str, SegmentationDataset], tfds_dir: str) -> str:
    """Writes a TFDS copy, or finds that it is there already.

    Interrupted, it leaves no copy; at most a folder `incomplete.*`, which nothing reads.

    Args:
        datasets: splits of one data set by part, such as 'train' and 'val'. Those without labels are left out, and
            so are the examples that `verify` found unusable.
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
    if not labelled:
        raise DataError(f'{tfds_dir}: nothing to prepare, none of the splits {", ".join(datasets)} has labels')
    name = next(iter(labelled.values())).name
    if name not in _BUILDERS:
        raise DataError(f"'{name}': only {', '.join(_BUILDERS)} can be prepared")
    builder = _BUILDERS[name]
    root = epath.Path(tfds_dir).expanduser()
    directory = root / builder.name / str(builder.VERSION)
    with _foreign_errors(tfds_dir, 'cannot be read', 'choose another config.data.tfds_dir'):
        exists = directory.exists()
    if exists:
        _check_holds(directory, labelled)
        _log.info('%s: holds these examples already', directory)
    else:
        with (
            _foreign_errors(directory, 'cannot be written', 'choose another config.data.tfds_dir'),
            _tfds_output(),
            tempfile.TemporaryDirectory() as downloads,  # TFDS wants a place for them
        ):
            builder(labelled, data_dir=os.fspath(root)).download_and_prepare(download_dir=downloads)
    return os.fspath(directory)


def load_tfds(tfds_dir: str, name: str, split: str) -> SegmentationDataset:
    """A split of a copy, as it was when prepared: the same bytes in the same order.

    Reads the index of its files, and no example yet.

    Args:
        tfds_dir: folder or bucket with `atonet_<name>/<version>`, of which the highest version is taken, or, for
            'cityscapes', with TFDS's own `cityscapes/semantic_segmentation/<version>`; or such a version's directory
            itself. TFDS's `cityscapes/semantic_segmentation_extra` has the parts 'train_extra', 'train_coarse' and
            'val_coarse'.
        name: of the data set.
        split: a part such as 'train', or several joined by '+'.

    Raises:
        DataError: no such copy or split, or files of it are missing or damaged.
    """
    parts: dict[str, _Part] = {}
    for directory in _find_copies(tfds_dir, name):
        parts |= _parts(directory, name)
    try:
        chosen = [parts[part] for part in split_parts(split, tuple(parts))]
    except DataError as error:
        raise DataError(f'{tfds_dir}: {error} (splits without labels are not copied)') from error
    if any(part.raw_to_train != chosen[0].raw_to_train for part in chosen):
        raise DataError(f'{tfds_dir}: the label values of {split} mean different things; choose one part of it')

    with concurrent.futures.ThreadPoolExecutor() as pool:
        shards = [pool.submit(_open_shard, part, *shard) for part in chosen for shard in part.shards]
    records = _Records([shard.result() for shard in shards])
    examples = [(part, f'{path}#{i}') for part in chosen for path, count in part.shards for i in range(count)]
    raw_to_train = chosen[0].raw_to_train
    return SegmentationDataset(
        name=name,
        split=split,
        class_table=chosen[0].class_table,
        image_paths=tuple(f'{record}/{part.image}' for part, record in examples),
        label_paths=tuple(f'{record}/{part.label}' for part, record in examples),
        label_values=chosen[0].label_values,
        raw_to_train=None if raw_to_train is None else np.array(raw_to_train, np.uint8),
        storage=records,
    )


def read_class_table(tfds_dir: str, name: str) -> ClassTable:
    """The classes of a copy that `load_tfds` reads. Does without TensorFlow where that is on a disk.

    Raises:
        DataError: no such copy.
    """
    kept = _metadata(_find_copies(tfds_dir, name)[0], name)
    return CITYSCAPES if kept is None else ClassTable.from_dict(kept['class_table'])


# What a copy holds.


def _description(datasets: Mapping[str, SegmentationDataset]) -> dict:
    """What metadata.json says: all but the digest of each split's examples, which is known once they are written."""
    first = next(iter(datasets.values()))
    for part, dataset in datasets.items():
        if (dataset.name, dataset.class_table, dataset.label_values) != (
            first.name,
            first.class_table,
            first.label_values,
        ):
            raise DataError(
                f'{dataset.name} {part}: has other classes, or another kind of label files, than {first.name} '
                f'{first.split}; prepare them in different folders'
            )
    return {
        'name': first.name,
        'class_table': first.class_table.to_dict(),
        'label_values': first.label_values,
        'splits': {
            part: {'raw_to_train': None if dataset.label_values == 'color' else dataset.train_ids.tolist()}
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
    """TFDS's sort key of an example: in order, and spread over the keys' range.

    TFDS distributes what exceeds its memory over files by the keys' highest bits, and sorts a file at a time in memory.
    Small numbers would all fall in one.
    """
    run = position * _RUNS // count
    return (run << _KEY_BITS) // _RUNS + position


def _gray_png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(values).save(file, 'PNG')
    return file.getvalue()


def _check_holds(directory: epath.Path, datasets: Mapping[str, SegmentationDataset]) -> None:
    """Raises DataError where the copy in `directory` holds other examples than `datasets`."""
    wanted = _description(datasets)
    if not all((directory / file).exists() for file in (_INFO, _METADATA)):
        raise _other_data(directory, f'no {_INFO} or no {_METADATA}')
    kept = _metadata(directory, wanted['name'])
    if any(kept[key] != json.loads(json.dumps(wanted[key])) for key in ('class_table', 'label_values')):
        raise _other_data(directory, 'other classes, or another kind of label files')
    for part, dataset in datasets.items():
        if part not in kept['splits']:
            raise _other_data(directory, f"no split '{part}'")
        if kept['splits'][part]['raw_to_train'] != wanted['splits'][part]['raw_to_train']:
            raise _other_data(directory, f"other label values in split '{part}'")
        digest = hashlib.sha256()
        description = f'comparing {dataset.name} {part}'
        examples = tqdm.tqdm(_encoded_examples(dataset), description, len(dataset), disable=None, delay=1, leave=False)
        for _, *example in examples:
            _add(digest, *example)
        if kept['splits'][part]['sha256'] != digest.hexdigest():
            raise _other_data(directory, f"other examples in split '{part}'")


def _other_data(directory: epath.Path, what: str) -> DataError:
    return DataError(
        f'{directory}: holds a copy already, but it has {what}; delete it or choose another config.data.tfds_dir'
    )


# Where a copy is, and what its files are.


class _Part(NamedTuple):
    """A split of a copy."""

    class_table: ClassTable
    label_values: str
    raw_to_train: list[int] | None
    image: str  # names of the features
    label: str
    file_format: str
    shards: tuple[tuple[str, int], ...]  # path and number of records of each file


def _find_copies(tfds_dir: str, name: str) -> list[epath.Path]:
    """Directories of the copies to read: one of ours, or those of TFDS's Cityscapes builder."""
    root = epath.Path(tfds_dir).expanduser()
    candidates = [[f'atonet_{name}']]
    if name == 'cityscapes':
        candidates.append([f'cityscapes/{config}' for config in _STOCK])
    with _foreign_errors(tfds_dir, 'cannot be read', 'check config.data.tfds_dir'):
        if (root / _INFO).exists():
            return [root]
        for folders in candidates:
            found = [newest for newest in map(_newest_version, (root / folder for folder in folders)) if newest]
            if found:
                return found
    looked_for = ', '.join(f'{folder}/<version>' for folders in candidates for folder in folders)
    raise DataError(
        f'{tfds_dir}: holds no TFDS copy of {name} (looked for {looked_for}); make one: '
        f'python main.py --config=configs/{name}.py --mode=prepare --config.data.tfds_dir={tfds_dir}'
    )


def _newest_version(folder: epath.Path) -> epath.Path | None:
    if not folder.is_dir():
        return None
    versions = [path for path in folder.iterdir() if re.fullmatch(r'\d+\.\d+\.\d+', path.name)]
    complete = [path for path in versions if (path / _INFO).exists()]
    return max(complete, key=lambda path: tuple(map(int, path.name.split('.'))), default=None)


def _metadata(directory: epath.Path, name: str) -> dict | None:
    """What `CopyBuilder` kept of the data set `name`; None for Cityscapes as TFDS itself writes it."""
    with _foreign_errors(directory / _METADATA, 'cannot be read', _ANEW):
        kept = json.loads((directory / _METADATA).read_text()) if (directory / _METADATA).exists() else None
    if kept is None and name == 'cityscapes':
        return None
    if kept is None or kept.get('name') != name or 'class_table' not in kept:
        raise DataError(f'{directory}: holds no TFDS copy of {name}; change config.data.tfds_dir or config.data.name')
    return kept


def _parts(directory: epath.Path, name: str) -> dict[str, _Part]:
    kept = _metadata(directory, name)
    with _foreign_errors(directory, 'cannot be read', _ANEW):
        info = tfds.builder_from_directory(os.fspath(directory)).info
        names, splits, file_format = set(info.features), info.splits, info.file_format.value
    if kept is None:
        image, label = 'image_left', 'segmentation_label'
        part_names = _STOCK.get(info.config_name, {})
        if info.name != 'cityscapes' or not part_names or not {image, label} <= names:
            raise DataError(f'{directory}: is neither prepared by this program nor cityscapes/semantic_segmentation')
        described = {part: (CITYSCAPES, 'index', None) for part in part_names}
    else:
        image, label = 'image', 'label'
        part_names = {part: part for part in kept['splits']}
        table = ClassTable.from_dict(kept['class_table'])
        described = {
            part: (table, kept['label_values'], values['raw_to_train']) for part, values in kept['splits'].items()
        }
    return {
        part: _Part(
            *described[part],
            image,
            label,
            file_format,
            shards=tuple(zip(map(os.fspath, splits[split].filepaths), splits[split].shard_lengths)),
        )
        for part, split in part_names.items()
        if split in splits
    }


# Random access to records.


class _Records:
    """The files in records, as `dataset.Storage`: '<path of shard>#<number of record>/<feature>'."""

    def __init__(self, shards: list['_TFRecordShard | _ArrayRecordShard']):
        self._shards = {shard.path: shard for shard in shards}
        self._last = threading.local()  # image and label of an example are opened one after the other

    def open(self, path: str) -> BinaryIO:
        shard, number, feature = self._find(path)
        if getattr(self._last, 'record', None) != (shard, number):
            self._last.record = None
            self._last.features = shard.read(number).features.feature
            self._last.record = shard, number
        values = self._last.features[feature].bytes_list.value
        if not values:
            raise DataError(f'{path}: no such file in this record')
        return io.BytesIO(values[0])

    def fingerprint(self, path: str) -> str:
        shard, _, _ = self._find(path)
        return f'{path} {shard.size} {shard.modified}'

    def _find(self, path: str):
        match = re.fullmatch(r'(.*)#(\d+)/(\w+)', path, re.DOTALL)
        shard = match and self._shards.get(match[1])
        if not shard or int(match[2]) >= len(shard):
            raise DataError(f'{path}: no such record')
        return shard, int(match[2]), match[3]


def _open_shard(part: _Part, path: str, count: int) -> '_TFRecordShard | _ArrayRecordShard':
    kinds = {'tfrecord': _TFRecordShard, 'array_record': _ArrayRecordShard}
    if part.file_format not in kinds:
        raise DataError(f'{path}: files of format {part.file_format} cannot be read, only {" and ".join(kinds)}')
    with _foreign_errors(path, 'cannot be read', _ANEW):
        shard = kinds[part.file_format](path)
    if len(shard) != count:
        raise DataError(f'{path}: holds {len(shard)} examples instead of {count}; {_ANEW}')
    return shard


class _Shard:
    """A file of records, each read at the cost of that one alone. Safe to use from many threads.

    Attributes:
        path: of the file.
        size: in bytes.
        modified: time of its last change in nanoseconds.
    """

    def __init__(self, path: str):
        import tensorflow as tf

        stat = tf.io.gfile.stat(path)
        self.path, self.size, self.modified = path, stat.length, stat.mtime_nsec
        self._parse = tf.train.Example.FromString

    def read(self, i: int):
        """Record `i`, a tf.train.Example.

        Raises:
            DataError: the file has changed or is damaged.
        """
        with _foreign_errors(f'{self.path}#{i}', 'cannot be read', _ANEW):
            return self._parse(self._read_bytes(i))


class _TFRecordShard(_Shard):
    """Has no index, but its records say how long they are: length (8 bytes), its checksum (4), record, checksum (4)."""

    def __init__(self, path: str):
        super().__init__(path)
        self._starts, self._lengths = array.array('q'), array.array('q')
        position = 0
        with epath.Path(path).open('rb') as file:
            while position < self.size:
                file.seek(position)
                header = file.read(12)
                length = int.from_bytes(header[:8], 'little')
                intact = header[8:] == _masked_crc32c(header[:8]) and position + length + 16 <= self.size
                if not intact:
                    raise DataError(f'{path}: breaks off or is damaged at byte {position}; {_ANEW}')
                self._starts.append(position + 12)
                self._lengths.append(length)
                position += length + 16

    def __len__(self) -> int:
        return len(self._starts)

    def _read_bytes(self, i: int) -> bytes:
        # The record's own checksum would take longer than decoding it, and a damaged PNG is found then.
        with epath.Path(self.path).open('rb') as file:
            file.seek(self._starts[i])
            return file.read(self._lengths[i])


class _ArrayRecordShard(_Shard):
    def __init__(self, path: str):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        super().__init__(path)
        self._source = ArrayRecordDataSource([path])

    def __len__(self) -> int:
        return len(self._source)

    def _read_bytes(self, i: int) -> bytes:
        return self._source[i]


def _crc32c_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC32C = _crc32c_table()


def _masked_crc32c(data: bytes) -> bytes:
    """The checksum in TFRecord files: CRC-32C, rotated and shifted by a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, 'little')


# TFDS's ways.


@contextlib.contextmanager
def _foreign_errors(path: epath.PathLike, problem: str, advice: str) -> Iterator[None]:
    """Makes one DataError of what TensorFlow, TFDS and array_record raise, each of its own kinds."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f'{path}: {problem} ({reason}); {advice}') from error


@contextlib.contextmanager
def _tfds_output() -> Iterator[None]:
    """Progress bars on a terminal alone, and nothing else that TFDS says."""
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
