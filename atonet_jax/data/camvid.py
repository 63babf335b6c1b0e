"""CamVid in the shapes that are in circulation.

- 701 frames: an image folder and a label folder, whose `<frame>_L.png` (or `<frame>.png`) hold the colours of 32
  classes, or their indices 0..31 in alphabetical order.
- The 360x480 repack: train/ and trainannot/, val/ and valannot/, test/ and testannot/, whose labels hold 0..10 for the
  11 classes and 11 for void.
"""

import logging
import os

import numpy as np
import PIL.Image

from atonet_jax.data.dataset import DataError, SegmentationDataset, split_parts
from atonet_jax.data.labels import CAMVID, IGNORE_LABEL, UNKNOWN_LABEL

_log = logging.getLogger(__name__)

_PARTS = ('train', 'val', 'test')
_IMAGE_FOLDERS = ('701_StillsRaw_full', 'images')
_LABEL_FOLDERS = ('LabeledApproved_full', 'labels')
_REPACK_VOID = 11
_LAYOUT = (
    f'expected {" or ".join(_IMAGE_FOLDERS)} beside {" or ".join(_LABEL_FOLDERS)}, '
    'or the repack with train, trainannot, val, valannot, test and testannot'
)


def load_camvid(root: str, split: str) -> SegmentationDataset:
    """Finds out which shape of CamVid lies in `root`, logs it, and pairs the images and labels of a split by name.

    The 701 frames are split by train.txt, val.txt and test.txt in `root` where they are (a frame a line, with or
    without folder and extension), and else into the usual 367, 101 and 233.

    Args:
        root: the folder that holds one of the shapes above.
        split: 'train', 'val', 'test' or 'trainval'.

    Raises:
        DataError: unknown split, a missing folder, an image without label or the reverse, or a split without images.
    """
    if os.path.isdir(os.path.join(root, 'trainannot')):
        _log.info('%s: CamVid repack, labels 0..%d', root, _REPACK_VOID)
        return _load_repack(root, split)
    return _load_frames(root, split)


def _load_repack(root: str, split: str) -> SegmentationDataset:
    images, labels = {}, {}
    for part in split_parts(split):
        images |= {f'{part}/{frame}': path for frame, path in _frames(os.path.join(root, part)).items()}
        labels |= {f'{part}/{frame}': path for frame, path in _frames(os.path.join(root, f'{part}annot')).items()}
    raw_to_train = np.full(256, UNKNOWN_LABEL, np.uint8)
    raw_to_train[:_REPACK_VOID] = np.arange(_REPACK_VOID)
    raw_to_train[[_REPACK_VOID, IGNORE_LABEL]] = IGNORE_LABEL
    return _pair(root, split, sorted(images.keys() | labels.keys()), images, labels, 'index', raw_to_train)


def _load_frames(root: str, split: str) -> SegmentationDataset:
    images = _frames(_existing_folder(root, _IMAGE_FOLDERS))
    labels = _frames(_existing_folder(root, _LABEL_FOLDERS))
    if not labels:
        raise DataError(f'{root}: the label folder holds no PNG files; {_LAYOUT}')
    label_values = _detect_label_values(labels[min(labels)])
    kind = 'colours' if label_values == 'color' else 'indices 0..31'
    _log.info('%s: CamVid with %d frames, labels hold %s', root, len(images), kind)

    parts = split_parts(split)
    if any(os.path.exists(_split_file(root, part)) for part in _PARTS):
        frames = [frame for part in parts for frame in _read_split_file(_split_file(root, part))]
    else:
        frames = [frame for frame in sorted(images.keys() | labels.keys()) if _usual_part(frame, root) in parts]
    return _pair(root, split, frames, images, labels, label_values, raw_to_train=None)


def _pair(root, split, frames, images, labels, label_values, raw_to_train) -> SegmentationDataset:
    """The data set of `frames`, all of which must be in `images` and in `labels` ({frame: path})."""
    if not frames:
        raise DataError(f'{root}: no frames in CamVid split {split}; {_LAYOUT}')
    for files, what in ((images, 'image'), (labels, 'label')):
        missing = [frame for frame in frames if frame not in files]
        if missing:
            first = ', '.join(missing[:3])
            raise DataError(
                f'{root}: {len(missing)} of {len(frames)} frames of CamVid split {split} have no {what}, '
                f'first {first}; add the {what} files, or remove the frames'
            )
    return SegmentationDataset(
        name='camvid',
        split=split,
        class_table=CAMVID,
        image_paths=tuple(images[frame] for frame in frames),
        label_paths=tuple(labels[frame] for frame in frames),
        label_values=label_values,
        raw_to_train=raw_to_train,
    )


def _existing_folder(root: str, names: tuple[str, ...]) -> str:
    for name in names:
        folder = os.path.join(root, name)
        if os.path.isdir(folder):
            return folder
    raise DataError(f'{root}: has neither of the folders {", ".join(names)}; {_LAYOUT}')


def _frames(folder: str) -> dict[str, str]:
    """{frame: path} of a folder's PNG files."""
    if not os.path.isdir(folder):
        raise DataError(f'{folder}: no such folder; {_LAYOUT}')
    names = (name for name in os.listdir(folder) if name.lower().endswith('.png'))
    return {_frame_name(name): os.path.join(folder, name) for name in names}


def _frame_name(path: str) -> str:
    """'0001TP_006690' of '0001TP_006690', 'train/0001TP_006690.png' or '0001TP_006690_L.png'."""
    return os.path.splitext(os.path.basename(path))[0].removesuffix('_L')


def _detect_label_values(path: str) -> str:
    """'color' or 'index', from one label file: a palette of class colours counts as colours."""
    try:
        with PIL.Image.open(path) as image:
            if image.mode != 'P':
                return 'index' if image.mode == 'L' else 'color'
            shown = {color for _, color in image.convert('RGB').getcolors(maxcolors=256)}
    except OSError as error:
        raise DataError(f'{path}: label cannot be decoded ({error}); replace the file') from error
    return 'color' if shown <= {label.color for label in CAMVID.raw_labels} else 'index'


def _split_file(root: str, part: str) -> str:
    return os.path.join(root, f'{part}.txt')


def _read_split_file(path: str) -> list[str]:
    try:
        with open(path, encoding='utf-8-sig') as file:
            return [_frame_name(line.split()[0]) for line in file if line.strip()]
    except FileNotFoundError as error:
        names = ', '.join(f'{part}.txt' for part in _PARTS)
        raise DataError(f'{path}: no such file; write all of {names} or none, one frame name a line') from error


def _usual_part(frame: str, root: str) -> str:
    """The part that papers put a frame of the 701 in (367 train, 101 val, 233 test)."""
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
