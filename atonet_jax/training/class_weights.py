"""Class weights that follow from the pixels of the training labels, as networks declare them (`models.terms`)."""

import concurrent.futures
import json
import os
from typing import NamedTuple

import numpy as np

from atonet_jax.data.dataset import DataError, SegmentationDataset
from atonet_jax.data.image_files import read_image_size
from atonet_jax.data.label_files import read_labels
from atonet_jax.models.terms import ClassWeights, InverseLogShare
from atonet_jax.process.progress import watched
from atonet_jax.runs.workdir import write_json

FILE = 'class_weights.json'


class ClassCounts(NamedTuple):
    """What the labels of a split hold.

    Attributes:
        pixels: [C] pixels of each class.
        labelled: [C] labelled pixels of the images that show the class.
        total: pixels of all images, ignored ones too.
    """

    pixels: np.ndarray
    labelled: np.ndarray
    total: int


def class_weights_of(
    rule: ClassWeights, dataset: SegmentationDataset, workdir: str, *, skips_corrupt: bool, writes: bool = True
) -> tuple[float, ...]:
    """The weights of a run: those that it began with, from `class_weights.json`, or counted in the training labels.

    Args:
        rule: of the network.
        dataset: the training split.
        workdir: of the run.
        skips_corrupt: leaves out labels that cannot be read.
        writes: keeps the weights in the workdir.

    Raises:
        DataError: a label file cannot be used, and is not to be skipped.
    """
    path, names = os.path.join(workdir, FILE), dataset.class_table.class_names
    try:
        with open(path, encoding='utf-8') as file:
            weights = json.load(file)['weights']
        return tuple(float(weights[name]) for name in names)
    except (OSError, ValueError, KeyError, TypeError):  # a new run, or a file that a killed one left
        pass
    counts = count_classes(dataset, skips_corrupt)
    weights = tuple(round(float(weight), 6) for weight in weights_of_counts(rule, counts))
    if writes:
        shares = dict(zip(names, (counts.pixels / max(1, counts.total)).tolist()))
        write_json(path, {'rule': repr(rule), 'weights': dict(zip(names, weights)), 'shares_of_pixels': shares})
    return weights


def count_classes(dataset: SegmentationDataset, skips_corrupt: bool = False) -> ClassCounts:
    """Decodes all labels of a split.

    Raises:
        DataError: a label file cannot be used, and is not to be skipped.
    """
    num_classes = dataset.class_table.num_classes

    def count(i):
        try:
            labels = read_labels(dataset, i, read_image_size(dataset, i))
        except DataError:
            if skips_corrupt:
                return np.zeros(256, np.int64)
            raise
        return np.bincount(labels.ravel(), minlength=256)

    pixels, labelled, total = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64), 0
    used = [i for i in range(len(dataset)) if i not in dataset.unusable]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        counted = pool.map(count, used)
        for counts in watched(counted, f'class weights: reading labels of {dataset.split}', len(used), 'label'):
            of_classes = counts[:num_classes]
            pixels += of_classes
            labelled += np.where(of_classes > 0, of_classes.sum(), 0)
            total += int(counts.sum())
    return ClassCounts(pixels, labelled, total)


def weights_of_counts(rule: ClassWeights, counts: ClassCounts) -> np.ndarray:
    """[C] float64. A class without pixels has the weight of a share of 0, or with median frequency balancing 1."""
    if isinstance(rule, InverseLogShare):
        return 1 / np.log(rule.offset + counts.pixels / max(1, counts.total))
    occurs = counts.pixels > 0
    frequencies = counts.pixels[occurs] / counts.labelled[occurs]
    weights = np.ones(len(counts.pixels))
    weights[occurs] = np.median(frequencies) / frequencies
    return weights
