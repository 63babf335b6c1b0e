"""FRRN A and B have the published counts, the authors' loss, and the original enlargement."""

import numpy as np
import pytest

from atonet_jax.models import create_model, network
from atonet_jax.models.frrn import enlarge_as_original
from atonet_jax.models.terms import BootstrappedCrossEntropy, Term
from tests.models import golden

pytestmark = pytest.mark.networks


@pytest.mark.parametrize(
    ('name', 'size', 'parameters', 'macs'),
    [
        ('frrn_a', (720, 960), 17_746_411, 648_887_500_800),
        ('frrn_b', (704, 960), 24_755_307, 639_333_826_560),
    ],
)
def test_counts_of_11_classes_are_those_of_the_definition(name, size, parameters, macs):
    golden.assert_counts(name, 11, size, parameters, macs)


def test_loss_and_sizes_are_the_authors():
    for name, multiple_of in (('frrn_a', 16), ('frrn_b', 32)):
        contract = network(name)
        assert contract.terms == (Term('logits', criterion=BootstrappedCrossEntropy(count=32_768)),)
        assert contract.multiple_of == multiple_of


def test_the_original_enlargement_keeps_pixels_and_puts_means_between_them():
    line = np.array([1, 3, 7], np.float32)
    enlarged = [1, 2, 3, 5, 7, 7]
    x = line[None, :, None, None] + 10 * line[None, None, :, None]
    expected = np.add.outer(enlarged, 10 * np.array(enlarged))
    np.testing.assert_array_equal(enlarge_as_original(x)[0, :, :, 0], expected)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'form': 'c'}, "form='c': must be one of a, b"),
        ({'upsampling': 'nearest'}, "upsampling='nearest': must be one of half_pixel, original"),
        ({'lanes': 0}, 'lanes=0: must be greater than 0'),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        create_model('frrn', 19, **options)
