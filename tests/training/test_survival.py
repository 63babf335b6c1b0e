"""What machines do to a run: it ends in good order or is killed, disks fill, files are damaged; nothing is lost."""

import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest

from atonet_jax.errors import InputError, TrainingError
from atonet_jax.process.devices import create_mesh
from atonet_jax.process.stopping import Stopped
from atonet_jax.runs.checkpoint import Checkpoints
from atonet_jax.runs.network import create_network
from atonet_jax.runs.workdir import MetricsLog, lock, read_metrics
from atonet_jax.training import train as train_module
from atonet_jax.training.train import train
from tests.commands import main_command

TOTAL_STEPS = 6


def variables_of(config, workdir, step=TOTAL_STEPS):
    checkpoints = Checkpoints(workdir)
    variables = checkpoints.restore_variables(step, create_network(config, 19), create_mesh(), averaged=False)
    checkpoints.close()
    return jax.tree.map(np.asarray, variables)


def assert_ends_as_undisturbed(config, workdir, finished):
    jax.tree.map(np.testing.assert_array_equal, variables_of(config, workdir), variables_of(config, finished))
    steps = [line['step'] for line in read_metrics(workdir) if 'train/loss' in line]
    assert steps == list(range(1, TOTAL_STEPS + 1)), 'each step is logged once'


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_a_step_that_is_saved(finished, tiny_config, tmp_path, monkeypatch, number):
    config = tiny_config.copy_and_resolve_references()
    config.train.checkpoint_every_steps = 100
    handler = signal.getsignal(number)
    write = MetricsLog.write

    def write_and_signal(self, step, values):
        write(self, step, values)
        if step == 1 and 'train/loss' in values:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched, pytest.raises(Stopped, match=f'by {number.name} after step 2, which is sa'):
        patched.setattr(MetricsLog, 'write', write_and_signal)
        train(config, str(tmp_path))
    assert signal.getsignal(number) is handler
    assert Checkpoints(str(tmp_path)).latest_step() == 2
    train(config, str(tmp_path))
    assert_ends_as_undisturbed(tiny_config, str(tmp_path), finished)


def test_a_signal_that_comes_while_it_evaluates_is_obeyed_afterwards(tiny_config, tmp_path, monkeypatch):
    write = MetricsLog.write

    def write_and_signal(self, step, values):
        write(self, step, values)
        if step == 3 and 'eval/miou' in values:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsLog, 'write', write_and_signal)
    with pytest.raises(Stopped, match='by SIGTERM after step 3'):
        train(tiny_config, str(tmp_path))


def wait_for_step(process, workdir, step):
    while not any(line['step'] >= step for line in read_metrics(workdir)):
        assert process.poll() is None, 'the run ended before it could be disturbed'
        time.sleep(0.02)


