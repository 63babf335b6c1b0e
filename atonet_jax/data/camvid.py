"""CamVid in the layouts that are in use.

- 701 frames: an image folder and a label folder, whose `<frame>_L.png` (or `<frame>.png`) hold the colours of 32
  classes, or their indices 0..31 in alphabetical order without regard to case.
- The 360x480 repack: train/ and trainannot/, val/ and valannot/, test/ and testannot/, whose labels hold 0..10 for the
  11 classes and 11 for void; and another with train/ and train_labels/ and so on, whose labels hold colours.
"""

import logging
import os

import numpy as np

from atonet_jax.data.dataset import DataError, SegmentationDataset, names_in, split_parts
from atonet_jax.data.label_files import LABEL_EXTENSIONS
from atonet_jax.data.label_reading import decide_reading
from atonet_jax.data.labels import CAMVID, IGNORE_LABEL, UNKNOWN_LABEL
from atonet_jax.data.pictures import suffixes
from atonet_jax.data.split_list import read_split_list, refuse_repeated

_log = logging.getLogger(__name__)

_PARTS = ('train', 'val', 'test')
_IMAGE_FOLDERS = ('701_StillsRaw_full', 'images')
_LABEL_FOLDERS = ('LabeledApproved_full', 'labels')
_REPACK_VOID = 11
_LAYOUT = (
    f'expected {" or ".join(_IMAGE_FOLDERS)} beside {" or ".join(_LABEL_FOLDERS)}, '
    'or train, val and test beside trainannot, valannot and testannot, or beside train_labels, val_labels, test_labels'
)


def load_camvid(root: str, split: str, label_values: str = 'auto') -> SegmentationDataset:
    """Finds the layout of CamVid in `root`, logs it, and pairs the images and labels of a split by name.

    If `root` holds train.txt, val.txt and test.txt, they split the 701 frames: one frame a line, with or without folder
    and extension. Otherwise the usual split of 367, 101 and 233 frames is used.

    Args:
        root: the folder that holds one of the layouts above.
        split: 'train', 'val', 'test', or several joined by '+'.
        label_values: as in `decide_reading`.

    Raises:
        DataError: unknown split, a missing folder, a split without frames or with one twice, two files of one frame; or
            as in `decide_reading`.
    """
    parts = split_parts(split, _PARTS)
    for suffix in ('annot', '_labels'):
        if os.path.isdir(os.path.join(root, f'train{suffix}')):
            dataset, layout = _load_repack(root, split, parts, suffix), f'train beside train{suffix}'
            break
    else:
        dataset, layout = _load_frames(root, split, parts), 'all frames in one folder'
    _log.info('%s: CamVid %s, %d frames; layout: %s', root, split, len(dataset), layout)
    return decide_reading(dataset, label_values)


def _load_repack(root: str, split: str, parts: tuple[str, ...], label_suffix: str) -> SegmentationDataset:
    """The layout with one image folder and one label folder for each part."""
    image_paths, label_paths = [], []
    for part in parts:
        images_folder, labels_folder = os.path.join(root, part), os.path.join(root, f'{part}{label_suffix}')
        images, labels = _frames(images_folder, suffixes()), _frames(labels_folder, LABEL_EXTENSIONS)
        for frame in sorted(images.keys() | labels.keys()):
            image_paths.append(images.get(frame, os.path.join(images_folder, f'{frame}.png')))
            label_paths.append(labels.get(frame, os.path.join(labels_folder, f'{frame}.png')))
    raw_to_train = np.full(256, UNKNOWN_LABEL, np.uint8)
    raw_to_train[:_REPACK_VOID] = np.arange(_REPACK_VOID)
    raw_to_train[[_REPACK_VOID, IGNORE_LABEL]] = IGNORE_LABEL
    return _dataset(root, split, image_paths, label_paths, raw_to_train)


def _load_frames(root: str, split: str, parts: tuple[str, ...]) -> SegmentationDataset:
    """The layout with all frames in one folder and all labels in another."""
    images_folder, labels_folder = _existing_folder(root, _IMAGE_FOLDERS), _existing_folder(root, _LABEL_FOLDERS)
    images, labels = _frames(images_folder, suffixes()), _frames(labels_folder, LABEL_EXTENSIONS)
    if not labels:
        raise DataError(f'{labels_folder}: holds no label files; {_LAYOUT}')
    lists = {part: os.path.join(root, f'{part}.txt') for part in _PARTS}
    if any(map(os.path.exists, lists.values())):
        missing = [lists[part] for part in parts if not os.path.exists(lists[part])]
        if missing:
            raise DataError(f'{missing[0]}: no such file; write all of {", ".join(lists.values())}, or none of them')
        frames = [_frame_name(name) for part in parts for name in read_split_list(lists[part])]
        if not frames:
            raise DataError(f'{", ".join(lists[part] for part in parts)}: names no frames; write one a line')
    else:
        frames = [frame for frame in sorted(images.keys() | labels.keys()) if _usual_part(frame, root) in parts]
    return _dataset(
        root,
        split,
        [images.get(frame, os.path.join(images_folder, f'{frame}.png')) for frame in frames],
        [labels.get(frame, os.path.join(labels_folder, f'{frame}_L.png')) for frame in frames],
        raw_to_train=None,
    )


def _dataset(root, split, image_paths, label_paths, raw_to_train) -> SegmentationDataset:
    if not image_paths:
        raise DataError(f'{root}: no frames in CamVid split {split}; {_LAYOUT}')
    refuse_repeated(image_paths, f'split {split}')  # the lists of its parts may share frames
    return SegmentationDataset(
        name='camvid',
        split=split,
        class_table=CAMVID,
        image_paths=tuple(image_paths),
        label_paths=tuple(label_paths),
        raw_to_train=raw_to_train,
    )


def _existing_folder(root: str, names: tuple[str, ...]) -> str:
    for name in names:
        folder = os.path.join(root, name)
        if os.path.isdir(folder):
            return folder
    raise DataError(f'{root}: has neither of the folders {", ".join(names)}; {_LAYOUT}')


def _frames(folder: str, endings: tuple[str, ...]) -> dict[str, str]:
    """{frame: path} of the files in a folder that end so and are not hidden."""
    if not os.path.isdir(folder):
        raise DataError(f'{folder}: no such folder; {_LAYOUT}')
    paths = {}
    for name in names_in(folder):
        if not name.lower().endswith(endings):
            continue
        path = os.path.join(folder, name)
        other = paths.setdefault(_frame_name(name), path)
        if other != path:
            raise DataError(f'{path}: is of the same frame as {other}; remove one of them')
    return paths


def _frame_name(path: str) -> str:
    """'0001TP_006690' of '0001TP_006690', 'train/0001TP_006690.png', '0001TP_006690_L.png' or '..._P.png'."""
    return os.path.splitext(os.path.basename(path))[0].removesuffix('_L').removesuffix('_P')


def _usual_part(frame: str, root: str) -> str:
    """The usual part of a frame of the 701 (367 train, 101 val, 233 test)."""
    sequence, _, number = frame.partition('_')
    number = number.lstrip('f')
    if number.isdecimal():
        if sequence == 'Seq05VD':
            return 'test'
        if sequence == '0001TP':
            return 'train' if int(number) < 8550 else 'test'
        if sequence == '0016E5':
            return 'val' if 7959 <= int(number) <= 8159 else 'train'
        if sequence == '0006R0':
            return 'train'
    raise DataError(
        f"{root}: frame '{frame}' is not one of CamVid's 701, so its split is unknown; "
        'write train.txt, val.txt and test.txt there, one frame name a line'
    )
