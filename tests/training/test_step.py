"""A batch in parts has the gradient of the whole, and averaged parameters follow their formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from atonet_jax.data.augmentation import Augmentation
from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.models import init_variables
from atonet_jax.models.blocks import Conv
from atonet_jax.process.devices import create_mesh
from atonet_jax.training.optimizer import RATE_GROUPS, Optimizer
from atonet_jax.training.step import (
    Objective,
    StepSchedule,
    accumulated_gradient,
    create_state,
    gradient_of,
    train_step,
)
from benchmarks.noise import noise_batch

CLASSES = 5


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


@pytest.mark.parametrize('class_weights', [None, (1.0, 2.0, 0.5, 3.0, 0.0)])
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


@pytest.mark.parametrize('ema_decay', [0.15, 0.999])
def test_averages_begin_quickly_and_reach_their_decay(objective, variables, ema_decay):
    augmentation = Augmentation(crop_size=(32, 32), scale_range=(1.0, 1.0), flip=False)
    optimizer = Optimizer('sgd', objective.model, momentum=0.9)
    rates = dict.fromkeys(RATE_GROUPS, lambda step: 0.1)
    schedule = StepSchedule(rates, dict.fromkeys(RATE_GROUPS, 0.0), ema_decay=ema_decay)
    state = create_state(variables, optimizer, averaging=True, mesh=create_mesh())
    expected, batch = state.averaged, noise_batch(augmentation, 2, CLASSES)
    step_fn = jax.jit(
        lambda *arguments: train_step(*arguments, objective=objective, optimizer=optimizer, augmentation=augmentation)
    )
    for step in range(3):
        state, _ = step_fn(state, batch, schedule.at(step))
        decay = min(ema_decay, (1 + step) / (10 + step))
        expected = jax.tree.map(lambda mean, new: decay * mean + (1 - decay) * new, expected, state.variables)
    for ours, mean in zip(jax.tree.leaves(state.averaged), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, mean, rtol=1e-5, atol=1e-7)
