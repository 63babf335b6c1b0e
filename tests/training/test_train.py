"""Training runs from end to end: resuming, refusing, and stopping."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from atonet_jax.errors import InputError, TrainingError
from atonet_jax.evaluation.evaluate import evaluate
from atonet_jax.process.devices import create_mesh
from atonet_jax.runs.checkpoint import Checkpoints
from atonet_jax.runs.network import create_network
from atonet_jax.runs.workdir import read_metrics
from atonet_jax.training.train import train
from tests.commands import main_command

TOTAL_STEPS = 6


def restored_variables(config, workdir, step=TOTAL_STEPS):
    checkpoints = Checkpoints(workdir)
    assert checkpoints.latest_step() == step
    variables = checkpoints.restore_variables(step, create_network(config, 19), create_mesh(), averaged=False)
    checkpoints.close()
    return variables


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_a_run_that_is_killed_and_resumed_ends_with_the_parameters_of_an_undisturbed_one(
    finished, tiny_config, repository, tmp_path
):
    workdir = str(tmp_path / 'killed')
    process = subprocess.Popen(
        main_command(tiny_config, workdir), cwd=repository, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not any(line['step'] >= 3 for line in read_metrics(workdir)):
        assert process.poll() is None, 'the run ended before it could be killed'
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()

    train(tiny_config, workdir)

    assert_equal(restored_variables(tiny_config, workdir), restored_variables(tiny_config, finished))
    steps = [line['step'] for line in read_metrics(workdir) if 'train/loss' in line]
    assert steps == list(range(1, TOTAL_STEPS + 1)), 'each step is logged once'


def test_a_shorter_run_is_continued_from_its_last_checkpoint_with_all_its_numbers(finished, tiny_config, tmp_path):
    workdir = str(tmp_path / 'resumed')
    shutil.copytree(finished, workdir)
    for step in (3, 4, 6):
        if step > 3:
            shutil.rmtree(os.path.join(workdir, 'checkpoints', str(step)))

    train(tiny_config, workdir)

    assert_equal(restored_variables(tiny_config, workdir), restored_variables(tiny_config, finished))
    scores = [[line for line in read_metrics(folder) if 'eval/miou' in line][-1] for folder in (workdir, finished)]
    assert scores[0]['eval/miou'] == scores[1]['eval/miou']
    assert scores[0]['eval/best_miou'] == scores[1]['eval/best_miou']


def test_a_finished_run_is_evaluated_but_not_trained_further(finished, tiny_config, tmp_path):
    workdir = str(tmp_path / 'again')
    shutil.copytree(finished, workdir)
    before = restored_variables(tiny_config, workdir)
    train(tiny_config, workdir)
    assert_equal(restored_variables(tiny_config, workdir), before)


def test_the_best_checkpoint_is_kept_beside_the_latest(finished):
    lines = [line for line in read_metrics(finished) if 'eval/miou' in line]
    best = max(lines, key=lambda line: line['eval/miou'])
    checkpoints = Checkpoints(finished)
    assert checkpoints.step('best') == best['step']
    assert checkpoints.step('latest') == TOTAL_STEPS
    checkpoints.close()


def test_evaluate_needs_only_the_workdir_and_agrees_with_the_run(finished, tiny_config, capsys):
    scores = evaluate(tiny_config, finished)
    best = max(line['eval/miou'] for line in read_metrics(finished) if 'eval/miou' in line)
    assert scores.miou == pytest.approx(best, abs=1e-12)
    with open(os.path.join(finished, 'evaluation', 'scores.json')) as file:
        written = json.load(file)
    assert written['miou'] == pytest.approx(best, abs=1e-12)
    pictures = [name for name in os.listdir(os.path.join(finished, 'evaluation')) if name.endswith('.png')]
    assert len(pictures) == tiny_config.eval.pictures
    assert 'road' in capsys.readouterr().out


def test_bfloat16_training_keeps_float32_parameters(tiny_config, tmp_path):
    config = tiny_config.copy_and_resolve_references()
    config.model.dtype = 'bfloat16'
    config.train.epochs = 0.34
    assert 0 <= train(config, str(tmp_path)).miou <= 1
    variables = restored_variables(config, str(tmp_path), step=1)
    assert {array.dtype.name for array in jax.tree.leaves(variables)} == {'float32'}


def test_averaged_parameters_are_saved_and_evaluated(tiny_config, tmp_path):
    config = tiny_config.copy_and_resolve_references()
    config.optimizer.ema_decay = 0.9
    config.train.epochs = 1.0
    scores = train(config, str(tmp_path))
    assert evaluate(config, str(tmp_path)).miou == pytest.approx(scores.miou, abs=1e-12)


def test_another_network_in_the_workdir_is_refused_and_nothing_is_harmed(finished, tiny_config):
    config = tiny_config.copy_and_resolve_references()
    config.model.width = 8
    before = sorted(os.listdir(finished)), open(os.path.join(finished, 'config.json')).read()
    with pytest.raises(InputError, match=r'config\.model\.width was 16, is 8'):
        train(config, finished)
    assert (sorted(os.listdir(finished)), open(os.path.join(finished, 'config.json')).read()) == before


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(tiny_config, tmp_path):
    config = tiny_config.copy_and_resolve_references()
    config.optimizer.learning_rate = 1e18
    config.schedule.name = 'constant'
    config.train.checkpoint_every_steps = 1
    message = r'step \d+: (loss|gradient_norm) is (nan|inf); --config.debug.nans=true says .* the checkpoint of step'
    with pytest.raises(TrainingError, match=message) as failure:
        train(config, str(tmp_path))
    assert '\n' not in str(failure.value)
    step = int(str(failure.value).split('the checkpoint of step ')[1].split()[0])
    variables = restored_variables(config, str(tmp_path), step)
    assert all(np.isfinite(array).all() for array in jax.tree.leaves(variables))


def test_evaluating_a_workdir_without_a_run_says_so(tiny_config, tmp_path):
    with pytest.raises(InputError, match=r'config\.json: no such file'):
        evaluate(tiny_config, str(tmp_path))


def test_a_run_from_device_memory_needs_no_tensorflow_and_ends_the_same(finished, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorflow', None)  # whose import then fails
    monkeypatch.delitem(sys.modules, 'atonet_jax.data.pipeline', raising=False)
    config = tiny_config.copy_and_resolve_references()
    config.data.cache = 'device'
    train(config, str(tmp_path))
    assert 'atonet_jax.data.pipeline' not in sys.modules
    assert_equal(restored_variables(config, str(tmp_path)), restored_variables(config, finished))
