"""Weights move between PyTorch and here without loss, and files that do not fit are named and change nothing."""

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from atonet_jax.config import create_network
from atonet_jax.data.labels import CITYSCAPES
from atonet_jax.errors import InputError
from atonet_jax.models import create_model
from atonet_jax.process.devices import create_mesh
from atonet_jax.runs.network import starting_variables
from atonet_jax.torch_weights import backbone_from_torch, from_torch, load_backbone, load_network, to_torch
from tests import torch_reference

TINY = {'width': 16, 'backbone_width': 8}
SEVEN_CLASSES = create_model('atonet', 7, **TINY)


def numpy_state(module):
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


@pytest.fixture
def reference():
    """The PyTorch network in the size of `tiny_model`, with weights of its own."""
    torch.manual_seed(1)
    return torch_reference.ATONet(5, **TINY)


def torchvision_backbone(reference):
    """A state dict of torchvision's ResNet-18, of the reference's width, whose classifier is for 10 classes."""
    names = {'layer0.0': 'conv1', 'layer0.1': 'bn1'}
    state = {}
    for name, array in numpy_state(reference).items():
        if name.startswith('layer'):
            for published, torchvision in names.items():
                name = name.replace(f'{published}.', f'{torchvision}.')
            state[name] = array
    return state | {'fc.weight': np.zeros((10, 64), np.float32), 'fc.bias': np.zeros(10, np.float32)}


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_from_here_to_torch_and_back_is_exact(tiny_model, tiny_variables):
    assert_equal(from_torch(to_torch(tiny_variables, tiny_model), tiny_model), jax.device_get(tiny_variables))


def test_from_torch_to_here_and_back_is_exact_but_for_untrained_heads(reference, tiny_model):
    state = numpy_state(reference)
    returned = to_torch(from_torch(state, tiny_model), tiny_model)
    assert set(returned) == set(state)
    for name, array in state.items():
        if not name.startswith(('aux_cls1', 'aux_cls2')):
            np.testing.assert_array_equal(returned[name], array, err_msg=name)


def test_the_published_network_loads_ours_strictly(tiny_model, tiny_variables, reference):
    tensors = {name: torch.from_numpy(array) for name, array in to_torch(tiny_variables, tiny_model).items()}
    reference.load_state_dict(tensors, strict=True)


def test_heads_that_were_not_trained_are_as_torch_draws_them(tiny_model, tiny_variables):
    """The reference's own first head, in the same size, has the same spread."""
    state = to_torch(tiny_variables, tiny_model)
    weight = state['aux_cls1.0.weight']
    assert weight.shape == (8, 8, 3, 3)
    bound = 1 / np.sqrt(8 * 9)
    assert 0.9 * bound < abs(weight).max() <= bound
    np.testing.assert_array_equal(state['aux_cls1.1.running_var'], 1)


def test_loaded_arrays_do_not_change_with_the_torch_network(reference, tiny_model):
    variables = from_torch(reference.state_dict(), tiny_model)
    before = variables['params']['stem']['conv']['kernel'].copy()
    with torch.no_grad():
        reference.layer0[0].weight.add_(1)
    np.testing.assert_array_equal(variables['params']['stem']['conv']['kernel'], before)


def test_backbone_of_torchvision_replaces_stem_and_stages_alone(reference, tiny_model, tiny_variables):
    loaded = backbone_from_torch(torchvision_backbone(reference), tiny_model, tiny_variables)
    stem = loaded['params']['stem']['conv']['kernel']
    np.testing.assert_array_equal(stem, reference.layer0[0].weight.detach().numpy().transpose(2, 3, 1, 0))
    shortcut = loaded['batch_stats']['layer3']['block0']['shortcut']['bn']['var']
    np.testing.assert_array_equal(shortcut, reference.layer3[0].downsample[1].running_var.numpy())
    for name in ('spp', 'up1', 'head', 'aux3'):
        assert_equal(loaded['params'][name], tiny_variables['params'][name])


def test_ignored_classifier_of_a_backbone_is_said(reference, tiny_model, tiny_variables, tmp_path, caplog):
    path = tmp_path / 'resnet18.pth'
    torch.save({n: torch.from_numpy(a) for n, a in torchvision_backbone(reference).items()}, path)
    with caplog.at_level('INFO', 'atonet_jax'):
        load_backbone(str(path), tiny_model, tiny_variables)
    assert 'ignored: fc.weight, fc.bias' in caplog.text


