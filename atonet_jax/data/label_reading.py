"""Decides what the label files of a split hold: numbers or colours. One decision for each kind of file, over all files.

Headers decide most of it. Where both ways give pixels a meaning, all files of that kind are read both ways and their
pixels are counted. So neither the order of the files nor what a single one shows matters.
"""

import collections
import concurrent.futures
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from atonet_jax.data.dataset import DataError, LabelReading, SegmentationDataset
from atonet_jax.data.label_files import (
    KINDS,
    LabelPixels,
    colors_of_indices,
    filled_part,
    read_label_file,
    read_label_header,
    to_train_ids,
)
from atonet_jax.data.labels import IGNORE_LABEL, UNKNOWN_LABEL
from atonet_jax.process.progress import watched

_SETTING = 'config.data.label_values'
_KIND_TEXT = {
    'grey': 'of one channel',
    'grey_palette': 'with a palette of greys',
    'palette': 'with a palette',
    'rgb': 'in RGB',
}


def decide_reading(dataset: SegmentationDataset, label_values: str = 'auto') -> SegmentationDataset:
    """The data set with `reading`.

    Args:
        dataset: a split with labels.
        label_values: 'index' or 'color' for all files; 'auto' to find out.

    Raises:
        DataError: both ways give the pixels different meanings, and nothing speaks for one of them; or labels are
            colours, and two classes have the same or no class has any.
    """
    if label_values == 'color' and not _has_colors(dataset):
        raise DataError(f'{_SETTING}=color: no class has a colour; give the classes their colours in the class file')
    asked, dataset = dataset, dataclasses.replace(dataset, max_pixels=sys.maxsize)  # that limit is no matter here
    headers = _headers(dataset)
    files = {kind: {path: palette for path, (one, palette) in headers.items() if one == kind} for kind in KINDS}
    found = [kind for kind in reversed(KINDS) if files[kind]]  # grey depends on the others
    decisions = {}
    if label_values == 'auto':
        for kind in found:
            decisions[kind] = _DECIDE[kind](dataset, files, decisions)
    else:
        how = 'colour' if label_values == 'color' else 'number'
        decisions = {kind: _Decision(how, f'{_SETTING} says so') for kind in found or KINDS}
    by_color = frozenset(kind for kind, decision in decisions.items() if decision.how == 'colour')
    if by_color:
        _check_colors_differ(dataset)
    doubts = []
    if any(decision.doubtful for decision in decisions.values()):
        other = 'color' if all(decision.how == 'number' for decision in decisions.values()) else 'index'
        doubts.append(f'label files read the other way would show other classes; {_SETTING}={other} reads them so')
    if label_values == 'auto' and 'palette' in decisions and decisions['palette'].how == 'number':
        doubts += _different_palettes(dataset, files['palette'])
    reading = LabelReading(
        by_color=frozenset(KINDS) if by_color and by_color == set(decisions) else by_color,
        by_level=any(decision.how == 'grey level' for decision in decisions.values()),
        ways={kind: decisions[kind].how for kind in found},
        text='; '.join(
            f'label files {_KIND_TEXT[kind]} ({len(files[kind])}) are read by {decision.how}'
            f'{decision.why and f", because {decision.why}"}'
            for kind, decision in decisions.items()
        ),
        doubt='; '.join(doubts),
    )
    return dataclasses.replace(asked, reading=reading)


def different_reading_text(train: SegmentationDataset, evaluated: SegmentationDataset) -> str:
    """One line if label files of a kind that two splits share are read in different ways; '' if not."""
    in_train, in_evaluated = train.reading.ways, evaluated.reading.ways
    kinds = [kind for kind, way in in_train.items() if in_evaluated.get(kind, way) != way]
    if not kinds:
        return ''
    return (
        f'label files {_KIND_TEXT[kinds[0]]} are read by {in_train[kinds[0]]} in {train.split} and by '
        f'{in_evaluated[kinds[0]]} in {evaluated.split}; {_SETTING} reads all of them in one way'
    )


