"""Training runs from end to end: what it keeps, refuses, and stops for. Resuming: test_survival.py."""

import dataclasses
import json
import os
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest

from atonet_jax.config import create_network
from atonet_jax.data.batches import Batches
from atonet_jax.data.dataset import LabelReading
from atonet_jax.data.sources import load_examples
from atonet_jax.errors import InputError, TrainingError
from atonet_jax.evaluation.evaluate import evaluate
from atonet_jax.export import weights_format
from atonet_jax.process.devices import create_mesh
from atonet_jax.runs.checkpoint import Checkpoints
from atonet_jax.runs.metrics import read_metrics
from atonet_jax.runs.network import trained_network
from atonet_jax.runs.workdir import load_config
from atonet_jax.training import train as train_module
from atonet_jax.training.from_config import with_crop_size
from atonet_jax.training.train import train

TOTAL_STEPS = 6


def restored_variables(config, workdir, step=TOTAL_STEPS, averaged=False):
    checkpoints = Checkpoints(workdir)
    assert checkpoints.step('latest') == step
    variables = checkpoints.restore_variables(step, create_network(config, 19), create_mesh(), averaged=averaged)
    checkpoints.close()
    return variables


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


@pytest.fixture(scope='module')
def averaged_run(basic_config, tmp_path_factory):
    """(config, workdir, scores) of an epoch in bfloat16, on whole images, with averaged parameters."""
    config = basic_config.copy_and_resolve_references()
    config.model.dtype = 'bfloat16'
    config.optimizer.ema_decay = 0.9
    config.train.epochs = 1.0
    config.data.crop_size = ()
    workdir = str(tmp_path_factory.mktemp('averaged'))
    return config, workdir, train(config, workdir)


def test_bfloat16_training_keeps_and_averages_float32_parameters_and_evaluates_the_averaged(averaged_run):
    config, workdir, scores = averaged_run
    assert load_config(workdir).data.crop_size == (64, 128), 'whole images'
    assert evaluate(config, workdir).miou == pytest.approx(scores.miou, abs=1e-12)
    means, last = (restored_variables(config, workdir, 3, averaged) for averaged in (True, False))
    for variables in (means, last):
        assert {array.dtype.name for array in jax.tree.leaves(variables)} == {'float32'}
    assert any((one != other).any() for one, other in zip(jax.tree.leaves(means), jax.tree.leaves(last)))


def test_exported_weights_are_the_averaged_parameters(averaged_run, tmp_path):
    config, workdir, _ = averaged_run
    path, mesh = str(tmp_path / 'weights'), create_mesh()
    weights_format.write(path, trained_network(config, workdir, mesh), config)
    exported = trained_network(load_config(path), path, mesh).variables
    jax.tree.map(np.testing.assert_array_equal, exported, restored_variables(config, workdir, 3, averaged=True))


def test_crops_take_the_size_of_most_images_where_none_is_given(basic_config):
    config = basic_config.copy_and_resolve_references()
    sizes = {(64, 96): 3, (128, 64): 4}
    assert with_crop_size(config, sizes) is config
    config.data.crop_size = ()
    assert tuple(with_crop_size(config, sizes).data.crop_size) == (128, 64)
    with pytest.raises(InputError, match=r'most training images have 20x96 pixels; give a crop size of at least 33'):
        with_crop_size(config, {(20, 96): 5})


def test_what_the_splits_hold_is_judged_before_the_first_step(basic_config, tmp_path, monkeypatch, caplog):
    def load(data, split, workdir, processes):
        examples = load_examples(data, split, workdir, processes)
        way = 'grey level' if split == data.train_split else 'number'
        examples.dataset = dataclasses.replace(examples.dataset, reading=LabelReading(ways={'grey_palette': way}))
        return examples

    monkeypatch.setattr(train_module, 'load_examples', load)
    config = basic_config.copy_and_resolve_references()
    config.data.scale_range = (1.0, 7e4)
    with pytest.raises(InputError, match='an image of 64x128 is too long to be scaled by up to 70000'):
        train(config, str(tmp_path))
    assert 'are read by grey level in train and by number in val; config.data.label_values reads' in caplog.text


