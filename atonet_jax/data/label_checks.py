"""What the values of label files say about whether a network can learn from them. For training and check_data alike."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from atonet_jax.data.dataset import SegmentationDataset
from atonet_jax.data.label_files import LabelCounts, train_id_of
from atonet_jax.data.labels import IGNORE_LABEL, UNKNOWN_LABEL

_TRUST = '--config.data.trust_labels=True'
_MOST_IGNORED = 0.5  # share of ignored pixels above which training would ignore most of its data
_CAMVID_ROAD = 17  # of the 32 classes
_SOME = 0.1  # share of files above which an oddity is no chance


class Judgement(NamedTuple):
    """
    Attributes:
        failures: {what makes the split unfit: a line for each file or value}.
        warnings: what looks odd.
        advice: what to do about the failures, or ''.
    """

    failures: dict[str, list[str]]
    warnings: list[str]
    advice: str = ''


def judge_labels(
    dataset: SegmentationDataset, counts: Mapping[str, LabelCounts], *, for_training: bool, trust: bool
) -> Judgement:
    """Judges a split by the values of its label files.

    Args:
        dataset: a split with labels.
        counts: by label file, of those that can be read.
        for_training: a network is trained on it.
        trust: doubtful labels are warned of and not failures. Labels without any class still are.
    """
    values = sum((Counter(one.known) for one in counts.values()), Counter())
    strays = {path: one.unknown for path, one in counts.items() if one.unknown}
    pixels = pixels_of_classes(dataset, values, sum(strays.values()))
    if not counts:
        return Judgement({}, [])
    if not pixels[:-1].any():
        if dataset.split == 'test':  # some publish it with blank labels
            return Judgement(
                {}, ['all pixels are ignored: nothing can be scored; --mode=predict makes pictures or a submission']
            )
        failure = f'all pixels of all {len(counts)} label files are ignored; check that these are the label files'
        return Judgement({failure: _ignored_values(dataset, values) or list(strays)}, [])

    warnings, doubts, advice = [], {}, ''
    mask = {'0', f'{IGNORE_LABEL}'}
    masks = [path for path, one in counts.items() if set(one.known) == mask]
    if set(values) == mask or len(masks) > len(counts) / 2:
        doubts['labels hold only 0 and 255, as masks do, but 255 is ignored'] = masks or list(counts)
        advice = (
            "save the class's number in place of 255; or give the classes the colours #000000 and #ffffff and set "
            '--config.data.label_values=color; '
        )
    elif len(masks) > _SOME * len(counts):
        warnings.append(
            f'{len(masks)} of {len(counts)} label files hold only 0 and 255, as masks do, such as {masks[0]}; '
            '255 is ignored'
        )
    ignored = pixels[-1] / pixels.sum()
    if ignored > _MOST_IGNORED:
        doubts[f'{100 * ignored:.1f}% of the pixels are ignored'] = _ignored_values(dataset, values) or list(strays)
    names = dataset.class_table.class_names
    if for_training and np.count_nonzero(pixels[:-1]) == 1 and not advice:
        only = names[pixels[:-1].argmax()]
        doubts[f'all pixels that have a class are {only}, so there is nothing to learn'] = list(counts)
    if is_repack := _looks_repacked(dataset, values):
        doubts[
            f'labels hold nothing above {dataset.class_table.num_classes} but 255, as those of the 11 classes do, but '
            'are read as the 32 classes in alphabetical order'
        ] = list(counts)
        advice += 'for 11 classes name the folders train and trainannot, val and valannot, test and testannot; '
    if trust:
        warnings.extend(doubts)
    else:
        if not is_repack:
            _guess_train_ids(dataset, counts, warnings)
        if dataset.reading.doubt:
            warnings.append(dataset.reading.doubt)
    missing = [name for name, count in zip(names, pixels) if count == 0]
    if missing:
        warnings.append(f'no pixel of the classes: {", ".join(missing)}')
    if strays:
        warnings.append(
            f'{sum(strays.values())} pixels in {len(strays)} of {len(counts)} label files have values of no class and '
            f'count as void ({100 * sum(strays.values()) / pixels.sum():.2g}% of all), most in '
            f'{max(strays, key=strays.get)}'
        )
    if trust or not doubts:
        return Judgement({}, warnings)
    return Judgement(doubts, warnings, f'{advice}if the labels are right as they are, {_TRUST} goes on with them')


def pixels_of_classes(dataset: SegmentationDataset, values: Mapping[str, int], unknown: int) -> np.ndarray:
    """[C + 1] pixels of each class, and of what is ignored.

    Args:
        dataset: the split.
        values: pixels of each value, as in `LabelCounts.known`.
        unknown: as in `LabelCounts`.
    """
    counts = np.zeros(256, np.int64)
    for value, count in values.items():
        counts[train_id_of(dataset, value)] += count
    return np.append(counts[: dataset.class_table.num_classes], counts[IGNORE_LABEL] + unknown)


def value_text(dataset: SegmentationDataset, value: str) -> str:
    """Such as '7 road' or '#804080 road'."""
    train_id = train_id_of(dataset, value)
    name = 'ignored' if train_id == IGNORE_LABEL else dataset.class_table.class_names[train_id]
    return f'{value} {name}'


def _ignored_values(dataset: SegmentationDataset, values: Counter) -> list[str]:
    return [
        f'{value_text(dataset, value)}: {count} pixels'
        for value, count in values.most_common()
        if train_id_of(dataset, value) == IGNORE_LABEL
    ]


def _looks_repacked(dataset: SegmentationDataset, values: Mapping[str, int]) -> bool:
    """Whether numbers read as CamVid's 32 classes are those of its 11: no frame is without Road, which is 17 of 32."""
    if dataset.name != 'camvid' or dataset.train_ids[_CAMVID_ROAD] == UNKNOWN_LABEL:
        return False
    low = {*map(str, range(dataset.class_table.num_classes + 1)), f'{IGNORE_LABEL}'}
    return low >= set(values)


def _guess_train_ids(dataset, counts, warnings) -> None:
    """Guesses that files hold train ids in place of raw ids, from a 255 that the class table does not list."""
    num_classes, void = dataset.class_table.num_classes, f'{IGNORE_LABEL}'
    class_numbers = np.flatnonzero(dataset.train_ids < num_classes)
    is_listed = any(label.raw_id == IGNORE_LABEL for label in dataset.class_table.raw_labels)
    if is_listed or class_numbers.max() <= num_classes:
        return
    low = {
        path: one.known
        for path, one in counts.items()
        if all(not value.startswith('#') and (int(value) < num_classes or value == void) for value in one.known)
    }
    with_void = [path for path, known in low.items() if void in known]
    if len(with_void) > _SOME * len(counts) or (with_void and len(low) == len(counts)):
        warnings.append(
            f'{len(low)} of {len(counts)} label files hold nothing above {num_classes - 1} but 255: they look like '
            f'train ids, but are read as raw ids up to {class_numbers.max()}, such as {with_void[0]}; if that is '
            f'right, {_TRUST} ends this warning'
        )
