"""int8 exports are calibrated and scored, and nothing is written where they lose too much."""

import json
import os
import shutil
import types

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from jax import lax

from atonet_jax.data.synthetic import render_scene
from atonet_jax.errors import ExportError, InputError
from atonet_jax.evaluation.metrics import Scores
from atonet_jax.export import export, int8, onnx_format, tflite_format
from atonet_jax.export.onnx import quantization, to_onnx
from atonet_jax.export.onnx.quantization import quantize
from atonet_jax.runs.environment import cpu_name
from tests.conftest import EXPORT_SIZE

RNG = np.random.default_rng(0)


@pytest.fixture
def config(tiny_config, tmp_path):
    config = tiny_config.copy_and_resolve_references()
    config.export.update(format='onnx', precision='int8', size=EXPORT_SIZE, calibration_images=3)
    config.export.output = str(tmp_path / 'int8.onnx')
    return config


def card_of(path):
    with open(f'{path}.json') as file:
        return json.load(file)


def assert_nearly_the_labels(form, path, path_of_float, share):
    images = [render_scene(1, i, *EXPORT_SIZE)[0][None] for i in range(3)]
    labels, of_float = (np.stack([run(image) for image in images]) for run in map(form.load, (path, path_of_float)))
    assert np.mean(labels == of_float) > share
    assert np.bincount(of_float.ravel()).max() < 0.9 * of_float.size, 'labels of one class would pass'


def test_an_onnx_file_of_int8_is_calibrated_scored_and_gives_nearly_the_labels_of_float(
    config, finished, exported, capsys
):
    path = export(config, finished, force=False)
    figures = card_of(path)['int8']
    assert figures['calibration'] == '3 images of synthetic train' and not figures['convolutions_alone']
    assert figures['runtime'].startswith('ONNX Runtime ') and 'cores' in figures['device']
    assert card_of(path)['program']['winograd'] is False
    assert figures['scored'] == '5 images of synthetic val'
    assert abs(figures['miou']['float32'] - figures['miou']['int8']) < 0.005
    assert 'mIoU float' in capsys.readouterr().out
    assert_nearly_the_labels(onnx_format, path, exported('onnx'), share=0.97)
    assert sorted(os.listdir(os.path.dirname(path))) == ['int8.onnx', 'int8.onnx.json']

    graph = onnx.load(path).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == 'Conv']
    in_int8 = [node for node in convolutions if {made_by[name] for name in node.input[:2]} == {'DequantizeLinear'}]
    assert len(in_int8) == len(convolutions) > 30
    assert 'QuantizeLinear' not in {node.op_type for node in graph.node if convolutions[-1].output[0] in node.input}


