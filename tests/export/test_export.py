"""Each export gives the labels of the run that it was made of, in its own runtime, and no file is lost to one."""

import errno
import importlib
import json
import math
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import types

import flax
import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

from atonet_jax.config import CHOICES
from atonet_jax.data.labels import CITYSCAPES
from atonet_jax.data.synthetic import render_scene
from atonet_jax.errors import ExportError, InputError
from atonet_jax.evaluation.evaluate import evaluate
from atonet_jax.export import export
from atonet_jax.export.comparison import compare
from atonet_jax.inference import segmenter
from atonet_jax.inference.segmenter import Segmenter
from atonet_jax.models import abstract_variables, create_model
from atonet_jax.models.contract import IMAGENET
from atonet_jax.process.devices import create_mesh
from atonet_jax.runs.network import TrainedNetwork, trained_network
from atonet_jax.runs.workdir import load_config
from atonet_jax.torch_files import read_state_dict
from atonet_jax.torch_weights import from_torch, to_torch
from tests.conftest import EXPORT_SIZE as SIZE
from tests.disks import full_disk

MEAN_RGB, STDDEV_RGB = IMAGENET.in_pixel_values()

MOST_DIFFERENT = 1e-3  # share of pixels: each runtime rounds in its own way
OLDER_CARD = json.dumps({'format': 'older', 'classes': [], 'versions': {}})
ENDINGS = {
    'weights': '_weights',
    'jax_export': '.jax_export',
    'saved_model': '_saved_model',
    'onnx': '.onnx',
    'tflite': '.tflite',
    'torch': '.pth',
}


def run_weights(path, images):
    return np.asarray(Segmenter.from_workdir(path)(images))


def run_jax_export(path, images):
    return np.asarray(jax.export.deserialize(bytearray(pathlib.Path(path).read_bytes())).call(images))


def run_saved_model(path, images):
    return tf.saved_model.load(path).signatures['serving_default'](images=images)['labels'].numpy()


def run_onnx(path, images):
    return onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider']).run(None, {'images': images})[0]


def run_tflite(path, images):
    interpreter = tf.lite.Interpreter(path)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]['index'], images)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]['index'])


def run_torch(path, images):
    """Its numbers; that PyTorch loads the file and gives these labels, tests/parity says."""
    model = create_model('atonet', 19, width=16, backbone_width=8)
    return np.asarray(Segmenter(model, from_torch(read_state_dict(path), model))(images))


RUN = {
    'weights': run_weights,
    'jax_export': run_jax_export,
    'saved_model': run_saved_model,
    'onnx': run_onnx,
    'tflite': run_tflite,
    'torch': run_torch,
}


@pytest.fixture
def config(tiny_config):
    return to_export(tiny_config)


def to_export(tiny_config, **options):
    config = tiny_config.copy_and_resolve_references()
    config.export.update(size=SIZE, **options)
    return config


@pytest.fixture(scope='module')
def run(exported):
    """The workdir that the exports lie in."""
    return os.path.dirname(os.path.dirname(exported('torch')))


@pytest.fixture(scope='module')
def segment(finished):
    return Segmenter.from_workdir(finished)


@pytest.fixture(scope='module')
def images():
    return np.stack([render_scene(1, i, *SIZE)[0] for i in range(3)])


@pytest.fixture(scope='module')
def labels(segment, images):
    labels = np.asarray(segment(images))
    assert len(np.unique(labels)) > 1
    return labels


def card_of(path):
    def refuse(constant):
        raise ValueError(f'{constant} is no JSON')

    return json.loads(pathlib.Path(f'{path}.json').read_text(), parse_constant=refuse)


@pytest.mark.parametrize('format', CHOICES['export.format'])
def test_labels_in_its_own_runtime_are_those_of_the_run(exported, images, labels, format):
    for batch_size in (1,) if format == 'tflite' else (1, 3):
        result = np.asarray(RUN[format](exported(format), images[:batch_size]))
        assert result.dtype == np.uint8
        assert result.shape == (batch_size, *SIZE)
        assert np.mean(result != labels[:batch_size]) <= MOST_DIFFERENT


