"""Parameter groups, update rule and learning rates are those of the published runs."""

import math

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from atonet_jax.config import default_config
from atonet_jax.models import abstract_variables, create_model, network
from atonet_jax.models.atonet import LEVELS
from atonet_jax.training.from_config import create_objective, create_schedule, step_options
from atonet_jax.training.optimizer import RATE_GROUPS, Optimizer, learning_rate_schedule, parameter_group
from atonet_jax.training.timeline import Timeline

MODEL = create_model('atonet', 19)
NETWORK = network(MODEL)

STEPS_PER_EPOCH, EPOCHS = 4, 5
FLOOR = 1e-6


def rates(peak, **options):
    """The learning rate of every step of a run."""
    total_steps = STEPS_PER_EPOCH * EPOCHS
    schedule = learning_rate_schedule(peak=peak, total_steps=total_steps, floor=FLOOR, **options)
    return np.array([schedule(step) for step in range(total_steps)])


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
    assert set(groups.values()) == set(RATE_GROUPS)
    assert {path for path, group in groups.items() if group == 'backbone'} == expected


def test_sgd_is_torchs():
    """Decay joins the gradient, momentum keeps the sum, and the step's own rate comes last."""
    peaks, decays, momentum = {'backbone': 0.05, 'rest': 0.5}, {'backbone': 0.01, 'rest': 0.1}, 0.9
    optimizer = Optimizer('sgd', MODEL, momentum=momentum)
    params = two_parameters(seed=0)
    expected = {group: values.astype(np.float64) for group, values in by_group(params).items()}
    buffers = dict.fromkeys(RATE_GROUPS, 0.0)
    opt_state = optimizer.init(params)
    for step in range(3):
        gradients = two_parameters(seed=step + 1)
        rates = {group: peak / (1 + step) for group, peak in peaks.items()}
        updates, opt_state = optimizer.update(gradients, opt_state, params, rates, decays)
        params = optax.apply_updates(params, updates)
        for group, gradient in by_group(gradients).items():
            decayed = gradient + decays[group] * expected[group]
            buffers[group] = momentum * buffers[group] + decayed
            expected[group] -= peaks[group] / (1 + step) * buffers[group]
            np.testing.assert_allclose(by_group(params)[group], expected[group], rtol=1e-5, err_msg=f'{group} {step}')


def test_adamw_decays_apart_from_the_gradient():
    """Its first step goes by the gradient's sign and by the decay, each times the rate."""
    peaks, decays = {'backbone': 0.01, 'rest': 0.1}, {'backbone': 0.05, 'rest': 0.5}
    optimizer = Optimizer('adamw', MODEL, momentum=0.9)
    params, gradients = two_parameters(seed=0), two_parameters(seed=1)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params, peaks, decays)
    for group in RATE_GROUPS:
        step = np.sign(by_group(gradients)[group]) + decays[group] * by_group(params)[group]
        np.testing.assert_allclose(by_group(updates)[group], -peaks[group] * step, rtol=1e-4)


def test_adam_is_torchs():
    """Decay joins the gradient before its mean and its square are averaged."""
    peaks, decays, betas = {'backbone': 0.01, 'rest': 0.1}, {'backbone': 0.05, 'rest': 0.5}, (0.9, 0.999)
    optimizer = Optimizer('adam', MODEL, momentum=betas[0], second_beta=betas[1])
    params = two_parameters(seed=0)
    expected = {group: values.astype(np.float64) for group, values in by_group(params).items()}
    means, squares = dict.fromkeys(RATE_GROUPS, 0.0), dict.fromkeys(RATE_GROUPS, 0.0)
    opt_state = optimizer.init(params)
    for step in range(1, 4):
        gradients = two_parameters(seed=step)
        updates, opt_state = optimizer.update(gradients, opt_state, params, peaks, decays)
        params = optax.apply_updates(params, updates)
        for group, gradient in by_group(gradients).items():
            decayed = gradient + decays[group] * expected[group]
            means[group] = betas[0] * means[group] + (1 - betas[0]) * decayed
            squares[group] = betas[1] * squares[group] + (1 - betas[1]) * decayed**2
            mean, square = means[group] / (1 - betas[0] ** step), squares[group] / (1 - betas[1] ** step)
            expected[group] -= peaks[group] * mean / (np.sqrt(square) + 1e-8)
            np.testing.assert_allclose(by_group(params)[group], expected[group], rtol=1e-4, err_msg=f'{group} {step}')


