"""The data that a config names."""

import dataclasses
import os

from ml_collections import ConfigDict

from atonet_jax.data import device_cache
from atonet_jax.data.camvid import load_camvid
from atonet_jax.data.cityscapes import load_cityscapes
from atonet_jax.data.class_file import read_class_file
from atonet_jax.data.dataset import DataError, SegmentationDataset, split_file_name, split_parts
from atonet_jax.data.examples import Examples
from atonet_jax.data.folder import load_folder
from atonet_jax.data.labels import CLASS_TABLES, ClassTable
from atonet_jax.data.synthetic import write_dataset
from atonet_jax.data.verify import verify
from atonet_jax.errors import InputError
from atonet_jax.process.devices import create_mesh
from atonet_jax.process.files import writing


def class_table(data: ConfigDict) -> ClassTable:
    """The classes of the data that the config's section `data` names.

    Raises:
        DataError: a class file, or the prepared copy that holds it, is missing or wrong.
    """
    if data.name in CLASS_TABLES:
        return CLASS_TABLES[data.name]
    if data.tfds_dir:
        from atonet_jax.data.tfds_copy import read_class_table

        return read_class_table(data.tfds_dir, data.name)
    return read_class_file(os.path.join(data.root, data.folder.classes), data.name)


def load_dataset(data: ConfigDict, split: str) -> SegmentationDataset:
    """A split of the data that the config's section `data` names. Reads the prepared copy if `tfds_dir` is given.

    'synthetic' is rendered first if `data.root` does not hold it yet, and is then read as Cityscapes.

    Raises:
        DataError: files are missing or do not fit each other, `data.root` holds other data than asked for, or its
            labels cannot be read as `label_values` says.
    """
    dataset = _load_files(data, split)
    held = 'color' if dataset.reading.by_color else 'index'
    if data.label_values not in ('auto', held):
        raise DataError(
            f'config.data.label_values={data.label_values}: but the labels of {dataset.name} {split} are {held} here; '
            'leave it auto'
        )
    return dataclasses.replace(
        dataset,
        unknown_as_void=data.unknown_as_void,
        max_pixels=data.max_pixels,
        sample_range=tuple(data.sample_range),
        label_orientation=data.label_orientation,
    )


def _load_files(data: ConfigDict, split: str) -> SegmentationDataset:
    if data.tfds_dir:
        from atonet_jax.data.tfds_copy import load_tfds

        return load_tfds(data.tfds_dir, data.name, split)
    if data.name == 'camvid':
        return load_camvid(data.root, split, data.label_values)
    if data.name == 'folder':
        return load_folder(data.root, split, class_table(data), data.folder, data.label_values)
    if data.name == 'synthetic':
        scenes = data.synthetic
        with writing(data.root, '--config.data.root'):
            write_dataset(
                data.root,
                splits={'train': scenes.train_scenes, 'val': scenes.val_scenes},
                height=scenes.height,
                width=scenes.width,
                seed=scenes.seed,
            )
    return dataclasses.replace(load_cityscapes(data.root, split), name=data.name)


def load_examples(data: ConfigDict, split: str, workdir: str, processes: int = 1) -> Examples:
    """The examples of a split, all files checked; `workdir` remembers which ones were.

    Args:
        data: the config's section.
        split: of the data.
        workdir: of the run.
        processes: how many on this host load the split, each for itself.

    Raises:
        InputError: the split has no labels, or as in `load_dataset`, `verify`, `Examples` and `device_cache.check`.
    """
    dataset = load_dataset(data, split)
    dataset.require_labels()
    dataset = verify(
        dataset,
        cache_path=os.path.join(workdir, split_file_name('verified', split)),
        on_corrupt=data.on_corrupt,
        for_training=split == data.train_split,
        trust_labels=data.trust_labels,
    )
    cache = data.cache
    if cache == 'auto':
        cache = 'device' if device_cache.suits(dataset, create_mesh()) else 'none'
    elif cache == 'device':
        device_cache.check([dataset], create_mesh())
    cache_dir = data.cache_dir or os.path.join(workdir, 'decoded')
    return Examples(dataset, cache=cache, cache_dir=cache_dir, on_corrupt=data.on_corrupt, processes=processes)


def prepare_copy(data: ConfigDict) -> str:
    """Writes the splits of a config's data as a sharded TFDS copy; returns the copy's folder.

    Raises:
        InputError: `tfds_dir` is not given or holds another copy, or some file cannot be used.
    """
    from atonet_jax.data.tfds_builders import prepare

    if not data.tfds_dir:
        raise InputError('config.data.tfds_dir is empty; give the folder for the copy')
    source = data.copy_and_resolve_references()
    source.tfds_dir = ''
    parts = dict.fromkeys(part for split in (data.train_split, data.eval_split) for part in split_parts(split))
    datasets = {
        part: verify(
            load_dataset(source, part),
            on_corrupt=data.on_corrupt,
            decode_images=True,
            trust_labels=data.trust_labels,
        )
        for part in parts
    }
    return prepare(datasets, data.tfds_dir)
