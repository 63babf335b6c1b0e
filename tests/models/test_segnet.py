"""Both SegNets have the published counts and read published files; the basic form is its definition in NumPy."""

import jax
import numpy as np
import pytest

from atonet_jax.errors import InputError
from atonet_jax.identification import holds_backbone
from atonet_jax.models import abstract_variables, create_model, network
from atonet_jax.models.segnet import normalize_locally
from atonet_jax.models.terms import Term
from atonet_jax.models.vgg import BLOCKS
from atonet_jax.torch_weights import backbone_from_torch, fresh_modules, from_torch, to_torch
from tests.models import golden

pytestmark = pytest.mark.networks

VGG = [f'conv{block}_{i}' for block, convs in enumerate(BLOCKS, 1) for i in range(1, convs + 1)]


def drawn(model):
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda a: generator.normal(size=a.shape).astype(np.float32), abstract_variables(model))


@pytest.mark.parametrize(
    ('name', 'size', 'parameters', 'macs'),
    [
        ('segnet', (360, 480), 29_449_355, 106_712_432_640),
        ('segnet_basic', (720, 960), 1_416_587, 236_755_353_600),
    ],
)
def test_counts_of_11_classes_are_those_of_the_authors_definitions(name, size, parameters, macs):
    golden.assert_counts(name, 11, size, parameters, macs)


def test_files_of_the_port_with_short_names_are_read():
    model = create_model('segnet', 3, width=2)
    variables = drawn(model)
    short = {}
    for name, array in to_torch(variables, model).items():
        layer, leaf = name.split('.')
        kind, places = ('bn' if layer.endswith('_bn') else 'conv'), ''.join(c for c in layer if c.isdigit())
        short[f'{kind}{places}{"d" if "_D" in layer else ""}.{leaf}'] = array
    assert {'conv53d.weight', 'bn53d.running_var', 'conv11d.bias', 'bn11.weight'} < set(short)
    jax.tree.map(np.testing.assert_array_equal, from_torch(short, model), variables)


def test_files_of_the_port_with_a_decoder_of_transposed_convolutions_are_read():
    model = create_model('segnet', 3, width=2)
    variables = drawn(model)
    port = {}
    for name, array in to_torch(variables, model).items():
        layer, leaf = name.split('.')
        level, i = (int(c) - 1 for c in layer if c.isdigit())
        part = 'decoder_convtr' if '_D' in layer else 'encoder_conv'
        is_kernel = part == 'decoder_convtr' and array.ndim == 4
        port[f'{part}_{level}{i}.{int(layer.endswith("_bn"))}.{leaf}'] = (
            array.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1] if is_kernel else array
        )
    assert {'encoder_conv_42.0.weight', 'decoder_convtr_42.1.running_var', 'decoder_convtr_00.0.bias'} < set(port)
    jax.tree.map(np.testing.assert_array_equal, from_torch(port, model), variables)
    assert port['decoder_convtr_30.0.weight'].shape == (16, 8, 3, 3)
    x = np.random.default_rng(0).normal(size=(1, 5, 4, 16)).astype(np.float32)
    kernel = variables['params']['conv4_1_D']['conv']['kernel']
    transposed = jax.lax.conv_transpose(
        x, port['decoder_convtr_30.0.weight'].transpose(2, 3, 1, 0), (1, 1), 'SAME', transpose_kernel=True,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))  # fmt: skip
    plain = jax.lax.conv(x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1), (1, 1), 'SAME').transpose(0, 2, 3, 1)
    np.testing.assert_allclose(transposed, plain, atol=1e-4)


def test_the_convolutions_of_torchvisions_vgg16_are_taken_and_normalisations_start_fresh():
    model = create_model('segnet', 3, width=2)
    variables = drawn(model)
    file = to_torch(variables, model)
    vgg = {'classifier.6.weight': np.zeros((1000, 4096), np.float32)}
    for name, place in zip(VGG, (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), strict=True):
        vgg |= {f'features.{place}.{leaf}': file[f'{name}.{leaf}'] for leaf in ('weight', 'bias')}
    zeros = jax.tree.map(np.zeros_like, variables)
    loaded = backbone_from_torch(vgg, model, zeros)
    for name, module in variables['params'].items():
        is_taken = 'conv' in module and not name.endswith('_D')
        assert is_taken == network(model).in_backbone((name, 'conv', 'kernel'))
        expected = dict(zeros['params'][name]) | ({'conv': module['conv']} if is_taken else {})
        jax.tree.map(np.testing.assert_array_equal, loaded['params'][name], expected)


