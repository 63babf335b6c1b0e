"""Weights of the classes in the loss that follow from the pixels of the training labels."""

import concurrent.futures
import hashlib
import json
import logging
import os
import pathlib
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from atonet_jax.data.dataset import SegmentationDataset
from atonet_jax.data.label_files import read_labels
from atonet_jax.errors import InputError
from atonet_jax.models.terms import ClassWeights, InverseLogShare, InverseRootShare
from atonet_jax.process.distributed import in_main_process
from atonet_jax.process.files import write_json, writing
from atonet_jax.process.progress import watched

_log = logging.getLogger(__name__)

COUNTS_FILE = 'class_pixels.json'
# The words of `config.loss.class_weights`; `equal` is no rule.
_RULES = {'balanced': InverseRootShare(), 'enet': InverseLogShare()}


class ClassCounts(NamedTuple):
    """Pixels of the labels of a split.

    Attributes:
        pixels: of each class.
        labelled: of each class, the labelled pixels of the images that show it.
        total: of all images, ignored pixels too.
    """

    pixels: list[int]
    labelled: list[int]
    total: int


def class_weights(
    config: ConfigDict, of_network: ClassWeights | None, dataset: SegmentationDataset, workdir: str
) -> tuple[float, ...] | None:
    """One weight a class: numbers of the config, or by the rule that it names, or by the network's; None: all alike.

    Args:
        config: of the run: `loss.class_weights`.
        of_network: the rule of the network's own recipe.
        dataset: the verified training split. Its labels are decoded once; the workdir remembers the counts.
        workdir: of the run.

    Raises:
        InputError: no pixel has a label, a label file cannot be read any more, or the counts cannot be written.
    """
    given = tuple(config.loss.class_weights)
    if given == ('equal',):
        return None
    if given and given[0] not in _RULES:
        return given
    rule = _RULES[given[0]] if given else of_network
    if rule is None:
        return None
    counts = in_main_process(lambda: _count_once(dataset, workdir))
    if not any(counts.pixels):
        raise InputError(
            f'config.data.train_split={dataset.split}: no pixel of {dataset.name} {dataset.split} has a label, from '
            "which class weights are counted; choose another split, or give config.loss.class_weights=('equal',)"
        )
    weights = weights_of_counts(rule, counts)
    names = dataset.class_table.class_names
    low, high = weights.argmin(), weights.argmax()
    _log.info('class weights by %s: from %.3g (%s) to %.3g (%s)',
              rule, weights[low], names[low], weights[high], names[high])  # fmt: skip
    return tuple(weights.tolist())


def weights_of_counts(rule: ClassWeights, counts: ClassCounts) -> np.ndarray:
    """[C] float64, as the docstring of the rule says."""
    pixels = np.asarray(counts.pixels)
    if isinstance(rule, InverseLogShare):
        return 1 / np.log(rule.offset + pixels / max(1, counts.total))
    occurs = pixels > 0
    if isinstance(rule, InverseRootShare):
        share = pixels / pixels.sum()
        weights = np.zeros(len(pixels))
        weights[occurs] = 1 / np.sqrt(share[occurs])
        weights[~occurs] = weights.max()
        return weights / (weights * share).sum()
    frequencies = pixels[occurs] / np.asarray(counts.labelled)[occurs]
    weights = np.ones(len(pixels))
    weights[occurs] = np.median(frequencies) / frequencies
    return weights


def _count_once(dataset: SegmentationDataset, workdir: str) -> ClassCounts:
    """From the workdir, if nothing has changed since the labels were counted."""
    usable = dataset.usable
    fingerprint = hashlib.sha256('\n'.join(map(dataset.fingerprint, usable)).encode(errors='replace')).hexdigest()
    path = os.path.join(workdir, COUNTS_FILE)
    try:
        known = json.loads(pathlib.Path(path).read_text())
        if known['fingerprint'] == fingerprint:
            return ClassCounts(list(known['pixels'].values()), list(known['labelled'].values()), known['total'])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # not counted yet
        pass
    counts, names = count_classes(dataset, usable), dataset.class_table.class_names
    by_class = {key: dict(zip(names, getattr(counts, key), strict=True)) for key in ('pixels', 'labelled')}
    with writing(workdir):
        write_json(path, {'fingerprint': fingerprint, **by_class, 'total': counts.total})
    return counts


def count_classes(dataset: SegmentationDataset, usable: list[int]) -> ClassCounts:
    """Decodes the labels of these examples of a verified split."""
    num_classes = dataset.class_table.num_classes

    def count(i):
        return np.bincount(read_labels(dataset, i, dataset.sizes[i]).ravel(), minlength=256)

    pixels, labelled, total = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64), 0
    with concurrent.futures.ThreadPoolExecutor() as pool:
        counted = pool.map(count, usable)
        for counts in watched(counted, f'counting {dataset.name} {dataset.split}', len(usable), 'example'):
            of_classes = counts[:num_classes]
            pixels += of_classes
            labelled += np.where(of_classes > 0, of_classes.sum(), 0)
            total += int(counts.sum())
    return ClassCounts(pixels.tolist(), labelled.tolist(), total)
