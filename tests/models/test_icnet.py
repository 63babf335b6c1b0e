"""ICNet gives what other code gives for the authors' network, and has its counts."""

import jax
import jax.numpy as jnp
import pytest

from atonet_jax.models import abstract_variables, apply, create_model, network
from atonet_jax.models.counts import count_parameters
from atonet_jax.models.terms import Term
from atonet_jax.torch_weights import from_torch
from tests.models import golden as goldens

pytestmark = pytest.mark.networks


@pytest.fixture(scope='module')
def golden():
    return goldens.load('icnet')


@pytest.fixture(scope='module')
def model(golden):
    return create_model('icnet', golden.num_classes)


@pytest.fixture(scope='module')
def variables(golden, model):
    return from_torch(golden.state_dict, model)


def test_training_outputs_and_statistics_are_those_of_the_golden(golden, model, variables):
    outputs, _ = goldens.train_mode(model, variables, golden.inputs['train'])
    assert set(outputs) == {'logits', 'aux_sub4', 'aux_sub2'}
    for name in ('aux_sub4', 'aux_sub2'):
        assert golden.outputs[f'train_{name}'].error(outputs[name]) <= goldens.ALLOWED, name
    errors = goldens.statistics_errors(golden, model, variables)
    assert len(errors) == len(golden.statistics) == 126
    assert max(errors.values()) <= 1e-3, 'maps at a 32nd have 96 values a channel'


def test_files_may_lack_the_heads_of_training(golden, model, variables):
    of_training = ('conv_sub4_cls', 'conv_sub2_cls')
    kept = {name: array for name, array in golden.state_dict.items() if not name.startswith(of_training)}
    assert set(variables['params']) - set(from_torch(kept, model)['params']) == {'aux_sub4', 'aux_sub2'}


@pytest.mark.parametrize(
    ('options', 'num_classes', 'size', 'parameters', 'macs'),
    [
        ({}, 11, (720, 960), 6_698_955, 9_433_712_640),
        ({'width': 64}, 19, (1024, 2048), 25_524_659, 87_468_015_616),
        ({'width': 64}, 11, (720, 960), 25_523_627, 28_425_768_960),
    ],
)
def test_counts_are_the_verified_ones(options, num_classes, size, parameters, macs):
    goldens.assert_counts('icnet', num_classes, size, parameters, macs, **options)


def test_the_heads_of_training_and_both_widths_have_the_verified_counts():
    in_training = abstract_variables(create_model('icnet', 19))['params']
    assert sum(array.size for array in jax.tree.leaves(in_training)) == 6_704_889
    doubled = create_model('icnet', 19, width=64, head_width=64)
    assert count_parameters(doubled)['parameters'] == 26_734_483


def test_halves_are_rounded_down_but_in_the_branch_of_the_full_image(model):
    variables = abstract_variables(model)
    wanted = {
        (18, 18): [(6, 6), (2, 2), (3, 3)],
        (45, 59): [(12, 16), (3, 4), (6, 8)],
        (65, 129): [(18, 34), (4, 8), (9, 17)],
    }
    for size, sizes in wanted.items():
        images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
        outputs = jax.eval_shape(
            lambda v, x: apply(model, v, x, train=True, mutable=['batch_stats'])[0], variables, images
        )
        assert [outputs[name].shape[1:3] for name in ('logits', 'aux_sub4', 'aux_sub2')] == sizes


def test_the_loss_is_at_three_sizes(model):
    contract = network(model)
    assert contract.terms == (
        Term('logits', at='output'),
        Term('aux_sub4', weight=0.16, at='output'),
        Term('aux_sub2', weight=0.4, at='output'),
    )
    assert contract.upsampling == 'align_corners'


def test_the_trunk_is_the_backbone(model):
    layers = abstract_variables(model)['params']
    heads = {layer for layer in layers if not network(model).in_backbone((layer, 'kernel'))}
    branch = {f'conv{i}_sub1' for i in (1, 2, 3)}
    assert heads == branch | {'fusion_sub2', 'fusion_sub1', 'classifier', 'aux_sub4', 'aux_sub2'}
    assert len(layers) - len(heads) == 3 + 3 + 4 + 6 + 3 + 1
