"""Weights move between PyTorch and here without loss, and files that do not fit are named and change nothing."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from atonet_jax.config import create_network
from atonet_jax.data.labels import CITYSCAPES
from atonet_jax.errors import InputError
from atonet_jax.models import create_model, network
from atonet_jax.process.devices import create_mesh
from atonet_jax.published_weights import load_backbone, load_network
from atonet_jax.runs.network import starting_variables
from atonet_jax.torch_files import read_state_dict, write_state_dict
from atonet_jax.torch_weights import backbone_from_torch, from_torch, to_torch
from atonet_jax.training import train
from atonet_jax.training.optimizer import parameter_group
from tests import golden_files
from tests.drawn_weights import drawn_state, drawn_variables
from tests.parity_cases import TINY

SEVEN_CLASSES = create_model('atonet', 7, **TINY)


@pytest.fixture(scope='module')
def shapes():
    """{name: shape} of PyTorch's network in the size of `tiny_model`, in its order."""
    return {name: tuple(shape) for name, shape in golden_files.read('atonet')[1]['names']['tiny']}


@pytest.fixture
def published(shapes):
    """A state dict of the published network in that size."""
    counters = {name: np.zeros((), np.int64) for name in shapes if name.endswith('tracked')}
    return drawn_state(shapes.items(), seed=1) | counters


def torchvision_backbone(published):
    """A state dict of torchvision's ResNet-18, of the same width, whose classifier is for 10 classes."""
    names = {'layer0.0': 'conv1', 'layer0.1': 'bn1'}
    state = {}
    for name, array in published.items():
        if name.startswith('layer'):
            for theirs, torchvision in names.items():
                name = name.replace(f'{theirs}.', f'{torchvision}.')
            state[name] = array
    return state | {'fc.weight': np.zeros((10, 64), np.float32), 'fc.bias': np.zeros(10, np.float32)}


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_from_here_to_torch_and_back_is_exact(tiny_model, tiny_variables):
    assert_equal(from_torch(to_torch(tiny_variables, tiny_model), tiny_model), jax.device_get(tiny_variables))


def test_from_torch_to_here_and_back_is_exact_but_for_untrained_heads(published, tiny_model):
    returned = to_torch(from_torch(published, tiny_model), tiny_model)
    assert set(returned) == set(published)
    for name, array in published.items():
        if not name.startswith(('aux_cls1', 'aux_cls2')):
            np.testing.assert_array_equal(returned[name], array, err_msg=name)


def test_the_published_network_would_load_ours_strictly(tiny_model, tiny_variables, shapes):
    """Every name and shape, counters and untrained heads included; tests/parity has PyTorch do it."""
    assert {name: array.shape for name, array in to_torch(tiny_variables, tiny_model).items()} == shapes


def test_heads_that_were_not_trained_are_as_torch_draws_them(tiny_model, tiny_variables):
    """The reference's own first head, in the same size, has the same spread."""
    state = to_torch(tiny_variables, tiny_model)
    weight = state['aux_cls1.0.weight']
    assert weight.shape == (8, 8, 3, 3)
    bound = 1 / np.sqrt(8 * 9)
    assert 0.9 * bound < abs(weight).max() <= bound
    np.testing.assert_array_equal(state['aux_cls1.1.running_var'], 1)


def test_loaded_arrays_do_not_change_with_the_state_dict(published, tiny_model):
    variables = from_torch(published, tiny_model)
    before = variables['params']['stem']['conv']['kernel'].copy()
    published['layer0.0.weight'] += 1
    np.testing.assert_array_equal(variables['params']['stem']['conv']['kernel'], before)


def test_backbone_of_torchvision_replaces_stem_and_stages_alone(published, tiny_model, tiny_variables):
    loaded = backbone_from_torch(torchvision_backbone(published), tiny_model, tiny_variables)
    stem = loaded['params']['stem']['conv']['kernel']
    np.testing.assert_array_equal(stem, published['layer0.0.weight'].transpose(2, 3, 1, 0))
    shortcut = loaded['batch_stats']['layer3']['block0']['shortcut']['bn']['var']
    np.testing.assert_array_equal(shortcut, published['layer3.0.downsample.1.running_var'])
    for name in ('spp', 'up1', 'head', 'aux3'):
        assert_equal(loaded['params'][name], tiny_variables['params'][name])


def test_ignored_classifier_of_a_backbone_is_said(published, tiny_model, tiny_variables, tmp_path, caplog):
    path = tmp_path / 'resnet18.pth'
    write_state_dict(str(path), torchvision_backbone(published))
    with caplog.at_level('INFO', 'atonet_jax'):
        load_backbone(str(path), tiny_model, tiny_variables)
    assert 'ignored: fc.weight, fc.bias' in caplog.text


