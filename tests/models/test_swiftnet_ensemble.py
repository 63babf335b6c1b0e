"""SwiftNet's ensemble averages the probabilities of its two networks, and each trains as it does alone."""

import dataclasses

import jax
import numpy as np
import pytest

from atonet_jax import ops
from atonet_jax.models import apply, create_model, network
from atonet_jax.models.contract import IMAGENET
from atonet_jax.models.counts import count_macs, count_parameters
from atonet_jax.models.swiftnet import CITYSCAPES
from atonet_jax.torch_weights import backbone_from_torch, from_torch, to_torch
from tests.models.test_contract import drawn_variables, tiny, training_options

pytestmark = pytest.mark.networks


@pytest.fixture(scope='module')
def ensemble():
    """The ensemble and its variables."""
    model = tiny('swiftnet_ens')
    return model, drawn_variables(model)


def of_part(variables, part):
    return {collection: tree[part] for collection, tree in variables.items()}


def pixels():
    return np.random.default_rng(0).integers(0, 256, (1, 64, 66, 3)).astype(np.uint8)


def test_logits_are_of_the_average_of_the_probabilities_at_the_images_size(ensemble):
    model, variables = ensemble
    logits = jax.jit(lambda images: apply(model, variables, network(model).normalization(images))['logits'])(pixels())
    assert logits.shape == (1, 64, 66, model.num_classes)

    def probabilities(part, normalization):
        outputs = apply(model.parts()[part], of_part(variables, part), normalization(pixels()))
        return jax.nn.softmax(ops.resize_bilinear(outputs['logits'], (64, 66)))

    average = (probabilities('single', CITYSCAPES) + probabilities('pyramid', IMAGENET)) / 2
    np.testing.assert_allclose(np.exp(logits), average, atol=2e-5)


def test_each_network_has_its_own_training_output_and_loss(ensemble):
    model, variables = ensemble
    alone = network('swiftnet_ss_2020').terms, network('swiftnet_pyr_2019').terms
    assert network(model).terms == (alone[0][0], dataclasses.replace(alone[1][0], output='pyramid'))
    images = IMAGENET(pixels())
    options = training_options(variables)
    outputs, _ = jax.eval_shape(lambda v, x: apply(model, v, x, **options), variables, images)
    assert {name: output.shape for name, output in outputs.items()} == {
        'logits': (1, 16, 17, model.num_classes),
        'pyramid': (1, 16, 17, model.num_classes),
    }


def test_the_files_of_both_networks_are_one_file_of_the_ensemble(ensemble):
    model, variables = ensemble
    merged = {
        f'{part}.{name}': array
        for part, alone in model.parts().items()
        for name, array in to_torch(of_part(variables, part), alone).items()
    }
    assert set(merged) == set(to_torch(variables, model))
    jax.tree.map(np.testing.assert_array_equal, from_torch(merged, model), variables)


def test_a_backbone_goes_into_both(ensemble):
    model, variables = ensemble
    single = to_torch(of_part(variables, 'single'), model.parts()['single'])
    backbone = {
        name.removeprefix('backbone.'): array + 1
        for name, array in single.items()
        if name.startswith(('backbone.conv1', 'backbone.bn1', 'backbone.layer'))
    }
    loaded = backbone_from_torch(backbone, model, variables)['params']
    kernel = backbone['conv1.weight'].transpose(2, 3, 1, 0)
    for part in ('single', 'pyramid'):
        np.testing.assert_array_equal(loaded[part]['stem']['conv']['kernel'], kernel)


def test_counts_are_the_sums_of_both():
    model, published = create_model('swiftnet_ens', 19), network('swiftnet_ens').published
    assert count_parameters(model)['parameters'] == published.parameters == 24_694_415
    assert count_macs(model, (1024, 2048)) == published.macs[1] == 103_566_133_248 + 145_936_613_376


@pytest.mark.parametrize(
    ('options', 'message'),
    [({'single_form': '2021'}, "single_form='2021': must be one of 2019, 2020"), ({'levels': 0}, 'levels=0: must be')],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        create_model('swiftnet_ens', 19, **options)
