"""PyTorch takes our weights and we its, and an exported file computes there what it computes here."""

import re
import shutil

import numpy as np
import PIL.Image
import pytest
import torch

from atonet_jax.config import default_config
from atonet_jax.data.synthetic import render_scene
from atonet_jax.export import export
from atonet_jax.inference.segmenter import Segmenter
from atonet_jax.models import create_model
from atonet_jax.models.blocks import BatchNorm
from atonet_jax.models.contract import IMAGENET
from atonet_jax.torch_weights import from_torch, to_torch
from tests import golden_files, torch_reference
from tests.parity.torch_side import drawn_reference, numpy_state
from tests.parity_cases import TINY

SIZE = (64, 128)


def test_the_names_and_shapes_that_are_kept_are_pytorchs():
    names = golden_files.read('atonet')[1]['names']
    for key, options in {'tiny': {'num_classes': 5, **TINY}, 'full': {'num_classes': 19}}.items():
        state = torch_reference.ATONet(**options).state_dict()
        assert names[key] == [[name, list(tensor.shape)] for name, tensor in state.items()]


def test_the_published_network_loads_ours_strictly(tiny_model, tiny_variables):
    tensors = {name: torch.from_numpy(array) for name, array in to_torch(tiny_variables, tiny_model).items()}
    torch_reference.ATONet(5, **TINY).load_state_dict(tensors, strict=True)


def test_loaded_arrays_do_not_change_with_the_torch_network(tiny_model):
    reference = drawn_reference(1, **TINY)
    variables = from_torch(reference.state_dict(), tiny_model)
    before = variables['params']['stem']['conv']['kernel'].copy()
    with torch.no_grad():
        reference.layer0[0].weight.add_(1)
    np.testing.assert_array_equal(variables['params']['stem']['conv']['kernel'], before)


@pytest.mark.parametrize('train', [True, False])
def test_batch_norm_is_torchs(train):
    """Epsilon shows where a channel hardly varies, the unbiased running variance where a batch has few values."""
    theirs = torch.nn.BatchNorm2d(3).train(train)
    theirs.running_mean.normal_()
    theirs.running_var.uniform_(0.5, 1.5)
    variables = {
        'params': {'scale': np.ones(3, np.float32), 'bias': np.zeros(3, np.float32)},
        'batch_stats': {'mean': theirs.running_mean.numpy().copy(), 'var': theirs.running_var.numpy().copy()},
    }
    x = np.random.default_rng(2).normal(size=(2, 1, 2, 3)).astype(np.float32) * np.float32([1, 1e-2, 1e-3])
    expected = theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    actual, state = BatchNorm().apply(variables, x, train=train, mutable=['batch_stats'])
    np.testing.assert_allclose(actual, expected.detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state['batch_stats']['mean'], theirs.running_mean, rtol=1e-5)
    np.testing.assert_allclose(state['batch_stats']['var'], theirs.running_var, rtol=1e-5)


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """(path of a torch export, labels that `Segmenter` gives of `image`)."""
    folder = tmp_path_factory.mktemp('exported')
    source, path = str(folder / 'source.pth'), str(folder / 'atonet.pth')
    torch.save(drawn_reference(3, num_classes=19, **TINY).state_dict(), source)
    config = default_config()
    config.model.update(**TINY)
    config.data.name = 'synthetic'
    config.init_from = source
    config.export.update(format='torch', output=path, size=SIZE)
    assert export(config, str(folder / 'no_run'), force=False) == path
    model = create_model('atonet', 19, **TINY)
    variables = from_torch(numpy_state(drawn_reference(3, num_classes=19, **TINY)), model)
    return path, np.asarray(Segmenter(model, variables)(image()))


def image():
    return render_scene(1, 0, *SIZE)[0][None]


def test_a_torch_export_gives_the_labels_of_the_run_in_pytorch(exported):
    path, labels = exported
    reference = torch_reference.ATONet(19, **TINY).eval()
    reference.load_state_dict(torch.load(path, weights_only=True), strict=True)
    with torch.no_grad():
        logits = reference(torch.from_numpy(np.array(IMAGENET(image())).transpose(0, 3, 1, 2)))
        logits = torch.nn.functional.interpolate(logits, SIZE, mode='bilinear', align_corners=False)
    assert len(np.unique(labels)) > 1
    assert np.mean(logits.argmax(1).numpy() != labels) <= 1e-3


def test_the_documents_loader_gives_the_labels_of_the_run(repository, exported, tmp_path, monkeypatch):
    path, labels = exported
    blocks = re.findall(r'```python\n(.*?)```', (repository / 'docs' / 'deployment.md').read_text(), re.DOTALL)
    (code,) = (block for block in blocks if 'import torch' in block)
    (tmp_path / 'runs' / 'demo' / 'export').mkdir(parents=True)
    shutil.copy(path, tmp_path / 'runs' / 'demo' / 'export' / 'atonet.pth')
    PIL.Image.fromarray(image()[0]).save(tmp_path / 'street.png')
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code.replace('num_classes=19', 'num_classes=19, width=16, backbone_width=8'), names)
    assert names['labels'].shape == labels.shape and names['labels'].dtype == np.uint8
    assert np.mean(names['labels'] != labels) <= 1e-3
