"""What machines do to a run: it ends in good order or is killed, disks fill, files are damaged; nothing is lost."""

import contextlib
import itertools
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn

from atonet_jax.config import create_network
from atonet_jax.data import examples
from atonet_jax.data.batches import Batches
from atonet_jax.data.dataset import DataError
from atonet_jax.errors import InputError, Stopped, TrainingError
from atonet_jax.evaluation.evaluator import Evaluation
from atonet_jax.evaluation.metrics import Scores
from atonet_jax.models import create_model, init_variables
from atonet_jax.process.devices import create_mesh
from atonet_jax.process.stopping import StopSignals
from atonet_jax.runs import checkpoint
from atonet_jax.runs.checkpoint import Checkpoints
from atonet_jax.runs.metrics import MetricsLog, read_metrics
from atonet_jax.runs.state import TrainState
from atonet_jax.runs.workdir import lock
from atonet_jax.training import nonfinite
from atonet_jax.training import train as train_module
from atonet_jax.training.step import Objective, StepSchedule
from atonet_jax.training.train import train
from tests.commands import main_command
from tests.disks import full_disk

TOTAL_STEPS = 6


def variables_of(config, workdir):
    """The last ones, and their averages where the run has them."""
    checkpoints, model = Checkpoints(workdir), create_network(config, 19)
    kinds = [False, True] if config.optimizer.ema_decay else [False]
    variables = [checkpoints.restore_variables(TOTAL_STEPS, model, create_mesh(), averaged) for averaged in kinds]
    checkpoints.close()
    return jax.tree.map(np.asarray, variables)


def latest_step(workdir):
    checkpoints = Checkpoints(workdir)
    try:
        return checkpoints.step('latest')
    finally:
        checkpoints.close()


def assert_ends_as_undisturbed(config, workdir, finished):
    jax.tree.map(np.testing.assert_array_equal, variables_of(config, workdir), variables_of(config, finished))
    steps = [line['step'] for line in read_metrics(workdir) if 'train/loss' in line]
    assert steps == list(range(1, TOTAL_STEPS + 1)), 'each step is logged once'
    scores = [[line for line in read_metrics(folder) if 'eval/miou' in line][-1] for folder in (workdir, finished)]
    for name in ('eval/miou', 'eval/best_miou'):
        assert scores[0][name] == scores[1][name], 'a run that goes on knows the scores before'


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_a_step_that_is_saved(finished, tiny_config, tmp_path, monkeypatch, number):
    """Of ATONet, which draws its dropout; what other tests here disturb is a run of SegNet-Basic."""
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
    assert latest_step(str(tmp_path)) == 2
    if number == signal.SIGINT:  # goes on as after SIGTERM
        return
    train(config, str(tmp_path))
    assert_ends_as_undisturbed(tiny_config, str(tmp_path), finished)


def test_a_signal_that_comes_while_it_evaluates_is_obeyed_afterwards(basic_config, tmp_path, monkeypatch):
    write = MetricsLog.write

    def write_and_signal(self, step, values):
        write(self, step, values)
        if step == 3 and 'eval/miou' in values:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsLog, 'write', write_and_signal)
    with pytest.raises(Stopped, match='by SIGTERM after step 3'):
        train(basic_config, str(tmp_path))


def test_the_steps_before_an_image_that_cannot_be_read_are_saved(basic_config, tmp_path, monkeypatch):
    train_batches = train_module.Batches.train

    def two_batches(self, **options):
        yield from itertools.islice(train_batches(self, **options), 2)
        raise DataError('images/a.png: damaged')

    with monkeypatch.context() as patched, pytest.raises(DataError, match='a.png: damaged'):
        patched.setattr(train_module.Batches, 'train', two_batches)
        train(basic_config, str(tmp_path))
    assert latest_step(str(tmp_path)) == 2
    assert [line['step'] for line in read_metrics(str(tmp_path)) if 'train/loss' in line] == [1, 2]