@pytest.mark.parametrize(
    ('activation', 'user', 'convolutions_alone'),
    [(jax.nn.relu, 'QuantizeLinear', False), (jax.nn.leaky_relu, 'LeakyRelu', True)],
)
def test_sums_are_int8_except_beside_prelu(tmp_path, activation, user, convolutions_alone):
    kernels = RNG.normal(size=(3, 3, 3, 4, 4)).astype(np.float32) / 6

    def conv(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

    def network(images):
        x = activation(conv(images, kernels[0]))
        return conv(activation(conv(x, kernels[1]) + x), kernels[2])

    images = RNG.normal(size=(1, 8, 12, 4)).astype(np.float32)
    path = str(tmp_path / 'int8.onnx')
    assert quantize(to_onnx(network, images.shape), [images], path) is convolutions_alone
    graph = onnx.load(path).graph
    (summed,) = [node.output[0] for node in graph.node if node.op_type == 'Add']
    assert {node.op_type for node in graph.node if summed in node.input} == {user}
    wanted = np.asarray(network(images))
    result = onnxruntime.InferenceSession(path).run(None, {'images': images})[0]
    assert np.abs(result - wanted).max() < 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize(('saturate', 'most'), [(True, 64), (False, 127)])
def test_weights_have_7_bits_where_sums_of_8_bits_saturate(tmp_path, monkeypatch, saturate, most):
    """As on x86 CPUs without VNNI."""
    monkeypatch.setattr(quantization, 'sums_saturate', lambda: saturate)
    kernels = RNG.normal(size=(2, 3, 3, 4, 4)).astype(np.float32)

    def network(images):
        for kernel in kernels:
            numbers = 'NHWC', 'HWIO', 'NHWC'
            images = lax.conv_general_dilated(images, kernel, (1, 1), 'SAME', dimension_numbers=numbers)
        return images

    images = RNG.normal(size=(1, 8, 12, 4)).astype(np.float32)
    path = str(tmp_path / 'int8.onnx')
    quantize(to_onnx(network, images.shape), [images], path)
    arrays = [onnx.numpy_helper.to_array(constant) for constant in onnx.load(path).graph.initializer]
    weights = [array for array in arrays if array.dtype == np.int8 and array.ndim == 4]
    assert len(weights) == 2 and {np.abs(array.astype(int)).max() for array in weights} == {most}


def test_the_first_convolution_takes_the_bytes_of_the_image_as_they_are(tmp_path):
    kernel, mean = RNG.normal(size=(3, 3, 3, 4)).astype(np.float32), np.array([124, 116, 104], np.float32)

    def network(images):
        for weights in (kernel, kernel[:, :, :1] * np.ones((4, 1), np.float32), np.ones((1, 1, 4, 4), np.float32)):
            x = images.astype(np.float32) - mean if images.dtype == np.uint8 else images
            numbers = 'NHWC', 'HWIO', 'NHWC'
            images = jax.nn.relu(lax.conv_general_dilated(x, weights, (1, 1), 'SAME', dimension_numbers=numbers))
        return images

    images = RNG.integers(0, 256, (1, 8, 12, 3), np.uint8)
    path = str(tmp_path / 'int8.onnx')
    quantize(to_onnx(network, images.shape, images.dtype), [images], path)
    graph = onnx.load(path)
    (given,) = [
        node.output[0] for node in graph.graph.node if node.op_type == 'QuantizeLinear' and 'bytes' in node.input[0]
    ]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(given, onnx.TensorProto.UINT8, None))
    logits, quantized = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {'images': images})
    np.testing.assert_array_equal(quantized, images.transpose(0, 3, 1, 2))
    wanted = np.asarray(network(images))
    inner = np.s_[:, 2:-2, 2:-2]  # the padding is of another grey
    assert np.abs(logits - wanted)[inner].max() < 0.03 * np.abs(wanted).max()


def test_a_tflite_file_of_int8_is_scored_and_gives_nearly_the_labels_of_float_too(config, finished, exported):
    config.export.update(format='tflite', output=f'{config.export.output}.tflite')
    path = export(config, finished, force=False)
    figures = card_of(path)['int8']
    assert abs(figures['miou']['float32'] - figures['miou']['int8']) < 0.02
    assert_nearly_the_labels(tflite_format, path, exported('tflite'), share=0.95)


def test_a_network_that_tensorflow_lite_cannot_make_int8_is_refused_in_one_line(config, tmp_path, monkeypatch, capfd):
    """Its libraries write the reason to the process's stderr."""

    def convert():
        os.write(2, b"error: 'stablehlo.reduce_window' op is not any of ...\n")
        raise RuntimeError

    converter = types.SimpleNamespace(target_spec=types.SimpleNamespace(), convert=convert)
    monkeypatch.setattr(tflite_format, '_converter', lambda *_: converter)
    with pytest.raises(ExportError, match=r'cannot make atonet int8 \(it has no reduce_window\); give .*=onnx'):
        tflite_format.write_int8(str(tmp_path / 'a.tflite'), None, config, [])
    assert not list(tmp_path.iterdir()) and capfd.readouterr().err == ''


def test_images_are_timed_and_scored_in_the_batches_of_the_export(config, finished, monkeypatch):
    """On the processor, whatever JAX computes on."""
    calls, gpu = [], types.SimpleNamespace(platform='gpu', device_kind='NVIDIA H200')

    def load(path):
        run = loaded(path)
        return lambda images: calls.append(len(images)) or run(images)

    loaded = onnx_format.load
    monkeypatch.setattr(onnx_format, 'check', lambda *_: '')
    monkeypatch.setattr(onnx_format, 'load', load)
    fake_jax = types.SimpleNamespace(devices=lambda: [gpu], device_count=lambda: 1)
    monkeypatch.setattr('atonet_jax.runs.environment.jax', fake_jax)
    config.export.batch_size = 2
    figures = card_of(export(config, finished, force=True))['int8']
    assert set(calls) == {2} and len(calls) == 2 * (int8._ROUNDS + 1) + 2 * 3  # 5 images in 3 batches
    assert figures['scored'] == '5 images of synthetic val'
    assert figures['device'] == f'{cpu_name()}, {os.cpu_count()} cores'


