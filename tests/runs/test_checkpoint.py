"""Checkpoints: on the disk before they count, and moved away only where their content is damaged."""

import errno
import os
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from atonet_jax.errors import InputError, TrainingError
from atonet_jax.runs import checkpoint
from atonet_jax.runs.checkpoint import Checkpoints, has_checkpoint
from atonet_jax.runs.state import TrainState


@pytest.fixture
def run(tmp_path, monkeypatch):
    """(workdir, steps that are saved there); nothing is waited for."""
    monkeypatch.setattr(checkpoint, '_PAUSES', (0.0, 0.0))
    checkpoints = Checkpoints(str(tmp_path), keep=2)
    for step in (1, 2):
        state = TrainState(jnp.int32(step), {'params': {'a': jnp.full(3, step)}}, {'mean': jnp.zeros(3)}, None)
        checkpoints.save(state, {}, miou=step / 10)
    checkpoints.close()
    return str(tmp_path)


def restore(run, monkeypatch, outcomes):
    """The step that `restore_latest` takes, where reading it comes to what `outcomes` gives, one after the other."""

    def read(self, step):
        outcome = outcomes[step].pop(0)
        if outcome is not None:
            raise outcome

    monkeypatch.setattr(Checkpoints, '_read_alone', read)
    monkeypatch.setattr(Checkpoints, 'restore', lambda self, state, step: step)
    checkpoints = Checkpoints(run, keep=2)
    try:
        return checkpoints.restore_latest(None)
    finally:
        checkpoints.close()


@pytest.mark.parametrize('opens', [has_checkpoint, Checkpoints])
def test_a_folder_that_cannot_be_read_is_named(run, monkeypatch, opens):
    def refuse(folder='.'):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)

    monkeypatch.setattr(os, 'listdir', refuse)
    with pytest.raises(InputError, match=r'checkpoints: cannot be read \(Permission denied\); check its permissions'):
        opens(run)


def test_where_the_folder_itself_is_lost_the_failure_to_save_is_still_one_line(run):
    checkpoints = Checkpoints(run, keep=2)
    folder = os.path.join(run, 'checkpoints')
    shutil.rmtree(folder)
    state = TrainState(jnp.int32(3), {'params': {'a': jnp.ones(3)}}, {'mean': jnp.zeros(3)}, None)
    with open(folder, 'w'), pytest.raises(TrainingError, match=r'saved \(Not a directory\); there is no other; free'):
        checkpoints.save(state, {}, None)
        checkpoints.wait()


@pytest.mark.parametrize('name', ['[a]', 'a?', 'a*', 'a\\b', os.fsdecode(b'caf\xe9')])
def test_a_path_under_which_checkpoints_would_be_lost_is_refused_before_the_run(tmp_path, name):
    """Orbax and TensorStore would say nothing when they save there, and find nothing when they read."""
    for opens in (has_checkpoint, lambda workdir: Checkpoints(workdir, keep=1)):
        with pytest.raises(InputError, match='this path .*; rename its folder'):
            opens(f'{tmp_path}/{name}/run')


def test_a_run_is_read_wherever_it_was_copied_to(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / '[copy] é #1')
    checkpoints = Checkpoints(str(copy))
    checkpoints._read_alone(2)
    checkpoints.close()


def test_an_error_that_passes_moves_no_checkpoint_away(run, monkeypatch):
    error = OSError(errno.EIO, 'Input/output error')
    assert restore(run, monkeypatch, {2: [error, ValueError('odd'), None]}) == 2
    assert not os.path.exists(os.path.join(run, 'unusable'))


@pytest.mark.parametrize(
    'error',
    [
        OSError(errno.EIO, 'Input/output error'),
        ValueError("Input/output error [os_error_code='5']"),
        ValueError("Input/output error [tensorstore_spec='{\"a\": {}}'] [os_error_code='5']"),
    ],
    ids=['system', 'TensorStore', 'TensorStore with what it read'],
)
def test_where_the_system_cannot_read_the_run_ends_and_nothing_is_moved(run, monkeypatch, error):
    with pytest.raises(InputError, match=r'checkpoint 2 cannot be read now \(Input/output error\), and is left as it'):
        restore(run, monkeypatch, {2: [error] * 3, 1: [None]})
    assert sorted(os.listdir(os.path.join(run, 'checkpoints'))) == ['1', '2']


def test_a_checkpoint_whose_content_is_whole_is_never_moved(run, monkeypatch):
    """As where the devices have no room for it."""
    outcomes = [RuntimeError('RESOURCE_EXHAUSTED: out of memory'), None]

    def place(self, state, step):
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome
        return step

    monkeypatch.setattr(Checkpoints, '_read_alone', lambda *_: None)
    monkeypatch.setattr(Checkpoints, 'restore', place)
    checkpoints = Checkpoints(run, keep=2)
    assert checkpoints.restore_latest(None) == 2
    outcomes += 3 * [RuntimeError('RESOURCE_EXHAUSTED: out of memory')]
    with pytest.raises(InputError, match='checkpoint 2 cannot be read now .RESOURCE_EXHAUSTED.*, and is left as it is'):
        checkpoints.restore_latest(None)
    checkpoints.close()
    assert not os.path.exists(os.path.join(run, 'unusable'))


