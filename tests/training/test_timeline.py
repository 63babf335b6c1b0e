"""Steps, samples and epochs of a run, whatever batches and data its earlier steps had."""

import numpy as np
import pytest

from atonet_jax.config import default_config
from atonet_jax.training.from_config import create_schedule
from atonet_jax.training.timeline import Timeline


def test_another_batch_size_leaves_what_is_left_of_the_epochs():
    small, large = Timeline(2, 6, 4.0), Timeline(6, 6, 4.0)
    assert (small.total_steps, large.total_steps) == (12, 4)
    longer = large._replace(epochs=8.0).after(12, small.epoch(12))
    assert (longer.total_steps, longer.start_sample, longer.epoch(16)) == (16, 24, 8.0)
    assert small.after(2, large.epoch(2)).total_steps == 2 + 6
    assert large.after(9, small.epoch(9)).total_steps == 9 + 1  # 6 of 24 samples are left


def test_larger_data_makes_the_epochs_larger_that_are_left():
    grown = Timeline(2, 12, 8.0).after(12, 4.0)
    assert (grown.start_sample, grown.total_steps, grown.epoch(12 + 24)) == (48, 12 + 24, 8.0)


@pytest.mark.parametrize(('batch_size', 'num_images', 'epochs'), [(4, 5, 2.5), (2, 5, 0.5), (7, 3, 11.1), (8, 5, 0.1)])
def test_a_run_that_goes_on_unchanged_has_the_same_steps_from_wherever(batch_size, num_images, epochs):
    whole = Timeline(batch_size, num_images, epochs)
    for step in range(whole.total_steps + 1):
        rest = whole.after(step, whole.epoch(step))
        assert (rest.offset, rest.total_steps) == (0, whole.total_steps)


def test_a_run_that_has_more_epochs_than_asked_for_is_done():
    assert Timeline(4, 12, 1.0).after(9, 3.0).total_steps == 9
    assert Timeline(4, 12, 0.01).total_steps == 1


def test_epochs_end_where_their_last_sample_is_taken():
    timeline = Timeline(4, 10, 9.0)
    assert [step for step in range(1, 16) if timeline.passes(step, 1.0)] == [3, 5, 8, 10, 13, 15]
    assert [step for step in range(1, 16) if timeline.passes(step, 2.0)] == [5, 10, 15]
    assert all(Timeline(4, 3, 9.0).passes(step, 1.0) for step in range(1, 6))


def rates(config, timeline, steps):
    schedule = create_schedule(config, timeline).learning_rates['rest']
    return [schedule(step) for step in steps]


@pytest.mark.parametrize('per', ['step', 'epoch'])
def test_the_learning_rate_follows_the_epochs_whatever_the_batch(per):
    """After 12 steps of 2 images the rates are those of a run that had batches of 6 from the start."""
    config = default_config()
    config.schedule.update(per=per, warmup_epochs=6.0)
    whole = Timeline(6, 6, 8.0)
    rest = whole.after(12, 4.0)
    np.testing.assert_allclose(rates(config, rest, range(12, 16)), rates(config, whole, range(4, 8)), rtol=1e-5)


def test_the_papers_learning_rate_is_that_of_the_epoch_in_which_a_step_begins():
    """With batches of 4 of 6 images, the second step begins in the first epoch and ends in the second."""
    config = default_config()
    config.schedule.floor = 0.0
    expected = [0.02, 0.02, 0.015, 0.005, 0.005]  # 0.02 * (1 + cos(pi * epoch / 3)) / 2
    np.testing.assert_allclose(rates(config, Timeline(4, 6, 3.0), range(5)), expected, rtol=1e-6)