def test_all_that_does_not_fit_is_in_one_message(published, tiny_model):
    state = dict(published)
    del state['up2.blend_conv.0.weight'], state['spp.conv1.1.running_mean']
    state['up6.blend_conv.0.weight'] = np.zeros(3)
    state['final_ocnv.0.weight'] = np.zeros((16, 8, 3, 3))
    with pytest.raises(InputError) as error:
        from_torch(state, tiny_model)
    assert str(error.value) == (
        '2 missing: spp.conv1.1.running_mean, up2.blend_conv.0.weight; 1 unexpected: up6.blend_conv.0.weight; '
        '1 misshapen: final_ocnv.0.weight is 16x8x3x3, not 16x16x3x3'
    )


def test_a_head_of_training_may_be_missing_but_not_half_of_a_layer(published, tiny_model):
    without = {name: array for name, array in published.items() if not name.startswith('aux_cls3')}
    assert 'aux3' not in from_torch(without, tiny_model)['params']
    del published['aux_cls3.1.running_var']
    with pytest.raises(InputError, match=r'^1 missing: aux_cls3\.1\.running_var$'):
        from_torch(published, tiny_model)


def test_resnet_50_is_refused_as_a_backbone(published, tiny_model, tiny_variables, tmp_path):
    """Its blocks have three convolutions and shortcuts from the first stage on."""
    state = torchvision_backbone(published)
    state['layer1.0.conv1.weight'] = np.zeros((8, 8, 1, 1), np.float32)
    state['layer1.0.conv3.weight'] = np.zeros((32, 8, 1, 1), np.float32)
    state['layer1.0.downsample.0.weight'] = np.zeros((32, 8, 1, 1), np.float32)
    path = tmp_path / 'resnet50.pth'
    write_state_dict(str(path), state)
    with pytest.raises(InputError) as error:
        load_backbone(str(path), tiny_model, tiny_variables)
    assert str(error.value) == (
        f'{path}: does not fit the backbone of ATONet: 2 unexpected: layer1.0.conv3.weight, '
        'layer1.0.downsample.0.weight; 1 misshapen: layer1.0.conv1.weight is 8x8x1x1, not 8x8x3x3'
    )


def test_other_classes_load_all_but_the_heads_and_only_if_asked(tiny_model, tiny_variables, tmp_path, caplog):
    path = str(tmp_path / 'atonet.pth')
    seven_classes = to_torch(drawn_variables(SEVEN_CLASSES), SEVEN_CLASSES)
    write_state_dict(path, seven_classes)
    with pytest.raises(InputError, match='has 7 outputs, but there are 5 classes; give .*init_strict=false'):
        load_network(path, tiny_model, fresh=tiny_variables)

    with caplog.at_level('INFO', 'atonet_jax'):
        loaded = load_network(path, tiny_model, fresh=tiny_variables, strict=False)

    heads = 'aux3/classifier/conv, aux4/classifier/conv, aux5/classifier/conv, head/classifier/conv'
    assert f'left fresh: {heads}' in caplog.text
    others = flatten_dict(from_torch(seven_classes, SEVEN_CLASSES))
    for path, array in flatten_dict(loaded).items():
        is_fresh = 'classifier' in path
        np.testing.assert_array_equal(array, flatten_dict(tiny_variables)[path] if is_fresh else others[path])


def test_variables_that_are_not_whole_or_of_another_network_are_not_filled_up(tiny_model, tiny_variables):
    flat = flatten_dict(tiny_variables)
    path = next(path for path in flat if path[:2] == ('params', 'head'))
    half = ('batch_stats', 'aux3', 'conv', 'bn', 'var')  # of a layer that may be missing as a whole
    for changed, said in (
        (flat.keys() - {path}, 'lack 1: params/head'),
        (flat.keys() - {half}, 'lack 1: batch_stats/aux3/conv/bn/var'),
        (flat.keys() | {('params', 'x', 'y')}, 'x/y'),
    ):
        with pytest.raises(InputError, match=said):
            to_torch(unflatten_dict({path: flat.get(path, np.zeros(1)) for path in changed}), tiny_model)


def test_a_backbone_of_another_width_is_no_head_to_be_left_fresh(tiny_model, tiny_variables, tmp_path):
    path = str(tmp_path / 'wide.pth')
    wide = create_model('atonet', 5, width=16, backbone_width=16)
    write_state_dict(path, to_torch(drawn_variables(wide), wide))
    with pytest.raises(InputError, match=r'misshapen: layer1.0.bn1.running_mean is 16, not 8, .*, \.\.\.$'):
        load_network(path, tiny_model, fresh=tiny_variables, strict=False)