@dataclasses.dataclass(frozen=True)
class _Decision:
    how: str  # 'number', 'grey level' or 'colour'
    why: str = ''
    doubtful: bool = False


@dataclasses.dataclass
class _Meanings:
    """Pixels by what they mean when read by number and the other way: by colour, or by grey level."""

    differ: int = 0
    number_only: int = 0
    other_only: int = 0


def _headers(dataset: SegmentationDataset) -> dict[str, tuple[str, np.ndarray | None]]:
    """{path: (kind, palette)} of the label files that can be read; others are reported when they are read."""

    def header(path):
        try:
            return path, read_label_header(dataset, path)
        except DataError:
            return path, None

    with concurrent.futures.ThreadPoolExecutor() as pool:
        headers = pool.map(header, dataset.label_paths)
        headers = watched(headers, f'label files of {dataset.name} {dataset.split}', len(dataset), 'file')
        return {path: found for path, found in headers if found is not None}


def _decide_rgb(dataset: SegmentationDataset, files: dict, decisions: dict) -> _Decision:
    if not _has_colors(dataset):
        return _Decision('number', 'no class has a colour of its own')
    for path in files['rgb']:
        try:
            row, column = (label := read_label_file(dataset, path)).first_color()
        except DataError:
            continue
        if row >= 0:
            color = tuple(label.samples[row, column].tolist())
            return _Decision('colour', f'{os.path.basename(path)} shows {color}')
    meanings = _read_both_ways(dataset, files['rgb'])
    by_color = meanings.differ + meanings.other_only > meanings.number_only
    return _Decision(
        'colour' if by_color else 'number', 'all are grey, and so more pixels have a class', meanings.differ > 0
    )


def _decide_palette(dataset: SegmentationDataset, files: dict, decisions: dict, kind: str = 'palette') -> _Decision:
    if not _has_colors(dataset):
        return _Decision('number', 'no class has a colour of its own')
    moved = next(filter(None, (_moved_color(dataset, path, palette) for path, palette in files[kind].items())), None)
    if moved is None:
        return _Decision('number', 'no palette has the colour of a class at the number of another')
    meanings = _read_both_ways(dataset, files[kind])
    if meanings.differ + meanings.other_only > meanings.number_only:
        return _Decision('colour', moved, meanings.differ > 0)
    return _Decision('number', 'most of their colours are no class', meanings.differ > 0)


def _decide_grey_palette(dataset: SegmentationDataset, files: dict, decisions: dict) -> _Decision:
    """By grey level, unless the indices explain more: optimisers write files of one channel so."""
    moved = {path: filled_part(palette)[:, 0] for path, palette in files['grey_palette'].items()}
    moved = {path: greys for path, greys in moved.items() if (greys != np.arange(len(greys))).any()}
    if moved and not _any_by_color(decisions):
        meanings = _read_both_ways(dataset, list(moved), by_level=True)
        by_level, by_number = meanings.differ + meanings.other_only, meanings.number_only
        if by_level > by_number or (files['grey'] and by_level == by_number):
            return _Decision('grey level', 'most of their greys are class numbers', meanings.differ > 0)
    return _decide_palette(dataset, files, decisions, 'grey_palette')


def _decide_grey(dataset: SegmentationDataset, files: dict, decisions: dict) -> _Decision:
    """Numbers; but optimisers also make grey files of RGB ones that happen to show grey colours alone."""
    greys = dataset.color_train_ids[np.arange(256) * 0x010101]
    agree = (greys == UNKNOWN_LABEL) | (greys == dataset.train_ids)
    if agree.all() or not _any_by_color(decisions):
        return _Decision('number')
    meanings = _read_both_ways(dataset, files['grey'])
    if meanings.differ and not meanings.number_only:
        raise DataError(
            f'{next(iter(files["grey"]))}: label file of one channel among others in colour, and its values are '
            f'numbers of classes as well as their grey colours; say which: {_SETTING}=index or color'
        )
    how = 'colour' if meanings.other_only > meanings.number_only else 'number'
    return _Decision(how, 'so more pixels have a class', meanings.differ > 0)


