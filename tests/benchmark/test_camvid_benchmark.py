"""benchmarks/camvid.py trains as main.py does, repeats nothing that is done, and ends when its time is up."""

import json
import os
import pathlib
import shutil
import signal
from functools import partial

import jax
import numpy as np
import PIL.Image
import pytest
from flax.traverse_util import flatten_dict

from atonet_jax.config import create_network
from atonet_jax.errors import InputError, Stopped
from atonet_jax.evaluation.evaluator import Evaluator
from atonet_jax.models import init_variables
from atonet_jax.process.devices import create_mesh
from atonet_jax.process.stopping import StopSignals
from atonet_jax.torch_files import read_state_dict
from atonet_jax.training.from_config import create_objective, create_schedule, step_options, train_augmentation
from atonet_jax.training.step import compile_train_step, create_state
from atonet_jax.training.timeline import Timeline
from benchmarks import camvid, camvid_weights, pack_camvid
from benchmarks.camvid_recipes import RECIPES, chosen
from benchmarks.camvid_results import Results
from benchmarks.camvid_training import KeptState, Runs

SIZE = (64, 96)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """CamVid's folders with a few small pictures."""
    folder, rng = tmp_path_factory.mktemp('camvid'), np.random.default_rng(0)
    for split, count in (('train', 5), ('val', 3), ('test', 2)):
        for kind, values, shape in (('', 256, (*SIZE, 3)), ('annot', 12, SIZE)):
            (folder / f'{split}{kind}').mkdir()
            for i in range(count):
                pixels = rng.integers(0, values, shape, np.uint8)
                PIL.Image.fromarray(pixels).save(folder / f'{split}{kind}' / f'{i}.png')
    return str(folder)


def assert_saved_and_joined(model, variables, folder):
    parts = camvid_weights.save(str(folder / 'weights'), model, variables, megabytes=0.02)
    assert len(parts) > 1 and all(os.path.getsize(part) < 24_000 for part in parts)
    arrays = {name: array for part in parts for name, array in read_state_dict(part).items()}
    with pytest.raises(InputError, match='give the files of one run'):
        camvid_weights.join(str(folder / 'joined.safetensors'), [*parts, parts[0]], 'segnet_basic')
    expected = flatten_dict(variables, sep='/')
    assert arrays.keys() == {name for name in expected if '/aux' not in name}
    for name, array in arrays.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-3, atol=1e-6)


def test_steps_are_those_of_training_also_after_an_interruption(root, tmp_path, monkeypatch):
    runs = Runs(root, '', deadline=float('inf'))
    settings = {'model.width': 4, 'train.epochs': 6.0, 'train.batch_size': 4, 'schedule.warmup_epochs': 1.0}
    config = runs.config('segnet_basic', RECIPES['tiny'], 3, 'val', settings)
    kept = KeptState(str(tmp_path / 'results.jsonl'), {'network': 'segnet_basic'})
    with monkeypatch.context() as patched:
        patched.setattr(StopSignals, 'received', lambda self, step: signal.SIGINT if step == 3 else None)
        with pytest.raises(Stopped, match='after step 3, which is saved'):
            runs.run(config, kept)
    assert list(tmp_path.glob('*.state'))
    figures, evaluation, model, variables = runs.run(config, kept)
    again, same, *_ = runs.run(config, kept)  # as after an interruption before the scores were written
    assert (again['steps'], same.scores.miou) == (figures['steps'], evaluation.scores.miou)
    kept.remove()
    assert not list(tmp_path.iterdir())
    steps = figures['steps']
    assert steps == 8 and evaluation.dataset == 'camvid val' and len(evaluation.per_image) == 3

    mesh = create_mesh()
    options = step_options(config, create_objective(config, model))
    schedule = create_schedule(config, Timeline(4, 5, config.train.epochs), config.loss.class_weights)
    state = create_state(init_variables(model, 3), options['optimizer'], averaging=True, mesh=mesh)
    step_fn = compile_train_step(mesh, **options)
    batches = runs.batches(config, 'train').train(
        batch_size=4, augmentation=train_augmentation(config), seed=3, start_sample=0, num_steps=steps
    )
    losses = []
    for step, batch in enumerate(batches):
        state, metrics = step_fn(state, batch, schedule.at(step))
        losses.append(float(metrics['loss']))
    np.testing.assert_allclose(figures['loss'], np.mean(losses[3:]), rtol=1e-4)
    assert_saved_and_joined(model, variables, tmp_path)
    for ours, theirs in zip(jax.tree.leaves(variables), jax.tree.leaves(state.averaged), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-4)
    not_averaged = Evaluator(model, runs.batches(config, 'val'), config.eval).run(state.variables).scores.miou
    assert figures['miou_not_averaged'] == pytest.approx(not_averaged, abs=1e-4)
    assert abs(not_averaged - evaluation.scores.miou) > 3e-4, 'the average would pass'


