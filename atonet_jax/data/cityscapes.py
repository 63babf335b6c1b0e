"""Cityscapes as unpacked: leftImg8bit/{split}/{city}/ beside gtFine/{split}/{city}/ and gtCoarse/{split}/{city}/."""

import os

import numpy as np

from atonet_jax.data.dataset import DataError, LabelReading, SegmentationDataset, names_in, split_parts
from atonet_jax.data.labels import CITYSCAPES, IGNORE_LABEL, UNKNOWN_LABEL

_IMAGES = 'leftImg8bit'
_PARTS = {  # the folder that the files of a part lie in, and that of their labels
    'train': ('train', 'gtFine'),
    'val': ('val', 'gtFine'),
    'test': ('test', 'gtFine'),
    'train_extra': ('train_extra', 'gtCoarse'),
    'train_coarse': ('train', 'gtCoarse'),
    'val_coarse': ('val', 'gtCoarse'),
}
_LAYOUT = (
    'expected leftImg8bit/{train,val,test}/<city>/*_leftImg8bit.png and '
    'gtFine/{train,val,test}/<city>/*_gtFine_labelIds.png'
)


def load_cityscapes(root: str, split: str) -> SegmentationDataset:
    """Pairs the images and labels of a split by name.

    Takes `*_labelIds.png`, or `*_labelTrainIds.png` in a split that has none of the former.

    Args:
        root: the folder with `leftImg8bit`, and `gtFine` or `gtCoarse`.
        split: 'train', 'val', 'test' (which may lack labels) with fine labels; 'train_extra', 'train_coarse',
            'val_coarse' with coarse ones; or several joined by '+'.

    Raises:
        DataError: unknown split, missing or unreadable folder, or no images.
    """
    parts = split_parts(split, tuple(_PARTS))
    images = {part: _find(root, _IMAGES, _PARTS[part][0], f'_{_IMAGES}.png') for part in parts}
    for part, found in images.items():
        if not found:
            raise DataError(f'{root}: no images in Cityscapes split {part}; {_LAYOUT}')
    kinds = ('labelIds', 'labelTrainIds')
    if split == 'test' and not os.path.isdir(os.path.join(root, 'gtFine', 'test')):
        kind, labels = kinds[0], {'test': {}}
    else:
        for kind in kinds:
            labels = {part: _find_labels(root, part, kind) for part in parts}
            if any(labels.values()):
                break
        else:
            kind = kinds[0]

    image_paths, label_paths = [], []
    for part in parts:
        folder, label_kind = _PARTS[part]
        for name in sorted(images[part].keys() | labels[part].keys()):
            # A missing file is reported when it is read.
            image = os.path.join(root, _IMAGES, folder, f'{name}_{_IMAGES}.png')
            label = os.path.join(root, label_kind, folder, f'{name}_{label_kind}_{kind}.png')
            image_paths.append(images[part].get(name, image))
            label_paths.append(labels[part].get(name, label))
    has_labels = any(labels.values()) or split != 'test'
    return SegmentationDataset(
        name='cityscapes',
        split=split,
        class_table=CITYSCAPES,
        image_paths=tuple(image_paths),
        label_paths=tuple(label_paths) if has_labels else None,
        # Optimisers write files of one channel as indices of a palette of its greys.
        reading=LabelReading(by_level=True),
        raw_to_train=None if kind == 'labelIds' else _train_id_identity(),
    )


def _find_labels(root: str, part: str, kind: str) -> dict[str, str]:
    folder, label_kind = _PARTS[part]
    return _find(root, label_kind, folder, f'_{label_kind}_{kind}.png')


def _find(root: str, kind: str, part: str, suffix: str) -> dict[str, str]:
    """{'<city>/<city>_<seq>_<frame>': path} of the files of a part that end in `suffix`.

    Raises:
        DataError: the part's folder is missing, or one of a city cannot be read.
    """
    folder = os.path.join(root, kind, part)
    if not os.path.isdir(folder):
        raise DataError(f'{folder}: no such folder; {_LAYOUT}')
    cities = [city for city in names_in(folder) if not os.path.isfile(os.path.join(folder, city))]
    files = [os.path.join(city, name) for city in cities for name in names_in(os.path.join(folder, city))]
    return {file.removesuffix(suffix): os.path.join(folder, file) for file in files if file.endswith(suffix)}


def _train_id_identity() -> np.ndarray:
    """[256] uint8 lookup of files that hold train ids already."""
    table = np.full(256, UNKNOWN_LABEL, np.uint8)
    table[: CITYSCAPES.num_classes] = np.arange(CITYSCAPES.num_classes)
    table[IGNORE_LABEL] = IGNORE_LABEL
    return table
