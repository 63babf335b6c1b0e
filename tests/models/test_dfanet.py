"""DFANet A and B give what other code gives for the same reading of the paper, and have its printed operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atonet_jax.models import create_model, network
from atonet_jax.models.counts import count_conv_macs, count_macs, count_parameters
from atonet_jax.models.dfanet import Attention, Decoder
from atonet_jax.models.terms import Term
from atonet_jax.torch_weights import from_torch
from tests.models import golden as goldens

pytestmark = pytest.mark.networks

# The attention normalises two values a channel, which magnifies rounding; each backbone adds to what the last one did.
# In float64 here, what is left is the rounding of the golden, up to 0.094. It would hide a wrong epsilon in the later
# backbones: test_contract.py compares those that the modules declare. The first that fits a name counts.
MAGNIFIED = {
    'backbone2': 2e-3,
    'backbone3.attention': 0.1,
    'backbone3': 0.05,
    'decoder.fuse': 2e-3,
    'decoder.low3': 2e-3,
    'decoder.high1': 2e-4,
    'decoder.high2': 3e-3,
    'decoder.high3': 0.1,
}


def decoder_macs(model):
    """Of DFANet A's decoder on images of 1024x1024."""
    decoder = Decoder(19, model.decoder_width, jnp.float32)
    fine = [jax.ShapeDtypeStruct((1, side, side, 48), jnp.float32) for side in (256, 128, 64)]
    coarse = [jax.ShapeDtypeStruct((1, side, side, 192), jnp.float32) for side in (64, 32, 16)]
    variables = jax.eval_shape(lambda: decoder.init(jax.random.key(0), *jax.tree.map(zeros, (fine, coarse)), False))
    return count_conv_macs(lambda v, *maps: decoder.apply(v, *maps, train=False), variables, fine, coarse)


def zeros(abstract):
    return np.zeros(abstract.shape, np.float32)


@pytest.mark.parametrize('name', ['dfanet_a', 'dfanet_b'])
def test_statistics_of_a_training_batch_are_those_of_the_golden(name):
    golden = goldens.load(name)
    with jax.enable_x64(True):
        model = create_model(name, golden.num_classes, dtype=jnp.float64)
        errors = goldens.statistics_errors(golden, model, from_torch(golden.state_dict, model))
    assert len(errors) == 292
    for name, error in errors.items():
        allowed = next((most for module, most in MAGNIFIED.items() if name.startswith(module)), 1e-4)
        assert error <= allowed, name


def test_counts_of_a_prime_and_of_11_classes_are_those_of_the_reconstruction():
    a_prime = create_model('dfanet_a_prime', 19)
    assert count_parameters(a_prime)['parameters'] == 1_824_443
    assert count_macs(a_prime, (512, 1024)) == 1_710_627_328
    goldens.assert_counts('dfanet_a', 11, (720, 960), 1_824_179, 2_248_999_200)


@pytest.mark.parametrize(('width', 'giga_macs'), [(48, 4.3), (64, 5.4)])
def test_no_wider_decoder_has_the_printed_operations(width, giga_macs):
    default, model = network('dfanet').published.macs[1], create_model('dfanet', 19, decoder_width=width)
    macs = default + decoder_macs(model) - decoder_macs(create_model('dfanet', 19))
    assert macs / 1e9 == pytest.approx(giga_macs, abs=0.05)
    assert (network(model).published.parameters, network(model).published.macs) == (None, None)


@pytest.mark.parametrize(('activation', 'share'), [('relu', 0.0), ('sigmoid', 0.5)])
def test_channels_that_the_attention_says_nothing_of_are_dropped_or_as_in_the_other_port_halved(activation, share):
    attention, x = Attention(activation, jnp.float32), np.arange(1, 17, dtype=np.float32).reshape(1, 2, 2, 4)
    variables = jax.eval_shape(lambda: attention.init(jax.random.key(0), x, train=False))
    np.testing.assert_allclose(attention.apply(jax.tree.map(zeros, variables), x, train=False), share * x)


def test_the_loss_is_at_the_images_size():
    contract = network('dfanet_a')
    assert contract.terms == (Term('logits'),)
    assert contract.upsampling == 'align_corners'


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'width': 6}, 'width=6: must be a multiple of 4'),
        ({'attention': 'softmax'}, "attention='softmax': must be one of relu, sigmoid"),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        create_model('dfanet', 19, **options)
