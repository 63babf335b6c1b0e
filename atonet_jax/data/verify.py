"""Checks every file before a run, so that faults are found in seconds and not after an hour of training."""

import concurrent.futures
import dataclasses
import json
import logging
import os
import pathlib
from typing import NamedTuple

from atonet_jax.data.dataset import DataError, SegmentationDataset
from atonet_jax.data.image_files import check_image_end, read_image, read_image_header
from atonet_jax.data.label_checks import Judgement, judge_labels
from atonet_jax.data.label_files import LabelCounts, count_label_values
from atonet_jax.process.files import replacing
from atonet_jax.process.progress import watched

_log = logging.getLogger(__name__)

_MAX_REPORTED = 3


class _Good(NamedTuple):
    """What the cache file holds of a good example."""

    height: int
    width: int
    orientation: int
    known: dict[str, int]  # as in LabelCounts
    unknown: int
    fingerprint: str


def verify(
    dataset: SegmentationDataset,
    *,
    cache_path: str | None = None,
    on_corrupt: str = 'error',
    decode_images: bool = False,
    for_training: bool = False,
    trust_labels: bool = False,
) -> SegmentationDataset:
    """Checks every image's header and end, decodes every label, and judges what the labels hold.

    Args:
        dataset: the split to check.
        cache_path: JSON file that lists good files. Files that have not changed since are not read again.
        on_corrupt: 'error', or 'skip' to log and mark unusable examples instead of refusing the split.
        decode_images: decodes every image too, which takes longer and also finds damage in the middle of a file.
        for_training: a network is trained on the split.
        trust_labels: doubtful labels are warned of and not refused.

    Returns:
        The data set with `sizes` known, and with `unusable` if `on_corrupt` is 'skip'.

    Raises:
        DataError: an example is unusable (with 'skip': all are), or `judge_labels` finds the labels unfit. One line
            names the first problems and counts the others.
    """
    known_good = _read_cache(cache_path)
    if dataset.reading.text:
        _log.info('%s %s: %s', dataset.name, dataset.split, dataset.reading.text)

    def check(i: int) -> _Good | DataError:
        if i in dataset.unusable:
            return dataset.unusable[i]
        image_path = dataset.image_paths[i]
        try:
            fingerprint = dataset.fingerprint(i)
            known = known_good.get(image_path)
            fits = known is not None and known.height * known.width <= dataset.max_pixels
            if fits and known.fingerprint == fingerprint:
                return known
            size, orientation = read_image_header(dataset, i)
            read_image(dataset, i) if decode_images else check_image_end(dataset, i)
            counts = LabelCounts({}, 0) if dataset.label_paths is None else count_label_values(dataset, i, size)
            return _Good(*size, orientation, *counts, fingerprint)
        except DataError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor() as pool:
        checks = pool.map(check, range(len(dataset)))
        results = list(watched(checks, f'checking {dataset.name} {dataset.split}', len(dataset), 'example'))

    unusable = {i: result for i, result in enumerate(results) if isinstance(result, DataError)}
    if unusable and (on_corrupt == 'error' or len(unusable) == len(dataset)):
        raise DataError(_summary(list(unusable.values()), dataset))
    for error in unusable.values():
        _log.warning('skipped: %s', error)
    good = {path: result for path, result in zip(dataset.image_paths, results) if isinstance(result, _Good)}
    _report_turned(dataset, good.values())
    if dataset.label_paths is not None:
        counts = {
            path: LabelCounts(result.known, result.unknown)
            for path, result in zip(dataset.label_paths, results)
            if isinstance(result, _Good)
        }
        _refuse_unfit(dataset, judge_labels(dataset, counts, for_training=for_training, trust=trust_labels))
    _write_cache(cache_path, known_good | good)
    sizes = tuple((result.height, result.width) if isinstance(result, _Good) else None for result in results)
    return dataclasses.replace(dataset, sizes=sizes, unusable=unusable)


def _refuse_unfit(dataset: SegmentationDataset, judgement: Judgement) -> None:
    """Logs the warnings of a judgement and raises its failures."""
    name = f'{dataset.name} {dataset.split}'
    for warning in judgement.warnings:
        _log.warning('%s: %s', name, warning)
    if judgement.failures:
        found = [f'{failure} (such as {lines[0]})' for failure, lines in judgement.failures.items()]
        raise DataError(f'{name}: {"; ".join([*found, judgement.advice or "--mode=check_data says more"])}')


def _report_turned(dataset: SegmentationDataset, good) -> None:
    text = turned_text(dataset, sum(one.orientation != 1 for one in good))
    if text:
        _log.warning('%s %s: %s', dataset.name, dataset.split, text)


def turned_text(dataset: SegmentationDataset, count: int) -> str:
    """What is done about the EXIF orientation of `count` images and their labels; '' if there are none."""
    if not count:
        return ''
    text = f'{count} images are turned upright, as their EXIF orientation says'
    if dataset.label_paths is None:
        return text
    if dataset.label_orientation == 'stored':
        return f'{text}, and so are their label files (config.data.label_orientation=stored)'
    return (
        f'{text}; their label files are taken to be upright already; if they were drawn on the images as stored, give '
        '--config.data.label_orientation=stored'
    )


def _summary(problems: list[DataError], dataset: SegmentationDataset) -> str:
    """One line: the first few problems, and how many there are."""
    text = '; '.join(str(problem) for problem in problems[:_MAX_REPORTED])
    others = len(problems) - _MAX_REPORTED
    if others > 0:
        text += (
            f'; and {others} more such problems in the {len(dataset)} examples of {dataset.name} {dataset.split}: '
            '--mode=check_data lists them all'
        )
    return text


def _read_cache(cache_path: str | None) -> dict[str, _Good]:
    """{image path: record}; empty if there is no usable cache."""
    if cache_path is None:
        return {}
    try:
        with open(cache_path) as file:
            return {path: _Good(*values) for path, values in json.load(file).items()}
    except (OSError, ValueError, TypeError, AttributeError):  # cannot be read, is no JSON, or other JSON than ours
        return {}


def _write_cache(cache_path: str | None, known_good: dict[str, _Good]) -> None:
    if cache_path is None:
        return
    try:
        os.makedirs(os.path.dirname(os.path.abspath(cache_path)), exist_ok=True)
        with replacing(cache_path) as temporary:
            pathlib.Path(temporary).write_text(json.dumps(known_good))
    except OSError as error:
        _log.warning('%s: cannot be written (%s); the files will be checked again', cache_path, error.strerror)
