"""A run goes on with settings that fit it; what has changed is told, and what it cannot go on with is refused."""

import dataclasses

import pytest

from atonet_jax.config import default_config
from atonet_jax.data.labels import CAMVID, CITYSCAPES
from atonet_jax.errors import InputError
from atonet_jax.runs.changes import (
    Change,
    changes_since,
    check_network,
    check_training,
    incomparable_text,
    reads_other_values,
)
from atonet_jax.runs.workdir import claim, load_config, with_start
from tests.disks import contents


def test_run_that_goes_on_tells_what_its_config_changed(tmp_path):
    config = default_config()
    claim(str(tmp_path), config, CITYSCAPES)
    assert changes_since(str(tmp_path), config) == []
    config.train.epochs = 100.0
    config.eval.scales = (0.5, 1.0)
    assert [str(change) for change in changes_since(str(tmp_path), config)] == [
        'config.eval.scales was (1.0,), is (0.5, 1.0)',
        'config.train.epochs was 200.0, is 100.0',
    ]
    claim(str(tmp_path), config, CITYSCAPES)
    assert load_config(str(tmp_path)) == config


def test_run_of_another_network_is_refused_and_the_workdir_unharmed(tmp_path):
    config = default_config()
    claim(str(tmp_path), config, CITYSCAPES)
    before = contents(tmp_path)
    config.model.width = 64
    config.train.epochs = 1.0
    with pytest.raises(InputError, match='config.model.width was 128, is 64.*give a new --workdir'):
        check_training(str(tmp_path), config, CITYSCAPES)
    assert contents(tmp_path) == before


def test_other_weights_to_start_from_are_not_passed_over_where_a_run_has_begun(tmp_path):
    config = default_config()
    claim(str(tmp_path), config, CITYSCAPES)
    for section, key in ((config, 'init_from'), (config.model, 'pretrained_backbone')):
        section[key] = 'resnet18.pth'
        with pytest.raises(InputError, match=f'{key}=resnet18.pth: .*has begun already; give a new --workdir'):
            check_network(str(tmp_path), config, CITYSCAPES)
        section[key] = ''


def test_what_a_run_started_from_is_kept_and_may_change_until_it_has_begun(tmp_path):
    config = default_config()
    config.init_from, config.optimizer.name = 'first.pth', 'adamw'
    claim(str(tmp_path), config, CITYSCAPES)
    assert with_start(default_config(), str(tmp_path)).init_from == 'first.pth'
    assert with_start(config, str(tmp_path / 'none')) == config
    config.init_from, config.optimizer.name = 'second.pth', 'sgd'
    check_training(str(tmp_path), config, CITYSCAPES, has_begun=False)


@pytest.mark.parametrize(('key', 'value'), [('name', 'adamw'), ('ema_decay', 0.99), ('frozen', ('backbone',))])
def test_run_whose_training_state_would_not_fit_is_refused(tmp_path, key, value):
    config = default_config()
    claim(str(tmp_path), config, CITYSCAPES)
    config.optimizer[key] = value
    with pytest.raises(InputError, match=f'config.optimizer.{key} was .* give a new --workdir'):
        check_training(str(tmp_path), config, CITYSCAPES)


def test_another_average_fits_the_training_state(tmp_path):
    config = default_config()
    config.optimizer.ema_decay = 0.99
    claim(str(tmp_path), config, CITYSCAPES)
    config.optimizer.ema_decay = 0.999
    check_training(str(tmp_path), config, CITYSCAPES)
    assert changes_since(str(tmp_path), config) == [Change('optimizer.ema_decay', 0.99, 0.999)]


def test_run_of_other_classes_is_refused_and_the_workdir_unharmed(tmp_path):
    config = default_config()
    claim(str(tmp_path), config, CITYSCAPES)
    before = contents(tmp_path)
    config.data.name = 'camvid'
    with pytest.raises(InputError, match='19 classes of cityscapes, not the 11 of camvid'):
        check_training(str(tmp_path), config, CAMVID)
    assert contents(tmp_path) == before


def test_changes_that_make_other_scores_are_told():
    changes = [Change('data.eval_split', 'val', 'test'), Change('eval.batch_size', 1, 4), Change('seed', 1, 2)]
    told = incomparable_text(changes, has_other_labels=False)
    assert told.startswith("config.data.eval_split was 'val', is 'test': new scores may not be comparable")
    assert incomparable_text(changes[1:], has_other_labels=False) == ''
    assert incomparable_text([Change('data.folder.list', 'a', 'b')], has_other_labels=False)
    assert incomparable_text([], has_other_labels=True).startswith('label files give the classes by other values')


def test_label_files_that_are_read_by_other_values_are_noticed(tmp_path):
    claim(str(tmp_path), default_config(), CITYSCAPES)
    assert not reads_other_values(str(tmp_path), CITYSCAPES)
    merged = [label._replace(train_id=0) for label in CITYSCAPES.raw_labels]
    assert reads_other_values(str(tmp_path), dataclasses.replace(CITYSCAPES, raw_labels=tuple(merged)))


@pytest.mark.parametrize(
    ('name', 'option', 'value'), [('sparse_two_column', 'form', 'dense'), ('pidnet_s', 'edge_border', 0)]
)
def test_options_that_weights_do_not_depend_on_may_change(tmp_path, name, option, value):
    config = default_config(name)
    claim(str(tmp_path), config, CITYSCAPES)
    config.model[option] = value
    check_network(str(tmp_path), config, CITYSCAPES)
    assert [change.key for change in changes_since(str(tmp_path), config)] == [f'model.{option}']
