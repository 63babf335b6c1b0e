"""Checks every file before a run, so that faults are found in seconds and not after an hour of training."""

import concurrent.futures
import dataclasses
import json
import logging
import os
import pathlib
from typing import NamedTuple

import numpy as np

from atonet_jax.data.dataset import DataError, SegmentationDataset
from atonet_jax.data.decode import check_image_end, read_image, read_image_size, read_labels
from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.process.files import replacing
from atonet_jax.process.progress import watched

_log = logging.getLogger(__name__)

_MAX_REPORTED = 3
_FEW_LABELLED = 0.5  # share of labelled pixels below which something is likely wrong


class _Good(NamedTuple):
    """What the cache file holds of a good example."""

    height: int
    width: int
    labelled: int
    fingerprint: str


def verify(
    dataset: SegmentationDataset,
    *,
    cache_path: str | None = None,
    on_corrupt: str = 'error',
    decode_images: bool = False,
) -> SegmentationDataset:
    """Checks every image's header and end, and decodes every label.

    Args:
        dataset: the split to check.
        cache_path: JSON file that lists good files. Files that have not changed since are not read again.
        on_corrupt: 'error', or 'skip' to log and mark unusable examples instead of refusing the split.
        decode_images: decodes every image too, which takes longer and also finds damage in the middle of a file.

    Returns:
        The data set with `sizes` known, and with `unusable` if `on_corrupt` is 'skip'.

    Raises:
        DataError: an example is unusable (with 'skip': all are), or a labelled split has no labelled pixel. ('test' may
            have none: some data sets publish it with blank labels.) One line names the first problems and counts the
            others.
    """
    known_good = _read_cache(cache_path)

    def check(i: int) -> _Good | DataError:
        image_path = dataset.image_paths[i]
        try:
            fingerprint = dataset.fingerprint(i)
            known = known_good.get(image_path)
            if known is not None and known.fingerprint == fingerprint:
                return known
            size = read_image_size(dataset, i)
            read_image(dataset, i) if decode_images else check_image_end(dataset, i)
            labelled = np.count_nonzero(read_labels(dataset, i, size) != IGNORE_LABEL)
            return _Good(*size, int(labelled), fingerprint)
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
    _check_labelled(dataset, good.values())
    _write_cache(cache_path, known_good | good)
    sizes = tuple((result.height, result.width) if isinstance(result, _Good) else None for result in results)
    return dataclasses.replace(dataset, sizes=sizes, unusable=unusable)


def _check_labelled(dataset: SegmentationDataset, good) -> None:
    if dataset.label_paths is None or dataset.split == 'test':
        return
    share = sum(one.labelled for one in good) / sum(one.height * one.width for one in good)
    if share == 0:
        raise DataError(
            f'{dataset.name} {dataset.split}: all pixels of all {len(good)} label files are ignored, '
            f'for example {dataset.label_paths[0]}; check that these are the label files'
        )
    if share < _FEW_LABELLED:
        _log.warning(
            '%s %s: only %.0f%% of the pixels have a class, the others are ignored; --mode=check_data says more',
            dataset.name,
            dataset.split,
            100 * share,
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
    except (FileNotFoundError, ValueError, TypeError, AttributeError):  # no JSON, or other JSON than ours
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
