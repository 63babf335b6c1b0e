"""The architectures of Table 3 train as ATONet does, and no file of a backbone is taken for theirs."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from atonet_jax import published_weights
from atonet_jax.models import abstract_variables, create_model, network
from atonet_jax.models.terms import CrossEntropy, Term
from atonet_jax.published_weights import identify
from tests.models import golden

pytestmark = pytest.mark.networks

NAMES = [
    'table3_aggregation',
    'table3_aggregation_final1x1',
    'table3_encoder_decoder',
    'table3_multi_pathway',
    'table3_dilation',
]


@pytest.mark.parametrize('name', NAMES)
def test_a_backbone_alone_is_not_taken_for_a_network_whose_file_has_little_more(name, monkeypatch):
    file = golden.load(name).state_dict
    monkeypatch.setattr(published_weights, 'MODEL_NAMES', tuple(NAMES))  # others take time to trace
    kept = ('conv1', 'bn1', 'layer')
    backbone = {entry: array for entry, array in file.items() if entry.startswith(kept)}
    assert identify(backbone | {'fc.weight': np.zeros((10, 64)), 'fc.bias': np.zeros(10)}) is None
    assert identify(file) is not None


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
    golden.assert_counts(name, 19, (1024, 1024), parameters, macs)


@pytest.mark.parametrize('name', NAMES)
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