def test_no_evaluation_is_begun_after_a_signal(finished_basic, basic_config, tmp_path, stepping, monkeypatch):
    workdir = str(shutil.copytree(finished_basic, tmp_path / 'run'))
    config = basic_config.copy_and_resolve_references()
    config.train.epochs = 4.0
    monkeypatch.setattr(StopSignals, 'received', lambda self, step: signal.SIGTERM if step in (9, 12) else None)
    with pytest.raises(Stopped, match='by SIGTERM after step 9'):
        train(config, workdir)
    assert stepping.evaluated == [] and latest_step(workdir) == 9
    train(config, workdir)
    assert stepping.evaluated == [12], 'the last one is, after which nothing is left to go on with'


def test_a_step_that_is_scored_by_a_later_start_counts_with_its_score(
    finished_basic, basic_config, tmp_path, stepping, monkeypatch
):
    workdir = str(shutil.copytree(finished_basic, tmp_path / 'run'))
    config = basic_config.copy_and_resolve_references()
    config.train.epochs = 4.0
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(StopSignals, 'received', lambda self, step: signal.SIGTERM if step == 9 else None)
        train(config, workdir)
    config.train.epochs = 3.0  # as many as are done
    for _ in range(2):
        train(config, workdir)
    assert stepping.evaluated == [9], 'it keeps the score'
    checkpoints = Checkpoints(workdir)
    assert checkpoints.step('best') == 9
    checkpoints.close()


@pytest.mark.parametrize(
    ('error', 'raised', 'text'),
    [
        (ValueError('a picture'), ValueError, 'a picture'),
        (RuntimeError('RESOURCE_EXHAUSTED: 9'), TrainingError, r'step 9: .* \(it is saved\); .*eval.batch_size'),
    ],
)
def test_a_step_is_saved_though_it_cannot_be_evaluated(
    finished_basic, basic_config, tmp_path, stepping, monkeypatch, error, raised, text
):
    workdir = str(shutil.copytree(finished_basic, tmp_path / 'run'))
    config = basic_config.copy_and_resolve_references()
    config.train.epochs = 3.0

    def fail(*_):
        raise error

    run = train_module.Evaluator.run
    monkeypatch.setattr(train_module.Evaluator, 'run', fail)
    with pytest.raises(raised, match=text):
        train(config, workdir)
    assert latest_step(workdir) == 9 and stepping.evaluated == []
    monkeypatch.setattr(train_module.Evaluator, 'run', run)
    train(config, workdir)
    assert stepping.evaluated == [9], 'the next start evaluates it'


def test_an_update_beyond_all_numbers_is_not_saved(finished_basic, basic_config, tmp_path, stepping, monkeypatch):
    workdir = str(shutil.copytree(finished_basic, tmp_path / 'run'))
    config = basic_config.copy_and_resolve_references()
    config.train.update(epochs=3.0, checkpoint_every_steps=1)
    compile_step = train_module.compile_train_step

    def compile_and_spoil(*args, **options):
        def step(state, *arguments):
            state, metrics = compile_step(*args, **options)(state, *arguments)
            if int(state.step) == 8:
                state = state.replace(variables=jax.tree.map(lambda array: array * np.inf, state.variables))
            return state, metrics

        return step

    monkeypatch.setattr(train_module, 'compile_train_step', compile_and_spoil)
    message = 'step 8: its update made parameters that are not finite; the checkpoint of step 7 .* is kept; start again'
    with pytest.raises(TrainingError, match=message):
        train(config, workdir)
    assert latest_step(workdir) == 7


def test_a_signal_does_not_cost_the_run_its_last_checkpoint(
    finished_basic, basic_config, tmp_path, stepping, monkeypatch
):
    """It comes after the last step, while the checkpoint is still being written."""
    workdir = str(shutil.copytree(finished_basic, tmp_path / 'run'))
    config = basic_config.copy_and_resolve_references()
    config.train.epochs = 3.0
    wait, signals, killed = Checkpoints.wait, [signal.SIGTERM], []

    def wait_and_signal(self):
        while signals:
            os.kill(os.getpid(), signals.pop())
        wait(self)

    monkeypatch.setattr(Checkpoints, 'wait', wait_and_signal)
    handler = signal.signal(signal.SIGTERM, lambda *_: killed.append('by SIGTERM'))
    try:
        train(config, workdir)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert not killed
    assert latest_step(workdir) == 9


