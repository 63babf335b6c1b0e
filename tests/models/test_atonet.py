"""The network has the published counts, the shapes that it promises, and torch's initial distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from atonet_jax.models import abstract_variables, create_model
from atonet_jax.models.atonet import LEVELS
from atonet_jax.models.blocks import ConvNorm
from atonet_jax.models.counts import convolutions, count_conv_macs
from atonet_jax.ops.cpu import fast_paths

SIZES = [(33, 33), (64, 128), (97, 161), (180, 240)]


def abstract_images(height, width):
    return jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)


def count_parameters(**options):
    params = abstract_variables(create_model('atonet', 19, **options))['params']
    return sum(array.size for array in jax.tree.leaves(params))


@pytest.fixture(scope='module')
def layer_outputs(tiny_model, tiny_variables):
    """{'up1': ..., 'spp/conv1': ...}: what each convolution and dropout of a training pass gave."""

    @jax.jit
    def forward(variables, images):
        _, updates = tiny_model.apply(
            variables,
            images,
            train=True,
            mutable=['batch_stats', 'intermediates'],
            rngs={'dropout': jax.random.key(0)},
            capture_intermediates=lambda module, _: isinstance(module, (ConvNorm, nn.Dropout)),
        )
        return updates['intermediates']

    images = np.random.default_rng(0).normal(size=(4, 48, 64, 3)).astype(np.float32)
    intermediates = flatten_dict(forward(tiny_variables, images), sep='/')
    return {path.removesuffix('/__call__'): np.asarray(outputs[0]) for path, outputs in intermediates.items()}


def test_parameters_with_all_auxiliary_heads():
    assert count_parameters(aux_levels=LEVELS) == 14_533_234


def test_smaller_up_kernel_drops_eight_of_nine_taps():
    inputs = 64 + 128 + 256 + 512 + 128
    assert count_parameters() - count_parameters(up_kernel_size=1) == 8 * inputs * 128


@pytest.mark.parametrize(('size', 'giga_macs'), [((1024, 1024), 66.99), ((720, 960), 44.30)])
def test_traced_program_has_the_published_macs(size, giga_macs):
    model = create_model('atonet', 19)
    macs = count_conv_macs(
        lambda variables, images: model.apply(variables, images, train=False),
        abstract_variables(model),
        abstract_images(*size),
    )
    assert macs / 1e9 == pytest.approx(giga_macs, abs=0.01)


@pytest.mark.parametrize('size', SIZES)
def test_any_size_gives_logits_at_a_quarter_and_heads_at_their_strides(size):
    model = create_model('atonet', 19, aux_levels=LEVELS)
    outputs, _ = jax.eval_shape(
        lambda variables, images: model.apply(
            variables, images, train=True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(0)}
        ),
        abstract_variables(model),
        abstract_images(*size),
    )

    def shape_at(stride):
        return (1, -(-size[0] // stride), -(-size[1] // stride), 19)

    assert outputs['logits'].shape == shape_at(4)
    strides = {'aux1': 4, 'aux2': 8, 'aux3': 16, 'aux4': 32, 'aux5': 32}
    assert {name: head.shape for name, head in outputs.items() if name != 'logits'} == {
        name: shape_at(stride) for name, stride in strides.items()
    }


def test_auxiliary_heads_are_of_the_levels_asked_for_and_of_training_alone():
    model = create_model('atonet', 19, aux_levels=(2, 5))
    variables = abstract_variables(model)
    assert {name for name in variables['params'] if name.startswith('aux')} == {'aux2', 'aux5'}
    outputs = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, abstract_images(64, 64))
    assert set(outputs) == {'logits'}


def test_variables_are_parameters_and_running_statistics():
    variables = abstract_variables(create_model('atonet', 19))
    assert set(variables) == {'params', 'batch_stats'}
    modules = {'stem', 'layer1', 'layer2', 'layer3', 'layer4', 'spp', 'up1', 'up2', 'up3', 'up4', 'up5'}
    assert set(variables['params']) == modules | {'head', 'aux3', 'aux4', 'aux5'}
    assert set(variables['batch_stats']) == modules | {'head', 'aux3', 'aux4', 'aux5'}


def test_bfloat16_computes_all_but_the_logits_and_stores_nothing():
    model = create_model('atonet', 19, dtype=jnp.bfloat16)
    variables, images = abstract_variables(model), abstract_images(64, 64)
    assert {array.dtype for array in jax.tree.leaves(variables)} == {np.dtype(np.float32)}

    with fast_paths(False):  # whose choices by platform show each convolution twice
        program, outputs = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False), return_shape=True)(
            variables, images
        )
    assert outputs['logits'].dtype == np.float32
    in_float32 = [c for c in convolutions(program.jaxpr) if c.outvars[0].aval.dtype != jnp.bfloat16]
    assert [c.outvars[0].aval.shape for c in in_float32] == [outputs['logits'].shape]


@pytest.mark.parametrize(
    ('size', 'grids'),
    [
        ((1024, 2048), [(8, 16), (4, 8), (2, 4)]),
        ((720, 960), [(8, 10), (4, 5), (2, 3)]),  # of a map of 23 x 30
        ((180, 240), [(8, 11), (4, 5), (2, 3)]),  # of 6 x 8, which the first exceeds
        ((1024, 128), [(8, 1), (4, 1), (2, 1)]),
    ],
)
def test_spp_grids_have_square_cells(size, grids):
    model = create_model('atonet', 19)
    _, updates = jax.eval_shape(
        lambda variables, images: model.apply(
            variables, images, train=False, capture_intermediates=True, mutable=['intermediates']
        ),
        abstract_variables(model),
        abstract_images(*size),
    )
    spp = updates['intermediates']['spp']
    assert [spp[f'pool{i}']['__call__'][0].shape[1:3] for i in range(3)] == grids


def test_relu_is_left_out_before_sums_alone(layer_outputs):
    before_sums = {f'up{level}' for level in LEVELS}
    before_sums |= {f'layer{stage}/block{block}/conv2' for stage in (1, 2, 3, 4) for block in (0, 1)}
    before_sums |= {f'layer{stage}/block0/shortcut' for stage in (2, 3, 4)}
    assert {path for path, output in layer_outputs.items() if (output < 0).any()} == before_sums


def test_dropout_zeroes_whole_feature_maps_at_a_rate_of_a_tenth(layer_outputs):
    before, after = layer_outputs['head/seg'], layer_outputs['head/Dropout_0']
    dropped = (after == 0).all((1, 2))
    assert 0 < dropped.mean() < 0.3
    expected = np.where(dropped[:, None, None], 0, before / 0.9)
    np.testing.assert_allclose(after, expected, atol=3e-7 * expected.max())  # two fusions compute it


def test_kernels_start_as_torch_and_torchvision_draw_them(tiny_variables):
    """Normal by fan-out in the ResNet, uniform by fan-in in the rest."""
    kernels = {path: k for path, k in flatten_dict(tiny_variables['params']).items() if path[-1] == 'kernel'}
    for path, kernel in kernels.items():
        *window, inputs, outputs = kernel.shape
        if path[0].startswith(('stem', 'layer')):
            deviation = np.sqrt(2 / (np.prod(window) * outputs))
            assert abs(kernel).max() > 2 * deviation, path
        else:
            bound = 1 / np.sqrt(np.prod(window) * inputs)
            deviation = bound / np.sqrt(3)
            assert abs(kernel).max() <= bound, path
        assert np.std(kernel) / deviation == pytest.approx(1, abs=4 / np.sqrt(2 * kernel.size)), path


def test_biases_start_within_torchs_bound(tiny_variables):
    biases = [
        bias
        for path, bias in flatten_dict(tiny_variables['params']).items()
        if path[-2:] == ('conv', 'bias') and 'classifier' in path
    ]
    bound = 1 / np.sqrt(16)
    largest = max(abs(bias).max() for bias in biases)
    assert len(biases) == 4
    assert 0.5 * bound < largest <= bound


def test_unknown_network_is_refused():
    with pytest.raises(ValueError, match="name='atonot': must be one of atonet"):
        create_model('atonot', 19)
