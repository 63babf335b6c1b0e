"""Class weights follow the training labels, which are counted once."""

import json

import numpy as np
import pytest

from atonet_jax.data.label_files import read_labels
from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.data.sources import load_examples
from atonet_jax.training import class_weights as module
from atonet_jax.training.class_weights import PIXELS_FILE, class_weights, weights_of


def test_formulas():
    pixels = np.array([80, 20, 0])
    roots = np.array([0.8, 0.2, 0.2]) ** -0.5
    np.testing.assert_allclose(weights_of('balanced', pixels), roots / (0.8 * roots[0] + 0.2 * roots[1]))
    logs = 1 / np.log(1.02 + np.array([0.8, 0.2, 0.2]))
    np.testing.assert_allclose(weights_of('enet', pixels), logs / (0.8 * logs[0] + 0.2 * logs[1]))
    np.testing.assert_allclose(weights_of('enet', np.array([7])), [1.0])


@pytest.fixture
def config(tiny_config):
    config = tiny_config.copy_and_resolve_references()
    config.loss.class_weights = ('balanced',)
    return config


def test_the_labels_are_counted_once_and_anew_where_they_changed(config, tmp_path, monkeypatch):
    dataset = load_examples(config.data, 'train', str(tmp_path)).dataset
    labels = np.concatenate([read_labels(dataset, i, dataset.sizes[i]).ravel() for i in range(len(dataset))])
    pixels = np.bincount(labels[labels != IGNORE_LABEL], minlength=19)
    found = class_weights(config, dataset, str(tmp_path))
    np.testing.assert_allclose(found, weights_of('balanced', pixels))
    assert list(json.loads((tmp_path / PIXELS_FILE).read_text())['pixels'].values()) == pixels.tolist()

    monkeypatch.setattr(module, 'read_labels', lambda *_: np.full((1, 1), 3, np.uint8))
    assert class_weights(config, dataset, str(tmp_path)) == found, 'read from the workdir'
    monkeypatch.setattr(type(dataset), 'fingerprint', lambda self, i: f'changed {i}')
    assert len(set(class_weights(config, dataset, str(tmp_path)))) == 1, 'all pixels are of class 3'
    config.loss.class_weights = (2.0,) * 19
    assert class_weights(config, dataset, str(tmp_path)) == (2.0,) * 19
    config.loss.class_weights = ()
    assert class_weights(config, dataset, str(tmp_path)) is None
