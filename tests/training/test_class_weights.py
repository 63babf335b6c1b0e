"""Class weights that a network takes from the training labels."""

import json

import numpy as np
import PIL.Image
import pytest

from atonet_jax.config import default_config
from atonet_jax.data.dataset import DataError
from atonet_jax.data.sources import load_examples
from atonet_jax.models import network
from atonet_jax.models.terms import InverseLogShare, MedianFrequency
from atonet_jax.training.class_weights import ClassCounts, class_weights_of, count_classes, weights_of_counts

LABELS = [np.array([[0, 0, 1, 255], [0, 0, 0, 1]]), np.array([[2, 2, 1, 1], [255, 255, 255, 255]])]


@pytest.fixture
def dataset(tmp_path):
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
    return load_examples(config.data, 'train', str(tmp_path)).dataset


def test_labels_are_counted_with_what_is_ignored(dataset):
    counts = count_classes(dataset)
    np.testing.assert_array_equal(counts.pixels, [5, 4, 2, 0])
    np.testing.assert_array_equal(counts.labelled, [7, 11, 4, 0])
    assert counts.total == 16


def test_rules_are_the_published_ones():
    counts = ClassCounts(np.array([5, 4, 2, 0]), np.array([7, 11, 4, 0]), total=16)
    shares = np.array([5, 4, 2, 0]) / 16
    np.testing.assert_allclose(weights_of_counts(InverseLogShare(1.02), counts), 1 / np.log(1.02 + shares))
    frequencies = np.array([5 / 7, 4 / 11, 2 / 4])
    expected = [*(0.5 / frequencies), 1.0]
    np.testing.assert_allclose(weights_of_counts(MedianFrequency(), counts), expected)


def test_published_weights_of_erfnet_follow_from_each_other():
    """Of road and of bicycle, for both steps of the training: the authors' own numbers give the same share."""
    rules = network('erfnet_encoder').class_weights, network('erfnet').class_weights
    for weights in [(2.3654, 2.8149), (5.3947, 10.1381)]:
        shares = [np.exp(1 / weight) - rule.offset for rule, weight in zip(rules, weights)]
        assert shares[0] == pytest.approx(shares[1], abs=1e-3)


def test_a_run_goes_on_with_the_weights_that_it_began_with(dataset, tmp_path):
    rule = InverseLogShare(1.1)
    first = class_weights_of(rule, dataset, str(tmp_path), skips_corrupt=False)
    PIL.Image.fromarray(np.full((2, 4), 3, np.uint8)).save(dataset.label_paths[0])
    assert class_weights_of(rule, dataset, str(tmp_path), skips_corrupt=False) == first
    (tmp_path / 'class_weights.json').write_text('{"weights": ')
    assert class_weights_of(rule, dataset, str(tmp_path), skips_corrupt=False) != first


def test_labels_that_cannot_be_read_are_skipped_where_training_skips_them(dataset):
    with open(dataset.label_paths[0], 'wb') as file:
        file.write(b'no picture')
    np.testing.assert_array_equal(count_classes(dataset, skips_corrupt=True).pixels, [0, 2, 2, 0])
    with pytest.raises(DataError):
        count_classes(dataset)


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
