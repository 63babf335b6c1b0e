"""The architectures of Table 3 train as ATONet does, and no file of a backbone is taken for theirs."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from atonet_jax import identification
from atonet_jax.models import abstract_variables, create_model, network
from atonet_jax.models.terms import CrossEntropy, Term
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
    monkeypatch.setattr(identification, 'MODEL_NAMES', tuple(NAMES))  # others take time to trace
    kept = ('conv1', 'bn1', 'layer')
    backbone = {entry: array for entry, array in file.items() if entry.startswith(kept)}
    assert identification.identify(backbone | {'fc.weight': np.zeros((10, 64)), 'fc.bias': np.zeros(10)}) is None
    assert identification.identify(file) is not None


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
