"""ESPNet and ESPNet-C have the authors' counts, files and loss, with both decoders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from atonet_jax.errors import InputError
from atonet_jax.models import abstract_variables, apply, create_model, network
from atonet_jax.models.counts import count_macs, count_parameters
from atonet_jax.models.espnet import Pyramid
from atonet_jax.models.terms import Term
from atonet_jax.published_weights import load_backbone, load_network
from atonet_jax.torch_files import write_state_dict
from atonet_jax.torch_weights import backbone_from_torch, class_layers, from_torch, to_torch

pytestmark = pytest.mark.networks

NAMES = ['espnet', 'espnet_camvid', 'espnet_c']


def filled(name, value, num_classes=5):
    model = create_model(name, num_classes, width=4)
    variables = abstract_variables(model)
    return model, jax.tree.map(lambda array: np.full(array.shape, value, np.float32), variables)


def test_a_file_of_the_other_decoder_is_refused():
    model, variables = filled('espnet', 1)
    with pytest.raises(InputError, match=r'1 misshapen: conv\.conv\.weight is 5x9x3x3, not 5x12x3x3'):
        from_torch(to_torch(variables, model), model.clone(form='camvid'))


def test_the_second_step_starts_on_the_encoder_of_the_first():
    first, ones = filled('espnet_c', 1)
    second, zeros = filled('espnet', 0)
    params = backbone_from_torch(to_torch(ones, first), second, zeros)['params']
    found = {name: {float(array.min()) for array in jax.tree.leaves(layer)} for name, layer in params.items()}
    assert found == {name: {1.0 if name in ones['params'] else 0.0} for name in params}
    assert set(ones['params']) < set(params)


def test_an_encoder_for_other_classes_starts_all_but_its_own_logits_if_asked(tmp_path):
    """The authors' has 20 outputs."""
    first, ones = filled('espnet_c', 1)
    path = str(tmp_path / 'encoder.pth')
    write_state_dict(path, to_torch(ones, first))
    second = create_model('espnet', 6, width=4)
    zeros = jax.tree.map(lambda array: np.zeros(array.shape, np.float32), abstract_variables(second))
    with pytest.raises(InputError, match=r'is 5x.*, not 6x.*pretrained_strict=false starts such parts fresh$'):
        load_backbone(path, second, zeros)
    loaded, fresh = load_backbone(path, second, zeros, strict=False)
    assert fresh == ('encoder_classifier',)
    for name, layer in loaded['params'].items():
        is_loaded = name in ones['params'] and name not in fresh
        assert {float(array.min()) for array in jax.tree.leaves(layer)} == {float(is_loaded)}, name


def test_a_network_for_other_classes_starts_all_but_what_depends_on_them(tmp_path):
    """A fifth of the classes too: two channels of 11 and of 12, four of 20."""
    twenty, ones = filled('espnet', 1, 20)
    path = str(tmp_path / 'espnet.pth')
    write_state_dict(path, to_torch(ones, twenty))
    eleven, zeros = filled('espnet', 0, 11)
    with pytest.raises(InputError, match='has 20 outputs.*but there are 11 classes.*init_strict=false'):
        load_network(path, eleven, fresh=zeros)
    loaded = load_network(path, eleven, fresh=zeros, strict=False)
    for where, array in flatten_dict(loaded, sep='/').items():
        assert {float(array.min())} == {float(where not in class_layers(eleven))}, where


def test_the_encoder_is_the_backbone_and_the_encoders_own_logits_are_its_head():
    groups = {
        name: {network(model).in_backbone((layer, 'kernel')) for layer in abstract_variables(model)['params']}
        for name, model in ((name, create_model(name, 19)) for name in NAMES)
    }
    assert groups == dict.fromkeys(NAMES, {True, False})
    whole, encoder = (network(create_model(name, 19)).in_backbone for name in ('espnet', 'espnet_c'))
    assert [whole(('encoder_classifier', 'kernel')), encoder(('encoder_classifier', 'kernel'))] == [True, False]
    assert not whole(('classifier', 'transposed_kernel'))


@pytest.mark.parametrize(
    ('name', 'num_classes', 'options', 'parameters'),
    [
        ('espnet', 20, {}, 364_569),
        ('espnet', 20, {'blocks': (2, 3)}, 202_649),
        ('espnet', 20, {'blocks': (2, 5)}, 267_417),
        ('espnet_camvid', 12, {}, 354_517),
        ('espnet_camvid', 20, {}, 365_109),
        ('espnet_c', 20, {}, 349_449),
        ('espnet_c', 12, {}, 347_401),
        ('espnet_c', 20, {'blocks': (2, 3)}, 187_529),
    ],
)
def test_parameters_are_those_of_the_authors_code(name, num_classes, options, parameters):
    assert count_parameters(create_model(name, num_classes, **options))['parameters'] == parameters


@pytest.mark.parametrize(
    ('name', 'num_classes', 'size', 'giga_macs'),
    [
        ('espnet', 20, (512, 1024), 4.709),
        ('espnet_camvid', 12, (360, 480), 1.335),
        ('espnet_c', 20, (512, 1024), 3.470),
    ],
)
def test_macs_are_those_of_the_authors_code(name, num_classes, size, giga_macs):
    assert count_macs(create_model(name, num_classes), size) / 1e9 == pytest.approx(giga_macs, abs=5e-4)


def test_the_loss_and_the_way_to_the_images_size_are_the_authors():
    terms = {name: network(name).terms for name in NAMES}
    assert terms['espnet'] == terms['espnet_camvid'] == (Term('logits'),)
    assert terms['espnet_c'] == (Term('logits', at='output'),)
    assert network('espnet_c').upsampling == 'align_corners'


def test_encoder_alone_takes_any_size():
    model = create_model('espnet_c', 5, width=4)
    for size, wanted in {(1, 1): (1, 1), (45, 59): (6, 8)}.items():
        images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
        outputs = jax.eval_shape(lambda v, x: apply(model, v, x), abstract_variables(model), images)
        assert outputs['logits'].shape == (1, *wanted, 5)


def test_the_pyramid_adds_up_all_dilations_but_the_first():
    pyramid = Pyramid(11)
    x = np.ones((1, 1, 1, 2), np.float32)
    params = pyramid.init(jax.random.key(0), x)['params']
    params = {name: {'kernel': jnp.full_like(conv['kernel'], int(name[1:]))} for name, conv in params.items()}
    sums = [2.0, 2.0, 2.0, 4.0, 4.0, 12.0, 12.0, 28.0, 28.0, 60.0, 60.0]  # 3 channels of the first, 2 of the others
    assert pyramid.apply({'params': params}, x).ravel().tolist() == sums


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'form': 'paper'}, "form='paper': must be one of cityscapes, camvid, encoder"),
        ({'num_classes': 4}, "num_classes=4: must be 5 or more; form='encoder' takes fewer"),
        ({'width': 1}, 'width=1: must be 2 or more'),
        ({'blocks': (2, -1)}, r'blocks=\(2, -1\): must be two numbers, 0 or more'),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        create_model('espnet', **{'num_classes': 19} | options)
