"""Class weights follow the training labels, which are counted once."""

import json

import numpy as np
import PIL.Image
import pytest

from atonet_jax.config import default_config
from atonet_jax.data.sources import load_examples
from atonet_jax.errors import InputError
from atonet_jax.models import network
from atonet_jax.models.terms import InverseLogShare, InverseRootShare, MedianFrequency
from atonet_jax.training import class_weights as module
from atonet_jax.training.class_weights import (
    COUNTS_FILE,
    ClassCounts,
    class_weights,
    count_classes,
    weights_of_counts,
)

LABELS = [np.array([[0, 0, 1, 255], [0, 0, 0, 1]]), np.array([[2, 2, 1, 1], [255, 255, 2, 255]])]
COUNTS = ClassCounts([5, 4, 3, 0], [7, 12, 5, 0], total=16)


@pytest.fixture
def config(tmp_path):
    """Two images of 2x4 pixels; of four classes the last one does not occur."""
    for i, labels in enumerate(LABELS):
        for folder, array in {'images': np.zeros((2, 4, 3), np.uint8), 'labels': labels.astype(np.uint8)}.items():
            for split in ('train', 'val'):
                (tmp_path / 'data' / folder / split).mkdir(parents=True, exist_ok=True)
                PIL.Image.fromarray(array).save(tmp_path / 'data' / folder / split / f'{i}.png')
    classes = [{'name': f'class{i}', 'color': [i, i, 9], 'value': i} for i in range(4)]
    (tmp_path / 'data' / 'classes.json').write_text(json.dumps(classes))
    config = default_config()
    config.data.update(name='folder', root=str(tmp_path / 'data'))
    return config


@pytest.fixture
def dataset(config, tmp_path):
    return load_examples(config.data, 'train', str(tmp_path)).dataset


def test_labels_are_counted_with_what_is_ignored(dataset):
    assert count_classes(dataset, [0, 1]) == COUNTS


def test_rules():
    shares = np.array(COUNTS.pixels) / 16
    np.testing.assert_allclose(weights_of_counts(InverseLogShare(1.02), COUNTS), 1 / np.log(1.02 + shares))
    frequencies = np.array([5 / 7, 4 / 12, 3 / 5])
    np.testing.assert_allclose(weights_of_counts(MedianFrequency(), COUNTS), [*(0.6 / frequencies), 1.0])
    roots = (np.array([5, 4, 3, 3]) / 12) ** -0.5
    mean = np.sum(roots[:3] * [5, 4, 3]) / 12
    np.testing.assert_allclose(weights_of_counts(InverseRootShare(), COUNTS), roots / mean)


def test_the_config_goes_before_the_network(config, dataset, tmp_path):
    def weights(given, of_network):
        config.loss.class_weights = given
        return class_weights(config, of_network, dataset, str(tmp_path))

    rule = MedianFrequency()
    assert weights((), None) is None and weights(('equal',), rule) is None
    assert weights((1.0, 2.0, 3.0, 4.0), rule) == (1.0, 2.0, 3.0, 4.0)
    np.testing.assert_allclose(weights((), rule), weights_of_counts(rule, COUNTS))
    np.testing.assert_allclose(weights(('balanced',), rule), weights_of_counts(InverseRootShare(), COUNTS))
    np.testing.assert_allclose(weights(('enet',), None), weights_of_counts(InverseLogShare(1.02), COUNTS))


def test_the_labels_are_counted_once_and_anew_where_they_changed(config, dataset, tmp_path, monkeypatch):
    config.loss.class_weights = ('balanced',)
    found = class_weights(config, None, dataset, str(tmp_path))
    assert list(json.loads((tmp_path / COUNTS_FILE).read_text())['pixels'].values()) == COUNTS.pixels

    monkeypatch.setattr(module, 'read_labels', lambda *_: np.full((1, 1), 3, np.uint8))
    assert class_weights(config, None, dataset, str(tmp_path)) == found, 'read from the workdir'
    monkeypatch.setattr(type(dataset), 'fingerprint', lambda self, i: f'changed {i}')
    assert len(set(class_weights(config, None, dataset, str(tmp_path)))) == 1, 'all pixels are of class 3'


@pytest.mark.parametrize('given', [('balanced',), ('enet',), ()])
def test_labels_without_a_labelled_pixel_give_no_weights(config, dataset, tmp_path, monkeypatch, given):
    monkeypatch.setattr(module, 'read_labels', lambda *_: np.full((1, 1), 255, np.uint8))
    config.loss.class_weights = given
    with pytest.raises(InputError, match=r"train_split=train: no pixel of folder train has a label, .*\('equal',\)$"):
        class_weights(config, MedianFrequency(), dataset, str(tmp_path))


def test_published_weights_of_erfnet_follow_from_each_other():
    """Of road and of bicycle, for both steps of the training: the authors' own numbers give the same share."""
    rules = network('erfnet_encoder').class_weights, network('erfnet').class_weights
    for weights in [(2.3654, 2.8149), (5.3947, 10.1381)]:
        shares = [np.exp(1 / weight) - rule.offset for rule, weight in zip(rules, weights)]
        assert shares[0] == pytest.approx(shares[1], abs=1e-3)


def test_networks_declare_the_rule_of_their_recipe():
    names = ('enet', 'erfnet', 'erfnet_encoder', 'espnet', 'segnet', 'pidnet')
    rules = {name: network(name).class_weights for name in names}
    assert rules == {
        'enet': InverseLogShare(1.02),
        'erfnet': InverseLogShare(1.1),
        'erfnet_encoder': InverseLogShare(1.2),
        'espnet': InverseLogShare(1.1),
        'segnet': MedianFrequency(),
        'pidnet': None,
    }
