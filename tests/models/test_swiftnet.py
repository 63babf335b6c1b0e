"""SwiftNet for a single scale has the authors' counts, loss and buffers, in both its forms."""

import numpy as np
import pytest

from atonet_jax.models import create_model, network
from atonet_jax.models.terms import CrossEntropy, Term
from atonet_jax.torch_weights import from_torch, to_torch
from tests.models import golden

pytestmark = pytest.mark.networks

NAMES = ['swiftnet_ss_2019', 'swiftnet_ss_2020']


@pytest.fixture(scope='module', params=NAMES)
def published(request):
    return golden.with_weights(request.param)


def test_the_buffers_of_the_authors_normalisation_are_passed_over_and_written_in_the_form_of_2020(published):
    expected, model, variables = published
    written = {name: array for name, array in to_torch(variables, model).items() if 'img_' in name}
    assert (model.form == '2020') == bool(written)
    if written:
        np.testing.assert_allclose(written['backbone.img_mean'].ravel(), (73.15, 82.90, 72.3), rtol=1e-6)
        np.testing.assert_allclose(written['backbone.img_std'].ravel(), (47.67, 48.49, 47.73), rtol=1e-6)
        assert {array.shape for array in written.values()} == {(1, 3, 1, 1)}
    from_torch(expected.state_dict | {'backbone.img_mean': np.zeros((1, 3, 1, 1), np.float32)}, model)


@pytest.mark.parametrize(
    ('name', 'parameters', 'macs'),
    [
        ('swiftnet_ss_2019', 11_807_292, 34_704_285_696),
        ('swiftnet_ss_2020', 11_796_039, 34_217_680_896),
    ],
)
def test_counts_of_11_classes_are_those_of_the_authors_code(name, parameters, macs):
    golden.assert_counts(name, 11, (720, 960), parameters, macs)


@pytest.mark.parametrize('name', NAMES)
def test_the_loss_is_the_authors(name):
    assert network(name).terms == (Term('logits', criterion=CrossEntropy()),)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'form': '2021'}, "form='2021': must be one of 2019, 2020"),
        ({'width': 2}, 'width=2: must be 3 or more'),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        create_model('swiftnet_ss', 19, **options)