def test_sigterm_has_an_exit_code_and_a_line_of_its_own(tiny_config, repository, tmp_path):
    workdir = str(tmp_path)
    process = subprocess.Popen(
        main_command(tiny_config, workdir, '--config.train.epochs=50'),
        cwd=repository,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_step(process, workdir, 3)
    process.send_signal(signal.SIGTERM)
    errors = process.stderr.read()
    assert process.wait(timeout=120) == 143, errors
    last = errors.strip().splitlines()[-1]
    step = Checkpoints(workdir).latest_step()
    assert last == f'stopped by SIGTERM after step {step}, which is saved; the same command goes on from there'


def test_two_processes_stop_and_go_on_together(tiny_config, repository, tmp_path):
    """One of them is told; both end after the same step. The first alone writes."""
    workdir = str(tmp_path / 'run')

    def start():
        with socket.socket() as free:
            free.bind(('localhost', 0))
            address = [f'--coordinator=localhost:{free.getsockname()[1]}', '--num_processes=2']
        settings = ['--config.train.epochs=4', '--config.train.checkpoint_every_steps=100']
        return [
            subprocess.Popen(
                main_command(tiny_config, workdir, *settings, *address, f'--process_id={i}'),
                cwd=repository,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(2)
        ]

    processes = start()
    wait_for_step(processes[0], workdir, 2)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [143, 143], outputs
    step = Checkpoints(workdir).latest_step()
    assert step < 12 and all(f'after step {step}, which is saved' in errors for _, errors in outputs)

    processes = start()
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert f'resumed from step {step}' in outputs[0][1]
    steps = [line['step'] for line in read_metrics(workdir) if 'train/loss' in line]
    assert steps == list(range(1, 13))
    assert 'final mIoU' in outputs[0][0] and 'mIoU' not in outputs[1][0]


def test_a_second_run_in_a_workdir_is_refused(finished, tiny_config, tmp_path):
    workdir = str(tmp_path / 'run')
    shutil.copytree(finished, workdir)
    before = sorted(os.listdir(workdir))
    with lock(workdir), pytest.raises(InputError, match=f'process {os.getpid()} on .* trains there; wait for it'):
        train(tiny_config, workdir)
    assert sorted(os.listdir(workdir)) == before
    train(tiny_config, workdir)  # the lock went with its holder


def damage(folder):
    """Empties every file of data."""
    for parent, _, files in os.walk(folder):
        for file in files:
            if '/d/' in os.path.join(parent, file) or file == 'manifest.ocdbt':
                os.truncate(os.path.join(parent, file), 0)


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(finished, tiny_config, tmp_path, caplog):
    workdir = str(tmp_path / 'run')
    shutil.copytree(finished, workdir)
    damage(os.path.join(workdir, 'checkpoints', '6'))
    with caplog.at_level(logging.WARNING):
        train(tiny_config, workdir)
    assert 'checkpoint 6 cannot be read' in caplog.text and 'the run goes on from step 4' in caplog.text
    assert os.listdir(os.path.join(workdir, 'unusable')) == ['6']
    assert_ends_as_undisturbed(tiny_config, workdir, finished)


def test_a_run_none_of_whose_checkpoints_can_be_read_is_not_begun_anew(finished, tiny_config, tmp_path):
    workdir = str(tmp_path / 'run')
    shutil.copytree(finished, workdir)
    damage(os.path.join(workdir, 'checkpoints'))
    with pytest.raises(InputError, match='no checkpoint can be read.*restore the folder') as failure:
        train(tiny_config, workdir)
    assert '\n' not in str(failure.value)
    assert not os.path.exists(os.path.join(workdir, 'unusable'))


def test_a_half_written_checkpoint_is_passed_over_with_a_message(finished, tiny_config, tmp_path, caplog):
    workdir = str(tmp_path / 'run')
    shutil.copytree(finished, workdir)
    folder = os.path.join(workdir, 'checkpoints')
    os.rename(os.path.join(folder, '6'), os.path.join(folder, '6.orbax-checkpoint-tmp'))
    with caplog.at_level(logging.WARNING):
        train(tiny_config, workdir)
    assert '6.orbax-checkpoint-tmp: a half-written checkpoint, passed over' in caplog.text
    assert_ends_as_undisturbed(tiny_config, workdir, finished)
    assert not any('tmp' in name for name in os.listdir(folder))


def test_a_disk_without_room_ends_the_run_and_the_last_checkpoint_is_whole(
    finished, tiny_config, tmp_path, monkeypatch
):
    """No file may grow beyond a size that the metrics need and checkpoints exceed, once the first one is saved."""
    workdir = str(tmp_path)
    save, limits = Checkpoints.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_in_a_full_disk(self, state, *arguments):
        if int(state.step) > 2:
            self.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        save(self, state, *arguments)

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with monkeypatch.context() as patched, pytest.raises(TrainingError) as failure:
            patched.setattr(Checkpoints, 'save', save_in_a_full_disk)
            train(tiny_config, workdir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert 'a checkpoint could not be saved (' in str(failure.value)
    assert 'that of step 2 is whole; free space or mend the disk' in str(failure.value)
    assert '\n' not in str(failure.value)
    train(tiny_config, workdir)
    assert_ends_as_undisturbed(tiny_config, workdir, finished)


def test_a_workdir_that_cannot_be_written_is_refused(tiny_config, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(InputError, match=r'file/run: cannot be written \(Not a directory\); choose another --workdir'):
        train(tiny_config, str(tmp_path / 'file' / 'run'))


def test_a_run_goes_on_with_another_number_of_devices(finished, tiny_config, repository, tmp_path, monkeypatch):
    workdir = str(tmp_path / 'run')
    shutil.copytree(finished, workdir)
    shutil.rmtree(os.path.join(workdir, 'checkpoints', '6'))
    monkeypatch.setenv('XLA_FLAGS', f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=2')
    process = subprocess.run(
        main_command(tiny_config, workdir), cwd=repository, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    assert 'on 2 cpu device(s)' in process.stderr and 'resumed from step 4' in process.stderr
    assert Checkpoints(workdir).latest_step() == TOTAL_STEPS
    lines = [next(line for line in read_metrics(folder) if line['step'] == 5) for folder in (workdir, finished)]
    np.testing.assert_allclose(lines[0]['train/loss'], lines[1]['train/loss'], rtol=1e-4)


@pytest.mark.parametrize('cause', ['a parameter', 'a step too large'])
def test_debug_nans_names_where_the_first_bad_number_is(tiny_config, tmp_path, monkeypatch, cause):
    config = tiny_config.copy_and_resolve_references()
    config.debug.nans = True
    if cause == 'a parameter':
        create = train_module.create_state

        def spoiled(*args, **kwargs):
            state = create(*args, **kwargs)
            convolution = state.variables['params']['layer3']['block0']['conv1']['conv']
            convolution['kernel'] = convolution['kernel'].at[0, 0, 0, 0].set(np.inf)
            return state

        monkeypatch.setattr(train_module, 'create_state', spoiled)
        where = 'first in params/layer3/block0/conv1/conv/kernel (1 of 4608 values)'
    else:
        config.optimizer.learning_rate = 1e18
        config.schedule.name = 'constant'
        where = 'first in the output of '
    with pytest.raises(TrainingError) as failure:
        train(config, str(tmp_path))
    assert where in str(failure.value), failure.value
    assert '\n' not in str(failure.value)
