"""Reads TFDS copies of data sets: few large files with random access, on a disk or in a bucket.

Reads copies that tfds_builders.py prepared, and TFDS's own copy of Cityscapes (`cityscapes/semantic_segmentation`).
"""

import concurrent.futures
import json
import os
import re
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds  # imports TensorFlow only when it is needed
from etils import epath

from atonet_jax.data.dataset import DataError, LabelReading, SegmentationDataset, split_parts
from atonet_jax.data.label_files import KINDS
from atonet_jax.data.labels import CITYSCAPES, ClassTable
from atonet_jax.data.tfds_records import ANEW, Records, foreign_errors, open_shard

METADATA = 'metadata.json'  # TFDS's name for what a builder wants to keep
INFO = 'dataset_info.json'  # TFDS writes it last
_STOCK = {  # by config of TFDS's Cityscapes builder: our parts, and its name for each
    'semantic_segmentation': {'train': 'train', 'val': 'validation', 'test': 'test'},
    'semantic_segmentation_extra': {'train_coarse': 'train', 'val_coarse': 'validation', 'train_extra': 'train_extra'},
}


def load_tfds(tfds_dir: str, name: str, split: str) -> SegmentationDataset:
    """A split of a copy: the bytes that were prepared, in the same order.

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
        shards = [
            pool.submit(open_shard, path, part.file_format, count) for part in chosen for path, count in part.shards
        ]
    records = Records([shard.result() for shard in shards])
    examples = [(part, f'{path}#{i}') for part in chosen for path, count in part.shards for i in range(count)]
    raw_to_train = chosen[0].raw_to_train
    return SegmentationDataset(
        name=name,
        split=split,
        class_table=chosen[0].class_table,
        image_paths=tuple(f'{record}/{part.image}' for part, record in examples),
        label_paths=tuple(f'{record}/{part.label}' for part, record in examples),
        reading=LabelReading(by_color=frozenset(KINDS if chosen[0].label_values == 'color' else ())),
        raw_to_train=None if raw_to_train is None else np.array(raw_to_train, np.uint8),
        storage=records,
    )


def read_class_table(tfds_dir: str, name: str) -> ClassTable:
    """The classes of a copy that `load_tfds` reads. Needs no TensorFlow if the copy is on a disk.

    Raises:
        DataError: no such copy.
    """
    kept = read_metadata(_find_copies(tfds_dir, name)[0], name)
    return CITYSCAPES if kept is None else ClassTable.from_dict(kept['class_table'])


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
    with foreign_errors(tfds_dir, 'cannot be read', 'check config.data.tfds_dir'):
        if (root / INFO).exists():
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
    complete = [path for path in versions if (path / INFO).exists()]
    return max(complete, key=lambda path: tuple(map(int, path.name.split('.'))), default=None)


def read_metadata(directory: epath.Path, name: str) -> dict | None:
    """The metadata that `tfds_builders.CopyBuilder` wrote for the data set `name`; None for TFDS's own Cityscapes."""
    with foreign_errors(directory / METADATA, 'cannot be read', ANEW):
        kept = json.loads((directory / METADATA).read_text()) if (directory / METADATA).exists() else None
    if kept is None and name == 'cityscapes':
        return None
    if kept is None or kept.get('name') != name or 'class_table' not in kept:
        raise DataError(f'{directory}: holds no TFDS copy of {name}; change config.data.tfds_dir or config.data.name')
    return kept


def _parts(directory: epath.Path, name: str) -> dict[str, _Part]:
    kept = read_metadata(directory, name)
    with foreign_errors(directory, 'cannot be read', ANEW):
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
