"""Scores of a split do not depend on how it is batched, and count every pixel once."""

import numpy as np
import pytest

from atonet_jax.data.decode import read_example
from atonet_jax.data.examples import Examples
from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.data.sources import load_dataset
from atonet_jax.devices import create_mesh
from atonet_jax.errors import InputError
from atonet_jax.evaluate import Evaluator
from atonet_jax.models import init_variables
from atonet_jax.network import create_network


@pytest.fixture(scope='module')
def run(tiny_config):
    """Evaluates fresh variables on the validation split with changed options."""
    model = create_network(tiny_config, 19)
    variables = init_variables(model, seed=1)
    dataset = load_dataset(tiny_config.data, 'val')

    def evaluate(**options):
        config = tiny_config.copy_and_resolve_references()
        config.eval.update(options)
        return Evaluator(model, Examples(dataset), config.eval, create_mesh()).run(variables)

    return evaluate


@pytest.fixture(scope='module')
def labels(tiny_config):
    dataset = load_dataset(tiny_config.data, 'val')
    return np.stack([read_example(dataset, i)[1] for i in range(len(dataset))])


def test_a_partial_last_batch_counts_exactly_once(run, labels):
    assert len(labels) % 2 == 1
    _, one_by_one, _ = run(batch_size=1)
    _, in_twos, _ = run(batch_size=2)
    np.testing.assert_array_equal(in_twos, one_by_one)
    assert in_twos.sum() == np.count_nonzero(labels != IGNORE_LABEL)
    assert in_twos.dtype == np.int64


def test_the_confusion_matrix_agrees_with_the_returned_predictions(run):
    _, confusion, examples = run(pictures=5)
    assert [example.index for example in examples] == list(range(5))
    counted = np.zeros_like(confusion)
    for example in examples:
        labelled = example.labels != IGNORE_LABEL
        np.add.at(counted, (example.labels[labelled], example.predictions[labelled]), 1)
    np.testing.assert_array_equal(counted, confusion)


def test_a_centre_crop_scores_the_centre_alone(run, labels):
    _, confusion, examples = run(center_crop=(40, 64))
    centre = labels[:, 12:52, 32:96]
    assert confusion.sum() == np.count_nonzero(centre != IGNORE_LABEL)
    np.testing.assert_array_equal(examples[0].labels, centre[0])


def test_a_centre_crop_larger_than_the_images_is_refused(run):
    with pytest.raises(InputError, match=r'config\.eval\.center_crop=\(500, 500\) is larger'):
        run(center_crop=(500, 500))


@pytest.mark.parametrize(
    'options', [{'window': (64, 64)}, {'scales': (0.75, 1.0), 'flip': True}], ids=['sliding', 'multi-scale and flip']
)
def test_other_ways_to_look_count_every_pixel_once(run, labels, options):
    _, confusion, _ = run(**options)
    assert confusion.sum() == np.count_nonzero(labels != IGNORE_LABEL)


def test_a_split_without_labels_is_refused(tiny_config, run):
    dataset = load_dataset(tiny_config.data, 'val')
    unlabelled = type(dataset)(dataset.name, 'test', dataset.class_table, dataset.image_paths, label_paths=None)
    with pytest.raises(InputError, match='has no labels'):
        Evaluator(create_network(tiny_config, 19), Examples(unlabelled), tiny_config.eval, create_mesh())
