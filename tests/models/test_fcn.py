"""FCN-8s gives what other code gives for it, has the published counts, and its maps lie on each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atonet_jax import ops
from atonet_jax.models import abstract_variables, create_model, network, prepare
from atonet_jax.models.fcn import _OFFSETS, crop, enlarge
from atonet_jax.models.vgg import BLOCKS
from atonet_jax.torch_weights import backbone_from_torch, to_torch
from tests.models import golden


@pytest.fixture(scope='module')
def published():
    return golden.with_weights('fcn8s_fc1024')


@pytest.mark.parametrize('transform', [False, True])
def test_prepared_logits_are_those_of_the_golden(published, transform):
    expected, model, variables = published
    variables = prepare(model, variables, transform_kernels=transform)
    assert ('transformed' in variables) == transform
    images = expected.inputs['45x59']
    logits = jax.jit(lambda variables: model.apply(variables, images, train=False)['logits'])(variables)
    assert expected.outputs['logits_stride8_45x59'].error(logits[0]) <= golden.ALLOWED
    assert expected.outputs['logits_45x59'].error(ops.resize_bilinear(logits, (45, 59))[0]) <= golden.ALLOWED


def test_counts_without_fully_connected_layers_are_the_published_ones():
    golden.assert_counts('fcn8s', 19, (512, 1024), 14_739_065, 160_421_380_096, has_fc=False)


def test_enlarging_is_the_dense_transposed_convolution_with_bilinear_kernels():
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 4)).astype(np.float32)
    for factor in (2, 8):
        size = 2 * factor
        line = [1 - abs(i - (factor - 0.5)) / factor for i in range(size)]
        kernel = np.einsum('y,x,io->yxio', line, line, np.eye(4)).astype(np.float32)
        enlarged = enlarge(jnp.asarray(x), factor)
        np.testing.assert_allclose(enlarged, ops.conv_transpose(x, kernel, factor, 0), atol=1e-6)
        inside = slice(factor, -factor)  # where it does not fade, it is a resize
        resized = ops.resize_bilinear(x, (5 * factor, 3 * factor))
        cut = crop(enlarged, resized.shape[1:3], factor // 2)
        np.testing.assert_allclose(cut[:, inside, inside], resized[:, inside, inside], atol=1e-5)


def test_the_crops_put_pixels_of_one_place_on_each_other():
    """The centre of each map's first pixel, in the image, follows from the layers before it."""
    centre, stride, pools = 1.0 - 100, 1, {}  # of conv1_1, 3x3 with 100 pixels of padding
    for block in range(1, 6):
        centre, stride = centre + stride / 2, 2 * stride
        pools[f'pool{block}'] = centre, stride
    centre += 3 * stride  # fc6, 7x7 without padding
    for factor, target in ((2, 'pool4'), (2, 'pool3'), (8, 'image')):
        stride //= factor
        centre -= (2 * factor - 1) / 2 * stride
        first, step = (pools | {'image': (0.0, 1)})[target]
        assert step == stride
        assert first + _OFFSETS[target] * step == centre if target != 'image' else centre + _OFFSETS[target] == first


def test_original_form_has_the_papers_sizes():
    model = create_model('fcn8s_original', 19, width=4, fc_features=8)
    images = jax.ShapeDtypeStruct((1, 512, 1024, 3), jnp.float32)

    def run(variables, images):
        logits, state = model.apply(
            variables, images, train=False, capture_intermediates=lambda module, _: module.name is not None
        )
        return logits, state['intermediates']

    logits, maps = jax.eval_shape(run, abstract_variables(model), images)
    sizes = {name: maps[name]['__call__'][0].shape[1:3] for name in maps if name != '__call__'}
    assert sizes['conv1_1'] == (710, 1222)
    assert sizes['score_pool3'] == (89, 153)
    assert sizes['score_pool4'] == (45, 77)
    assert sizes['fc6'] == sizes['score_fr'] == (17, 33)
    assert logits['logits'].shape == (1, 512, 1024, 19)


def test_backbone_of_torchvision_is_taken():
    model = create_model('fcn8s_fc1024', 3, width=2, fc_features=4)
    generator = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda array: generator.normal(size=array.shape).astype(np.float32), abstract_variables(model)
    )
    file = to_torch(variables, model)
    places = iter([0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28])
    backbone = {'classifier.6.weight': np.zeros((1000, 4096), np.float32)}
    for block, num_convs in enumerate(BLOCKS, 1):
        for i in range(1, num_convs + 1):
            place = next(places)
            for leaf in ('weight', 'bias'):
                backbone[f'features.{place}.{leaf}'] = file[f'conv{block}_{i}.{leaf}']
    zeros = jax.tree.map(np.zeros_like, variables)
    loaded = backbone_from_torch(backbone, model, zeros)['params']
    for name, module in variables['params'].items():
        expected = module if name.startswith('conv') else zeros['params'][name]
        jax.tree.map(np.testing.assert_array_equal, loaded[name], expected)


def test_torchvisions_fully_connected_layers_belong_to_the_backbone_where_they_fit():
    whole, narrow = (network(create_model(name, 19)) for name in ('fcn8s', 'fcn8s_fc1024'))
    assert tuple(map(whole.backbones[0].name_of, ('fc6', 'fc7'))) == ('classifier.0', 'classifier.3')
    assert narrow.backbones[0].name_of('fc6') is None
    assert [net.in_backbone(('fc6', 'kernel')) for net in (whole, narrow)] == [True, False]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'form': 'padded'}, "form='padded': must be one of resized, original"),
        ({'fc_features': -1}, 'fc_features=-1: must be greater than 0'),
        ({'fc_kernel_size': 4}, 'fc_kernel_size=4: must be odd'),
        (
            {'form': 'original', 'fc_kernel_size': 3},
            "form='original': its crops are those of has_fc=True and fc_kernel_size=7",
        ),
        ({'dropout_rate': 1.0}, 'dropout_rate=1.0: must be from 0 to below 1'),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        create_model('fcn8s', 19, **options)
