"""Each loader in docs/deployment.md and README.md gives the labels of `Segmenter`, as it stands there."""

import os
import pathlib
import re

import jax.export
import numpy as np
import onnxruntime
import PIL.Image
import pytest
import tensorflow as tf

from atonet_jax.config import CHOICES
from atonet_jax.data.synthetic import render_scene
from atonet_jax.inference.segmenter import Segmenter
from tests.conftest import EXPORT_SIZE as SIZE

LOADERS = ('Segmenter', 'onnx', 'saved_model', 'tflite', 'jax_export', 'weights', 'torch')  # in the document's order


@pytest.fixture(scope='module')
def blocks(repository):
    blocks = re.findall(r'```python\n(.*?)```', (repository / 'docs' / 'deployment.md').read_text(), re.DOTALL)
    return dict(zip(LOADERS, blocks, strict=True))


@pytest.fixture(scope='module')
def folder(exported, tmp_path_factory):
    """Where the document's paths lead: a run with all exports, and an image of their size."""
    folder = tmp_path_factory.mktemp('deployment')
    workdir = {os.path.dirname(os.path.dirname(exported(format))) for format in CHOICES['export.format']}.pop()
    (folder / 'runs').mkdir()
    (folder / 'runs' / 'demo').symlink_to(workdir)
    PIL.Image.fromarray(render_scene(1, 0, *SIZE)[0]).save(folder / 'street.png')
    return folder


@pytest.fixture(scope='module')
def expected(finished):
    labels = np.asarray(Segmenter.from_workdir(finished)(render_scene(1, 0, *SIZE)[0][None]))
    assert len(np.unique(labels)) > 1
    return labels


@pytest.mark.parametrize('loader', [loader for loader in LOADERS if loader != 'torch'])  # which tests/parity runs
def test_loader_gives_the_labels_of_the_run(blocks, folder, expected, monkeypatch, loader):
    monkeypatch.chdir(folder)
    # The document's network is of the usual width.
    code = blocks[loader].replace('num_classes=19', 'num_classes=19, width=16, backbone_width=8')
    names = {}
    exec(code, names)
    assert names['labels'].dtype == np.uint8
    assert names['labels'].shape == (1, *SIZE)
    assert np.mean(names['labels'] != expected) <= 1e-3


def test_each_line_of_the_readme_gives_the_labels_of_the_run(repository, folder, expected, monkeypatch):
    monkeypatch.chdir(folder)
    (block,) = re.findall(r'```python\n(.*?)```', (repository / 'README.md').read_text(), re.DOTALL)
    names = {'Segmenter': Segmenter, 'onnxruntime': onnxruntime, 'jax': jax, 'pathlib': pathlib, 'tf': tf}
    names['images'] = np.asarray(PIL.Image.open('street.png'))[None]
    assert len(block.splitlines()) == 4
    for line in block.splitlines():
        assert np.mean(np.asarray(eval(line, names)) != expected) <= 1e-3, line


def test_every_format_has_its_command_and_its_loader(repository):
    text = (repository / 'docs' / 'deployment.md').read_text()
    assert set(re.findall(r'--config\.export\.format=(\w+)', text)) == set(CHOICES['export.format'])
    assert set(LOADERS) == {'Segmenter', *CHOICES['export.format']}
