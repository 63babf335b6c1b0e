"""BiSeNet is the authors' network on both backbones: their outputs, counts, names and loss. The port has its counts."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from atonet_jax.models import abstract_variables, create_model, init_variables, network
from atonet_jax.models.terms import HardExampleShare
from atonet_jax.torch_weights import from_torch, to_torch
from tests.models import golden as goldens

pytestmark = pytest.mark.networks


@pytest.fixture(scope='module', params=['bisenet_r18', 'bisenet_x39'])
def published(request):
    return goldens.with_weights(request.param)


def test_training_outputs_are_those_of_the_authors_code(published):
    """Behind batch normalisations of pooled maps, two values a channel."""
    golden, model, variables = published
    outputs, _ = goldens.train_mode(model, variables, golden.inputs['train'])
    assert set(outputs) == {'logits', 'aux_r16', 'aux_r32'}
    for name, output in outputs.items():
        assert golden.outputs[f'train_{name}'].error(output) <= goldens.ALLOWED, name


def test_files_may_lack_the_heads_of_training(published):
    golden, model, variables = published
    kept = {name: array for name, array in golden.state_dict.items() if not name.startswith(('heads.0', 'heads.1'))}
    assert set(variables['params']) - set(from_torch(kept, model)['params']) == {'aux_r16', 'aux_r32'}


@pytest.mark.parametrize(
    ('name', 'num_classes', 'parameters'),
    [
        ('bisenet_r18', 19, 13_194_489),
        ('bisenet_r18', 11, 13_191_905),
        ('bisenet_x39', 19, 1_842_289),
        ('bisenet_coincheung', 19, 13_425_721),
    ],
)
def test_parameters_with_the_heads_of_training_are_the_published_ones(name, num_classes, parameters):
    trained = abstract_variables(create_model(name, num_classes))['params']
    assert sum(array.size for array in jax.tree.leaves(trained)) == parameters


def test_counts_of_11_classes_are_the_published_ones():
    goldens.assert_counts('bisenet_r18', 11, (720, 960), 12_893_643, 34_315_437_056)


def test_the_loss_is_over_hard_pixels_of_three_outputs_at_full_size():
    for name, upsampling in [('bisenet_x39', 'align_corners'), ('bisenet_coincheung', 'half_pixel')]:
        contract = network(name)
        assert [term.output for term in contract.terms] == ['logits', 'aux_r16', 'aux_r32']
        assert {(term.weight, term.criterion) for term in contract.terms} == {(1.0, HardExampleShare(0.7, 1 / 16))}
        assert {term.at for term in contract.terms} == {'labels'}
        assert contract.upsampling == upsampling


def test_all_but_the_backbone_takes_the_whole_rate_and_of_the_port_fusion_and_heads():
    model = create_model('bisenet_x39', 19)
    contract, modules = network(model), abstract_variables(model)['params']
    backbone = {module for module in modules if contract.in_backbone((module,))}
    assert backbone == {'stem', 'layer1', 'layer2', 'layer3'}
    assert {module for module in modules if contract.reduced((module,))} == backbone
    port = create_model('bisenet_coincheung', 19)
    whole = {module for module in abstract_variables(port)['params'] if not network(port).reduced((module, 'kernel'))}
    assert whole == {'fusion', 'head', 'aux_r16', 'aux_r32'}


@pytest.mark.parametrize(('name', 'variance'), [('bisenet_r18', 2.0), ('bisenet_coincheung', 1.0)])
def test_all_but_the_backbone_starts_as_in_each_code(name, variance):
    """Each kernel has this variance, divided by its fan-in."""
    model = create_model(name, 19, width=16)
    params = flatten_dict(init_variables(model, seed=0)['params'])
    head = {path: array for path, array in params.items() if not network(model).in_backbone(path)}
    for path, kernel in head.items():
        if path[-1] == 'kernel':
            scaled = float(np.mean(np.square(kernel))) * np.prod(kernel.shape[:-1])
            assert scaled == pytest.approx(variance, rel=6 * (2 / kernel.size) ** 0.5), path
    biases = [array for path, array in head.items() if path[-2:] == ('classifier', 'bias')]
    assert len(biases) == 3
    assert [bool(bias.any()) for bias in biases] == 3 * [name == 'bisenet_r18']


def test_the_port_has_its_own_names():
    model = create_model('bisenet_coincheung', 19, width=8)
    names = set(to_torch(jax.tree.map(lambda a: np.zeros(a.shape), abstract_variables(model)), model))
    assert names >= {
        'cp.resnet.layer1.0.conv1.weight',
        'cp.arm32.conv_atten.weight',
        'cp.arm16.bn_atten.running_var',
        'cp.conv_head16.bn.bias',
        'cp.conv_avg.conv.weight',
        'sp.conv_out.conv.weight',
        'ffm.convblk.conv.weight',
        'ffm.conv.weight',
        'ffm.bn.weight',
        'conv_out.conv_out.bias',
        'conv_out32.conv.bn.weight',
    }


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'backbone': 'resnet50'}, "backbone='resnet50': must be one of resnet18, xception39"),
        ({'form': 'paper'}, "form='paper': must be one of torchseg, coincheung"),
        ({'form': 'coincheung', 'backbone': 'xception39'}, "form='coincheung': goes with backbone='resnet18'"),
        ({'backbone': 'xception39', 'width': 12}, 'width=12: must be a multiple of 8'),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        create_model('bisenet', 19, **options)
