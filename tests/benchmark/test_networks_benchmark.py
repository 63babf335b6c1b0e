"""benchmarks/networks.py: what it measures, what it keeps, what it says. Its processes are made up but for one test."""

import os
import signal
import sys

import numpy as np
import pytest

from atonet_jax.errors import InputError
from atonet_jax.models import MODEL_NAMES, distinct_networks, network
from benchmarks import networks
from benchmarks.json_lines import add_line
from benchmarks.network_report import draw_chart, failures_of, report
from benchmarks.network_worker import Worker, WorkerError
from benchmarks.networks import jobs_of, parse_arguments, read_rows, run

COUNTS = {'parameters': 364_647, 'file_bytes': 1_500_000, 'macs': 2_000_000_000}
SECONDS = {'segmenter': 0.1, 'plain': 0.2, 'onnx': 0.05}


class MadeUpWorker:
    """Answers as a process would, at once. `failing`: {(network, system): why}."""

    failing, started = {}, []

    def __init__(self, task):
        self._task = task
        self.started.append((task.get('network'), task['system']))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, line, seconds):
        system = self._task['system']
        if system == 'machine':
            return {'backend': 'cpu', 'device': 'made up', 'versions': 'jax 1', 'revision': 'abc'}
        if (self._task['network'], system) in self.failing:
            raise WorkerError(self.failing[self._task['network'], system])
        if line == 'run':
            return {'seconds': SECONDS[system]}
        if line == 'memory':
            return {'memory_bytes': 5_000_000}
        if system == 'export':
            return {}
        labels = np.zeros((1, *self._task['size']), np.uint8)
        labels[:, ::4] = system == 'onnx'
        np.save(os.path.join(self._task['folder'], f'{system}.npy'), labels)
        return (COUNTS if system == 'segmenter' else {}) | {'start_seconds': 1.0}


@pytest.fixture
def made_up(monkeypatch):
    monkeypatch.setattr(networks, 'Worker', MadeUpWorker)
    monkeypatch.setattr(networks, 'PAUSE', 0)
    monkeypatch.setattr(MadeUpWorker, 'failing', {})
    monkeypatch.setattr(MadeUpWorker, 'started', [])
    return MadeUpWorker


@pytest.fixture
def options(tmp_path):
    def parse(*arguments):
        results = str(tmp_path / 'results.jsonl')
        return parse_arguments(['--results', results, '--networks', 'enet', 'pidnet', *arguments])

    return parse


def test_every_network_is_measured_once_at_both_sizes_the_cheapest_first():
    jobs = jobs_of(MODEL_NAMES, ['512x1024', 'paper'], ['float32'])
    assert len(set(jobs)) == len(jobs)
    common = [job for job in jobs if job.size == (512, 1024)]
    assert {job.network for job in common} == set(distinct_networks())
    assert jobs[: len(common)] == common
    assert [job.network for job in common].index('enet_paper') < [job.network for job in common].index('fcn8s')
    assert [job.size for job in jobs if job.network == 'bisenet_r18'] == [(512, 1024), (360, 640), (768, 1536)]
    assert all((name, network(name).published.macs[0]) in {job[:2] for job in jobs} for name in distinct_networks())


