"""What the settings of a config make of the steps of a run."""

import jax
import numpy as np
import pytest

from atonet_jax.config import default_config
from atonet_jax.data.augmentation import Augmentation
from atonet_jax.errors import InputError
from atonet_jax.models import create_model
from atonet_jax.models.terms import HardExampleShare, Term
from atonet_jax.training.from_config import (
    backbone_rate_warning,
    check_floor,
    create_objective,
    create_schedule,
    step_options,
)
from atonet_jax.training.optimizer import Optimizer
from atonet_jax.training.step import Objective, StepNumbers
from atonet_jax.training.timeline import Timeline


def test_every_setting_reaches_the_options_of_a_step():
    model = create_model('segnet_basic', 5)
    config = default_config('segnet_basic')
    config.data.update(crop_size=(40, 48), scale_range=(0.5, 1.5), flip=False)
    augmentation = {
        'rotation': 5.0,
        'class_aware_crops': 0.1,
        'brightness': 0.2,
        'contrast': 0.3,
        'saturation': 0.4,
        'hue': 0.05,
        'blur': 0.6,
        'blur_sigma': (0.5, 1.0),
        'erasing': 0.7,
        'erasing_area': (0.1, 0.3),
    }
    config.data.augmentation.update(augmentation)
    config.loss.update(mining=True, mining_threshold=0.5, mining_min_kept=0.25)
    config.optimizer.update(name='adamw', momentum=0.7, second_beta=0.8, decayed='kernels', frozen=('backbone',))
    config.train.update(accumulation=2, remat=True)
    objective = create_objective(config, model)
    assert objective == Objective(model, (Term('logits', criterion=HardExampleShare(0.5, 0.25)),), remat=True)
    assert step_options(config, objective, ('stem',)) == {
        'objective': objective,
        'optimizer': Optimizer('adamw', model, 0.7, 0.8, 'kernels', ('backbone',), ('stem',)),
        'augmentation': Augmentation((40, 48), (0.5, 1.5), False, **augmentation),
        'accumulation': 2,
    }


def test_every_setting_reaches_the_numbers_of_a_step():
    config = default_config()
    config.seed = 7
    config.optimizer.update(learning_rate=0.2, weight_decay=0.03, backbone_factor=0.5, ema_decay=0.9)
    numbers = create_schedule(config, Timeline(batch_size=2, num_images=8, epochs=4.0), (1.0, 2.0)).at(0)
    expected = StepNumbers(
        learning_rates={'backbone': 0.1, 'rest': 0.2},
        weight_decays={'backbone': 0.015, 'rest': 0.03},
        ema_decay=0.9,
        seed=7,
        class_weights=np.array([1.0, 2.0]),
    )
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-6), numbers, expected)


def test_every_setting_reaches_the_shape_of_the_learning_rate():
    config = default_config()
    config.optimizer.learning_rate = 0.2
    config.schedule.update(per='step', warmup_epochs=1.0, floor=0.03)
    timeline = Timeline(batch_size=2, num_images=8, epochs=4.0)  # 16 steps, the first 4 of them warm up
    shapes = {
        'poly': ({'power': 2.0}, lambda step: (1 - step / 16) ** 2),
        'steps': ({'step_epochs': 2.0, 'step_factor': 0.5}, lambda step: 0.5 ** (step // 8)),
    }
    for name, (settings, shape) in shapes.items():
        config.schedule.update(name=name, **settings)
        schedule = create_schedule(config, timeline).learning_rates['rest']
        for step in (0, 1, 3, 4, 8, 12, 15):
            warm_up = min(1, (step + 1) / 5)  # 0 would be before the first step
            expected = warm_up * (0.03 + (0.2 - 0.03) * shape(step))
            np.testing.assert_allclose(schedule(step), expected, rtol=1e-6, err_msg=f'{name} {step}')


def test_a_backbone_of_random_weights_at_a_tenth_of_the_rate_is_warned_of():
    config = default_config()
    config.optimizer.backbone_factor = 0.1
    assert 'backbone_factor=0.1 is for a trained backbone' in backbone_rate_warning(config, {'backbone', 'rest'}, True)
    assert backbone_rate_warning(config, {'backbone', 'rest'}, False) == ''
    assert 'trains all at one rate' in backbone_rate_warning(config, {'rest'}, False)
    config.optimizer.backbone_factor = 1.0
    for groups in ({'backbone', 'rest'}, {'rest'}):
        assert backbone_rate_warning(config, groups, True) == ''
    config.optimizer.update(backbone_factor=0.1, frozen=('backbone',))
    assert 'stays as it is drawn, at random' in backbone_rate_warning(config, {'frozen', 'rest'}, True)
    assert backbone_rate_warning(config, {'frozen', 'rest'}, False) == ''


def test_a_floor_above_the_rate_of_the_backbone_is_refused_where_parameters_have_that():
    config = default_config()
    config.optimizer.update(learning_rate=1e-3, backbone_factor=0.1)
    config.schedule.floor = 5e-4
    check_floor(config, {'rest', 'frozen'})
    with pytest.raises(InputError, match="floor=0.0005: must be below 0.0001, the backbone's learning rate"):
        check_floor(config, {'rest', 'backbone'})
    config.schedule.name = 'constant'
    check_floor(config, {'rest', 'backbone'})
