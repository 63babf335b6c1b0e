"""SQNet has the counts and the losses of its three forms, and takes torchvision's SqueezeNet."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from atonet_jax.models import abstract_variables, create_model, network
from atonet_jax.models.terms import HardExampleShare, Term
from atonet_jax.torch_weights import backbone_from_torch, from_torch, to_torch
from tests.models import golden

pytestmark = pytest.mark.networks


@pytest.mark.parametrize(
    ('name', 'options', 'num_classes', 'size', 'parameters', 'macs'),
    [
        ('sqnet', {}, 11, (720, 960), 4_859_147, 57_999_974_400),
        ('sqnet', {'form': 'bn'}, 19, (1024, 2048), 4_868_243, 178_392_137_728),
        ('sqnet_zh320', {}, 11, (720, 960), 4_797_560, 46_542_816_000),
    ],
)
def test_counts_are_those_of_the_forms(name, options, num_classes, size, parameters, macs):
    golden.assert_counts(name, num_classes, size, parameters, macs, **options)


def test_with_batch_normalisation_the_logits_alone_have_a_bias_of_their_own():
    model = create_model('sqnet', 5, form='bn', width=4)
    variables = abstract_variables(model)
    biases = [path for path in flatten_dict(variables['params']) if path[-1] == 'bias' and path[-2] != 'bn']
    assert biases == [('out', 'bias')]
    filled = jax.tree.map(lambda array: np.ones(array.shape, np.float32), variables)
    file = to_torch(filled, model)
    assert {'pdc.0.conv.weight', 'pdc.0.bn.running_var', 'refine1.skip.conv.weight', 'out.bias'} <= set(file)
    jax.tree.map(np.testing.assert_array_equal, from_torch(file, model), filled)


def test_the_loss_is_the_plain_one_and_the_ports_is_over_hard_pixels():
    assert network('sqnet').terms == (Term('logits'),)
    assert network('sqnet_zh320').terms == (Term('logits', criterion=HardExampleShare(0.7, 1 / 16)),)


def test_the_encoder_is_torchvisions_squeezenet():
    model = create_model('sqnet', 5, width=4)
    variables = abstract_variables(model)
    ones, zeros = (jax.tree.map(lambda a, n=n: np.full(a.shape, n, np.float32), variables) for n in (1, 0))
    file = {'classifier.1.weight': np.zeros((1000, 512, 1, 1), np.float32)}
    theirs = {f'fire{i}': f'features.{place}' for i, place in zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12))}
    for name, array in to_torch(ones, model).items():
        first, _, rest = name.partition('.')
        if first == 'conv1' or first in theirs:
            file[f'{theirs.get(first, "features.0")}.{rest}'] = array
    loaded = backbone_from_torch(file, model, zeros)['params']
    is_loaded = {path[0]: bool(array.all()) for path, array in flatten_dict(loaded).items()}
    assert is_loaded == {name: network(model).in_backbone((name,)) for name in variables['params']}
    assert sum(is_loaded.values()) == 1 + 8 * 3


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'form': 'paper'}, "form='paper': must be one of biases, bn, zh320"),
        ({'width': 6}, 'width=6: must be a multiple of 4'),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        create_model('sqnet', 19, **options)
