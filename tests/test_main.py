"""The command line: what bad input prints, and that it harms nothing."""

import errno
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from atonet_jax import main
from atonet_jax.data.synthetic import write_dataset
from atonet_jax.errors import ExportError, InputError, Stopped, TrainingError
from atonet_jax.runs.workdir import LOCK_FILE
from tests.commands import run_command

MODES = ['train', 'evaluate', 'predict', 'export', 'check_data', 'benchmark', 'prepare', 'serve', 'compare']


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """A small Cityscapes folder to spoil copies of."""
    root = tmp_path_factory.mktemp('cityscapes')
    write_dataset(root, splits={'train': 2, 'val': 1}, height=64, width=128, seed=0, workers=1)
    return root


@pytest.fixture
def command(repository, tmp_path):
    """Runs main.py in a fresh workdir, in this process; returns how it finished."""

    def run(*arguments, workdir=tmp_path / 'workdir'):
        return run_command(f'--workdir={workdir}', *arguments, cwd=repository)

    return run


def assert_one_clear_line(process, *texts):
    assert process.returncode == 2, process.stderr
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith('error: ')
    for text in texts:
        assert text in lines[0]


@pytest.mark.parametrize(
    ('override', 'texts'),
    [
        ('--config.train.batch_siz=4', ['config.train.batch_siz', 'train.batch_size']),
        ('--config.train.batch_size=four', ['config.train.batch_size', 'four']),
        ('--config.train.batch_size=0', ['config.train.batch_size=0', 'greater than 0']),
        ('--config.train.epochs=-1', ['config.train.epochs=-1.0', 'greater than 0']),
        ('--config.optimizer.learning_rate=0', ['config.optimizer.learning_rate=0.0', 'greater than 0']),
        ('--config.data.crop_size=wide', ['config.data.crop_size', 'wide', 'numbers alone']),
        ('--config.model.name=resnet', ['config.model.name', 'atonet']),
        ('--mode=fly', ['mode', 'fly']),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_written(command, tmp_path, override, texts):
    process = command('--config=configs/tiny.py', override)
    assert_one_clear_line(process, *texts)
    assert not (tmp_path / 'workdir').exists()


@pytest.mark.parametrize(
    ('arguments', 'line'),
    [
        (['--config.eval.batch_size=two'], 'config.eval.batch_size=two: must be a whole number'),
        (['--config.eval.flip=maybe'], 'config.eval.flip=maybe: must be true or false'),
        (['--config.train.epochs', 'many'], 'config.train.epochs=many: must be a number'),
        (['--config.eval.scales=big'], "config.eval.scales=('big',): must be numbers alone"),
        (
            ['--config.predict.pictures=labels,depth'],
            "config.predict.pictures=('labels', 'depth'): must be some of labels",
        ),
        (['--config.eval.window', '--config.eval.flip'], '--config.eval.window: has no value'),
        (['--config.eval.window'], '--config.eval.window: has no value'),
        (['--flagfile=flags/none'], '--flagfile: Unable to open flagfile: [Errno 2] No such file'),
        (['--flagfile'], '--flagfile: --flagfile with no argument'),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else '',
)
def test_words_where_numbers_belong_and_missing_values_are_named(command, arguments, line):
    assert_one_clear_line(command('--config=configs/tiny.py', '--mode=evaluate', *arguments), f'error: {line}')


def test_a_device_that_is_not_there_is_named(command, monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend 'tpu' (set JAX_PLATFORMS='' to choose another)")

    monkeypatch.setenv('JAX_PLATFORMS', 'tpu')
    monkeypatch.setattr('jax.devices', devices)
    process = command('--config=configs/tiny.py')
    assert_one_clear_line(process, "JAX_PLATFORMS=tpu: JAX finds no such device (Unable to initialize backend 'tpu'")


@pytest.mark.parametrize(
    ('mode', 'line'), [('train', 'goes on from the last checkpoint'), *((mode, 'begins anew') for mode in MODES[1:])]
)
def test_an_interrupted_command_promises_only_what_is_so(command, monkeypatch, mode, line):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr('atonet_jax.main._run_mode', interrupted)
    process = command(*['--config=configs/tiny.py'][mode == 'compare' :], f'--mode={mode}')
    assert process == (130, '', f'interrupted; the same command {line}\n')


def test_a_batch_that_the_devices_do_not_divide_is_refused(command, monkeypatch):
    monkeypatch.setattr('atonet_jax.training.train.create_mesh', lambda: SimpleNamespace(size=3))
    process = command('--config=configs/tiny.py')
    assert_one_clear_line(process, 'config.train.batch_size=4', 'split over 3 device')


def test_sigterm_ends_an_evaluation_by_several_processes(command, monkeypatch):
    """JAX takes the signal as it connects them, and only training asks it."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    monkeypatch.setattr('jax.distributed.initialize', lambda *_: None)
    monkeypatch.setattr('jax.distributed.is_initialized', lambda: True)
    address = ['--coordinator=localhost:1', '--num_processes=2', '--process_id=0']
    try:
        command('--config=configs/tiny.py', '--mode=evaluate', *address)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_missing_config_file_is_named(command):
    assert_one_clear_line(command('--config=configs/none.py'), 'configs/none.py', 'no such file')


def test_a_config_of_another_kind_is_not_called_damaged(command, tmp_path):
    (tmp_path / 'config.json').write_text('{"init_strict": true}')
    process = command(f'--config={tmp_path}/config.json')
    assert_one_clear_line(process, 'config.json: is no Python file', 'give its --workdir alone')


@pytest.mark.parametrize('arguments', [['--config=configs/tiny.py'], ['--config=configs/tiny.py', '--mode=benchmark']])
def test_an_empty_workdir_is_none_and_not_the_present_folder(repository, arguments):
    assert_one_clear_line(run_command(*arguments, '--workdir=', cwd=repository), 'give --workdir=DIR')


def test_a_path_may_begin_with_the_home_folder(command, repository, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    shutil.copy(repository / 'configs' / 'tiny.py', tmp_path)
    process = command('--config=~/tiny.py', '--config.data.name=cityscapes', '--config.data.root=~/x', workdir='~/run')
    assert_one_clear_line(process, f'{tmp_path}/x/')
    assert_one_clear_line(command('--mode=evaluate', workdir='~/none'), f'{tmp_path}/none/config.json: no such file')
    assert_one_clear_line(command('--mode=compare', '~/a', '~/b'), f'{tmp_path}/a')
    assert not (repository / '~').exists()


@pytest.mark.parametrize(
    ('error', 'code', 'line'),
    [
        (InputError('a setting'), 2, 'error: a setting\n'),
        (InputError('a\nb.png: no image'), 2, 'error: a\\nb.png: no image\n'),
        (TrainingError('step 5: loss is nan'), 3, 'error: step 5: loss is nan\n'),
        (ExportError('wrong labels'), 3, 'error: wrong labels\n'),
        (Stopped(signal.SIGINT, 5), 130, 'after step 5, which is saved; the same command goes on from there\n'),
        (Stopped(signal.SIGTERM, 5), 143, 'after step 5, which is saved; the same command goes on from there\n'),
    ],
)
def test_what_ends_a_command_is_one_line_and_its_exit_code(command, monkeypatch, error, code, line):
    def end(*_):
        raise error

    monkeypatch.setattr('atonet_jax.main._run_mode', end)
    process = command('--config=configs/tiny.py')
    assert (process.returncode, process.stdout) == (code, '')
    assert process.stderr.endswith(line) and process.stderr.count('\n') == 1


def test_a_full_disk_is_a_line_wherever_it_shows(command, monkeypatch):
    def fill(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'runs/a/file')

    monkeypatch.setattr('atonet_jax.main._run_mode', fill)
    process = command('--config=configs/tiny.py')
    assert_one_clear_line(process, 'runs/a/file: cannot be written (No space left on device); free space')


def test_a_full_device_is_a_line_that_says_what_takes_less(command, monkeypatch):
    def fill(*_):
        raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nmore')

    monkeypatch.setattr('atonet_jax.main._run_mode', fill)
    process = command('--config=configs/tiny.py')
    assert process.returncode == 3 and process.stderr.count('\n') == 1
    assert process.stderr.startswith("error: --mode=train: the device's memory is full (RESOURCE_EXHAUSTED: Out of")
    assert '--config.train.accumulation=2' in process.stderr
    process = command('--config=configs/tiny.py', '--mode=predict')
    assert process.stderr.endswith('="(512,512)" processes the image in windows, which needs less memory\n')


@pytest.mark.parametrize('seed', [2**63, 2**64, 10**30])
def test_a_seed_that_is_too_large_is_named(command, seed):
    assert_one_clear_line(command('--config=configs/tiny.py', f'--config.seed={seed}'), f'config.seed={seed}')


def test_a_workdir_without_a_run_cannot_be_evaluated(command, tmp_path):
    assert_one_clear_line(command('--mode=evaluate'), str(tmp_path / 'workdir'), 'train first')


@pytest.mark.parametrize(
    ('key', 'content', 'texts'),
    [
        ('model.pretrained_backbone', b'no weights at all', ['not a file of PyTorch weights']),
        ('init_from', pickle.dumps(os.getcwd), ['would run posix.getcwd', 'nothing was run']),
    ],
)
def test_weights_that_cannot_be_read_are_named_before_anything_is_written(command, tmp_path, key, content, texts):
    path = tmp_path / 'weights.pth'
    path.write_bytes(content)
    assert_one_clear_line(command('--config=configs/tiny.py', f'--config.{key}={path}'), str(path), *texts)
    assert not (tmp_path / 'workdir').exists()


def remove_label(root):
    path = next((root / 'gtFine' / 'train').glob('*/*_labelIds.png'))
    path.unlink()
    return path.name.replace('_gtFine_labelIds.png', '')


def remove_image(root):
    path = next((root / 'leftImg8bit' / 'train').glob('*/*.png'))
    path.unlink()
    return path.name.replace('_leftImg8bit.png', '')


def resize_label(root):
    path = next((root / 'gtFine' / 'train').glob('*/*_labelIds.png'))
    PIL.Image.fromarray(np.full((32, 64), 7, np.uint8)).save(path)
    return path.name


def unknown_label(root):
    path = next((root / 'gtFine' / 'train').glob('*/*_labelIds.png'))
    PIL.Image.fromarray(np.full((64, 128), 77, np.uint8)).save(path)
    return path.name


def remove_folder(root):
    shutil.rmtree(root / 'leftImg8bit')
    return str(root / 'leftImg8bit')


@pytest.mark.parametrize(
    ('spoil', 'text'),
    [
        (remove_folder, 'no such folder'),
        (remove_label, 'no such file; every image needs its label'),
        (remove_image, 'no such file; every image needs its label'),
        (resize_label, '32x64'),
        (unknown_label, 'label value 77'),
    ],
)
def test_bad_data_is_named_before_training(command, scenes, tmp_path, spoil, text):
    root = tmp_path / 'cityscapes'
    shutil.copytree(scenes, root)
    name = spoil(root)
    process = command('--config=configs/tiny.py', '--config.data.name=cityscapes', f'--config.data.root={root}')
    assert_one_clear_line(process, name, text)
    assert not (tmp_path / 'workdir' / 'checkpoints').exists()


def test_scenes_that_cannot_be_written_are_named(command, tmp_path):
    (tmp_path / 'file').touch()
    process = command('--config=configs/tiny.py', '--mode=check_data', f'--config.data.root={tmp_path}/file')
    assert_one_clear_line(process, f'{tmp_path}/file: cannot be written (Not a directory); choose another --config.da')


def test_a_copy_is_prepared_and_unfit_data_ends_with_code_1(command, repository, scenes, tmp_path):
    root = tmp_path / 'cityscapes'
    shutil.copytree(scenes, root)
    settings = ['--config=configs/tiny.py', '--config.data.name=cityscapes', f'--config.data.root={root}']
    prepare = [*settings, '--mode=prepare', f'--config.data.tfds_dir={tmp_path / "tfds"}']
    process = run_command(*prepare, cwd=repository)
    assert process.returncode == 0, process.stderr
    assert process.stdout == f'written: {tmp_path}/tfds/atonet_cityscapes/1.0.0\n'

    remove_label(root)
    process = command(*settings, '--mode=check_data')
    assert process.returncode == 1, process.stderr
    assert process.stdout.splitlines()[-1] == 'NOT fit to train on: train: missing file'
    process = command(*settings, '--mode=check_data', f'--config.data.tfds_dir={tmp_path / "tfds"}')
    assert process.returncode == 0, process.stdout
    assert process.stdout.splitlines()[-1] == 'fit to train on'


def test_a_mode_without_a_workdir_is_refused(repository):
    assert_one_clear_line(run_command('--config=configs/tiny.py', cwd=repository), 'give --workdir=DIR')


def test_a_process_of_its_own_says_the_same_and_nothing_else(repository, scenes, tmp_path):
    """All other refusals here run within pytest's process: this one reads data, for which TensorFlow is imported."""
    root = tmp_path / 'cityscapes'
    shutil.copytree(scenes, root)
    name = resize_label(root)
    arguments = ['--config=configs/tiny.py', f'--workdir={tmp_path}/workdir', '--config.data.name=cityscapes']
    command = [sys.executable, 'main.py', *arguments, f'--config.data.root={root}']
    process = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=300)
    assert_one_clear_line(process, name, '32x64')
    assert process.stdout == ''


def test_a_run_of_other_classes_or_missing_data_is_refused_and_left_as_it_is(command, finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / 'workdir')
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob('*') if path.is_file()}

    process = command('--config=configs/tiny.py', '--config.data.name=camvid')
    assert_one_clear_line(process, str(workdir), '19 classes', '11', 'new --workdir')
    process = command('--config=configs/tiny.py', '--config.data.name=cityscapes', '--config.data.root=/nowhere')
    assert_one_clear_line(process, '/nowhere', 'no such folder')

    after = {path: path.stat().st_mtime_ns for path in workdir.rglob('*') if path.is_file()}
    after.pop(workdir / LOCK_FILE, None)
    before.pop(workdir / LOCK_FILE, None)
    assert after == before
    assert json.loads((workdir / 'config.json').read_text())['data']['name'] == 'synthetic'


def test_the_second_start_of_a_command_takes_its_compiled_programs_from_the_cache(repository, finished, tmp_path):
    """In processes of their own, as a process opens one cache. A training step is cached as all programs are.

    The tiny network's label map compiles within a second.
    """
    cached = os.listdir(os.environ['JAX_COMPILATION_CACHE_DIR'])
    assert any(name.startswith('jit_step-') for name in cached)
    ours = 'JAX_COMPILATION_CACHE_DIR', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment['HOME'] = str(tmp_path)
    cache = tmp_path / '.cache' / 'atonet_jax' / 'compiled'
    workdir = shutil.copytree(finished, tmp_path / 'run')
    PIL.Image.fromarray(np.zeros((64, 128, 3), np.uint8)).save(tmp_path / 'a.png')
    command = [sys.executable, 'main.py', f'--workdir={workdir}', '--mode=predict']
    command += [f'--config.predict.input={tmp_path / "a.png"}']

    def start():
        process = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=300)
        assert process.returncode == 0, process.stderr
        return {path.name for path in cache.iterdir() if path.name.endswith('-cache')}

    first = start()
    assert first
    assert start() == first


def test_a_name_that_the_terminal_cannot_write_ends_nothing(monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), 'ascii')
    monkeypatch.setattr(sys, 'stdout', screen)
    monkeypatch.setattr(sys, 'argv', ['main.py', '--help'])
    assert main.command() == 0
    print('stra\xdfe caf\udce9.png', file=screen, flush=True)
    assert screen.buffer.getvalue().endswith(b'stra\\xdfe caf\\udce9.png\n')