@pytest.mark.parametrize(
    ('names', 'sizes', 'message'),
    [
        (['unet'], ['paper'], '--networks unet: no such network; there is atonet'),
        (['enet'], ['512'], '^512: must be a size, HxW'),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(names, sizes, message):
    with pytest.raises(InputError, match=message):
        jobs_of(names, sizes, ['float32'])


def test_a_second_start_measures_what_is_missing_or_failed(made_up, options):
    made_up.failing = {('pidnet_s', 'onnx'): 'no room'}
    assert run(options('--sizes', '64x128')) == []
    rows = read_rows(options().results)
    assert {key[0] for key in rows} == {'enet_paper', 'pidnet_s'}
    assert rows['pidnet_s', (64, 128), 'float32', 'made up']['systems']['onnx'] == {'error': 'no room'}

    made_up.failing, before = {}, len(made_up.started)
    with open(options().results, 'a') as file:
        file.write('{"network": "enet_pa')  # of a process that was killed
    assert run(options('--sizes', '64x128')) == []
    assert {name for name, _ in made_up.started[before:]} == {None, 'pidnet_s'}
    row = read_rows(options().results)['pidnet_s', (64, 128), 'float32', 'made up']
    assert row['systems']['onnx']['median_seconds'] == 0.05
    assert row['systems']['onnx']['labels_equal'] == 0.75
    assert row['systems']['plain']['times_of_segmenter'] == pytest.approx(2)
    assert row['parameters'] == 364_647 and 'macs' not in row['systems']['segmenter']


def test_another_system_is_measured_beside_those_that_a_line_has_already(made_up, options):
    """The last line of a network counts as a whole."""
    run(options('--sizes', '64x128', '--systems', 'segmenter', 'onnx'))
    run(options('--sizes', '64x128', '--systems', 'plain'))
    row = read_rows(options().results)['enet_paper', (64, 128), 'float32', 'made up']
    assert list(row['systems']) == ['segmenter', 'plain', 'onnx'] and row['parameters'] == 364_647
    assert row['systems']['plain']['times_of_segmenter'] == pytest.approx(2)


def test_figures_of_other_options_do_not_meet_in_one_file(made_up, options):
    run(options('--sizes', '64x128', '--options', '{"width": 16}'))
    with pytest.raises(InputError, match='holds figures of other --options; give another file'):
        run(options('--sizes', '64x128'))


def test_what_the_time_does_not_allow_is_left_and_told(made_up, options):
    left = run(options('--sizes', '64x128', '--minutes', '0'))
    assert [job.network for job in left] == ['enet_paper', 'pidnet_s']
    assert not os.path.exists(options().results)


def test_rounds_end_with_the_seconds_but_not_before_three(made_up, options):
    run(options('--sizes', '64x128', '--seconds', '0', '--rounds', '9'))
    row = read_rows(options().results)['enet_paper', (64, 128), 'float32', 'made up']
    assert len(row['systems']['segmenter']['seconds']) == 3


def row_of(name, size, ours, plain=None, onnx=None, **changes):
    systems = {'segmenter': {'median_seconds': ours, 'memory_bytes': 5e6}}
    if plain is not None:
        systems['plain'] = {'median_seconds': plain, 'times_of_segmenter': plain / ours, 'memory_bytes': 6e6}
    systems['onnx'] = onnx or {'median_seconds': 0.01, 'labels_equal': 0.5}
    return {'network': name, 'size': list(size), 'dtype': 'float32', 'device': 'made up', 'versions': 'jax 1',
            'backend': 'cpu', 'systems': systems} | COUNTS | changes  # fmt: skip


def test_the_report_shows_what_was_measured_and_what_is_published():
    rows = [
        row_of('pidnet_s', (1024, 2048), 0.5, macs=47_194_226_688, parameters=7_625_715),
        row_of('enet_paper', (512, 1024), 0.1, plain=0.05),
        row_of('erfnet', (512, 1024), 0.2, plain=0.4, onnx={'error': 'no room'}),
    ]
    lines = report(rows).splitlines()
    enet = next(line for line in lines if line.startswith('| enet_paper | 364,647 |'))
    assert enet == '| enet_paper | 364,647 | 2.00 | 1.5 | 100.0 | 50.00 | 50.0 | 0.50 | 10.0 | 5 | 6 | – |'
    assert '- Plain XLA takes less time than `Segmenter`: enet_paper at 512x1024 (0.50).' in lines
    assert '- Not measured: erfnet at 512x1024, ONNX Runtime: no room' in lines
    assert '- enet_paper at 512x1024: 50.0 % of the labels of ONNX Runtime are those of Segmenter.' in lines
    assert any(line.startswith('- Most time for each GMAC: erfnet at 512x1024 (100.0 ms), enet') for line in lines)
    pidnet = [line for line in lines if line.startswith('| pidnet_s | 1024x2048 |')][-1]
    assert pidnet.startswith('| pidnet_s | 1024x2048 | 7.63 | 7.6 | 47.19 | 47.6 | 500.0 | 2.0 | 93.2 | 78.6 |')
    erfnet = [line for line in lines if line.startswith('| erfnet | 512x1024 |')][-1]
    assert '| 41.7 | 69.7 | 27.7 GFLOPs of tables are multiply-accumulates' in erfnet


def test_the_report_has_a_table_of_training_steps():
    systems = {
        'train': {'median_seconds': 0.5, 'forward_macs': 2e9},
        'plain_train': {'median_seconds': 0.6, 'times_of_train': 1.25},
    }
    lines = report([row_of('erfnet', (512, 1024), 0.2), row_of('enet_paper', (512, 1024), 0.1, systems=systems)])
    assert '| enet_paper | 256x512 | 2.00 | 500.0 | 250.00 | 600.0 | 1.25 |' in lines.splitlines()
    assert 'forward pass: enet_paper at 512x1024 (250.0 ms).' in lines
    assert '| enet_paper | 364,647 |' not in lines, 'nothing else of it was measured'


def test_a_report_of_nothing_says_so(tmp_path):
    assert 'Nothing is measured' in report([])
    assert not draw_chart(str(tmp_path / 'chart.png'), [])


def test_the_chart_holds_networks_with_a_published_accuracy(tmp_path):
    path = tmp_path / 'chart.png'
    assert draw_chart(str(path), [row_of('erfnet', (512, 1024), 0.2), row_of('table3_dilation', (1024, 1024), 0.2)])
    assert path.read_bytes().startswith(b'\x89PNG')
    for row in (row_of('erfnet', (64, 128), 0.2), row_of('bisenet_r18', (360, 640), 0.2)):
        assert not draw_chart(str(path), [row]), 'the figure is of another size'
    assert '| 74.7 (768x1536) |' in report([row])


def test_a_line_follows_one_that_a_killed_process_left(tmp_path):
    path = str(tmp_path / 'a.jsonl')
    with open(path, 'w') as file:
        file.write('{"half')
    add_line(path, row_of('enet_paper', (64, 128), 0.1))
    assert list(read_rows(path)) == [('enet_paper', (64, 128), 'float32', 'made up')]


@pytest.mark.networks
def test_a_small_network_is_measured_in_every_way(tmp_path, repository, monkeypatch):
    monkeypatch.chdir(repository)
    arguments = ['--networks', 'erfnet', '--options', '{"width": 4}', '--sizes', '40x72', '--rounds', '1']
    path = str(tmp_path / 'results.jsonl')
    assert run(parse_arguments(['--results', path, *arguments])) == []
    (row,) = read_rows(path).values()
    assert not failures_of(row) and row['parameters'] and row['macs']
    for name in ('segmenter', 'plain', 'onnx'):
        figures = row['systems'][name]
        assert figures['median_seconds'] > 0 and 0 < figures['memory_bytes'] < 1e9
        assert figures.get('labels_equal', 1) > 0.99


@pytest.mark.parametrize(
    ('code', 'seconds', 'message'),
    [
        ('raise ValueError("no such thing")', 20, 'ValueError: no such thing'),
        ('import os; os.kill(os.getpid(), 9)', 20, 'ended by signal 9, as where memory runs out'),
        ('import time; time.sleep(60)', 0.2, 'no answer in 0 s'),
    ],
)
def test_a_process_that_fails_says_why_in_a_line(code, seconds, message, monkeypatch):
    monkeypatch.setattr(Worker, 'command', (sys.executable, '-S', '-c', code))
    with pytest.raises(WorkerError, match=f'^{message}$'), Worker({}) as worker:
        worker.ask('', seconds)


def test_a_process_that_does_not_answer_in_time_is_ended(monkeypatch):
    monkeypatch.setattr(Worker, 'command', (sys.executable, '-S', '-c', 'import time; time.sleep(60)'))
    with Worker({}) as worker:
        with pytest.raises(WorkerError):
            worker.ask('', 0.2)
        assert worker._process.wait(10) == -signal.SIGKILL


def test_a_process_answers_line_by_line(monkeypatch):
    code = 'import sys\nfor line in sys.stdin:\n    print(\'{"seconds": 2}\', flush=True)'
    monkeypatch.setattr(Worker, 'command', (sys.executable, '-S', '-c', code))
    with Worker({}) as worker:
        assert [worker.ask('run', 20) for _ in range(2)] == 2 * [{'seconds': 2}]