@pytest.mark.parametrize('error', [ValueError('no JSON'), FileNotFoundError(errno.ENOENT, 'No such file')])
def test_a_damaged_checkpoint_is_moved_away_and_the_one_before_taken(run, monkeypatch, error):
    assert restore(run, monkeypatch, {2: [error] * 3, 1: [None]}) == 1
    assert os.listdir(os.path.join(run, 'unusable')) == ['2']


def test_checkpoints_on_another_disk_are_moved_away_too(run, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, 'rename', refuse)
    assert restore(run, monkeypatch, {2: [ValueError('no JSON')] * 3, 1: [None]}) == 1
    assert os.path.exists(os.path.join(run, 'unusable', '2', 'variables'))
    assert not os.path.exists(os.path.join(run, 'checkpoints', '2'))


def test_a_damaged_score_is_named_and_training_goes_on_without_it(run, caplog):
    os.truncate(os.path.join(run, 'checkpoints', '2', 'metrics', 'metrics'), 0)
    with pytest.raises(InputError, match='2/metrics: is damaged .*; delete it, and the checkpoint counts as one with'):
        Checkpoints(run)
    checkpoints = Checkpoints(run, keep=2)
    assert (checkpoints.step('latest'), checkpoints.step('best')) == (2, 1)
    checkpoints.close()
    assert 'checkpoint 2: its score cannot be read' in caplog.text
    assert os.listdir(os.path.join(run, 'unusable', '2')) == ['metrics']


def test_training_in_a_folder_of_weights_alone_says_how_to_start_from_them(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), keep=1)
    checkpoints.save_variables(1, {'params': {'a': np.zeros(3)}})
    checkpoints.wait()
    with pytest.raises(InputError, match=f'{tmp_path}: holds weights alone.*config.init_from=FOLDER and another'):
        checkpoints.restore_latest(None)
    checkpoints.close()


def test_a_checkpoint_that_has_lost_its_optimizer_is_damaged_where_another_is_whole(run, monkeypatch):
    shutil.rmtree(os.path.join(run, 'checkpoints', '2', 'optimizer'))
    monkeypatch.setattr(Checkpoints, 'restore', lambda self, state, step: step)
    checkpoints = Checkpoints(run, keep=2)
    assert checkpoints.restore_latest(None) == 1
    checkpoints.close()
    assert os.listdir(os.path.join(run, 'unusable')) == ['2']


def test_the_best_checkpoint_outlives_later_ones(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), keep=1)
    for step, miou in ((1, 0.9), (2, 0.1), (3, 0.2)):
        state = TrainState(jnp.int32(step), {'params': {'a': jnp.zeros(3)}}, {'mean': jnp.zeros(3)}, None)
        checkpoints.save(state, {}, miou)
    checkpoints.wait()
    assert (checkpoints.step('best'), checkpoints.step('latest')) == (1, 3)
    checkpoints.close()
    assert sorted(os.listdir(tmp_path / 'checkpoints')) == ['1', '3']


def test_a_process_can_read_a_checkpoint_without_the_others(finished, tmp_path):
    checkpoints = Checkpoints(str(shutil.copytree(finished, tmp_path / 'run')))
    checkpoints._read_alone(6)
    for path in (tmp_path / 'run' / 'checkpoints' / '4').rglob('d/*'):
        os.truncate(path, 0)
    (tmp_path / 'run' / 'checkpoints' / '6' / 'variables' / 'manifest.ocdbt').unlink()
    for step in (6, 4, 5):  # without the list of its arrays, damaged, and not there
        with pytest.raises(Exception) as failure:
            checkpoints._read_alone(step)
        assert not checkpoint._may_pass(failure.value)
    checkpoints.close()


def test_a_damaged_checkpoint_is_named_before_orbax_prints_of_each_array(run, monkeypatch):
    for path in pathlib.Path(run, 'checkpoints', '2', 'variables').rglob('d/*'):
        os.truncate(path, 0)
    monkeypatch.setattr(Checkpoints, '_restore_variables', lambda *_: pytest.fail('Orbax reads it'))
    checkpoints = Checkpoints(run)
    with pytest.raises(InputError, match='checkpoint 2 cannot be read .*; copy it again, or give another'):
        checkpoints.restore_variables(2, None, None, averaged=False)
    checkpoints.close()


def test_the_content_has_reached_the_disk_before_a_checkpoint_has_its_name(tmp_path, monkeypatch):
    final, before, after = tmp_path / 'checkpoints' / '1', set(), set()
    fsync = os.fsync

    def note(descriptor):
        path = os.readlink(f'/proc/self/fd/{descriptor}')
        (after if final.exists() else before).add(path.replace('.orbax-checkpoint-tmp', ''))
        fsync(descriptor)

    monkeypatch.setattr(os, 'fsync', note)
    checkpoints = Checkpoints(str(tmp_path), keep=1)
    checkpoints.save_variables(1, {'params': {'a': np.ones(3)}})
    checkpoints.close()
    files = {str(path) for path in final.rglob('*')}
    assert any('/d/' in path for path in files)
    of_orbax = {str(final / 'commit_success.txt')}
    assert files - of_orbax <= before
    assert str(final.parent) in after and files <= after