def test_help_may_be_read_in_part(repository):
    command = f'{sys.executable} main.py --help | true'
    process = subprocess.run(command, shell=True, cwd=repository, capture_output=True, timeout=60)
    assert process.stderr == b''


def test_help_explains_every_mode_and_shows_the_flags_of_this_program_alone(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['main.py', '--help'])
    assert main.command() == 0
    shown = capsys.readouterr().out
    assert {mode for mode in main.MODES if not re.search(rf'^    {mode} +\w', shown, re.MULTILINE)} == set()
    assert '--workdir' in shown and 'alsologtostderr' not in shown


def of_its_own(repository, before, *arguments, **options):
    """How `main.command()` ends in a process of its own, in which the lines `before` have run."""
    script = f'import sys; import main; from atonet_jax import main as package\n{before}\nsys.exit(main.command())'
    command = [sys.executable, '-c', script, *arguments]
    return subprocess.run(command, cwd=repository, stderr=subprocess.PIPE, text=True, timeout=120, **options)


@pytest.mark.parametrize('unbuffered', ['', '1'])
def test_output_of_a_mode_may_be_read_in_part(repository, tmp_path, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    process = of_its_own(
        repository,
        'package._run_mode = lambda *_: print("a table") or 0',
        '--config=configs/tiny.py',
        f'--workdir={tmp_path}',
        stdout=writer,
        env=os.environ | {'PYTHONUNBUFFERED': unbuffered},
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (141, '')


def test_ctrl_c_while_jax_is_imported_is_one_line(repository):
    before = (
        'class Finder:\n'
        '    def find_spec(self, name, *_):\n'
        '        if name == "jax":\n'
        '            raise KeyboardInterrupt\n'
        'sys.meta_path.insert(0, Finder())'
    )
    process = of_its_own(repository, before, '--networks')
    assert (process.returncode, process.stderr) == (130, 'interrupted\n')


def test_help_does_not_wait_for_jax(repository):
    """Importing it takes most of a second."""
    script = (
        'import sys; sys.argv = ["main.py", "--help"]; import main; code = main.command(); '
        'assert not {"jax", "numpy", "flax"} & set(sys.modules); sys.exit(code)'
    )
    process = subprocess.run([sys.executable, '-c', script], cwd=repository, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, '')
    assert '--workdir' in process.stdout and '--mode=evaluate' in process.stdout
