"""ERFNet is the authors' network: their outputs, counts, names and loss, of each of its heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atonet_jax.models import abstract_variables, apply, create_model, network, prepare
from atonet_jax.models.counts import count_macs, count_parameters
from atonet_jax.models.erfnet import FactorizedBlock
from atonet_jax.models.terms import Term
from atonet_jax.torch_weights import backbone_from_torch, from_torch, to_torch
from tests.models import golden as goldens

pytestmark = pytest.mark.networks


@pytest.fixture(scope='module')
def published():
    """(golden, the network with both heads, its variables)."""
    return goldens.with_weights('erfnet')


@pytest.mark.parametrize(('name', 'output'), [('erfnet', 'logits'), ('erfnet_encoder', 'encoder_logits')])
def test_prepared_logits_are_those_of_the_authors_code(published, name, output):
    golden, *_ = published
    model = create_model(name, golden.num_classes)
    prepared = prepare(model, from_torch(golden.state_dict, model))
    logits = jax.jit(lambda v, x: apply(model, v, x)['logits'])(prepared, golden.inputs['96x72'])
    assert golden.outputs[f'{output}_96x72'].error(logits[0]) <= goldens.ALLOWED


def test_the_whole_network_passes_over_the_encoders_head_and_is_written_with_one(published):
    """The authors' code loads no file without it."""
    golden, *_ = published
    model = create_model('erfnet', golden.num_classes)
    variables = from_torch(golden.state_dict, model)
    assert 'encoder_head' not in variables['params']
    goldens_names = set(golden.state_dict)
    assert {name for name in to_torch(variables, model) if not name.endswith('num_batches_tracked')} == goldens_names


def test_the_second_step_starts_on_the_encoder_of_the_first():
    first, second = (create_model(name, 5, width=4) for name in ('erfnet_encoder', 'erfnet'))
    ones, zeros = (
        jax.tree.map(lambda array, value=value: np.full(array.shape, value, np.float32), abstract_variables(model))
        for model, value in ((first, 1), (second, 0))
    )
    params = backbone_from_torch(to_torch(ones, first), second, zeros)['params']
    found = {name: {float(array.min()) for array in jax.tree.leaves(layer)} for name, layer in params.items()}
    assert found == {f'layer{i}': {1.0 if i <= 16 else 0.0} for i in range(1, 24)}
    assert all(network(second).in_backbone((name,)) for name in params if found[name] == {1.0})


@pytest.mark.parametrize(
    ('num_classes', 'size', 'parameters', 'with_encoder_head', 'macs'),
    [
        (20, (512, 1024), 2_064_256, 2_066_836, 26_612_727_808),
        (19, (512, 1024), 2_064_191, 2_066_642, 26_604_339_200),
        (11, (360, 480), 2_063_671, 2_065_090, 8_746_401_600),
    ],
)
def test_counts_are_those_of_the_authors_code(num_classes, size, parameters, with_encoder_head, macs):
    model = create_model('erfnet', num_classes)
    assert count_parameters(model)['parameters'] == parameters
    assert count_macs(model, size) == macs
    trained = abstract_variables(model.clone(head='both'))['params']
    assert sum(array.size for array in jax.tree.leaves(trained)) == with_encoder_head


def test_the_loss_is_the_authors():
    expected = {
        'decoder': (Term('logits'),),
        'encoder': (Term('logits', at='output'),),
        'both': (Term('logits'), Term('encoder_logits', at='output')),
    }
    for head, terms in expected.items():
        assert network(create_model('erfnet', 19, head=head)).terms == terms


def test_training_gives_the_encoders_logits_beside_the_decoders(published):
    _, model, variables = published
    images = jax.ShapeDtypeStruct((2, 40, 56, 3), jnp.float32)

    def run(variables, images):
        return apply(model, variables, images, True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(0)})[0]

    shapes = {name: output.shape for name, output in jax.eval_shape(run, variables, images).items()}
    assert shapes == {'logits': (2, 40, 56, 11), 'encoder_logits': (2, 5, 7, 11)}


def test_dropout_zeroes_whole_maps_of_the_branch_and_training_alone_has_it():
    block = FactorizedBlock(dropout_rate=0.25)
    x = np.random.default_rng(0).uniform(1, 2, (8, 4, 4, 64)).astype(np.float32)
    variables = jax.jit(lambda: block.init(jax.random.key(0), x, train=True))()
    sums, _ = block.apply(variables, x, train=True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(1)})
    is_shortcut = np.asarray(sums == x).mean((1, 2))
    assert set(np.unique(is_shortcut)) == {0.0, 1.0}
    assert 0.2 < is_shortcut.mean() < 0.3
    assert not np.asarray(block.apply(variables, x, train=False) == x).any()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'head': 'auxiliary'}, "head='auxiliary': must be one of decoder, encoder, both"),
        ({'width': 3}, 'width=3: must be 4 or more, as three are of the image'),
        ({'dropout_rates': (0.1, 1.0)}, r'dropout_rates=\(0.1, 1.0\): must be two numbers from 0 to below 1'),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        create_model('erfnet', 19, **options)
