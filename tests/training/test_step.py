"""What a step draws and weighs, a batch in parts, and averaged parameters."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from atonet_jax.data.augmentation import Augmentation
from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.models import init_variables, network
from atonet_jax.models.blocks import Conv, ConvNorm
from atonet_jax.models.contract import UPSAMPLINGS
from atonet_jax.models.terms import Term
from atonet_jax.process.devices import create_mesh
from atonet_jax.runs.state import TrainState
from atonet_jax.training.losses import total_loss
from atonet_jax.training.optimizer import RATE_GROUPS, Optimizer
from atonet_jax.training.step import (
    Objective,
    StepSchedule,
    accumulated_gradient,
    create_state,
    gradient_of,
    step_inputs,
    train_step,
)
from benchmarks.noise import noise_batch

CLASSES = 5
CLASS_WEIGHTS = (1.0, 2.0, 0.5, 3.0, 0.0)
AUGMENTATION = Augmentation(crop_size=(32, 32), flip=False)
RATES = dict.fromkeys(RATE_GROUPS, lambda step: 0.1)
DECAYS = dict.fromkeys(RATE_GROUPS, 0.0)


class TwoConvolutions(nn.Module):
    """Without batch normalisation and dropout, which see the parts of a batch apart."""

    num_classes: int = CLASSES
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, train):
        x = nn.relu(Conv(8, 3, stride=2, use_bias=True, name='first')(images))
        return {'logits': Conv(self.num_classes, 3, use_bias=True, name='second')(x)}


@pytest.fixture(scope='module')
def objective():
    return Objective.of(TwoConvolutions())


@pytest.fixture(scope='module')
def variables(objective):
    return init_variables(objective.model, 0)


@pytest.mark.parametrize('class_weights', [None, CLASS_WEIGHTS])
@pytest.mark.parametrize('parts', [2, 4])
def test_parts_of_a_batch_give_the_loss_and_the_gradient_of_the_whole(objective, variables, parts, class_weights):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 24, 32, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, (4, 24, 32), np.uint8)
    for i, rows in enumerate((0, 5, 12, 23)):  # so that the parts have unlike numbers of labelled pixels
        labels[i, :rows] = IGNORE_LABEL
    arguments = objective, variables, images, labels, jax.random.key(0), class_weights and jnp.array(class_weights)
    whole, in_parts = gradient_of(*arguments), accumulated_gradient(*arguments, parts)
    np.testing.assert_allclose(in_parts.loss, whole.loss, rtol=1e-5)
    assert in_parts.terms.keys() == whole.terms.keys()
    for ours, expected in zip(jax.tree.leaves(in_parts.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


class Normalized(nn.Module):
    """With batch normalisation."""

    num_classes: int = CLASSES

    @nn.compact
    def __call__(self, images, train):
        return {'logits': Conv(self.num_classes, 1, name='classifier')(ConvNorm(4, 3, stride=2)(images, train))}


def test_each_part_of_a_batch_goes_on_from_the_statistics_of_the_part_before():
    objective = Objective.of(Normalized())
    variables = init_variables(objective.model, 0)
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
    images[1::2] *= 3  # the second part, so that the order counts
    labels, key = np.zeros((4, 16, 16), np.uint8), jax.random.key(0)
    of_whole = jax.jit(partial(accumulated_gradient, objective, class_weights=None, parts=2))
    of_part = jax.jit(partial(gradient_of, objective))
    in_parts = of_whole(variables, images, labels, key).collections
    first = of_part(variables, images[0::2], labels[0::2], key).collections
    second = of_part(variables | first, images[1::2], labels[1::2], key).collections
    assert in_parts.keys() == {'batch_stats'}
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), in_parts, second)


class RemembersDropout(nn.Module):
    """Keeps what dropout made of 32 ones, this time and the time before."""

    num_classes: int = CLASSES

    @nn.compact
    def __call__(self, images, train):
        kept = self.variable('history', 'kept', jnp.zeros, (2, 32))
        kept.value = jnp.stack([kept.value[1], nn.Dropout(0.5, deterministic=not train)(jnp.ones(32))])
        return {'logits': Conv(self.num_classes, 1, name='classifier')(images)}


def test_each_part_of_a_batch_has_a_dropout_of_its_own():
    objective = Objective.of(RemembersDropout())
    images, labels = np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 8, 8), np.uint8)
    variables = init_variables(objective.model, 0)
    of_whole = jax.jit(partial(accumulated_gradient, objective, class_weights=None, parts=2))
    in_parts = of_whole(variables, images, labels, jax.random.key(0)).collections
    first, second = np.asarray(in_parts['history']['kept'])
    assert set(first) == set(second) == {0, 2}
    assert (first != second).any()


def test_what_a_step_draws_follows_from_the_seed_and_the_step_alone(objective, variables):
    augmentation = Augmentation(crop_size=(32, 32), flip=False, brightness=0.5)
    batch = noise_batch(augmentation, 2, CLASSES)

    @jax.jit
    def inputs(seed, step):
        images, _, key = step_inputs(objective, TrainState(step, variables, None, None), batch, augmentation, seed)
        return images, jax.random.key_data(key)

    drawn = inputs(3, 4)
    jax.tree.map(np.testing.assert_array_equal, inputs(3, 4), drawn)
    for other in (inputs(3, 5), inputs(4, 4)):
        assert all((one != another).any() for one, another in zip(other, drawn, strict=True))


def test_a_step_weighs_its_loss_by_the_class_weights(objective, variables):
    optimizer = Optimizer('sgd', objective.model, momentum=0.9)
    options = {'objective': objective, 'optimizer': optimizer, 'augmentation': AUGMENTATION}
    state = create_state(variables, optimizer, averaging=False, mesh=create_mesh())

    @jax.jit
    def losses(batch, numbers):
        _, metrics = train_step(state, batch, numbers, **options)
        inputs = step_inputs(objective, state, batch, AUGMENTATION, numbers.seed)
        weighted, plain = (
            gradient_of(objective, variables, *inputs, weights).loss for weights in (jnp.array(CLASS_WEIGHTS), None)
        )
        return metrics['loss'], weighted, plain

    numbers = StepSchedule(RATES, DECAYS, class_weights=CLASS_WEIGHTS).at(0)
    of_step, weighted, plain = losses(noise_batch(AUGMENTATION, 2, CLASSES), numbers)
    np.testing.assert_allclose(of_step, weighted, rtol=1e-5)
    assert abs(of_step - plain) > 0.01


@pytest.mark.parametrize('at', ['labels', 'output'])
def test_the_loss_takes_the_upsampling_of_the_network(objective, variables, at, monkeypatch):
    objective = objective._replace(terms=(Term('logits', at=at),))
    batch = noise_batch(AUGMENTATION, 2, CLASSES)
    images, labels, key = step_inputs(objective, SimpleNamespace(step=0), batch, AUGMENTATION, seed=1)
    labels = labels.at[:, ::2, ::3].set(IGNORE_LABEL)  # so that the rules also differ in how many pixels count
    outputs, _ = objective.outputs(variables, images, key)
    losses = {}
    for upsampling in UPSAMPLINGS:
        contract = dataclasses.replace(network(objective.model), upsampling=upsampling)
        monkeypatch.setattr('atonet_jax.training.step.network', lambda model, contract=contract: contract)
        losses[upsampling] = total_loss(outputs, labels, objective.terms, upsampling)[0]
        for parts in (1, 2):
            gradient = accumulated_gradient(objective, variables, images, labels, key, None, parts)
            np.testing.assert_allclose(gradient.loss, losses[upsampling], rtol=1e-5)
    assert abs(losses['half_pixel'] - losses['align_corners']) > 1e-3


@pytest.mark.parametrize('ema_decay', [0.15, 0.999])
def test_averages_begin_quickly_and_reach_their_decay(objective, variables, ema_decay):
    optimizer = Optimizer('sgd', objective.model, momentum=0.9)
    schedule = StepSchedule(RATES, DECAYS, ema_decay=ema_decay)
    state = create_state(variables, optimizer, averaging=True, mesh=create_mesh())
    expected, batch = state.averaged, noise_batch(AUGMENTATION, 2, CLASSES)
    step_fn = jax.jit(
        lambda *arguments: train_step(*arguments, objective=objective, optimizer=optimizer, augmentation=AUGMENTATION)
    )
    for step in range(3):
        state, _ = step_fn(state, batch, schedule.at(step))
        decay = min(ema_decay, (1 + step) / (10 + step))
        expected = jax.tree.map(lambda mean, new: decay * mean + (1 - decay) * new, expected, state.variables)
    for ours, mean in zip(jax.tree.leaves(state.averaged), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, mean, rtol=1e-5, atol=1e-7)
