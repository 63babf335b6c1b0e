"""Scripts of benchmarks/ run whole, at sizes that take no time, and print each of their figures."""

import json

import pytest

from atonet_jax.errors import InputError
from benchmarks import learning_curve, network_operations, video


def test_a_video_is_timed_in_both_ways_and_by_stages(finished_basic, capsys):
    video.main(['--workdir', finished_basic, '--size', '64x128', '--frames', '2', '--rounds', '1'])
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith('| ')]
    names = [row.split('|')[1].strip() for row in rows]
    assert {'bare network', *video.WAYS, 'decode', 'network', *(f'encode {kind}' for kind in video.KINDS)} <= {*names}


@pytest.mark.parametrize('options', [[], ['--train']])
def test_operations_are_summed_by_kind(capsys, options):
    network_operations.main(['segnet_basic', '--size', '64x64', '--calls', '1', *options])
    *_, total = capsys.readouterr().out.splitlines()
    name, kind, ms, gmac, *_ = (cell.strip() for cell in total.strip('|').split('|'))
    assert (name, kind) == ('segnet_basic', 'all')
    assert float(ms) > 0 and float(gmac) > 0


def test_a_learning_curve_is_of_all_runs_that_are_given_or_of_none(tmp_path, capsys):
    for name, key in (('run', 'eval/miou'), ('other', 'train/loss')):
        (tmp_path / name).mkdir()
        line = {'step': 5, key: 0.25, 'eval/pixel_accuracy': 0.5, 'eval/train_seconds': 90.0}
        (tmp_path / name / 'metrics.jsonl').write_text(json.dumps(line) + '\n')
    run, other = str(tmp_path / 'run'), str(tmp_path / 'other')
    learning_curve.main([run, '--output', str(tmp_path / 'curve.png')])
    assert '| run | 5 | 1.5 | 25.00 | 50.00 |' in capsys.readouterr().out and (tmp_path / 'curve.png').exists()
    with pytest.raises(InputError, match='other/metrics.jsonl: holds no evaluation; give the workdirs of runs'):
        learning_curve.main([run, other, '--output', str(tmp_path / 'curve.png')])
