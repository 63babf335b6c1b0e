"""Runs side by side: what is compared is of each run's own files, and what cannot be is said."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from atonet_jax.data.labels import CAMVID
from atonet_jax.errors import InputError
from atonet_jax.evaluation.evaluate import evaluate
from atonet_jax.evaluation.report.compare import compare
from atonet_jax.process.files import write_json
from atonet_jax.runs.metrics import read_metrics
from tests.commands import run_command
from tests.evaluation.test_report import text_of


@pytest.fixture(scope='module')
def evaluated(finished, tiny_config, tmp_path_factory):
    """A finished run that was evaluated, without its checkpoints."""
    folder = tmp_path_factory.mktemp('compared') / 'first'
    shutil.copytree(finished, folder)
    evaluate(tiny_config, str(folder))
    shutil.rmtree(folder / 'checkpoints')
    return folder


@pytest.fixture
def runs(evaluated, tmp_path):
    """The run, and another one that learned at another rate and was evaluated only while it trained."""
    first, second = tmp_path / 'first', tmp_path / 'second'
    for folder in (first, second):
        shutil.copytree(evaluated, folder)
    shutil.rmtree(second / 'evaluation')
    change(second, 'config.json', lambda config: config['optimizer'].update(learning_rate=0.125))
    return [str(first), str(second)]


def change(workdir, name, edit):
    path = os.path.join(workdir, name)
    with open(path) as file:
        values = json.load(file)
    edit(values)
    write_json(path, values)


def test_scores_curves_and_settings_stand_side_by_side(runs, tmp_path, capsys):
    change(runs[0], 'evaluation/scores.json', lambda scores: scores['classes']['road'].update(iou=0.25))
    last = [line for line in read_metrics(runs[1]) if 'eval/miou' in line][-1]
    path = compare(runs, str(tmp_path))
    assert path == str(tmp_path / 'compare.html')
    text, printed = text_of(path), capsys.readouterr().out
    road = last['eval/iou/road']
    difference = f'{100 * (road - 0.25):+.2f}'.replace('-', '−')
    assert f'road 25.00 {100 * road:.2f} {difference}' in text
    assert 'scores from evaluation/scores.json metrics.jsonl, its last evaluation' in text
    assert 'optimizer.learning_rate 0.05 0.125' in text and 'optimizer.momentum' not in text
    with open(path) as file:
        assert file.read().count('<svg ') == 4
    rows = [line.split() for line in printed.splitlines()[1:3]]
    assert [row[0] for row in rows] == ['first', 'second']
    assert rows[1][1:3] == [str(last['step']), f'{100 * last["eval/miou"]:.2f}']
    assert re.fullmatch(r'\d+\.\d', rows[0][4]) and rows[0][5] == '210,667'
    assert printed.splitlines()[-1] == f'report: {path}'


def test_one_run_is_enough(runs, tmp_path):
    text = text_of(compare(runs[:1], str(tmp_path)))
    assert 'road' in text and 'Settings that differ None' in text


def test_folders_of_one_name_are_told_apart(runs, tmp_path, capsys):
    os.makedirs(tmp_path / 'other')
    again = shutil.copytree(runs[0], tmp_path / 'other' / 'first')
    compare([runs[0], str(again)], str(tmp_path))
    rows = capsys.readouterr().out.splitlines()[1:3]
    assert [row.split()[0] for row in rows] == [runs[0], str(again)]


def test_other_classes_data_and_ways_to_evaluate_are_said(runs, tiny_config, tmp_path, capsys):
    write_json(os.path.join(runs[1], 'class_table.json'), CAMVID.to_dict())
    change(runs[1], 'config.json', lambda config: config['eval'].update(flip=True))
    change(runs[1], 'config.json', lambda config: config['data'].update(eval_split='test', tfds_dir='copy'))
    change(runs[0], 'evaluation/scores.json', lambda scores: scores.update(dataset='camvid'))
    text = text_of(compare(runs, str(tmp_path)))
    printed = capsys.readouterr().out
    for note in (
        'second has other classes than first',
        f'the scores are on different data (first: camvid val in {tiny_config.data.root}; '
        'second: synthetic test in copy)',
        'the scores are with different config.eval.flip (first: False; second: True)',
    ):
        assert note in text and note in printed
    assert 'config.eval.scales' not in printed, 'JSON has lists where the config has tuples'


def test_other_labels_and_another_number_of_images_are_said(runs, tmp_path, capsys):
    """Two runs on one folder, as with labels of another kind, or a list of the hard images."""
    shutil.copytree(os.path.join(runs[0], 'evaluation'), os.path.join(runs[1], 'evaluation'))
    change(runs[1], 'evaluation/scores.json', lambda scores: scores.update(images=2))
    change(runs[1], 'config.json', lambda config: config['data'].update(unknown_as_void=0.5))
    change(runs[1], 'config.json', lambda config: config['data']['folder'].update(labels='coarse/{split}'))
    text = text_of(compare(runs, str(tmp_path)))
    printed = capsys.readouterr().out
    for note in (
        'the scores are of different numbers of images (first: 5; second: 2)',
        'the scores are with different config.data.folder.labels (first: labels/{split}; second: coarse/{split})',
        'the scores are with different config.data.unknown_as_void (first: 0.0; second: 0.5)',
    ):
        assert note in text and note in printed
    assert printed.count('note: ') == 3
    shutil.rmtree(os.path.join(runs[1], 'evaluation'))  # metrics.jsonl does not say how many images there were
    compare(runs, str(tmp_path))
    assert 'numbers of images' not in capsys.readouterr().out


def test_a_run_that_was_not_evaluated_yet_has_no_scores_but_curves(runs, tmp_path, capsys):
    path = os.path.join(runs[1], 'metrics.jsonl')
    with open(path) as file:
        lines = [line for line in file if 'eval/' not in line]
    with open(path, 'w') as file:
        file.writelines(lines)
    text = text_of(compare(runs, str(tmp_path)))
    assert 'second was not evaluated yet' in text
    assert capsys.readouterr().out.splitlines()[2].split()[:4] == ['second', '–', '–', '–']


def test_a_run_without_any_figures_is_compared_by_its_settings(runs, tmp_path):
    for folder in runs:
        shutil.rmtree(os.path.join(folder, 'evaluation'), ignore_errors=True)
        os.remove(os.path.join(folder, 'metrics.jsonl'))
        os.remove(os.path.join(folder, 'environment.json'))
    text = text_of(compare(runs, str(tmp_path)))
    assert 'No curves' in text and 'optimizer.learning_rate 0.05 0.125' in text


def test_bad_input_is_one_line(runs, tmp_path):
    with pytest.raises(InputError, match='needs runs'):
        compare([], str(tmp_path))
    with pytest.raises(InputError, match=r'none/config\.json: no such file'):
        compare([runs[0], str(tmp_path / 'none')], str(tmp_path))
    (tmp_path / 'file').touch()
    with pytest.raises(InputError, match='cannot be written.*choose another --workdir') as failure:
        compare(runs, str(tmp_path / 'file'))
    assert '\n' not in str(failure.value)


def test_the_command_takes_runs_alone_and_needs_no_tensorflow(runs, repository, tmp_path):
    code = "import sys, main; code = main.main(sys.argv); print('tensorflow' in sys.modules); sys.exit(code)"

    def command(*arguments):
        return subprocess.run(
            [sys.executable, '-c', code, '--mode=compare', *arguments],
            cwd=tmp_path,
            env=os.environ | {'PYTHONPATH': str(repository)},
            capture_output=True,
            text=True,
            timeout=120,
        )

    process = command('first', 'second')
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-2:] == ['report: ./compare.html', 'False']
    assert (tmp_path / 'compare.html').exists()
    process = run_command('--mode=compare', 'first', '--workdir=elsewhere', cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / 'elsewhere' / 'compare.html').exists()


def test_a_damaged_run_is_one_line(runs, tmp_path, caplog):
    def failure(name, content):
        path = tmp_path / 'damaged' / name
        shutil.copytree(runs[0], tmp_path / 'damaged')
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        with pytest.raises(InputError) as raised:
            compare([runs[1], str(tmp_path / 'damaged')], str(tmp_path))
        shutil.rmtree(tmp_path / 'damaged')
        assert str(raised.value).startswith(f'{path}: damaged (') and '\n' not in str(raised.value)

    failure('config.json', '{')
    failure('config.json', '{}')
    failure('config.json', '[]')
    failure('class_table.json', '{"name": "x"}')
    failure('evaluation/scores.json', '{"miou": 1}')
    (tmp_path / 'picture.png').touch()
    with pytest.raises(InputError, match='picture.png/config.json: no such file; name the --workdir of a run'):
        compare([str(tmp_path / 'picture.png')], str(tmp_path))
