"""A user's own images and label files, paired by name, with a class file (class_file.py)."""

import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping

from ml_collections import ConfigDict

from atonet_jax.data.dataset import DataError, SegmentationDataset, refuse_folder, split_parts
from atonet_jax.data.label_files import LABEL_EXTENSIONS
from atonet_jax.data.label_reading import decide_reading
from atonet_jax.data.labels import ClassTable
from atonet_jax.data.pictures import HEIF_SUFFIXES, suffixes
from atonet_jax.data.split_list import read_split_list, refuse_repeated
from atonet_jax.process.files import walk

_log = logging.getLogger(__name__)

_USUAL_EXTENSIONS = ('.png', '.jpg', '.jpeg')  # files of other formats are images only where a label names them


def load_folder(
    root: str, split: str, table: ClassTable, options: ConfigDict, label_values: str = 'auto'
) -> SegmentationDataset:
    """Pairs the images and labels of a split by their paths below the two folders, without suffix and extension.

    Args:
        root: what the folders in `options` are relative to.
        split: a part such as 'train', or several joined by '+', which stands for '{split}' in `options`.
        table: the classes.
        options: `images`, `labels`: the two folders; `image_suffix`, `label_suffix`: what ends the names of their files
            before the extension; `list`: a text file with a name a line, from the image folder or from
            `root`, or '' for all files in the folders.
        label_values: as in `decide_reading`.

    Raises:
        DataError: a part is empty or named twice; a folder or list is missing, unreadable or holds nothing; two
            files have one name; a file would be image and label; an image is in two parts; or as in `decide_reading`.
    """
    image_paths, label_paths, unusable = [], [], {}
    for part in split_parts(split):
        for image, label, fault in _pairs(root, part, options):
            if fault is not None:
                unusable[len(image_paths)] = fault
            image_paths.append(image)
            label_paths.append(label)
    refuse_repeated(image_paths, f'split {split}')  # parts may have lists of the same folder
    dataset = SegmentationDataset('folder', split, table, tuple(image_paths), tuple(label_paths), unusable=unusable)
    return decide_reading(dataset, label_values)


def _pairs(root: str, part: str, options: ConfigDict) -> Iterator[tuple[str, str, DataError | None]]:
    """Image file, label file, and what is wrong with the list's line, of each example of a part.

    Files that are missing or of a wrong kind are reported when they are read.
    """
    images_folder, labels_folder = (
        os.path.normpath(os.path.join(root, pattern.replace('{split}', part)))
        for pattern in (options.images, options.labels)
    )
    for what, folder in (('images', images_folder), ('labels', labels_folder)):
        if not os.path.isdir(folder):
            raise DataError(f'{folder}: no such folder; config.data.folder.{what} says where the {what} are')
    labels = _find(labels_folder, options.label_suffix, LABEL_EXTENSIONS)
    images = _find(images_folder, options.image_suffix, _image_suffixes(), labels)
    taken = set(images.values())  # both may lie in one folder
    labels = {name: path for name, path in labels.items() if path not in taken}
    if options.list:
        path = os.path.join(root, options.list.replace('{split}', part))
        examples = _listed(path, root, images_folder, options.image_suffix, images)
    else:
        images = _without_strays(images, labels, images_folder)
        if not images:
            wanted = f'*{options.image_suffix}.png, .jpg or another usual format'
            raise DataError(f'{images_folder}: holds no images ({wanted}); see config.data.folder')
        examples = [(name, None) for name in sorted(images.keys() | labels.keys())]
    wrong_labels = {}
    if any(name not in labels for name, _ in examples):
        endings = tuple(ending for ending in suffixes() if ending not in LABEL_EXTENSIONS)
        wrong_labels = _find(labels_folder, options.label_suffix, endings)
        wrong_labels = {name: path for name, path in wrong_labels.items() if path not in taken}
    for name, fault in examples:
        image = images.get(name, os.path.join(images_folder, f'{name}{options.image_suffix}.png'))
        missing_label = os.path.join(labels_folder, f'{name}{options.label_suffix}.png')
        label = labels.get(name, wrong_labels.get(name, missing_label))
        if images.get(name) == label:
            raise DataError(f'{image}: is the only file of its name, but image and label are needed; add the other')
        yield image, label, fault


def _listed(
    path: str, root: str, folder: str, suffix: str, images: Mapping[str, str]
) -> list[tuple[str, DataError | None]]:
    """The names of the images in a list, each with a fault if it is none of `images`, the files in `folder`."""
    lines = read_split_list(path)
    if not lines:
        raise DataError(f'{path}: names no images; write one name a line')
    examples = []
    for line in lines:
        name, fault = _listed_name(line, root, folder, suffix, images), None
        if name not in images:
            text = f"{path}: names '{line}', which is not below {folder}; write one image name a line"
            fault = DataError(text, 'missing file')
        examples.append((name, fault))
    return examples


def _without_strays(images: dict[str, str], labels: Mapping[str, str], folder: str) -> dict[str, str]:
    """`images` without files of rare formats that no label names, if there are labels at all."""
    stray = {name: path for name, path in images.items() if name not in labels and not _is_usual(path)}
    if not (labels and stray):
        return images
    _log.warning(
        '%s: passed over %d files without labels that are neither PNG nor JPEG, such as %s',
        folder,
        len(stray),
        min(stray.values()),
    )
    return {name: path for name, path in images.items() if name not in stray}


def _find(
    folder: str, suffix: str, extensions: tuple[str, ...], labels: Mapping[str, str] | None = None
) -> dict[str, str]:
    """{name: path} of the files below `folder` that end in `suffix` and one of `extensions`.

    Args:
        folder: with files at any depth.
        suffix: what ends their names before the extension.
        extensions: of the files.
        labels: for images: what was found of labels. The label of another image is no image.
    """
    found = defaultdict(list)
    for parent, files in walk(folder, refuse_folder):
        for file in files:
            stem, extension = os.path.splitext(file)
            if extension.lower() in extensions and stem.endswith(suffix):
                path = os.path.join(parent, file)
                found[_strip(os.path.relpath(path, folder), suffix, extensions)].append(path)
    if labels is not None:
        of_others = {labels[name] for name, paths in found.items() if name in labels and paths != [labels[name]]}
        for name, paths in found.items():
            paths = [path for path in paths if path not in of_others]
            found[name] = list(filter(_is_usual, paths)) or paths  # a camera's original may lie beside its JPEG
    for paths in found.values():
        if len(paths) > 1:
            raise DataError(f'{paths[1]}: has the same name as {paths[0]}; keep one of them in that folder')
    return {name: paths[0] for name, paths in found.items() if paths}


def _listed_name(line: str, root: str, folder: str, suffix: str, images: Mapping[str, str]) -> str:
    """The name of an image that a list gives by its path from the image folder, or from `root`."""
    from_root = os.path.relpath(os.path.join(root, line), folder)
    names = [_strip(path, suffix, _image_suffixes()) for path in (line, from_root)]
    return next((name for name in names if name in images), names[0])


def _image_suffixes() -> tuple[str, ...]:
    """With those of HEIF, so that reading such an image says what it needs."""
    return (*suffixes(), *HEIF_SUFFIXES)


def _is_usual(path: str) -> bool:
    return path.lower().endswith(_USUAL_EXTENSIONS)


def _strip(name: str, suffix: str, extensions: tuple[str, ...]) -> str:
    """The name in one form, because macOS writes accents as characters of their own."""
    stem, extension = os.path.splitext(name)
    return unicodedata.normalize('NFC', (stem if extension.lower() in extensions else name).removesuffix(suffix))