def wait_for_step(process, workdir, step):
    while not any(line['step'] >= step for line in read_metrics(workdir)):
        assert process.poll() is None, 'the run ended before it could be disturbed'
        time.sleep(0.02)


def test_two_processes_go_on_from_one_and_stop_together(finished_basic, basic_config, repository, tmp_path):
    """A run of one device goes on with two processes. One is told to stop; both end after the same step.

    The first process alone writes, and the run then goes on with one device again.
    """
    workdir = str(tmp_path / 'run')
    shutil.copytree(finished_basic, workdir)
    shutil.rmtree(os.path.join(workdir, 'checkpoints', '6'))
    with socket.socket() as free:
        free.bind(('localhost', 0))
        address = [f'--coordinator=localhost:{free.getsockname()[1]}', '--num_processes=2']
    settings = ['--config.train.epochs=50', '--config.train.checkpoint_every_steps=200']
    settings += ['--config.train.eval_every_epochs=50.0']
    processes = [
        subprocess.Popen(
            main_command(basic_config, workdir, *settings, *address, f'--process_id={i}'),
            cwd=repository,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    wait_for_step(processes[0], workdir, 7)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [143, 143], outputs
    step = latest_step(workdir)
    assert 7 <= step < 150
    for _, errors in outputs:
        last = errors.strip().splitlines()[-1]
        assert last == f'stopped by SIGTERM after step {step}, which is saved; the same command goes on from there'
    assert 'resumed from step 4' in outputs[0][1] and 'on 2 cpu device(s)' in outputs[0][1]
    assert 'mIoU' not in outputs[1][0]
    losses = [next(line for line in read_metrics(folder) if line['step'] == 5) for folder in (workdir, finished_basic)]
    np.testing.assert_allclose(losses[0]['train/loss'], losses[1]['train/loss'], rtol=1e-4)

    config = basic_config.copy_and_resolve_references()
    config.train.epochs = (step + 1) / 3
    train(config, workdir)
    steps = [line['step'] for line in read_metrics(workdir) if 'train/loss' in line]
    assert steps == list(range(1, step + 2)), 'each step is logged once'


def test_a_second_run_in_a_workdir_is_refused(finished_basic, basic_config, tmp_path):
    workdir = str(tmp_path / 'run')
    shutil.copytree(finished_basic, workdir)
    before = sorted(os.listdir(workdir))
    with lock(workdir), pytest.raises(InputError, match=f'process {os.getpid()} on .* trains there; wait for it'):
        train(basic_config, workdir)
    assert sorted(os.listdir(workdir)) == before
    train(basic_config, workdir)  # the lock went with its holder
    jax.tree.map(  # a finished run is evaluated and not trained further
        np.testing.assert_array_equal, variables_of(basic_config, workdir), variables_of(basic_config, finished_basic)
    )


def damage(folder):
    """Empties every file of data."""
    for parent, _, files in os.walk(folder):
        for file in files:
            if '/d/' in os.path.join(parent, file) or file == 'manifest.ocdbt':
                os.truncate(os.path.join(parent, file), 0)


def test_half_written_and_damaged_checkpoints_are_passed_over_and_the_one_before_taken(
    finished_basic, basic_config, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(checkpoint, '_PAUSES', (0.0,))
    workdir = str(tmp_path / 'run')
    shutil.copytree(finished_basic, workdir)
    folder = os.path.join(workdir, 'checkpoints')
    os.rename(os.path.join(folder, '6'), os.path.join(folder, '6.orbax-checkpoint-tmp'))
    damage(os.path.join(folder, '4'))
    with caplog.at_level(logging.WARNING):
        train(basic_config, workdir)
    assert '6.orbax-checkpoint-tmp: a half-written checkpoint, skipped' in caplog.text
    assert 'checkpoint 4 cannot be read' in caplog.text and 'the run continues from step 3' in caplog.text
    assert os.listdir(os.path.join(workdir, 'unusable')) == ['4']
    assert_ends_as_undisturbed(basic_config, workdir, finished_basic)
    assert not any('tmp' in name for name in os.listdir(folder))


def test_a_run_none_of_whose_checkpoints_can_be_read_is_not_begun_anew(
    finished_basic, basic_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoint, '_PAUSES', (0.0,))
    workdir = str(tmp_path / 'run')
    shutil.copytree(finished_basic, workdir)
    damage(os.path.join(workdir, 'checkpoints'))
    with pytest.raises(InputError, match='no checkpoint can be read.*restore the folder') as failure:
        train(basic_config, workdir)
    assert '\n' not in str(failure.value)
    assert not os.path.exists(os.path.join(workdir, 'unusable'))


def test_a_disk_without_room_ends_the_run_and_the_last_checkpoint_is_whole(
    finished_basic, basic_config, tmp_path, monkeypatch
):
    """No file may grow beyond a size that the metrics need and checkpoints exceed, once the first one is saved."""
    workdir = str(tmp_path)
    save = Checkpoints.save

    def save_in_a_full_disk(self, state, *arguments):
        self.wait()
        with full_disk(20_000) if int(state.step) > 2 else contextlib.nullcontext():
            save(self, state, *arguments)
            self.wait()

    with monkeypatch.context() as patched, pytest.raises(TrainingError) as failure:
        patched.setattr(Checkpoints, 'save', save_in_a_full_disk)
        train(basic_config, workdir)
    assert 'a checkpoint could not be saved (' in str(failure.value)
    assert 'that of step 2 is complete; free space or repair the disk' in str(failure.value)
    assert '\n' not in str(failure.value)
    train(basic_config, workdir)
    assert_ends_as_undisturbed(basic_config, workdir, finished_basic)


def test_what_fails_at_the_end_does_not_mask_what_ended_the_run(
    finished_basic, basic_config, tmp_path, monkeypatch, caplog
):
    workdir = str(shutil.copytree(finished_basic, tmp_path / 'run'))

    def fail(*_):
        raise TrainingError('a later failure')

    monkeypatch.setattr(train_module, 'list_skipped', fail)
    monkeypatch.setattr(train_module.Evaluator, 'run', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(basic_config, workdir)
    assert caplog.messages.count('a later failure') == 2


@pytest.fixture
def stepping(monkeypatch):
    """Steps and evaluations that take no time. Holds (first sample, batch size) of each start of the pipeline, and the
    steps that were evaluated."""
    seen = SimpleNamespace(starts=[], evaluated=[])
    confusion = np.eye(19, dtype=np.int64)
    evaluation = Evaluation(Scores.from_confusion(confusion), confusion, [], [], [], [], 'scenes', 0, 0.0)

    def compile_step(mesh, **_):
        def step(state, batch, numbers):
            metrics = {'loss': 1.0, 'gradient_norm': 1.0, 'learning_rate_rest': numbers.learning_rates['rest']}
            return state.replace(step=state.step + 1), metrics

        return step

    def batches(self, *, batch_size, start_sample, num_steps, **_):
        seen.starts.append((start_sample, batch_size))
        return iter([{}] * num_steps)

    monkeypatch.setattr(train_module, 'compile_train_step', compile_step)
    monkeypatch.setattr(Batches, 'train', batches)
    monkeypatch.setattr(train_module.Evaluator, 'run', lambda *_: evaluation)
    monkeypatch.setattr(train_module.Recorder, 'evaluation', lambda _, step, *__: seen.evaluated.append(step))
    monkeypatch.setattr(train_module.Recorder, 'report', lambda *_: None)
    return seen


def test_a_run_goes_on_with_another_batch_size_from_the_samples_that_it_has_seen(
    finished_basic, basic_config, tmp_path, stepping, caplog
):
    """6 steps of 4 of 12 images are 2 epochs; 4 epochs in steps of 6 are 4 steps more, not none."""
    workdir = str(shutil.copytree(finished_basic, tmp_path / 'run'))
    config = basic_config.copy_and_resolve_references()
    config.train.update(batch_size=6, epochs=4.0)
    with caplog.at_level(logging.INFO):
        train(config, workdir)
    assert stepping.starts == [(24, 6)] and stepping.evaluated == [8, 10]
    lines = [line for line in read_metrics(workdir) if line['step'] > 6 and 'train/loss' in line]
    assert [line['step'] for line in lines] == [7, 8, 9, 10]
    assert [line['train/epoch'] for line in lines] == [2.5, 3.0, 3.5, 4.0]
    rates = [line['train/learning_rate_rest'] for line in lines]
    np.testing.assert_allclose(rates, 0.025 * (1 + np.cos(np.pi * np.array([4, 5, 6, 7]) / 8)), rtol=1e-3)
    (said,) = (message for message in caplog.messages if message.startswith('resumed'))
    assert said == (
        f'resumed from step 6 of {workdir}, after 24 samples (2 epochs); changed since: config.train.batch_size was 4, '
        'is 6; config.train.epochs was 2.0, is 4.0; left to do: 4 steps of 6 images, to epoch 4, from a learning '
        'rate of 0.025 on; batch normalisation sees 6 images at a time'
    )

    caplog.clear()
    with caplog.at_level(logging.INFO):
        train(config, workdir)
    assert stepping.starts[1:] == [(48, 6)]
    assert 'after 48 samples (4 epochs); nothing is left to train, as config.train.epochs=4' in caplog.text


def test_a_run_goes_on_with_more_data_from_the_epochs_that_it_has_done(
    finished_basic, basic_config, tmp_path, stepping, caplog
):
    """Two epochs of 12 images are done. Of the next two, with 17 images, each has 17 samples."""
    workdir = str(shutil.copytree(finished_basic, tmp_path / 'run'))
    config = basic_config.copy_and_resolve_references()
    config.data.train_split = 'train+val'
    config.train.epochs = 4.0
    with caplog.at_level(logging.INFO):
        train(config, workdir)
    assert stepping.starts == [(34, 4)]
    assert latest_step(workdir) == 6 + 9  # 34 / 4 is 8.5
    assert 'images were 12, are 17; left to do: 9 steps of 4 images, to epoch 4.118' in caplog.text
    checkpoints = Checkpoints(workdir)
    numbers = checkpoints._manager.restore(15, args=ocp.args.Composite(numbers=ocp.args.JsonRestore())).numbers
    checkpoints.close()
    assert numbers['samples'] == 24 + 36 and numbers['images'] == 17 and numbers['epochs'] == 70 / 17


def test_a_workdir_that_cannot_be_written_is_refused(basic_config, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(InputError, match=r'file/run: cannot be written \(Not a directory\); choose another --workdir'):
        train(basic_config, str(tmp_path / 'file' / 'run'))


@pytest.mark.parametrize(
    ('cause', 'settings', 'where'),
    [
        ('a parameter', {'remat': True}, 'first in params/conv3/conv/kernel (1 of 3136 values)'),
        ('a step too large', {}, 'first in the output of '),
        ('a full device', {}, "the device's memory is too small to find the layer; nothing was saved yet"),
    ],
)
def test_debug_nans_names_where_the_first_bad_number_is(basic_config, tmp_path, monkeypatch, cause, settings, where):
    config = basic_config.copy_and_resolve_references()
    config.debug.nans = True
    config.optimizer.learning_rate = 1e18
    config.schedule.name = 'constant'
    config.train.update(settings)
    if cause == 'a parameter':
        create = train_module.create_state

        def spoiled(*args, **kwargs):
            state = create(*args, **kwargs)
            convolution = state.variables['params']['conv3']['conv']
            convolution['kernel'] = convolution['kernel'].at[0, 0, 0, 0].set(np.inf)
            return state

        monkeypatch.setattr(train_module, 'create_state', spoiled)
    elif cause == 'a full device':

        def fill(*_, **__):
            raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nmore')

        monkeypatch.setattr(train_module, 'first_nonfinite', fill)
    with pytest.raises(TrainingError) as failure:
        train(config, str(tmp_path))
    assert where in str(failure.value), failure.value
    assert '\n' not in str(failure.value)


def test_debug_nans_takes_a_batch_in_parts_as_the_step_does(monkeypatch):
    """One image of the second part is spoiled."""
    model = create_model('segnet_basic', 5, width=4)
    images = np.zeros((4, 32, 32, 3), np.float32)
    images[3, 0, 0, 0] = np.inf
    labels = np.zeros((4, 32, 32), np.uint8)
    monkeypatch.setattr(nonfinite, 'step_inputs', lambda *_: (jnp.array(images), jnp.array(labels), jax.random.key(0)))
    where = nonfinite.first_nonfinite(
        TrainState(jnp.int32(0), init_variables(model, 0), opt_state=None, averaged=None),
        {},
        StepSchedule({}, {}).at(0),
        objective=Objective.of(model),
        augmentation=None,
        accumulation=2,
    )
    assert where == 'first in the images (1 of 6144 values)'


def test_debug_nans_counts_the_values_of_an_output_beyond_32_bits(monkeypatch):
    class Repeated(nn.Module):
        @nn.compact
        def __call__(self, images):
            """Never in memory: of it, the network reads one value."""
            return jnp.broadcast_to(images.max(), (2**31, 1, 1, 1))

    class Network(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            return {'logits': nn.Conv(5, (1, 1))(images) + Repeated()(images)[:1]}

    images, labels = jnp.zeros((1, 2, 2, 3)).at[0, 0, 0].set(-jnp.inf), jnp.zeros((1, 2, 2), jnp.uint8)
    monkeypatch.setattr(nonfinite, 'step_inputs', lambda *_: (images, labels, jax.random.key(0)))
    where = nonfinite.first_nonfinite(
        TrainState(jnp.int32(0), init_variables(Network(), 0), opt_state=None, averaged=None),
        {},
        StepSchedule({}, {}).at(0),
        objective=Objective.of(Network()),
        augmentation=None,
    )
    assert where == 'first in the images (3 of 12 values)'


def test_a_list_of_skipped_images_that_cannot_be_written_ends_no_run(
    finished_basic, basic_config, tmp_path, stepping, caplog
):
    workdir = shutil.copytree(finished_basic, tmp_path / 'run')
    (workdir / 'skipped_train.json').mkdir()
    train(basic_config, str(workdir))
    assert f'{workdir}/skipped_train.json: cannot be written (Is a directory)' in caplog.text


@pytest.mark.parametrize('ended', ['at its end', 'by a signal', 'by an error'])
def test_what_other_processes_have_skipped_is_listed(
    finished_basic, basic_config, tmp_path, monkeypatch, stepping, ended
):
    """After an error the processes may not be at the same place, so nothing is asked of them."""
    failure = {'by a signal': Stopped(15, 6), 'by an error': ValueError('of this process')}.get(ended)

    def run(*_):
        if failure:
            raise failure
        return Scores.from_confusion(np.eye(19, dtype=np.int64))

    monkeypatch.setattr(train_module.Loop, 'run', run)
    monkeypatch.setattr(examples, 'gathered', lambda skipped: [skipped, {3: InputError('another cannot read it')}])
    config = basic_config.copy_and_resolve_references()
    config.data.on_corrupt = 'skip'
    workdir = shutil.copytree(finished_basic, tmp_path / 'run')
    with pytest.raises(type(failure)) if failure else contextlib.nullcontext():
        train(config, str(workdir))
    listed = [list(json.loads(path.read_text()).values()) for path in sorted(workdir.glob('skipped_*.json'))]
    assert listed == ([] if ended == 'by an error' else [['another cannot read it']] * 2)
