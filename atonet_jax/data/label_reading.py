"""Decides what the label files of a split hold: numbers or colours. One decision for each kind of file, over all files.

Headers decide most of it. Where both ways give pixels a meaning, all files of that kind are read both ways and their
pixels are counted. So neither the order of the files nor what a single one shows matters.
"""

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from atonet_jax.data.dataset import DataError, SegmentationDataset
from atonet_jax.data.label_files import (
    KINDS,
    LabelPixels,
    colors_of_indices,
    read_label_file,
    read_label_header,
    to_train_ids,
)
from atonet_jax.data.labels import IGNORE_LABEL, UNKNOWN_LABEL
from atonet_jax.process.progress import watched

_SETTING = 'config.data.label_values'
_KIND_TEXT = {'grey': 'of one channel', 'palette': 'with a palette', 'rgb': 'in RGB'}


def decide_reading(dataset: SegmentationDataset, label_values: str = 'auto') -> SegmentationDataset:
    """The data set with `by_color`, `reading` and `doubt`.

    Args:
        dataset: a split with labels.
        label_values: 'index' or 'color' for all files; 'auto' to find out.

    Raises:
        DataError: both ways give the pixels different meanings, and nothing speaks for one of them; or labels are
            colours and two classes have the same.
    """
    headers = _headers(dataset)
    found = [kind for kind in KINDS if any(kind == one for one, _ in headers.values())]
    decisions = {}
    if label_values == 'auto':
        for kind in ('rgb', 'palette', 'grey'):  # grey depends on the others
            if kind in found:
                of_kind = {path: palette for path, (one, palette) in headers.items() if one == kind}
                others_by_color = any(decision.by_color for decision in decisions.values())
                decisions[kind] = _DECIDE[kind](dataset, of_kind, others_by_color)
    else:
        decisions = {kind: _Decision(label_values == 'color', f'as {_SETTING} says') for kind in found or KINDS}
    by_color = frozenset(kind for kind, decision in decisions.items() if decision.by_color)
    if by_color:
        _check_colors_differ(dataset)
    if by_color and by_color == set(decisions):
        by_color = frozenset(KINDS)
    texts = [
        f'{sum(kind == one for one, _ in headers.values())} label files {_KIND_TEXT[kind]} are read by '
        f'{"colour" if decision.by_color else "number"}{decision.why and f" ({decision.why})"}'
        for kind, decision in decisions.items()
    ]
    doubt = ''
    if any(decision.doubtful for decision in decisions.values()):
        other = 'index' if by_color else 'color'
        doubt = f'label files read the other way would show other classes; {_SETTING}={other} reads them so'
    return dataclasses.replace(dataset, by_color=by_color, reading='; '.join(texts), doubt=doubt)


@dataclasses.dataclass(frozen=True)
class _Decision:
    by_color: bool
    why: str = ''
    doubtful: bool = False


@dataclasses.dataclass
class _Meanings:
    """Pixels by what they mean when read by number and by colour."""

    differ: int = 0
    number_only: int = 0
    color_only: int = 0


def _headers(dataset: SegmentationDataset) -> dict[str, tuple[str, np.ndarray | None]]:
    """{path: (kind, palette)} of the label files that can be read; others are reported when they are read."""

    def header(path):
        try:
            return path, read_label_header(dataset.storage, path)
        except DataError:
            return path, None

    with concurrent.futures.ThreadPoolExecutor() as pool:
        headers = pool.map(header, dataset.label_paths)
        headers = watched(headers, f'label files of {dataset.name} {dataset.split}', len(dataset), 'file')
        return {path: found for path, found in headers if found is not None}


def _decide_rgb(dataset: SegmentationDataset, files: dict, others_by_color: bool) -> _Decision:
    if not _has_colors(dataset):
        return _Decision(False, 'no class has a colour of its own')
    for path in files:
        try:
            row, column = (label := read_label_file(dataset.storage, path)).first_color()
        except DataError:
            continue
        if row >= 0:
            color = tuple(label.samples[row, column].tolist())
            return _Decision(True, f'{os.path.basename(path)} shows {color}')
    meanings = _read_both_ways(dataset, files)
    by_color = meanings.differ + meanings.color_only > meanings.number_only
    return _Decision(by_color, 'the channels are equal in all of them', meanings.differ > 0)


def _decide_palette(dataset: SegmentationDataset, files: dict, others_by_color: bool) -> _Decision:
    if not _has_colors(dataset):
        return _Decision(False, 'no class has a colour of its own')
    moved = next(filter(None, (_moved_color(dataset, path, palette) for path, palette in files.items())), None)
    if moved is None:
        return _Decision(False, 'no palette has the colour of a class at the number of another')
    meanings = _read_both_ways(dataset, files)
    by_color = meanings.differ + meanings.color_only > meanings.number_only
    if by_color:
        return _Decision(True, moved, meanings.differ > 0)
    return _Decision(False, 'most of their colours are no class', meanings.differ > 0)


def _decide_grey(dataset: SegmentationDataset, files: dict, others_by_color: bool) -> _Decision:
    """Numbers; but optimisers also make grey files of RGB ones that happen to show grey colours alone."""
    greys = dataset.color_train_ids[np.arange(256) * 0x010101]
    if not others_by_color or (greys[greys != UNKNOWN_LABEL] == dataset.train_ids[greys != UNKNOWN_LABEL]).all():
        return _Decision(False)
    meanings = _read_both_ways(dataset, files)
    if meanings.differ and not meanings.number_only:
        raise DataError(
            f'{next(iter(files))}: label file of one channel among others in colour, and its values are numbers of '
            f'classes as well as their grey colours; say which: {_SETTING}=index or color'
        )
    return _Decision(meanings.color_only > meanings.number_only, 'which gives more pixels a class', meanings.differ > 0)


_DECIDE = {'rgb': _decide_rgb, 'palette': _decide_palette, 'grey': _decide_grey}


def _has_colors(dataset: SegmentationDataset) -> bool:
    return any(label.color is not None for label in dataset.class_table.raw_labels)


def _moved_color(dataset: SegmentationDataset, path: str, palette: np.ndarray) -> str:
    """Says which class's colour stands in a palette at other indices than the class's numbers, if any."""
    colors = colors_of_indices(palette, dataset.color_train_ids)[: len(palette)]
    by_color = dataset.color_train_ids[colors]
    in_place = by_color == dataset.train_ids[: len(palette)]
    for index in np.flatnonzero((by_color != UNKNOWN_LABEL) & ~in_place):
        if index != IGNORE_LABEL and colors[index] not in colors[in_place]:
            return f'#{colors[index]:06x} is at {index} in the palette of {os.path.basename(path)}'
    return ''


def _read_both_ways(dataset: SegmentationDataset, paths: Sequence[str]) -> _Meanings:
    def compare(path):
        found = collections.Counter()
        try:
            label = read_label_file(dataset.storage, path)
            by_number = to_train_ids(dataset, LabelPixels(label.numbers(), colored=False))
            by_color = to_train_ids(dataset, LabelPixels(label.colors(dataset.color_train_ids), colored=True))
        except DataError:
            return found
        number_known, color_known = by_number != UNKNOWN_LABEL, by_color != UNKNOWN_LABEL
        found['differ'] = int((number_known & color_known & (by_number != by_color)).sum())
        found['number_only'] = int((number_known & ~color_known).sum())
        found['color_only'] = int((color_known & ~number_known).sum())
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
