"""SwiftNet on a pyramid of images shrinks images, starts and trains as the authors' code does, in both its forms."""

import jax
import numpy as np
import PIL.Image
import pytest
from flax.traverse_util import flatten_dict

from atonet_jax.models import abstract_variables, create_model, network
from atonet_jax.models.contract import IMAGENET
from atonet_jax.models.swiftnet_pyramid import shrink
from atonet_jax.models.terms import BoundaryWeightedCrossEntropy, CrossEntropy, Term
from atonet_jax.torch_weights import backbone_from_torch, to_torch
from tests.models import golden

pytestmark = pytest.mark.networks

NAMES = ['swiftnet_pyr_2019', 'swiftnet_pyr_2020']


@pytest.mark.parametrize('name', NAMES)
def test_a_backbone_that_is_published_alone_starts_every_level(name):
    model = create_model(name, 5, width=8, backbone_width=4)
    zeros = jax.tree.map(lambda array: np.zeros(array.shape, np.float32), abstract_variables(model))
    single = create_model('swiftnet_ss', 5, width=8, backbone_width=4)
    ones = jax.tree.map(lambda array: np.ones(array.shape, np.float32), abstract_variables(single))
    file = {
        name.removeprefix('backbone.'): array
        for name, array in to_torch(ones, single).items()
        if name.startswith(('backbone.conv1', 'backbone.bn1', 'backbone.layer'))
    }
    for path, array in flatten_dict(backbone_from_torch(file, model, zeros), sep='/').items():
        assert np.all(array == path.split('/')[1].startswith(('stem', 'layer'))), path


@pytest.mark.parametrize(
    ('name', 'num_classes', 'options', 'size', 'parameters', 'macs'),
    [
        ('swiftnet_pyr_2019', 19, {'levels': 3}, (1024, 2048), 13_045_056, 151_882_039_296),
        ('swiftnet_pyr_2019', 11, {}, (720, 960), 12_888_128, 47_974_871_040),
        ('swiftnet_pyr_2020', 11, {}, (720, 960), 12_055_243, 42_545_697_792),
    ],
)
def test_counts_are_the_published_ones(name, num_classes, options, size, parameters, macs):
    golden.assert_counts(name, num_classes, size, parameters, macs, **options)


@pytest.mark.parametrize('level', [1, 2])
def test_the_form_of_2019_shrinks_images_as_pillow_does(level):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    size = 36 // 2**level, 24 // 2**level
    expected = np.asarray(PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.BICUBIC))
    shrunk = jax.jit(lambda pixels: IMAGENET.inverse(shrink(IMAGENET(pixels), level, '2019')))(pixels[None])
    np.testing.assert_allclose(shrunk[0], expected, atol=1e-3)


def test_the_forms_have_their_own_loss_and_sizes():
    first, second = (network(name) for name in NAMES)
    assert first.terms == (Term('logits', criterion=CrossEntropy()),)
    assert second.terms == (Term('logits', criterion=BoundaryWeightedCrossEntropy()),)
    assert (first.multiple_of, second.multiple_of) == (2, 4)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'form': '2021'}, "form='2021': must be one of 2019, 2020"),
        ({'levels': 0}, 'levels=0: must be greater than 0'),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        create_model('swiftnet_pyr', 19, **options)
