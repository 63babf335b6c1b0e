"""A user's own images and label files, paired by name, with a class file (class_file.py)."""

import logging
import os

from ml_collections import ConfigDict

from atonet_jax.data.dataset import DataError, SegmentationDataset, split_parts
from atonet_jax.data.decode import detect_label_values
from atonet_jax.data.labels import ClassTable
from atonet_jax.data.pictures import suffixes
from atonet_jax.data.split_list import read_split_list

_log = logging.getLogger(__name__)

_USUAL_EXTENSIONS = ('.png', '.jpg', '.jpeg')  # files of other formats are images only where a label names them
_LABEL_EXTENSIONS = ('.png',)


def load_folder(root: str, split: str, table: ClassTable, options: ConfigDict) -> SegmentationDataset:
    """Pairs the images and labels of a split by their paths below the two folders, without suffix and extension.

    Args:
        root: what the folders in `options` are relative to.
        split: a part such as 'train', or several joined by '+', which stands for '{split}' in `options`.
        table: the classes.
        options: `images`, `labels`: the two folders; `image_suffix`, `label_suffix`: what ends the names of their files
            before the extension; `list`: a text file with a name a line, or '' for all files in the folders.

    Raises:
        DataError: a part is empty or named twice; a folder or list is missing, holds nothing, or two files have one
            name; or labels are colours and two classes have the same.
    """
    image_paths, label_paths = [], []
    for part in split_parts(split):
        images_folder, labels_folder = (
            os.path.join(root, pattern.replace('{split}', part)) for pattern in (options.images, options.labels)
        )
        images = _find(images_folder, options.image_suffix, suffixes(), 'images')
        labels = _find(labels_folder, options.label_suffix, _LABEL_EXTENSIONS, 'labels')
        if options.list:
            path = os.path.join(root, options.list.replace('{split}', part))
            names = [_strip(name, options.image_suffix, suffixes()) for name in read_split_list(path)]
            if not names:
                raise DataError(f'{path}: names no images; write one name a line')
        else:
            stray = {name: path for name, path in images.items() if name not in labels and not _is_usual(path)}
            if labels and stray:
                _log.warning(
                    '%s: passed over %d files without labels that are neither PNG nor JPEG, such as %s',
                    images_folder,
                    len(stray),
                    min(stray.values()),
                )
                images = {name: path for name, path in images.items() if name not in stray}
            names = sorted(images.keys() | labels.keys())
            if not images:
                wanted = f'*{options.image_suffix}.png, .jpg or another usual format'
                raise DataError(f'{images_folder}: holds no images ({wanted}); see config.data.folder')
        # A missing file is reported when it is read.
        for name in names:
            image_paths.append(images.get(name, os.path.join(images_folder, f'{name}{options.image_suffix}.png')))
            label_paths.append(labels.get(name, os.path.join(labels_folder, f'{name}{options.label_suffix}.png')))
    label_values = detect_label_values(label_paths, table)
    if label_values == 'color':
        _check_colors_differ(table, os.path.join(root, options.classes))
    return SegmentationDataset(
        name='folder',
        split=split,
        class_table=table,
        image_paths=tuple(image_paths),
        label_paths=tuple(label_paths),
        label_values=label_values,
    )


def _check_colors_differ(table: ClassTable, path: str) -> None:
    labels = {}
    for label in table.raw_labels:
        other = labels.setdefault(label.color, label)
        if other.train_id != label.train_id:
            raise DataError(
                f'{path}: {other.name!r} and {label.name!r} both have the colour {label.color}, by which the label '
                'files tell classes apart; give each its own'
            )


def _find(folder: str, suffix: str, extensions: tuple[str, ...], what: str) -> dict[str, str]:
    """{name: path} of the files below `folder` that end in `suffix` and one of `extensions`."""
    if not os.path.isdir(folder):
        raise DataError(f'{folder}: no such folder; config.data.folder.{what} says where the {what} are')
    paths, seen = {}, set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        for file in files:
            path = os.path.join(parent, file)
            stem, extension = os.path.splitext(file)
            if extension.lower() not in extensions or not stem.endswith(suffix) or file.startswith('.'):
                continue
            name = _strip(os.path.relpath(path, folder), suffix, extensions)
            if what == 'images' and name in paths and _is_usual(path) != _is_usual(paths[name]):  # and its original
                paths[name] = path if _is_usual(path) else paths[name]
                continue
            if name in paths:
                raise DataError(f'{path}: has the same name as {paths[name]}; remove one of them')
            paths[name] = path
    return paths


def _is_usual(path: str) -> bool:
    return path.lower().endswith(_USUAL_EXTENSIONS)


def _strip(name: str, suffix: str, extensions: tuple[str, ...]) -> str:
    stem, extension = os.path.splitext(name)
    return (stem if extension.lower() in extensions else name).removesuffix(suffix)