def test_a_second_start_goes_on_where_the_first_ended(root, tmp_path, capsys):
    path = tmp_path / 'results.jsonl'
    command = ['--data', root, '--recipes', 'tiny', '--epochs', '1', '--results', str(path)]
    command += ['--networks', 'segnet_basic', '--set', 'model.width=4', 'train.batch_size=4']
    camvid.main([*command, '--seeds', '0'])
    with open(path, 'a') as file:
        file.write('{"protocol": "val", "netw')  # of a process that was killed
    camvid.main([*command, '--seeds', '0', '1', '1'])
    out = capsys.readouterr().out
    assert out.count('done before') == 2 and '| val | segnet_basic | tiny | 1 | 4 | 2 |' in out
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith('}')]
    assert [row['seed'] for row in rows] == [0, 1]
    assert all(0 <= row['miou'] <= 1 and np.shape(row['confusion']) == (11, 11) for row in rows)

    chart = tmp_path / 'chart.png'
    small = ['data.crop_size=[64,96]', '--chart', str(chart), '--networks']
    for _ in range(2):  # the time is measured once
        camvid.main([*command, *small])
    with PIL.Image.open(chart) as picture:
        assert picture.size[0] > 500
    assert [row['protocol'] for row in Results(str(path)).rows] == ['val', 'val', 'latency']

    command[3] = 'best:scratch'
    camvid.main([*command, '--protocol', 'test', '--minutes', '0'])
    out = capsys.readouterr().out
    assert 'left: test segnet_basic tiny, seed 0, 1 epochs; the same command goes on' in out
    assert len(Results(str(path)).rows) == 3


def test_the_best_recipe_is_not_averaged_with_trials_of_another_length(tmp_path, capsys):
    results = Results(str(tmp_path / 'results.jsonl'))
    for recipe, epochs, miou in (('pretrained', 80, 0.77), ('pretrained', 8, 0.45), ('pretrained_slow', 80, 0.7)):
        row = {'protocol': 'val', 'network': 'atonet', 'start': 'pretrained', 'recipe': recipe, 'epochs': epochs}
        results.add(row | {'settings': {}, 'seed': 0, 'miou': miou, 'frames': 'a'})
        results.add(row | {'settings': {}, 'seed': 0, 'miou': 1.0, 'frames': 'b', 'recipe': 'pretrained_low'})
    assert results.best('atonet', 'pretrained', {'frames': 'a'}) == 'pretrained'
    assert 'pretrained, 77.00% on val after 80 epochs, seeds 0, of 3 that were scored' in capsys.readouterr().out


