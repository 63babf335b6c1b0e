"""ENet in its three forms has the published counts, and drops whole maps of its branches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atonet_jax.models import create_model
from atonet_jax.models.counts import count_macs, count_parameters
from atonet_jax.models.enet import FORMS, Bottleneck


@pytest.mark.parametrize(
    ('name', 'num_classes', 'options', 'parameters'),
    [
        ('enet', 19, {'decoder_act': 'relu'}, 364_311),
        ('enet', 20, {}, 364_712),
        ('enet', 12, {}, 364_192),
        ('enet_davidtvs_head', 12, {}, 350_652),
        ('enet_davidtvs_2018_03', 12, {}, 359_780),
    ],
)
def test_parameters_are_the_published_ones(name, num_classes, options, parameters):
    assert count_parameters(create_model(name, num_classes, **options))['parameters'] == parameters


@pytest.mark.parametrize(
    ('name', 'num_classes', 'size', 'giga_macs'),
    [
        ('enet', 11, (720, 960), 5.082),
        ('enet_davidtvs_2018_03', 12, (360, 480), 1.315),
    ],
)
def test_macs_count_transposed_convolutions_on_their_input(name, num_classes, size, giga_macs):
    assert count_macs(create_model(name, num_classes), size) / 1e9 == pytest.approx(giga_macs, abs=5e-4)


def test_dropout_zeroes_whole_maps_of_the_branch_and_training_alone_has_it():
    block = Bottleneck(64, FORMS['paper'], 'relu', dropout=0.25, dtype=jnp.float32)
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
        ({'form': 'caffe'}, "form='caffe': must be one of paper, davidtvs_2018_03, davidtvs_head"),
        ({'decoder_act': 'elu'}, "decoder_act='elu': must be one of prelu, relu"),
        ({'width': 24}, 'width=24: must be a multiple of 16'),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        create_model('enet', 19, **options)
