"""Weights of the classes in the loss, from their share of the training pixels: `config.loss.class_weights`."""

import concurrent.futures
import hashlib
import json
import logging
import os
import pathlib

import numpy as np
from ml_collections import ConfigDict

from atonet_jax.data.dataset import SegmentationDataset
from atonet_jax.data.label_files import read_labels
from atonet_jax.process.distributed import decided_by_main_process
from atonet_jax.process.progress import watched
from atonet_jax.runs.workdir import write_json, writing

_log = logging.getLogger(__name__)

PIXELS_FILE = 'class_pixels.json'
_FORMULAS = {
    'balanced': lambda share: 1 / np.sqrt(share),
    'enet': lambda share: 1 / np.log(1.02 + share),  # ENet, section 5.2
}


def class_weights(config: ConfigDict, dataset: SegmentationDataset, workdir: str) -> tuple[float, ...] | None:
    """One weight a class, as `config.loss.class_weights` gives them or names the formula; None: all alike.

    Args:
        config: of the run.
        dataset: the verified training split. Its labels are decoded once; the workdir remembers the counts.
        workdir: of the run.

    Raises:
        InputError: a label file cannot be read any more, or the counts cannot be written.
    """
    given = tuple(config.loss.class_weights)
    if not given or given[0] not in _FORMULAS:
        return given or None
    pixels = decided_by_main_process(lambda: _count_once(dataset, workdir))
    weights = weights_of(given[0], np.array(pixels))
    names = dataset.class_table.class_names
    low, high = weights.argmin(), weights.argmax()
    _log.info('config.loss.class_weights=%s: from %.3g (%s) to %.3g (%s)',
              given[0], weights[low], names[low], weights[high], names[high])  # fmt: skip
    return tuple(weights.tolist())


def weights_of(formula: str, pixels: np.ndarray) -> np.ndarray:
    """Weights by a formula, scaled so that the labelled pixels have weight 1 on average.

    Args:
        formula: 'balanced', the inverse root of a class's share of the labelled pixels; or 'enet', 1 / ln(1.02 + share)
            (ENet, section 5.2).
        pixels: [C] of each class; not all 0.

    Returns:
        [C] float64. A class without a pixel has the largest weight of the others.
    """
    share = pixels / pixels.sum()
    weights = np.zeros(len(pixels))
    weights[pixels > 0] = _FORMULAS[formula](share[pixels > 0])
    weights[pixels == 0] = weights.max()
    return weights / (weights * share).sum()


def _count_once(dataset: SegmentationDataset, workdir: str) -> list[int]:
    """Labelled pixels of each class; from the workdir, if nothing has changed since they were counted."""
    usable = [i for i in range(len(dataset)) if i not in dataset.unusable]
    fingerprint = hashlib.sha256('\n'.join(map(dataset.fingerprint, usable)).encode(errors='replace')).hexdigest()
    path = os.path.join(workdir, PIXELS_FILE)
    try:
        known = json.loads(pathlib.Path(path).read_text())
        if known['fingerprint'] == fingerprint:
            return list(known['pixels'].values())
    except (OSError, ValueError, TypeError, KeyError):  # not counted yet
        pass

    def count(i):
        labels = read_labels(dataset, i, dataset.sizes[i])
        return np.bincount(labels.ravel(), minlength=num_classes)[:num_classes]

    num_classes = dataset.class_table.num_classes
    with concurrent.futures.ThreadPoolExecutor() as pool:
        counts = watched(pool.map(count, usable), f'counting {dataset.name} {dataset.split}', len(usable), 'example')
        pixels = sum(counts).tolist()
    with writing(workdir):
        write_json(
            path,
            {'fingerprint': fingerprint, 'pixels': dict(zip(dataset.class_table.class_names, pixels, strict=True))},
        )
    return pixels