@pytest.mark.parametrize('format', ['jax_export', 'onnx'])
def test_logits_of_normalized_nchw_images_are_those_of_the_run(
    tiny_config, finished, segment, images, tmp_path, format
):
    output = str(tmp_path / 'atonet')
    options = {'inputs': 'normalized', 'outputs': 'logits', 'layout': 'NCHW'}
    export(to_export(tiny_config, format=format, output=output, **options), finished, force=False)
    normalized = np.ascontiguousarray(np.asarray(IMAGENET(images)).transpose(0, 3, 1, 2))
    logits = np.asarray(RUN[format](output, normalized))
    expected = np.asarray(segment.logits(images)).transpose(0, 3, 1, 2)
    assert logits.dtype == np.float32
    assert logits.shape == expected.shape
    assert abs(logits - expected).max() <= 1e-4 * np.ptp(expected)
    card = card_of(output)
    assert not card['normalization']['within_the_program']
    assert options.items() <= card['program'].items()


def test_an_onnx_file_of_any_size_is_checked_at_two_sizes(tiny_config, finished, segment, tmp_path, capsys):
    config = to_export(tiny_config, format='onnx', dynamic_size=True, output=str(tmp_path / 'atonet.onnx'))
    path = export(config, finished, force=False)
    assert 'labels; at 77x158: loaded back' in capsys.readouterr().out
    program = card_of(path)['program']
    assert program['dynamic_size'] is True and program['size_multiple_of'] == 1
    images = render_scene(1, 0, 90, 70)[0][None]
    assert np.mean(run_onnx(path, images) != np.asarray(segment(images))) <= MOST_DIFFERENT


def test_a_batch_size_holds_in_tflite(tiny_config, finished, images, labels, tmp_path):
    config = to_export(tiny_config, format='tflite', batch_size=3, output=str(tmp_path / 'atonet.tflite'))
    result = run_tflite(export(config, finished, force=False), images)
    assert np.mean(result != labels) <= MOST_DIFFERENT


def test_exported_weights_and_torch_file_score_as_the_run_does(config, exported, run, tmp_path):
    from_run = evaluate(config, str(shutil.copytree(run, tmp_path / 'run')))
    weights = shutil.copytree(exported('weights'), tmp_path / 'weights')
    assert evaluate(load_config(weights), str(weights)).miou == from_run.miou
    config.init_from = exported('torch')
    assert evaluate(config, str(tmp_path / 'no_run')).miou == from_run.miou


@pytest.mark.parametrize('format', CHOICES['export.format'])
def test_lies_in_the_workdir_with_a_card_that_says_how_to_use_it(exported, run, format):
    path = exported(format)
    assert path == os.path.join(run, 'export', 'atonet' + ENDINGS[format])
    card = card_of(path)
    assert [c['train_id'] for c in card['classes']] == list(range(19))
    assert [c['name'] for c in card['classes']] == list(CITYSCAPES.class_names)
    assert [c['raw_id'] for c in card['classes']] == CITYSCAPES.train_to_raw[:19].tolist()
    assert card['classes'][0] == {'train_id': 0, 'name': 'road', 'color_rgb': [128, 64, 128], 'raw_id': 7}
    assert card['normalization']['mean'] == MEAN_RGB.tolist()
    assert card['normalization']['stddev'] == STDDEV_RGB.tolist()
    is_program = format not in ('weights', 'torch')
    assert card['normalization']['within_the_program'] == is_program
    assert (card['program'] is not None) == is_program
    assert not is_program or card['program']['size'] == list(SIZE)
    assert card['step'] in (3, 6)  # both were evaluated; which is better, depends on rounding
    assert 0 <= card['scores']['miou'] <= 1
    assert (card['scores']['dataset'], card['scores']['split']) == ('synthetic', 'val')
    assert card['source'] == run
    assert card['model']['width'] == 16
    assert card['network']['title'] == 'ATONet' and card['network']['license_of_source'] == 'none'
    assert 'not of these weights' in card['license']
    assert card['versions']['flax'] == flax.__version__


