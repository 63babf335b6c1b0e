"""A benchmark says all that its figures depend on, counts what is known, and puts published figures beside its own."""

import json
import math
import os
import shutil
import subprocess
import sys

import jax.numpy as jnp
import pytest

from atonet_jax.benchmark.benchmark import BOUNDARIES, benchmark, summarize
from atonet_jax.benchmark.published import all_published_rows, published_rows
from atonet_jax.errors import InputError
from atonet_jax.inference.segmenter import Segmenter
from atonet_jax.models import MODEL_NAMES, create_model, network
from atonet_jax.models.counts import count_macs, count_parameters
from tests.commands import run_command


@pytest.fixture
def config(tiny_config):
    config = tiny_config.copy_and_resolve_references()
    config.benchmark.update(sizes=(64, 128), rounds=2, warmup=1)
    return config


@pytest.fixture(scope='module')
def atonet():
    return create_model('atonet', 19)


def leaves(values, path=''):
    """(path, value) of every number, text and None in nested dictionaries and lists."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from leaves(value, f'{path}/{key}')
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from leaves(value, path)
    else:
        yield path, values


def test_file_and_screen_hold_the_figures_of_every_setting(config, tmp_path, capsys):
    config.benchmark.update(dtypes=('float32', 'bfloat16'), rounds=3)
    figures = benchmark(config, str(tmp_path))
    screen = capsys.readouterr().out

    path = tmp_path / 'benchmark' / 'atonet_cpu.json'
    read = json.loads(path.read_text())
    assert read['measurements'] == figures['measurements']
    settings = [(m['dtype'], m['batch_size'], m['height'], m['width']) for m in read['measurements']]
    assert settings == [('float32', 1, 64, 128), ('bfloat16', 1, 64, 128)]
    for measurement in read['measurements']:
        assert list(measurement['boundaries']) == list(BOUNDARIES)
        for row in measurement['boundaries'].values():
            assert len(row['seconds']) == measurement['rounds'] == 3
            assert row['p5_seconds'] <= row['median_seconds'] <= row['p95_seconds']
            assert all(math.isfinite(value) and value > 0 for _, value in leaves(row))
    unknown = {path for path, value in leaves(read) if value is None}
    assert unknown == {'/measurements/device_peak_bytes'}  # which CPUs do not count
    assert {'jax', 'jaxlib', 'flax', 'numpy', 'python'} <= set(read['environment']['versions'])
    assert read['environment']['xla_flags'] == os.environ['XLA_FLAGS']
    assert read['model']['weights'] == 'freshly drawn'

    assert screen.count('no figures are published for 64x128') == 2
    assert screen.startswith('ATONet (Cao, Huang, Shao: ')
    for name in BOUNDARIES:
        assert screen.count(f'\n{name} ') == 2
    assert str(path) in screen


def test_weights_are_those_of_the_run_in_the_workdir(config, finished, tmp_path):
    workdir = str(shutil.copytree(finished, tmp_path / 'run'))
    assert benchmark(config, workdir)['model']['weights'].startswith(f'{workdir}, step ')


def test_batch_counts_in_throughput_and_not_in_macs_an_image(config, tmp_path, capsys):
    config.benchmark.batch_sizes = (1, 2)
    config.model.dtype = 'bfloat16'
    one, two = benchmark(config, str(tmp_path))['measurements']
    assert 'config.model.dtype=bfloat16 is not timed: config.benchmark.dtypes says which' in capsys.readouterr().out
    assert one['dtype'] == 'float32'
    assert one['conv_macs_per_image'] == two['conv_macs_per_image']
    for row in two['boundaries'].values():
        assert row['images_per_second'] == pytest.approx(2 / row['median_seconds'])
    flops = [m['boundaries']['coarse logits']['xla_flops'] for m in (one, two)]
    assert flops[1] == pytest.approx(2 * flops[0], rel=0.05)


def test_counts_are_the_published_ones(atonet):
    counts = count_parameters(atonet)
    assert counts['parameters'] == 13_304_531
    assert 4 * 13_304_531 < counts['file_bytes'] < 4.05 * 13_304_531
    assert count_macs(atonet, (1024, 2048)) / 1e9 == pytest.approx(133.98, abs=0.01)


def test_published_rows_are_of_the_size_asked_for():
    cityscapes = {row['method']: row for row in published_rows((1024, 2048))}
    assert cityscapes['ATONet'] == {
        'table': 'Table 1, Cityscapes test', 'method': 'ATONet', 'gflops': 134.5, 'params_m': 13.3, 'fps': 42.7,
        'miou': 74.4,
    }  # fmt: skip
    assert len(cityscapes) == 8
    assert cityscapes['PIDNet-S']['miou'] == 78.6
    camvid = {row['method']: row for row in published_rows((720, 960))}
    assert len(camvid) == 9
    assert (camvid['ATONet']['fps'], camvid['ATONet']['gflops']) == (93.5, None)
    assert camvid['SwiftNetRN-18 pyr']['fps'] is None
    tables = [row['table'] for row in published_rows((1024, 1024))]
    assert tables == 2 * ['Table 1, Cityscapes test'] + 3 * ['Table 3, Cityscapes val, centre crop']
    assert published_rows((64, 128)) == []


def test_rows_that_networks_name_are_there():
    methods = {row['method'] for row in all_published_rows()}
    rows = {row for name in MODEL_NAMES for row in network(name).published.rows}
    assert rows <= methods
    assert {'ATONet', 'ENet', 'ERFNet', 'FCN-8s', 'BiSeNet', 'SwiftNetRN-18', 'aggregation', 'PIDNet-S'} <= rows


def test_published_figures_stand_above_the_measured_one(config, tmp_path, monkeypatch, capsys):
    rows = published_rows((1024, 2048))
    monkeypatch.setattr('atonet_jax.benchmark.benchmark.published_rows', lambda size: rows)
    (measurement,) = benchmark(config, str(tmp_path))['measurements']
    lines = capsys.readouterr().out.splitlines()
    published = next(i for i, line in enumerate(lines) if line.startswith('ATONet  '))
    assert lines[published].split()[1:5] == ['134.50', '13.30', '42.70', '74.40']
    speed = measurement['boundaries']['full-resolution logits']['images_per_second']
    measured = ['measured:', 'atonet', '0.01', '0.21', f'{speed:.2f}', '-', 'float32,', 'batch', '1,', 'here']
    assert lines[published + 3].split() == measured


def test_summary_is_of_the_median():
    summary = summarize([0.5, 0.1, 0.2, 0.4, 0.3], batch_size=6)
    assert summary['median_seconds'] == 0.3
    assert summary['images_per_second'] == pytest.approx(20)
    assert summary['p5_seconds'] == pytest.approx(0.12)
    assert summary['p95_seconds'] == pytest.approx(0.48)


def test_compiled_program_is_the_one_that_calls_take(tiny_model, tiny_variables):
    compiled = []

    class Counted(Segmenter):
        def _compile(self, function_and_shape):
            compiled.append(function_and_shape)
            return super()._compile(function_and_shape)

    segment = Counted(tiny_model, tiny_variables)
    images = jnp.zeros((1, 64, 64, 3), jnp.uint8)
    for method, shape in {'__call__': (1, 64, 64), 'logits': (1, 64, 64, 5), 'coarse_logits': (1, 16, 16, 5)}.items():
        program = segment.compile(method, (1, 64, 64))
        assert getattr(segment, method)(images).shape == shape
        assert program.out_info.shape == shape
        assert segment.compile(method, (1, 64, 64)) is program
    assert len(compiled) == 3


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('sizes', (0, 128)),
        ('sizes', ((64, 128), (64,))),
        ('sizes', ('wide',)),
        ('sizes', ()),
        ('batch_sizes', (0,)),
        ('batch_sizes', ()),
        ('dtypes', ('float16',)),
        ('dtypes', ()),
        ('rounds', -1),
        ('warmup', -1),
        ('seconds', math.inf),
    ],
    ids=str,
)
def test_setting_that_cannot_work_is_named_in_one_line_before_anything_is_written(config, tmp_path, key, value):
    config.benchmark[key] = value
    with pytest.raises(InputError) as refusal:
        benchmark(config, str(tmp_path))
    assert str(refusal.value).startswith(f'config.benchmark.{key}={value!r}: must be ')
    assert '\n' not in str(refusal.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('sizes', ['(64,128)', '((64,128),(33,57))'])
def test_command_line_takes_one_size_or_several(repository, tmp_path, sizes):
    command = ['--config=configs/tiny.py', f'--workdir={tmp_path}', '--mode=benchmark']
    command += [f'--config.benchmark.sizes={sizes}', '--config.benchmark.rounds=1', '--config.benchmark.warmup=0']
    process = run_command(*command, cwd=repository)
    assert process.returncode == 0, process.stderr
    for size in ('64x128', '33x57')[: sizes.count('),') + 1]:
        assert f'\n{size}, float32, batch 1: ' in process.stdout


def test_module_needs_no_tensorflow(repository):
    program = "import atonet_jax.benchmark.benchmark, sys; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, '-c', program], cwd=repository, check=True)
