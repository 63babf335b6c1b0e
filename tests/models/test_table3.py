"""The architectures of Table 3 give what other code gives for their definitions, and have their counts."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from atonet_jax import torch_weights
from atonet_jax.benchmark.benchmark import count_macs, count_parameters
from atonet_jax.models import abstract_variables, apply, create_model, network
from atonet_jax.models.terms import CrossEntropy, Term
from atonet_jax.torch_weights import from_torch, identify, to_torch
from tests.models import golden

pytestmark = pytest.mark.networks


STATISTICS = {
    'table3_aggregation': 52,
    'table3_aggregation_final1x1': 52,
    'table3_encoder_decoder': 56,
    'table3_multi_pathway': 54,
    'table3_dilation': 44,
}


@pytest.fixture(scope='module', params=STATISTICS)
def published(request):
    """(golden, model, its variables)."""
    expected = golden.load(request.param)
    model = create_model(request.param, expected.num_classes)
    return expected, model, from_torch(expected.state_dict, model)


def test_logits_are_those_of_the_golden(published):
    expected, model, variables = published
    logits = jax.jit(lambda v, x: apply(model, v, x)['logits'])(variables, expected.inputs['96x72'])
    stride = 8 if model.design == 'dilation' else 4
    assert expected.outputs[f'logits_stride{stride}_96x72'].error(logits[0]) <= 10


def test_statistics_of_a_training_batch_are_those_of_the_golden(published, request):
    errors = golden.statistics_errors(*published)
    assert len(errors) == STATISTICS[request.node.callspec.params['published']]
    assert max(errors.values()) <= 1e-4


def test_names_and_layouts_are_those_of_the_golden(published):
    expected, model, variables = published
    back = to_torch(variables, model)
    assert {name for name in back if not name.endswith('num_batches_tracked')} == set(expected.state_dict)
    for name, array in expected.state_dict.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_a_backbone_alone_is_not_taken_for_a_network_whose_file_has_little_more(published, monkeypatch):
    expected, *_ = published
    monkeypatch.setattr(torch_weights, 'MODEL_NAMES', tuple(STATISTICS))  # others take time to trace
    kept = ('conv1', 'bn1', 'layer')
    backbone = {name: array for name, array in expected.state_dict.items() if name.startswith(kept)}
    assert identify(backbone | {'fc.weight': np.zeros((10, 64)), 'fc.bias': np.zeros(10)}) is None
    assert identify(expected.state_dict) is not None


@pytest.mark.parametrize(
    ('name', 'parameters', 'macs'),
    [
        ('table3_aggregation', 12_581_331, 66_446_163_968),
        ('table3_aggregation_final1x1', 12_450_259, 57_856_229_376),
        ('table3_encoder_decoder', 12_418_003, 61_949_870_080),
        ('table3_multi_pathway', 12_674_131, 87_082_139_648),
        ('table3_dilation', 11_916_755, 204_637_995_008),
        ('table3_encoder_decoder_b', 12_483_795, 62_016_978_944),
        ('table3_multi_pathway_b', 12_686_995, 87_098_916_864),
        ('table3_multi_pathway_c', 12_673_299, 72_066_531_328),
    ],
)
def test_counts_are_those_of_the_definitions(name, parameters, macs):
    model, published = create_model(name, 19), network(name).published
    assert count_parameters(model)['parameters'] == published.parameters == parameters
    assert published.macs == ((1024, 1024), macs)
    assert count_macs(model, (1024, 1024)) == macs


@pytest.mark.parametrize('name', STATISTICS)
def test_training_is_that_of_atonet_without_its_auxiliary_heads(name):
    model = create_model(name, 5, width=4, backbone_width=4)
    contract, of_atonet = network(model), network('atonet')
    assert contract.terms == (Term('logits', criterion=CrossEntropy()),) == of_atonet.terms[:1]
    paths = list(flatten_dict(abstract_variables(model)['params']))
    reduced = {path for path in paths if contract.reduced(path)}
    assert reduced == {path for path in paths if of_atonet.reduced(path)}
    assert len(reduced) == 19


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'design': 'unet'}, "design='unet': must be one of aggregation, encoder_decoder, encoder_decoder_b, "),
        ({'final_kernel_size': 2}, 'final_kernel_size=2: must be odd and greater than 0'),
        ({'dropout_rate': 1.0}, 'dropout_rate=1.0: must be from 0 to below 1'),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        create_model('aggregation', 19, **options)