def _any_by_color(decisions: dict[str, _Decision]) -> bool:
    return any(decision.how == 'colour' for decision in decisions.values())


_DECIDE = {
    'rgb': _decide_rgb,
    'palette': _decide_palette,
    'grey_palette': _decide_grey_palette,
    'grey': _decide_grey,
}


def _has_colors(dataset: SegmentationDataset) -> bool:
    return any(label.color is not None for label in dataset.class_table.raw_labels)


def _moved_color(dataset: SegmentationDataset, path: str, palette: np.ndarray) -> str:
    """Says which class's colour stands in a palette at other indices than the class's numbers, if any."""
    colors = colors_of_indices(palette, dataset.color_train_ids)[: len(palette)]
    by_color = dataset.color_train_ids[colors]
    in_place = by_color == dataset.train_ids[: len(palette)]
    for index in np.flatnonzero((by_color != UNKNOWN_LABEL) & ~in_place):
        if index != IGNORE_LABEL and colors[index] not in colors[in_place]:
            return f'the palette of {os.path.basename(path)} has the class colour #{colors[index]:06x} at {index}'
    return ''


def _different_palettes(dataset: SegmentationDataset, palettes: Mapping[str, np.ndarray]) -> list[str]:
    """A line where palettes give a class's number different colours, as in files of drawing programs, which number
    the colours of each file anew; none where they do not."""
    path_of = {palette.tobytes(): path for path, palette in sorted(palettes.items(), reverse=True)}
    numbers = np.flatnonzero(dataset.train_ids < dataset.class_table.num_classes)
    seen = {}  # {number: (its colour, the file)}
    for path in sorted(path_of.values()):
        palette = filled_part(palettes[path])
        for number in numbers[numbers < len(palette)].tolist():
            color = bytes(palette[number]).hex()
            first, other = seen.setdefault(number, (color, path))
            if first != color:
                return [
                    f'the number {number} has the colour #{first} in the palette of {os.path.basename(other)} and '
                    f'#{color} in that of {os.path.basename(path)}; if colours tell the classes, give them in the '
                    f'class file; if numbers do, {_SETTING}=index ends this warning'
                ]
    return []


def _read_both_ways(dataset: SegmentationDataset, paths: Sequence[str], by_level: bool = False) -> _Meanings:
    """By number and by colour; or by grey level, where black and white pixels tell nothing, as any palette has both."""

    def compare(path):
        found = collections.Counter()
        try:
            label = read_label_file(dataset, path)
            by_number = to_train_ids(dataset, LabelPixels(label.numbers(), colored=False))
            values = label.numbers(by_level=True) if by_level else label.colors(dataset.color_train_ids)
            by_other = to_train_ids(dataset, LabelPixels(values, colored=not by_level))
        except DataError:
            return found
        telling = ~np.isin(values, (0, IGNORE_LABEL)) if by_level else True
        number_known, other_known = by_number != UNKNOWN_LABEL, by_other != UNKNOWN_LABEL
        found['differ'] = int((telling & number_known & other_known & (by_number != by_other)).sum())
        found['number_only'] = int((telling & number_known & ~other_known).sum())
        found['other_only'] = int((telling & other_known & ~number_known).sum())
        return found

    with concurrent.futures.ThreadPoolExecutor() as pool:
        compared = watched(pool.map(compare, paths), 'reading label files both ways', len(paths), 'file')
        return _Meanings(**sum(compared, collections.Counter({'differ': 0})))


def _check_colors_differ(dataset: SegmentationDataset) -> None:
    labels = {}
    for label in dataset.class_table.raw_labels:
        other = labels.setdefault(label.color, label)
        if label.color is not None and other.train_id != label.train_id:
            raise DataError(
                f'{dataset.name}: the classes {other.name!r} and {label.name!r} both have the colour {label.color}, by '
                'which the label files tell classes apart; give each its own in the class file'
            )