@pytest.fixture
def partial_backbone(published, tmp_path):
    """A file without the last stage's second block and one batch normalisation's mean."""
    state = torchvision_backbone(published)
    state = {name: array for name, array in state.items() if not name.startswith('layer4.1')}
    del state['layer2.0.bn1.running_mean']
    path = str(tmp_path / 'partial.pth')
    write_state_dict(path, state)
    return path


def test_parts_that_a_backbone_lacks_start_fresh_if_asked(
    partial_backbone, published, tiny_model, tiny_variables, caplog
):
    with pytest.raises(InputError, match=r'missing: layer2.*pretrained_strict=false starts such parts fresh$'):
        load_backbone(partial_backbone, tiny_model, tiny_variables)
    with caplog.at_level('INFO', 'atonet_jax'):
        loaded, fresh = load_backbone(partial_backbone, tiny_model, tiny_variables, strict=False)
    assert fresh == ('layer2/block0/conv1/bn', 'layer4/block1')
    [line] = caplog.messages
    assert line.endswith('fresh, at the full learning rate: layer2/block0/conv1/bn, layer4/block1')
    drawn = flatten_dict(tiny_variables, sep='/')
    for path, array in flatten_dict(loaded, sep='/').items():
        if any(f'/{module}/' in path for module in fresh):
            np.testing.assert_array_equal(array, drawn[path])
    kernel = loaded['params']['layer4']['block0']['conv2']['conv']['kernel']
    np.testing.assert_array_equal(kernel, published['layer4.0.conv2.weight'].transpose(2, 3, 1, 0))


@pytest.mark.parametrize(
    'change, message',
    [
        ({'conv1.weight': np.zeros((9, 3, 7, 7))}, '1 misshapen: conv1.weight is 9x3x7x7, not 8x3x7x7'),
        ({'layer2.0.bn1.weight': np.zeros(9)}, '1 misshapen: layer2.0.bn1.weight is 9, not 16'),  # beside a missing one
        ({'layer5.0.conv1.weight': np.zeros(9)}, '1 unexpected: layer5.0.conv1.weight'),
    ],
)
def test_a_backbone_that_lacks_parts_is_refused_for_what_else_does_not_fit(
    change, message, partial_backbone, tiny_model, tiny_variables
):
    write_state_dict(partial_backbone, read_state_dict(partial_backbone) | change)
    with pytest.raises(InputError) as error:
        load_backbone(partial_backbone, tiny_model, tiny_variables, strict=False)
    assert str(error.value) == f'{partial_backbone}: does not fit the backbone of ATONet: {message}'


def test_a_file_without_any_part_is_no_backbone(tiny_model, tiny_variables, tmp_path):
    path = str(tmp_path / 'classifier.pth')
    write_state_dict(path, {'fc.weight': np.zeros((10, 64))})
    with pytest.raises(InputError, match='does not fit the backbone of ATONet: .* missing: '):
        load_backbone(path, tiny_model, tiny_variables, strict=False)


def test_fresh_parts_keep_the_full_rate_when_a_run_goes_on(partial_backbone, tiny_config, tmp_path, monkeypatch):
    class Seen(Exception):
        pass

    def note(*arguments):
        optimizer = step_options(*arguments)['optimizer']
        contract = network(optimizer.model).with_fresh(optimizer.fresh)
        paths = [('layer4', block, 'conv1', 'conv', 'kernel') for block in ('block0', 'block1')]
        seen.append([parameter_group(path, contract, frozen) for path in paths for frozen in ((), ('backbone',))])
        raise Seen

    seen = []
    step_options = train.step_options
    monkeypatch.setattr(train, 'step_options', note)
    config = tiny_config.copy_and_resolve_references()
    config.model.update(pretrained_backbone=partial_backbone, pretrained_strict=False)
    for has_begun in (False, True):
        monkeypatch.setattr(train, 'has_checkpoint', lambda workdir: has_begun)
        with pytest.raises(Seen):
            train.train(config, str(tmp_path / 'run'))
    assert seen == [['backbone', 'frozen', 'rest', 'rest']] * 2


def test_a_run_starts_from_the_file_that_its_config_names(published, tiny_config, tmp_path):
    path = tmp_path / 'resnet18.pth'
    state = torchvision_backbone(published)
    write_state_dict(str(path), {f'module.{name}': array.astype(np.float16) for name, array in state.items()})
    config = tiny_config.copy_and_resolve_references()
    config.model.pretrained_backbone = str(path)
    variables, _ = starting_variables(config, create_network(config, 19), CITYSCAPES, create_mesh())
    kernel = variables['params']['layer4']['block1']['conv2']['conv']['kernel']
    expected = published['layer4.1.conv2.weight'].astype(np.float16).astype(np.float32).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)
