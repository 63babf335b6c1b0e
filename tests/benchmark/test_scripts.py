"""Scripts of benchmarks/ run whole, at sizes that take no time, and print each of their figures."""

import pytest

from benchmarks import network_operations, video


def test_a_video_is_timed_in_both_ways_and_by_stages(finished_basic, capsys):
    video.main(['--workdir', finished_basic, '--size', '64', '128', '--frames', '2', '--rounds', '1'])
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