def test_what_loses_too_much_is_written_by_force_alone_where_nothing_is_there(config, finished, monkeypatch, caplog):
    confusions = {'float': np.diag([5, 5]), 'int8': np.array([[5, 0], [1, 4]])}
    monkeypatch.setattr(int8, '_miou', lambda what, *_: Scores.from_confusion(confusions[what]).miou)
    monkeypatch.setattr(onnx_format, 'check', lambda *_: '')
    caplog.set_level('INFO', 'atonet_jax')
    with pytest.raises(ExportError, match=r'int8 loses 18\.\d\d points of mIoU .*int8_tolerance=0\.5; nothing was wr'):
        export(config, finished, force=False)
    assert 'int8 loses 18.33 points of mIoU; it is tried in convolutions alone' in caplog.text
    assert 'int8 in convolutions alone loses 18.33 points, no less' in caplog.text
    assert not os.listdir(os.path.dirname(config.export.output))
    caplog.clear()
    assert os.path.exists(export(config, finished, force=True))
    (warning,) = [record for record in caplog.records if record.levelname == 'WARNING' and 'int8' in record.name]
    assert warning.getMessage() == (
        'int8 loses 18.33 points of mIoU, more than config.export.int8_tolerance=0.5; --force writes it all the same'
    )

    before = os.stat(config.export.output)
    with pytest.raises(ExportError, match='nothing was written: .*--config.export.int8_tolerance=19 allows it$'):
        export(config, finished, force=True)
    assert os.stat(config.export.output) == before
    config.export.int8_tolerance = 19
    assert os.stat(export(config, finished, force=True)).st_ino != before.st_ino


def test_int8_is_not_tried_again_in_convolutions_alone_where_it_is_so_already(config, finished, monkeypatch, caplog):
    """As of networks with PReLU."""

    def write_int8(path, network, config, images):
        onnx_format.write(path, network, config)
        return True

    monkeypatch.setattr(onnx_format, 'write_int8', write_int8)
    monkeypatch.setattr(onnx_format, 'check', lambda *_: '')
    monkeypatch.setattr(int8, '_miou', lambda what, *_: {'float': 0.6, 'int8': 0.5}[what])
    caplog.set_level('INFO', 'atonet_jax')
    figures = card_of(export(config, finished, force=True))['int8']
    assert figures['convolutions_alone'] is True
    assert 'in convolutions alone' not in caplog.text


def test_a_file_of_int8_does_not_take_the_place_of_that_of_float(config, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_format, 'check', lambda *_: '')
    workdir = str(shutil.copytree(finished, tmp_path / 'run'))
    config.export.output = ''
    for precision, name in (('float32', 'atonet.onnx'), ('int8', 'atonet_int8.onnx')):
        config.export.precision = precision
        assert export(config, workdir, force=False) == os.path.join(workdir, 'export', name)
    assert len(os.listdir(os.path.join(workdir, 'export'))) == 4  # with their cards


def test_images_of_another_size_are_resized_and_a_split_that_is_not_there_is_not_scored(config, finished, monkeypatch):
    monkeypatch.setattr(onnx_format, 'check', lambda *_: '')
    config.export.update(size=(48, 96), batch_size=2)
    assert card_of(export(config, finished, force=False))['int8']['scored'].endswith(' resized to 48x96')
    config.data.eval_split = 'test'
    figures = card_of(export(config, finished, force=True))['int8']
    assert figures['miou'] is None and 'test' in figures['why_not_scored']


def test_without_training_images_or_in_another_format_it_is_refused(config, finished, tmp_path):
    config.data.update(name='cityscapes', root=str(tmp_path / 'nowhere'))
    with pytest.raises(InputError, match='nowhere'):
        export(config, finished, force=False)
    config.export.format = 'saved_model'
    with pytest.raises(InputError, match="export.precision='int8': must be float32, except where .* onnx or tflite"):
        export(config, finished, force=False)