def test_all_that_does_not_fit_is_in_one_message(reference, tiny_model):
    state = numpy_state(reference)
    del state['up2.blend_conv.0.weight'], state['spp.conv1.1.running_mean']
    state['up6.blend_conv.0.weight'] = np.zeros(3)
    state['final_ocnv.0.weight'] = np.zeros((16, 8, 3, 3))
    with pytest.raises(InputError) as error:
        from_torch(state, tiny_model)
    assert str(error.value) == (
        '2 missing: spp.conv1.1.running_mean, up2.blend_conv.0.weight; 1 unexpected: up6.blend_conv.0.weight; '
        '1 misshapen: final_ocnv.0.weight is 16x8x3x3, not 16x16x3x3'
    )


def test_resnet_50_is_refused_as_a_backbone(reference, tiny_model, tiny_variables, tmp_path):
    """Its blocks have three convolutions and shortcuts from the first stage on."""
    state = torchvision_backbone(reference)
    state['layer1.0.conv1.weight'] = np.zeros((8, 8, 1, 1), np.float32)
    state['layer1.0.conv3.weight'] = np.zeros((32, 8, 1, 1), np.float32)
    state['layer1.0.downsample.0.weight'] = np.zeros((32, 8, 1, 1), np.float32)
    path = tmp_path / 'resnet50.pth'
    torch.save({name: torch.from_numpy(array) for name, array in state.items()}, path)
    with pytest.raises(InputError) as error:
        load_backbone(str(path), tiny_model, tiny_variables)
    assert str(error.value) == (
        f"{path}: does not fit the backbone of ATONet: 2 unexpected: layer1.0.conv3.weight, "
        'layer1.0.downsample.0.weight; 1 misshapen: layer1.0.conv1.weight is 8x8x1x1, not 8x8x3x3'
    )


def test_other_classes_load_all_but_the_heads_and_only_if_asked(tiny_model, tiny_variables, tmp_path, caplog):
    path = str(tmp_path / 'atonet.pth')
    seven_classes = torch_reference.ATONet(7, **TINY)
    torch.save({'state_dict': seven_classes.state_dict()}, path)
    with pytest.raises(InputError, match=r'8 misshapen: .* is 7x16x1x1, not 5x16x1x1.*init_strict=false'):
        load_network(path, tiny_model)

    with caplog.at_level('INFO', 'atonet_jax'):
        loaded = load_network(path, tiny_model, fresh=tiny_variables, strict=False)

    heads = 'aux3/classifier/conv, aux4/classifier/conv, aux5/classifier/conv, head/classifier/conv'
    assert f'left fresh: {heads}' in caplog.text
    others = flatten_dict(from_torch(numpy_state(seven_classes), SEVEN_CLASSES))
    for path, array in flatten_dict(loaded).items():
        is_fresh = 'classifier' in path
        np.testing.assert_array_equal(array, flatten_dict(tiny_variables)[path] if is_fresh else others[path])


def test_a_backbone_of_another_width_is_no_head_to_be_left_fresh(tiny_model, tiny_variables, tmp_path):
    path = str(tmp_path / 'wide.pth')
    torch.save(torch_reference.ATONet(5, width=16, backbone_width=16).state_dict(), path)
    with pytest.raises(InputError, match=r'misshapen: layer1.0.bn1.running_mean is 16, not 8, .*, \.\.\.$'):
        load_network(path, tiny_model, fresh=tiny_variables, strict=False)


def test_a_run_starts_from_the_file_that_its_config_names(reference, tiny_config, tmp_path):
    path = tmp_path / 'resnet18.pth'
    state = {n: torch.from_numpy(a) for n, a in torchvision_backbone(reference).items()}
    torch.save({'model': {f'module.{name}': tensor.half() for name, tensor in state.items()}}, path)
    config = tiny_config.copy_and_resolve_references()
    config.model.pretrained_backbone = str(path)
    variables = starting_variables(config, create_network(config, 19), CITYSCAPES, create_mesh())
    kernel = variables['params']['layer4']['block1']['conv2']['conv']['kernel']
    expected = reference.layer4[1].conv2.weight.detach().half().float().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)