def test_exported_weights_have_no_auxiliary_heads(exported):
    folder = pathlib.Path(exported('weights'), 'checkpoints')
    (step,) = (path for path in folder.iterdir() if path.name.isdigit())
    with tf.io.gfile.GFile(str(step / 'variables' / '_METADATA')) as file:
        names = json.loads(file.read())['tree_metadata']
    assert any('classifier' in name for name in names)
    assert not any('aux' in name for name in names)


@pytest.mark.parametrize('format', sorted(set(CHOICES['export.format']) - {'torch'}))
def test_export_holds_each_parameter_once(exported, format):
    path = pathlib.Path(exported(format))
    files = [path] if path.is_file() else [file for file in path.rglob('*') if file.is_file()]
    inference = abstract_variables(create_model('atonet', 19, width=16, backbone_width=8), train=False)
    num_params = sum(math.prod(array.shape) for array in jax.tree.leaves(inference['params']))
    assert card_of(path)['parameters'] == num_params
    num_bytes = sum(file.stat().st_size for file in files)
    assert 0.9 <= num_bytes / (4 * num_params) <= 1.6


@pytest.mark.parametrize('format', ['onnx', 'weights'])
def test_wrong_labels_are_refused_and_an_older_export_stays(config, finished, tmp_path, monkeypatch, format):
    class Wrong(Segmenter):
        def __call__(self, images):
            return super().__call__(images) ^ 1

    monkeypatch.setattr('atonet_jax.export.comparison.Segmenter', Wrong)
    path = tmp_path / 'atonet'
    config.export.update(format=format, output=str(path))
    with pytest.raises(ExportError, match='differs from the network in 100.0000% of .* nothing was written'):
        export(config, finished, force=False)
    assert not os.listdir(tmp_path)

    older = write_older(path, is_folder=format == 'weights')
    with pytest.raises(ExportError):
        export(config, finished, force=True)
    assert sorted(os.listdir(tmp_path)) == ['atonet', 'atonet.json']
    assert older.read_text() == 'older' and pathlib.Path(f'{path}.json').read_text() == OLDER_CARD


@pytest.mark.parametrize('format', sorted(set(CHOICES['export.format']) - {'torch', 'weights'}))
def test_other_runtimes_are_compared_with_true_float32(config, exported, finished, monkeypatch, format):
    """GPUs and TPUs round the inputs of products unless they are told not to. A program of JAX rounds as they do."""
    jitted, texts = segmenter._jitted, []

    def spied(*args):
        def lower(*shapes):
            lowered = jitted(*args).lower(*shapes)
            texts.append(lowered.as_text())
            return lowered

        return types.SimpleNamespace(lower=lower)

    form = importlib.import_module(f'atonet_jax.export.{format}_format')
    trained = trained_network(config, finished, create_mesh())
    Segmenter.of(trained)(np.zeros((1, *SIZE, 3), np.uint8))  # traced before, as a program does that segments too
    monkeypatch.setattr(segmenter, '_jitted', spied)
    form.check(exported(format), trained, config)
    products = [line for line in texts[0].splitlines() if re.search(r'stablehlo\.(convolution|dot_general)', line)]
    in_float32 = ['HIGHEST' in line for line in products]
    assert len(products) > 10
    assert not any(in_float32) if format == 'jax_export' else all(in_float32)


