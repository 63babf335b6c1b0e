"""Parameter groups, update rule and learning rates are those of the published runs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from atonet_jax.models import abstract_variables, create_model, network
from atonet_jax.models.atonet import LEVELS
from atonet_jax.training.optimizer import GROUPS, create_optimizer, learning_rate_schedule, parameter_group

NETWORK = network('atonet')

STEPS_PER_EPOCH, EPOCHS = 4, 5
FLOOR = 1e-6


def rates(peak, **options):
    """The learning rate of every step of a run."""
    total_steps = STEPS_PER_EPOCH * EPOCHS
    schedule = learning_rate_schedule(peak=peak, total_steps=total_steps, floor=FLOOR, **options)
    return np.array([schedule(jnp.int32(step)) for step in range(total_steps)])


def two_parameters(seed):
    """One of each group, or their gradients."""
    backbone, rest = np.random.default_rng(seed).normal(size=(2, 3)).astype(np.float32)
    return {'layer1': {'block0': {'conv1': {'conv': {'kernel': backbone}}}}, 'stem': {'conv': {'kernel': rest}}}


def by_group(tree):
    return {'backbone': tree['layer1']['block0']['conv1']['conv']['kernel'], 'rest': tree['stem']['conv']['kernel']}


def test_backbone_group_is_the_convolutions_of_the_four_stages():
    model = create_model('atonet', 19, aux_levels=LEVELS)
    params = abstract_variables(model)['params']
    expected = {
        f'layer{stage}/block{block}/{conv}/conv/kernel'
        for stage in (1, 2, 3, 4)
        for block in (0, 1)
        for conv in ('conv1', 'conv2')
    }
    expected |= {f'layer{stage}/block0/shortcut/conv/kernel' for stage in (2, 3, 4)}
    groups = {'/'.join(path): parameter_group(path, NETWORK) for path in flatten_dict(params)}
    assert set(groups.values()) == set(GROUPS)
    assert {path for path, group in groups.items() if group == 'backbone'} == expected


def test_sgd_is_torchs():
    """Decay joins the gradient, momentum keeps the sum, and the step's own rate comes last."""
    peaks, decays, momentum = {'backbone': 0.05, 'rest': 0.5}, {'backbone': 0.01, 'rest': 0.1}, 0.9
    learning_rates = {group: lambda step, peak=peak: peak / (1 + step) for group, peak in peaks.items()}
    optimizer = create_optimizer('sgd', learning_rates, NETWORK, momentum=momentum, weight_decays=decays)
    params = two_parameters(seed=0)
    expected = {group: values.astype(np.float64) for group, values in by_group(params).items()}
    buffers = dict.fromkeys(GROUPS, 0.0)
    opt_state = optimizer.init(params)
    for step in range(3):
        gradients = two_parameters(seed=step + 1)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        for group, gradient in by_group(gradients).items():
            decayed = gradient + decays[group] * expected[group]
            buffers[group] = momentum * buffers[group] + decayed
            expected[group] -= peaks[group] / (1 + step) * buffers[group]
            np.testing.assert_allclose(by_group(params)[group], expected[group], rtol=1e-5, err_msg=f'{group} {step}')


def test_adamw_decays_apart_from_the_gradient():
    """Its first step goes by the gradient's sign and by the decay, each times the rate."""
    peaks, decays = {'backbone': 0.01, 'rest': 0.1}, {'backbone': 0.05, 'rest': 0.5}
    learning_rates = {group: optax.constant_schedule(peak) for group, peak in peaks.items()}
    optimizer = create_optimizer('adamw', learning_rates, NETWORK, momentum=0.9, weight_decays=decays)
    params, gradients = two_parameters(seed=0), two_parameters(seed=1)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    for group in GROUPS:
        step = np.sign(by_group(gradients)[group]) + decays[group] * by_group(params)[group]
        np.testing.assert_allclose(by_group(updates)[group], -peaks[group] * step, rtol=1e-4)


@pytest.mark.parametrize('peak', [0.02, 0.002])
def test_cosine_per_epoch_is_torchs_annealing_to_one_floor(peak):
    """Both groups' rates fall to the same floor, and stay as they are within an epoch."""
    per_epoch = rates(peak, name='cosine', epoch_of_step=lambda step: step // STEPS_PER_EPOCH, total_epochs=EPOCHS)
    expected = [FLOOR + (peak - FLOOR) * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2 for epoch in range(EPOCHS)]
    np.testing.assert_allclose(per_epoch, np.repeat(expected, STEPS_PER_EPOCH), rtol=1e-5)


@pytest.mark.parametrize(
    ('name', 'shape'),
    [
        ('cosine', lambda progress: (1 + np.cos(np.pi * progress)) / 2),
        ('poly', lambda progress: (1 - progress) ** 0.9),
        ('constant', np.ones_like),
    ],
)
def test_schedule_per_step(name, shape):
    progress = np.arange(STEPS_PER_EPOCH * EPOCHS) / (STEPS_PER_EPOCH * EPOCHS)
    np.testing.assert_allclose(rates(0.1, name=name), FLOOR + (0.1 - FLOOR) * shape(progress), rtol=1e-5)


@pytest.mark.parametrize('name', ['cosine', 'poly', 'constant'])
def test_rate_is_no_lower_than_the_floor_after_the_last_step(name):
    schedule = learning_rate_schedule(peak=0.1, name=name, total_steps=10, floor=FLOOR)
    for step in (10, 11, 1000):
        assert schedule(step) >= FLOOR * (1 - 1e-6)


def test_warmup_rises_linearly_into_the_schedule():
    cold, warm = rates(0.1, name='cosine'), rates(0.1, name='cosine', warmup_steps=3)
    np.testing.assert_allclose(warm[:4] / cold[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-5)
    np.testing.assert_array_equal(warm[4:], cold[4:])


def test_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule.name='step' is unknown; known: cosine, poly, constant"):
        learning_rate_schedule(peak=0.1, name='step', total_steps=1)


def test_a_frozen_group_stays_as_it_is():
    learning_rates = {group: optax.constant_schedule(0.1) for group in GROUPS}
    decays = dict.fromkeys(GROUPS, 0.1)
    optimizer = create_optimizer(
        'sgd', learning_rates, NETWORK, momentum=0.9, weight_decays=decays, frozen=('backbone',)
    )
    params = two_parameters(seed=0) | {'up1': {'conv': {'kernel': np.ones((1, 1, 2, 2), np.float32)}}}
    gradients = jax.tree.map(np.ones_like, params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    assert not np.any(updates['layer1']['block0']['conv1']['conv']['kernel'])
    assert not np.any(updates['stem']['conv']['kernel']), 'the stem is of the backbone, though at the full rate'
    assert np.all(updates['up1']['conv']['kernel'])
