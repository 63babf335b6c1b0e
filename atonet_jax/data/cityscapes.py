"""Cityscapes as it unpacks: leftImg8bit/{split}/{city}/ and gtFine/{split}/{city}/."""

import glob
import os

import numpy as np

from atonet_jax.data.dataset import DataError, SegmentationDataset, split_parts
from atonet_jax.data.labels import CITYSCAPES, IGNORE_LABEL, UNKNOWN_LABEL

_IMAGE_SUFFIX = '_leftImg8bit.png'
_RAW_ID_SUFFIX = '_gtFine_labelIds.png'
_TRAIN_ID_SUFFIX = '_gtFine_labelTrainIds.png'
_LAYOUT = (
    'expected leftImg8bit/{train,val,test}/<city>/*_leftImg8bit.png and '
    'gtFine/{train,val,test}/<city>/*_gtFine_labelIds.png'
)


def load_cityscapes(root: str, split: str) -> SegmentationDataset:
    """Pairs the images and labels of a split by name.

    Takes `*_gtFine_labelIds.png`, or `*_gtFine_labelTrainIds.png` in a split that has none of the former.

    Args:
        root: the folder with `leftImg8bit` and `gtFine`.
        split: 'train', 'val', 'test' (which may lack labels) or 'trainval'.

    Raises:
        DataError: unknown split, missing folder, no images, or images and labels that have no partner.
    """
    images = _find(root, 'leftImg8bit', split, _IMAGE_SUFFIX)
    if not images:
        raise DataError(f'{root}: no images in Cityscapes split {split}; {_LAYOUT}')
    if split == 'test' and not os.path.isdir(os.path.join(root, 'gtFine', 'test')):
        labels, raw_to_train = {}, None
    else:
        labels, raw_to_train = _find(root, 'gtFine', split, _RAW_ID_SUFFIX), None
        if not labels:
            labels, raw_to_train = _find(root, 'gtFine', split, _TRAIN_ID_SUFFIX), _train_id_identity()

    names = sorted(images)
    label_paths = None
    if labels or split != 'test':
        _check_paired(images, labels, root, split)
        label_paths = tuple(labels[name] for name in names)
    return SegmentationDataset(
        name='cityscapes',
        split=split,
        class_table=CITYSCAPES,
        image_paths=tuple(images[name] for name in names),
        label_paths=label_paths,
        raw_to_train=raw_to_train,
    )


def _find(root: str, kind: str, split: str, suffix: str) -> dict[str, str]:
    """{'<split>/<city>/<city>_<seq>_<frame>': path} of a split's files that end in `suffix`."""
    paths = {}
    for part in split_parts(split):
        folder = os.path.join(root, kind, part)
        if not os.path.isdir(folder):
            raise DataError(f'{folder}: no such folder; {_LAYOUT}')
        for path in glob.glob(os.path.join(glob.escape(folder), '*', f'*{suffix}')):
            paths[f'{part}/{os.path.relpath(path, folder).removesuffix(suffix)}'] = path
    return paths


def _check_paired(images: dict[str, str], labels: dict[str, str], root: str, split: str) -> None:
    for missing, found, what in (
        (images.keys() - labels.keys(), 'images', 'label (*_gtFine_labelIds.png)'),
        (labels.keys() - images.keys(), 'labels', 'image (*_leftImg8bit.png)'),
    ):
        if missing:
            first = ', '.join(sorted(missing)[:3])
            raise DataError(
                f'{root}: {len(missing)} {found} of Cityscapes split {split} have no {what}, first {first}; '
                'add or remove these files'
            )


def _train_id_identity() -> np.ndarray:
    """[256] uint8 lookup of files that hold train ids already."""
    table = np.full(256, UNKNOWN_LABEL, np.uint8)
    table[: CITYSCAPES.num_classes] = np.arange(CITYSCAPES.num_classes)
    table[IGNORE_LABEL] = IGNORE_LABEL
    return table