@pytest.mark.parametrize(('dtype', 'allowed'), [('float32', 0.001), ('bfloat16', 0.01)])
def test_in_bfloat16_a_pixel_in_a_hundred_may_differ(config, monkeypatch, dtype, allowed):
    """Two programs of one network round in other places: of ATONet, 0.2 to 0.4 % of the labels differ."""
    monkeypatch.setattr('atonet_jax.export.comparison.Segmenter', types.SimpleNamespace(of=lambda _: zeros))

    def zeros(images):
        return np.zeros(images.shape[:3], np.uint8)

    def run(share):
        labels = zeros(np.zeros((2, *SIZE, 3)))
        labels.ravel()[: int(share * labels.size)] = 1
        return compare(lambda _: labels, trained, config.export)

    trained = TrainedNetwork(create_model('atonet', 19, dtype=jnp.dtype(dtype)), {}, CITYSCAPES, step=None)
    assert 'it differs from the network in' in run(0.9 * allowed)
    with pytest.raises(ExportError, match='differs from the network in'):
        run(1.1 * allowed)


@pytest.mark.parametrize('format', ['torch', 'weights'])
def test_an_export_whose_card_cannot_be_written_replaces_nothing(config, finished, tmp_path, monkeypatch, format):
    def full(path, values):
        raise OSError(errno.ENOSPC, 'No space left on device')

    path = tmp_path / 'atonet.pth'
    older = write_older(path, is_folder=format == 'weights')
    config.export.update(format=format, output=str(path))
    monkeypatch.setattr('atonet_jax.export.write_json', full)
    with pytest.raises(InputError, match='atonet.pth: cannot be written'):
        export(config, finished, force=True)
    assert sorted(os.listdir(tmp_path)) == ['atonet.pth', 'atonet.pth.json']
    assert older.read_text() == 'older' and pathlib.Path(f'{path}.json').read_text() == OLDER_CARD


@pytest.mark.parametrize('format', CHOICES['export.format'])
def test_a_full_disk_is_one_line_and_replaces_nothing(config, finished, tmp_path, capsys, format):
    path = tmp_path / 'atonet.pth'
    older = write_older(path, is_folder=format in ('saved_model', 'weights'))
    config.export.update(format=format, output=str(path))
    too_large = pytest.raises(InputError, match=r'atonet.pth: cannot be written \(File too large\); ')
    with too_large, full_disk(100_000):
        export(config, finished, force=True)
    assert sorted(os.listdir(tmp_path)) == ['atonet.pth', 'atonet.pth.json'] and older.read_text() == 'older'


def write_older(path, is_folder):
    """Writes something where an export shall go, and a card; returns the file."""
    file = path / 'older' if is_folder else path
    file.parent.mkdir(exist_ok=True)
    file.write_text('older')
    pathlib.Path(f'{path}.json').write_text(OLDER_CARD)
    return file


@pytest.mark.parametrize('format', ['torch', 'weights'])
def test_what_is_there_is_replaced_only_by_force(config, finished, tmp_path, format):
    path = tmp_path / 'atonet.pth'
    config.export.update(format=format, output=str(path))
    older = write_older(path, is_folder=format == 'weights')
    with pytest.raises(InputError, match='atonet.pth: is there already; .* --force'):
        export(config, finished, force=False)
    assert older.read_text() == 'older'
    assert export(config, finished, force=True) == str(path)
    assert not (path / 'older').exists()
    assert card_of(path)['format'] == format
    assert path.is_dir() == (format == 'weights')


def test_a_folder_beside_a_file_that_is_no_model_card_is_never_replaced(config, finished, tmp_path):
    (tmp_path / 'train').mkdir()
    (tmp_path / 'train.json').write_text('{"images": []}')
    config.export.output = str(tmp_path / 'train')
    with pytest.raises(InputError, match='train: is a folder that no export made'):
        export(config, finished, force=True)