def test_another_network_in_the_workdir_is_refused_and_nothing_is_harmed(finished, tiny_config):
    config = tiny_config.copy_and_resolve_references()
    config.model.width = 8
    path = pathlib.Path(finished, 'config.json')
    before = sorted(os.listdir(finished)), path.read_text()
    with pytest.raises(InputError, match=r'config\.model\.width was 16, is 8'):
        train(config, finished)
    assert (sorted(os.listdir(finished)), path.read_text()) == before


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(tiny_config, tmp_path, monkeypatch):
    compiled = train_module.compile_train_step

    def compile_and_spoil(*args, **options):
        step_fn = compiled(*args, **options)

        def step(state, *arguments):
            if int(state.step) == 4:
                state = state.replace(variables=jax.tree.map(lambda array: array * np.nan, state.variables))
            return step_fn(state, *arguments)

        return step

    monkeypatch.setattr(train_module, 'compile_train_step', compile_and_spoil)
    message = r'step 5: loss is nan; --config.debug.nans=true says .* the checkpoint of step 4 '
    with pytest.raises(TrainingError, match=message) as failure:
        train(tiny_config, str(tmp_path))
    assert '\n' not in str(failure.value)
    variables = restored_variables(tiny_config, str(tmp_path), 4)
    assert all(np.isfinite(array).all() for array in jax.tree.leaves(variables))


def test_evaluating_a_workdir_without_a_run_says_so(tiny_config, tmp_path):
    with pytest.raises(InputError, match=r'config\.json: no such file'):
        evaluate(tiny_config, str(tmp_path))


def test_evaluating_a_damaged_checkpoint_says_so(finished, tiny_config, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / 'run')
    for path in (workdir / 'checkpoints').glob('*/variables/_METADATA'):
        path.write_text('{')
    with pytest.raises(InputError, match=r'checkpoint \d+ cannot be read .*; copy it again, or') as failure:
        evaluate(tiny_config, str(workdir))
    assert '\n' not in str(failure.value)


def test_a_run_from_device_memory_needs_no_tensorflow_and_ends_the_same(finished, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorflow', None)  # whose import then fails
    monkeypatch.delitem(sys.modules, 'atonet_jax.data.pipeline', raising=False)
    config = tiny_config.copy_and_resolve_references()
    config.data.cache = 'device'
    train(config, str(tmp_path))
    assert 'atonet_jax.data.pipeline' not in sys.modules
    ours, theirs = restored_variables(config, str(tmp_path)), restored_variables(config, finished)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_runs_that_differ_in_numbers_alone_share_the_compiled_step_and_not_the_loss(
    basic_config, tmp_path, monkeypatch
):
    """Rates, decays, the schedule, the length, the seed and the class weights are arguments of the program."""
    steps, seeds_of_batches, losses = [], [], []
    compiled, batches = train_module.compile_train_step, Batches.train

    def compile_and_note(*args, **options):
        steps.append(compiled(*args, **options))
        return steps[-1]

    def train_and_note(self, **options):
        seeds_of_batches.append(options['seed'])
        return batches(self, **options)

    monkeypatch.setattr(train_module, 'compile_train_step', compile_and_note)
    monkeypatch.setattr(Batches, 'train', train_and_note)
    rates = {'optimizer.learning_rate': 0.01, 'optimizer.weight_decay': 0.0, 'optimizer.backbone_factor': 0.5}
    schedule = {'schedule.name': 'poly', 'schedule.warmup_epochs': 0.3}
    changes = {
        'usual': {'train.epochs': 1.0},
        'seed': {'train.epochs': 0.7, 'seed': 5, **rates, **schedule},
        'weights': {'train.epochs': 0.3, 'loss.class_weights': (1.0,) * 19},
    }
    for name, settings in changes.items():
        config = basic_config.copy_and_resolve_references()
        config.update_from_flattened_dict(settings)
        train(config, str(tmp_path / name))
        losses.append([line['train/loss'] for line in read_metrics(str(tmp_path / name)) if 'train/loss' in line])
    assert steps[0] is steps[1] is steps[2] and steps[0]._cache_size() == 1
    assert [len(of_run) for of_run in losses] == [3, 2, 1]
    assert seeds_of_batches == [0, 5, 0]
    usual, of_seed, weighted = (of_run[0] for of_run in losses)
    assert of_seed != usual, 'the first loss, on which no rate acts'
    assert weighted != usual, "SegNet's own weights are not all 1"
