"""A workdir keeps one run's settings, classes and figures, and is never given to another run."""

import errno
import json

import pytest

from atonet_jax.config import default_config
from atonet_jax.data.labels import CITYSCAPES
from atonet_jax.errors import InputError
from atonet_jax.runs.metrics import METRICS_FILE, MetricsLog, read_metrics
from atonet_jax.runs.workdir import claim, load_class_table, load_config, lock
from tests.disks import contents, full_disk


def write_steps(workdir, steps, resumed_step):
    log = MetricsLog(workdir, resumed_step)
    for step in steps:
        log.write(step, {'train/loss': step / 10})
    log.close()


def logged_steps(workdir):
    return [line['step'] for line in read_metrics(workdir)]


def test_new_run_makes_its_workdir_and_can_be_read_back(tmp_path):
    workdir, config = str(tmp_path / 'runs' / 'new'), default_config()
    claim(workdir, config, CITYSCAPES)
    assert load_config(workdir) == config
    assert load_class_table(workdir) == CITYSCAPES


@pytest.mark.parametrize('load', [load_config, load_class_table])
def test_folder_without_a_run_is_named(load, tmp_path):
    with pytest.raises(InputError, match=f'{tmp_path}/.*: no such file; name the --workdir of a run'):
        load(str(tmp_path))


def test_a_run_of_another_version_is_not_called_damaged(tmp_path):
    workdir = str(tmp_path)
    claim(workdir, default_config(), CITYSCAPES)
    path = tmp_path / 'config.json'
    stored = json.loads(path.read_text())
    stored['train']['old_setting'] = 1
    path.write_text(json.dumps(stored))
    with pytest.raises(InputError, match='no setting train.old_setting; another version wrote the run'):
        load_config(workdir)
    stored['model']['name'] = 'unet'
    path.write_text(json.dumps(stored))
    with pytest.raises(InputError, match="^config.model.name='unet': must be one of atonet"):
        load_config(workdir)


def test_a_file_system_without_locks_is_not_another_process(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EOPNOTSUPP, 'Operation not supported')

    monkeypatch.setattr('fcntl.flock', flock)
    cannot_lock = r'the file system cannot lock files \(Operation not supported\); give a --workdir on another'
    with pytest.raises(InputError, match=cannot_lock), lock(str(tmp_path)):
        pass


def test_a_full_disk_is_a_line_at_the_claim_and_harms_nothing(tmp_path):
    config = default_config()
    claim(str(tmp_path), config, CITYSCAPES)
    before = contents(tmp_path)
    config.train.epochs = 1.0
    message = r'cannot be written \(File too large\); free space or choose another --workdir'
    with full_disk(10), pytest.raises(InputError, match=message):
        claim(str(tmp_path), config, CITYSCAPES)
    assert contents(tmp_path) == before
    with full_disk(0), pytest.raises(InputError, match=message), lock(str(tmp_path / 'new')):
        pass


def test_resumed_run_forgets_the_figures_that_it_makes_again(tmp_path):
    write_steps(tmp_path, [1, 2, 3, 4, 5], resumed_step=0)
    write_steps(tmp_path, [4], resumed_step=3)
    assert read_metrics(tmp_path) == [{'step': step, 'train/loss': step / 10} for step in (1, 2, 3, 4)]


def test_figures_are_on_disk_while_the_run_goes_on(tmp_path):
    log = MetricsLog(tmp_path, resumed_step=0)
    log.write(1, {'train/loss': 2.0})
    assert logged_steps(tmp_path) == [1]
    log.close()


def test_half_written_last_line_is_dropped(tmp_path):
    write_steps(tmp_path, [1, 2], resumed_step=0)
    with open(tmp_path / METRICS_FILE, 'a') as file:
        file.write('{"step": 3, "train/lo')
    assert logged_steps(tmp_path) == [1, 2]
    write_steps(tmp_path, [3], resumed_step=2)
    assert logged_steps(tmp_path) == [1, 2, 3]


def test_run_without_figures_has_none(tmp_path):
    assert read_metrics(tmp_path) == []


def test_damaged_lines_are_left_out_and_said(tmp_path, caplog):
    write_steps(tmp_path, [1, 2, 3], resumed_step=0)
    path = tmp_path / METRICS_FILE
    path.write_text(path.read_text().replace('{"step": 2,', '{"st\x00') + '3\n')
    assert logged_steps(tmp_path) == [1, 3]
    assert [message.partition(': ')[2] for message in caplog.messages] == [
        'line 2 is damaged and left out',
        'line 4 is damaged and left out',
    ]