@pytest.mark.parametrize(
    ('force', 'message'),
    [
        (False, 'is there already'),
        (True, 'is no model card, and the one of .*atonet would replace it'),
    ],
)
def test_a_file_that_is_no_card_is_not_replaced_by_one(config, finished, tmp_path, force, message):
    """As the config.json of a run would be."""
    config.export.output = str(tmp_path / 'atonet')
    (tmp_path / 'atonet.json').write_text('{"model": {}}')
    with pytest.raises(InputError, match=f'atonet.json: {message}'):
        export(config, finished, force=force)
    assert os.listdir(tmp_path) == ['atonet.json']
    assert (tmp_path / 'atonet.json').read_text() == '{"model": {}}'


def test_missing_package_is_named(config, finished, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    monkeypatch.delitem(sys.modules, 'atonet_jax.export.onnx_format', raising=False)
    config.export.update(format='onnx', output=str(tmp_path / 'atonet.onnx'))
    with pytest.raises(InputError, match=r"format=onnx needs onnxruntime: pip install '\.\[export\]' in the checkout"):
        export(config, finished, force=False)


def test_a_folder_that_cannot_be_made_is_said(config, finished, tmp_path):
    (tmp_path / 'file').write_text('mine')
    config.export.update(format='torch', output=str(tmp_path / 'file' / 'atonet.pth'))
    with pytest.raises(InputError, match='file/atonet.pth: cannot be written .* give another config.export.output'):
        export(config, finished, force=False)
    assert (tmp_path / 'file').read_text() == 'mine'


def test_no_run_and_no_weights_is_said(config, tmp_path):
    config.export.output = str(tmp_path / 'atonet')
    with pytest.raises(InputError, match='no such file; name the --workdir of a run'):
        export(config, str(tmp_path / 'nothing'), force=False)


@pytest.mark.parametrize('format', ['onnx', 'tflite'])
def test_a_run_that_computes_in_bfloat16_is_exported_in_float32(config, finished, tmp_path, format):
    config.model.dtype = 'bfloat16'
    config.export.format = format
    config.export.output = str(tmp_path / f'network{ENDINGS[format]}')
    card = card_of(export(config, finished, force=False))
    assert card['model']['dtype'] == 'float32'
    assert card['program']['batch_size'] == (1 if format == 'tflite' else 0)


def test_weights_of_a_run_that_is_evaluated_at_another_height_keep_it_and_their_card_names_it(
    config, finished, tmp_path
):
    config.eval.height = 96
    config.export.output = str(tmp_path / 'weights')
    path = export(config, finished, force=False)
    assert card_of(path)['resized_to_height'] == 96
    assert load_config(path).eval.height == 96


def test_a_folder_that_no_export_made_is_never_replaced(config, finished, tmp_path):
    precious = tmp_path / 'photographs'
    precious.mkdir()
    (precious / 'one.png').write_bytes(b'mine')
    config.export.format, config.export.output = 'onnx', str(precious)
    with pytest.raises(InputError, match='photographs: is a folder that no export made'):
        export(config, finished, force=True)
    assert (precious / 'one.png').read_bytes() == b'mine'


def test_the_workdir_is_never_replaced(config, exported, tmp_path):
    weights = shutil.copytree(exported('weights'), tmp_path / 'weights')
    (tmp_path / 'weights.json').write_text('{}')
    config.export.format, config.export.output = 'onnx', str(weights)
    with pytest.raises(InputError, match='is the workdir, or holds it'):
        export(config, str(weights), force=True)
    assert (weights / 'config.json').exists()
    assert not load_config(str(weights)).export.output


def test_an_ending_that_the_format_does_not_have_is_named_with_the_users_path(config, finished, tmp_path):
    config.export.format, config.export.output = 'torch', str(tmp_path / 'atonet.bin')
    with pytest.raises(InputError, match=rf'{tmp_path}/atonet.bin: weights are written as .pth, .pt, .safetensors'):
        export(config, finished, force=False)


def test_a_torch_file_of_other_numbers_is_refused(config, finished, tmp_path, monkeypatch):
    def to_other(variables, model):
        state_dict = to_torch(variables, model)
        return state_dict | {'cls.4.bias': state_dict['cls.4.bias'] + 1}

    monkeypatch.setattr('atonet_jax.export.torch_format.to_torch', to_other)
    config.export.update(format='torch', output=str(tmp_path / 'atonet.pth'))
    with pytest.raises(ExportError, match='other numbers than the network; nothing was written'):
        export(config, finished, force=False)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize('format', ['torch', 'weights'])
def test_an_export_stays_where_its_replacement_cannot_be_moved(config, finished, tmp_path, monkeypatch, format):
    path = tmp_path / 'atonet.pth'
    older = write_older(path, is_folder=format == 'weights')
    replace = os.replace

    def fail(source, target):
        if target == str(path) and os.path.basename(source) == path.name:
            raise OSError(28, 'No space left on device')
        replace(source, target)

    monkeypatch.setattr(os, 'replace', fail)
    config.export.update(format=format, output=str(path))
    with pytest.raises(InputError, match='cannot be written .No space left on device'):
        export(config, finished, force=True)
    assert sorted(os.listdir(tmp_path)) == ['atonet.pth', 'atonet.pth.json']
    assert older.read_text() == 'older'


def test_sigterm_ends_an_export_that_leaves_nothing_behind(config, finished, tmp_path, monkeypatch):
    def killed(path, network, config):
        pathlib.Path(path).write_text('half')
        os.kill(os.getpid(), signal.SIGTERM)

    path = tmp_path / 'atonet.pth'
    older = write_older(path, is_folder=False)
    config.export.update(format='torch', output=str(path))
    monkeypatch.setattr('atonet_jax.export.torch_format.write', killed)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as left:
            export(config, finished, force=True)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left.value.code == 143
    assert sorted(os.listdir(tmp_path)) == ['atonet.pth', 'atonet.pth.json'] and older.read_text() == 'older'


def test_what_a_killed_export_has_left_is_cleared_up_and_the_one_before_it_returns(config, finished, tmp_path):
    with subprocess.Popen(['true']) as process:
        process.wait()
    path = tmp_path / 'atonet_weights'
    write_older(path, is_folder=True)
    host = socket.gethostname()
    left = tmp_path / f'.unchecked.{host}.{process.pid}.atonet_weights'
    others = [
        tmp_path / f'.unchecked.{host}.{os.getppid()}.atonet_weights',  # of a process that lives
        tmp_path / f'.unchecked.{host}.{process.pid}.other',
        tmp_path / f'.unchecked.{host}2.{process.pid}.atonet_weights',
    ]
    for folder in (left, *others):
        (folder / 'atonet_weights').mkdir(parents=True)
    path.rename(left / '.earlier')
    config.export.update(format='weights', output=str(path))
    with pytest.raises(InputError, match='atonet_weights: is there already'):
        export(config, finished, force=False)
    assert (path / 'older').read_text() == 'older'
    assert not left.exists() and all(folder.exists() for folder in others)


def test_a_link_to_the_workdir_is_never_replaced(config, finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / 'run')
    (tmp_path / 'link').symlink_to(workdir)
    (tmp_path / 'link.json').write_text('{}')
    config.export.output = str(tmp_path / 'link')
    with pytest.raises(InputError, match='is the workdir, or holds it'):
        export(config, str(workdir), force=True)
    assert (workdir / 'checkpoints').exists()


def test_scores_of_other_weights_are_not_given_to_a_file(config, exported, tmp_path):
    (tmp_path / 'evaluation').mkdir()
    (tmp_path / 'evaluation' / 'scores.json').write_text('{"step": null, "miou": 1}')
    config.init_from = exported('torch')
    config.export.update(format='torch', output=str(tmp_path / 'atonet.pth'))
    card = card_of(export(config, str(tmp_path), force=False))
    assert card['source'] == config.init_from
    assert card['step'] is card['scores'] is None