def test_results_of_other_frames_or_another_backbone_are_others(root, tmp_path):
    def sources(name, data):
        backbone = tmp_path / name
        backbone.write_bytes(name.encode())
        return Runs(data, str(backbone), float('inf')).sources(RECIPES['pretrained'], 'val')

    fewer = shutil.copytree(root, tmp_path / 'fewer')
    (fewer / 'val' / '0.png').unlink()
    first, again, other, of_fewer = sources('a', root), sources('a', root), sources('b', root), sources('a', str(fewer))
    assert first == again
    assert first['frames'] == other['frames'] != of_fewer['frames']
    assert first['backbone'] == of_fewer['backbone'] != other['backbone']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--networks', 'segnet_basic', 'segnett'], 'segnett'),
        (['--recipes', 'tiny', 'best:scratch'], 'best:scratch: .* holds no score of segnet_basic on these val frames'),
        (['--recipes', 'tiny', 'pretrained', '--backbone', 'a.npz'], 'segnet_basic: has no backbone'),
        (['--recipes', 'pretrained', '--networks', 'segnet', '--backbone', 'a.npz'], 'a.npz: cannot be read'),
        (['--recipes', 'tiny+bins_8_4_2'], 'model.spp_bins=.*: segnet_basic has no such setting'),
        (['--data', 'nowhere'], '--data nowhere: train has no frames; give the 360x480 repack'),
        (['--set', 'train.batchsize=8'], 'train.batchsize=8: segnet_basic has no such setting, or'),
        (['--set', 'loss=3'], 'loss=3: segnet_basic has no such setting, or it is of another type'),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(root, tmp_path, arguments, message, monkeypatch):
    monkeypatch.setattr(Runs, 'run', None)
    results = ['--results', str(tmp_path / 'a.jsonl')]
    with pytest.raises(InputError, match=message):
        camvid.main(['--data', root, '--networks', 'segnet_basic', '--recipes', 'tiny', *results, *arguments])


def test_a_damaged_state_is_one_line(tmp_path):
    kept = KeptState(str(tmp_path / 'results.jsonl'), {})
    kept.keep({'a': np.zeros(3)}, 1.0)
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match='damaged; remove it, and the run begins anew'):
        kept.restore({'a': np.zeros(3)})


def test_every_row_of_table_4_is_a_variant_that_works(root):
    """Settings and terms of the loss fit the network; none is trained here."""
    runs, given = Runs(root, '', deadline=float('inf')), set()
    best_of = partial(runs.best, Results(''), 'atonet')
    rows = chosen('tiny+table4@3', best_of)
    assert [sum(kind in name for name, *_ in rows) for kind in ('+bins', '+aux', '+dagger')] == [3, 9, 1]
    for name, recipe, over in rows:
        config = runs.config('atonet', recipe, 0, 'val', over | {'model.width': 8, 'model.backbone_width': 8})
        assert config.train.epochs == 3
        model = create_network(config, 11)
        given.add((model.spp_bins, model.aux_levels, config.loss.aux_target))
        if name.endswith(('dagger_3_4_5', 'aux_1')):
            terms = create_objective(config, model).terms
            assert {term.at for term in terms[1:]} == {'labels' if 'dagger' in name else 'output'}
    assert len(given) == 13
    for wrong in ('tiny+bins_9', 'small', 'tiny@many', 'best:scratch'):
        with pytest.raises(InputError):
            chosen(wrong, best_of)


def test_parts_hold_the_same_pixels(root, tmp_path):
    extra = tmp_path / 'extra.bin'
    extra.write_bytes(b'123')
    paths = pack_camvid.pack(root, str(tmp_path / 'parts'), [str(extra)], megabytes=0.08)
    assert len(paths) > 1
    assert pack_camvid.unpack(paths, str(tmp_path / 'out')) == 21
    assert pack_camvid.verify(root, str(tmp_path / 'out')) == 20
    assert (tmp_path / 'out' / 'extra.bin').read_bytes() == b'123'
    part = pathlib.Path(paths[0])
    part.write_bytes(part.read_bytes()[:-200])
    for damaged in (part, tmp_path / 'none.zip'):
        with pytest.raises(SystemExit, match=f'{damaged.name}: cannot be read .*; copy it again'):
            pack_camvid.unpack([str(damaged)], str(tmp_path / 'out'))


@pytest.mark.parametrize(
    ('pair', 'value'),
    [
        ('model.dtype=float32', 'float32'),
        ('data.cache=none', 'none'),
        ('train.batch_size=8', 8),
        ('loss.mining=true', True),
        ('data.crop_size=[64, 96]', (64, 96)),
        ('data.crop_size=64,96', (64, 96)),
        ('init_from=', ''),
    ],
)
def test_a_setting_is_json_or_a_word(pair, value):
    assert camvid._setting(pair) == (pair.partition('=')[0], value)


def test_a_setting_without_a_value_is_named():
    with pytest.raises(InputError, match='--set train.epochs: must be KEY=VALUE'):
        camvid._setting('train.epochs')