def test_torchvisions_vgg16_with_batch_normalisation_is_taken_whole(tmp_path):
    model = create_model('segnet', 3, width=2)
    variables = drawn(model)
    file = to_torch(variables, model)
    vgg = {'classifier.6.weight': np.zeros((1000, 4096), np.float32)}
    for name, place in zip(VGG, (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40), strict=True):
        for theirs, ours in ((place, name), (place + 1, f'{name}_bn')):
            leaves = [key.split('.')[1] for key in file if key.startswith(f'{ours}.')]
            vgg |= {f'features.{theirs}.{leaf}': file[f'{ours}.{leaf}'] for leaf in leaves}
    zeros = jax.tree.map(np.zeros_like, variables)
    loaded = backbone_from_torch(vgg, model, zeros)
    for kind, modules in variables.items():
        for name, module in modules.items():
            expected = module if name in VGG else zeros[kind][name]
            jax.tree.map(np.testing.assert_array_equal, loaded[kind][name], expected)
    assert holds_backbone(vgg)
    del vgg['features.31.running_mean']
    with pytest.raises(InputError, match=r'^1 missing: features\.31\.running_mean$'):
        backbone_from_torch(vgg, model, zeros)
    assert fresh_modules(vgg, model) == ('conv4_3/bn',)


@pytest.mark.parametrize('name', ['segnet', 'segnet_basic'])
def test_the_loss_is_the_authors(name):
    assert network(name).terms == (Term('logits'),)


def test_local_normalisation_sums_over_five_channels_or_as_many_as_there_are():
    images = np.random.default_rng(0).uniform(0, 255, (2, 3, 4, 3)).astype(np.float32)
    padded = np.pad(np.square(images), ((0, 0), (0, 0), (0, 0), (2, 2)))
    sums = np.stack([padded[..., i : i + 5].sum(-1) for i in range(3)], -1)
    np.testing.assert_allclose(normalize_locally(images), images / (1 + 2e-5 * sums) ** 0.75, rtol=1e-5)


def test_the_basic_form_is_its_definition_in_numpy():
    """For which there is no golden. At a size where pools round up."""
    model = create_model('segnet_basic', 2, width=3)
    variables = jax.tree.map(np.abs, drawn(model))
    variables['params'] = jax.tree.map(lambda a: a - 0.5, variables['params'])
    images = np.random.default_rng(0).uniform(0, 255, (1, 21, 18, 3)).astype(np.float32)
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False)['logits'])(variables, images)

    params, statistics = variables['params'], variables['batch_stats']

    def conv_norm(x, name):
        conv, bn, found = params[name]['conv'], params[name]['bn'], statistics[name]['bn']
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((3, 3), (3, 3), (0, 0))), (7, 7), (0, 1))
        x = np.einsum('hwcij,ijcd->hwd', windows, conv['kernel'].astype(np.float64)) + conv['bias']
        return (x - found['mean']) / np.sqrt(found['var'] + 1e-5) * bn['scale'] + bn['bias']

    x, pools = np.asarray(normalize_locally(images))[0], []
    for level in (1, 2, 3, 4):
        x = np.maximum(conv_norm(x, f'conv{level}'), 0)
        height, width, channels = x.shape
        x = np.pad(x, ((0, height % 2), (0, width % 2), (0, 0)), constant_values=-np.inf)
        cells = x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, channels).transpose(0, 2, 4, 1, 3)
        cells = cells.reshape(*cells.shape[:3], 4)
        x = cells.max(-1)
        pools.append((cells.argmax(-1), height, width))
    for level in (4, 3, 2, 1):
        places, height, width = pools.pop()
        cells = (np.eye(4)[places] * x[..., None]).reshape(*x.shape, 2, 2)
        x = cells.transpose(0, 3, 1, 4, 2).reshape(2 * x.shape[0], 2 * x.shape[1], -1)[:height, :width]
        x = conv_norm(x, f'conv_decode{level}')
    classifier = params['classifier']['conv']
    expected = x @ classifier['kernel'][0, 0] + classifier['bias']
    np.testing.assert_allclose(logits[0], expected, atol=1e-5 * np.ptp(expected))
