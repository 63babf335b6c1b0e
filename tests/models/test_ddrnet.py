"""DDRNet-23-slim is the authors' network in training too, with their counts, files and loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atonet_jax.models import abstract_variables, apply, create_model, network
from atonet_jax.models.terms import CrossEntropy, HardExampleCount
from atonet_jax.torch_weights import backbone_from_torch, from_torch
from tests.models import golden as goldens

pytestmark = pytest.mark.networks


@pytest.fixture(scope='module')
def golden():
    return goldens.load('ddrnet_23_slim')


@pytest.fixture(scope='module')
def model(golden):
    return create_model('ddrnet_23_slim', golden.num_classes)


@pytest.fixture(scope='module')
def variables(golden, model):
    return from_torch(golden.state_dict, model)


def test_counts_in_training_and_of_11_classes_are_the_published_ones():
    trained = abstract_variables(create_model('ddrnet', 19))['params']
    assert sum(array.size for array in jax.tree.leaves(trained)) == 5_734_342
    goldens.assert_counts('ddrnet', 11, (720, 960), 5_695_467, 12_008_760_320)


def test_training_outputs_and_statistics_are_those_of_the_authors_code(golden, model, variables):
    """The second head sees the high branch before its ReLU."""
    outputs, _ = goldens.train_mode(model, variables, golden.inputs['train'])
    assert set(outputs) == {'logits', 'aux'}
    for name, output in outputs.items():
        assert golden.outputs[f'train_{name}'].error(output) <= goldens.ALLOWED, name
    errors = goldens.statistics_errors(golden, model, variables)
    assert len(errors) == len(golden.statistics)
    for name, error in errors.items():  # the pyramid's mean is of two values a channel, which magnifies rounding
        assert error <= (1e-3 if name.startswith(('spp.process', 'spp.compression', 'final_layer')) else 1e-4), name


def test_files_beside_losses_without_the_second_head_are_read(golden, model, variables):
    file = {f'model.{name}': array for name, array in golden.state_dict.items() if 'seghead' not in name}
    loaded = from_torch(file | {'loss.criterion.weight': np.ones(19, np.float32)}, model)
    assert set(variables['params']) - set(loaded['params']) == {'aux'}
    for name, module in loaded['params'].items():
        jax.tree.map(np.testing.assert_array_equal, module, variables['params'][name])


def test_a_backbone_of_imagenet_is_taken_with_layer5_or_without(golden, model, variables):
    heads = ('spp', 'final_layer', 'seghead_extra')
    trunk = {name: array for name, array in golden.state_dict.items() if not name.startswith(heads)}
    zeros = jax.tree.map(np.zeros_like, variables)
    for lacks in ((), ('layer5', 'high5')):
        file = {name: array for name, array in trunk.items() if not lacks or not name.startswith('layer5')}
        loaded = backbone_from_torch(file | {'linear.weight': np.zeros((1000, 1024))}, model, zeros)['params']
        for name, module in loaded.items():
            is_left = name in ('spp', 'final', 'aux', *lacks)
            jax.tree.map(np.testing.assert_array_equal, module, (zeros if is_left else variables)['params'][name])


def test_the_loss_is_the_authors():
    contract = network('ddrnet')
    terms = [(term.output, term.weight, term.target, term.criterion, term.at) for term in contract.terms]
    assert terms == [
        ('logits', 1.0, 'labels', HardExampleCount(0.9, 131_072), 'labels'),
        ('aux', 0.4, 'labels', CrossEntropy('all'), 'labels'),
    ]
    assert contract.upsampling == 'half_pixel'


def test_sides_that_8_does_not_divide_give_logits_at_the_size_that_the_stem_gives():
    model = create_model('ddrnet', 3, width=4)
    variables = abstract_variables(model)
    for size, wanted in {(8, 8): (1, 1), (45, 59): (6, 8)}.items():
        images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
        outputs = jax.eval_shape(
            lambda v, x: apply(model, v, x, train=True, mutable=['batch_stats'])[0], variables, images
        )
        assert {output.shape[1:3] for output in outputs.values()} == {wanted}
