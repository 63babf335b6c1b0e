"""DeepLab-LargeFOV trains as its authors train it, takes VGG16's convolutions, and has Caffe's sizes if asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atonet_jax.models import abstract_variables, apply, create_model, network
from atonet_jax.models.terms import CrossEntropy, Term
from atonet_jax.torch_weights import backbone_from_torch
from tests.models import golden

pytestmark = pytest.mark.networks

NAME = 'deeplab_largefov'


@pytest.fixture(scope='module')
def published():
    return golden.with_weights(NAME)


def test_training_without_dropout_is_inference(published):
    expected, model, variables = published
    outputs, statistics = golden.train_mode(model, variables, expected.inputs['45x59'])
    assert not statistics
    assert expected.outputs['logits_stride8_45x59'].error(outputs['logits'][0]) <= golden.ALLOWED


def test_the_convolutions_of_torchvisions_vgg16_are_taken(published):
    expected, model, variables = published
    vgg = {name: array for name, array in expected.state_dict.items() if int(name.split('.')[1]) < 30}
    zeros = jax.tree.map(np.zeros_like, variables)
    loaded = backbone_from_torch(vgg | {'classifier.0.weight': np.zeros((1, 1))}, model, zeros)['params']
    for name, module in variables['params'].items():
        is_backbone = network(model).in_backbone((name, 'kernel'))
        assert is_backbone == (not name.startswith('fc'))
        jax.tree.map(np.testing.assert_array_equal, loaded[name], module if is_backbone else zeros['params'][name])


@pytest.mark.parametrize(
    ('num_classes', 'size', 'options', 'parameters', 'macs'),
    [
        (19, (512, 1024), {'caffe_sizes': True}, 20_503_379, 255_606_205_440),
        (11, (720, 960), {'caffe_sizes': True}, 20_495_179, 335_909_643_264),
        (11, (360, 480), {'caffe_sizes': True}, 20_495_179, 85_178_640_384),
    ],
)
def test_counts_are_those_of_the_authors_definition(num_classes, size, options, parameters, macs):
    golden.assert_counts(NAME, num_classes, size, parameters, macs, **options)


def test_sizes_are_those_of_caffe_where_asked():
    for caffe_sizes, wanted in ((False, {321: 41, 512: 64, 360: 45}), (True, {321: 41, 512: 65, 360: 46})):
        model = create_model(NAME, 2, width=2, fc_features=4, caffe_sizes=caffe_sizes)
        for side, expected in wanted.items():
            images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
            outputs = jax.eval_shape(lambda v, x, m=model: apply(m, v, x), abstract_variables(model), images)
            assert outputs['logits'].shape == (1, expected, expected, 2)


def test_the_loss_is_the_authors_and_fc8_alone_learns_fast():
    contract = network(NAME)
    assert contract.terms == (Term('logits', criterion=CrossEntropy(), at='output'),)
    layers = abstract_variables(create_model(NAME, 2, width=2, fc_features=4))['params']
    assert {layer for layer in layers if not contract.reduced((layer, 'kernel'))} == {'fc8'}


def test_the_way_to_the_images_size_is_that_of_the_weights():
    plain, caffe = (network(create_model(NAME, 2, caffe_sizes=on)) for on in (False, True))
    assert (plain.upsampling, caffe.upsampling) == ('half_pixel', 'align_corners')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'dropout_rate': 1.0}, 'dropout_rate=1.0: must be from 0 to below 1'),
        ({'fc_features': 0}, 'fc_features=0: must be greater than 0'),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        create_model(NAME, 19, **options)