@pytest.mark.parametrize('name', ['sgd', 'adamw'])
def test_decay_of_kernels_alone_leaves_vectors_where_they_are(name):
    params = {'stem': {'conv': {'kernel': np.ones((3, 3), np.float32), 'bias': np.ones(3, np.float32)}}}
    optimizer = Optimizer(name, MODEL, momentum=0.9, decayed='kernels')
    rates, decays = dict.fromkeys(RATE_GROUPS, 0.1), dict.fromkeys(RATE_GROUPS, 0.5)
    gradient = jax.tree.map(np.zeros_like, params)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params, rates, decays)
    np.testing.assert_allclose(updates['stem']['conv']['kernel'], -0.05, rtol=1e-5)
    np.testing.assert_array_equal(updates['stem']['conv']['bias'], 0)


@pytest.mark.parametrize(('acts_on', 'factor_of_decay'), [('both', 0.1), ('rate', 1.0)])
def test_the_backbones_factor_acts_on_what_the_config_says(acts_on, factor_of_decay):
    config = default_config()
    config.optimizer.update(learning_rate=0.5, weight_decay=0.2, backbone_factor_on=acts_on)
    optimizer = step_options(config, create_objective(config, MODEL))['optimizer']
    numbers, params = (
        create_schedule(config, Timeline(batch_size=1, num_images=8, epochs=1.0)).at(0),
        two_parameters(seed=0),
    )
    gradient = jax.tree.map(np.zeros_like, params)
    updates, _ = optimizer.update(
        gradient, optimizer.init(params), params, numbers.learning_rates, numbers.weight_decays
    )
    for group, factor in {'backbone': 0.1 * factor_of_decay, 'rest': 1.0}.items():
        np.testing.assert_allclose(by_group(updates)[group], -0.1 * factor * by_group(params)[group], rtol=1e-4)


@pytest.mark.parametrize('per_epoch', [True, False])
def test_steps_multiply_the_rate_after_so_many_epochs(per_epoch):
    options = {'epoch_of_step': lambda step: step // STEPS_PER_EPOCH} if per_epoch else {}
    found = rates(0.1, name='steps', total_epochs=EPOCHS, step_epochs=2.0, step_factor=0.5, **options)
    expected = np.repeat(0.5 ** np.array([0, 0, 1, 1, 2]), STEPS_PER_EPOCH)
    np.testing.assert_allclose(found, FLOOR + (0.1 - FLOOR) * expected, rtol=1e-5)


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
    with pytest.raises(ValueError, match="schedule.name='step' is unknown; known: cosine, poly, steps, constant"):
        learning_rate_schedule(peak=0.1, name='step', total_steps=1)


def test_a_frozen_group_stays_as_it_is():
    tenths = dict.fromkeys(RATE_GROUPS, 0.1)
    optimizer = Optimizer('sgd', MODEL, momentum=0.9, frozen=('backbone',))
    params = two_parameters(seed=0) | {'up1': {'conv': {'kernel': np.ones((1, 1, 2, 2), np.float32)}}}
    gradients = jax.tree.map(np.ones_like, params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params, tenths, tenths)
    assert not np.any(updates['layer1']['block0']['conv1']['conv']['kernel'])
    assert not np.any(updates['stem']['conv']['kernel']), 'the stem is of the backbone, though at the full rate'
    assert np.all(updates['up1']['conv']['kernel'])
