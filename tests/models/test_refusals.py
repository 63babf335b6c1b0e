"""Networks, files and sizes that do not go together end in one line that says what to do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from atonet_jax import identification, ops
from atonet_jax.config import default_config
from atonet_jax.errors import InputError
from atonet_jax.inference.segmenter import Segmenter
from atonet_jax.models import abstract_variables, apply, create_model, registry
from atonet_jax.models.blocks import Classifier, Conv
from atonet_jax.models.contract import Family, Network, Published, Rule, WeightNames
from atonet_jax.models.terms import Term
from atonet_jax.published_weights import load_network
from atonet_jax.torch_files import write_state_dict
from atonet_jax.torch_weights import to_torch
from atonet_jax.training.train import train


class Plain(nn.Module):
    """A convolution and a classifier at an eighth of the image's size. In training they give `heads` as well."""

    num_classes: int
    width: int = 4
    named_as: str = 'first'
    heads: tuple[str, ...] = ()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        x = Conv(self.width, 8, stride=8, padding=0, name='features')(images)
        heads = self.heads if train else ()
        return {head: Classifier(self.num_classes, name=head)(x) for head in ('logits', *heads)}


def describe(model: Plain) -> Network:
    names = WeightNames((Rule('features', f'{model.named_as}.0'), Rule(r'(\w+)/conv', rf'{model.named_as}.\1')))
    return Network(
        terms=(Term('logits'), Term('edges')) if model.width == 3 else (Term('logits'),),
        published=Published('Plain', 'none'),
        training_only=model.heads,
        multiple_of=8,
        smallest=16,
        weights=(names,),
    )


@pytest.fixture(autouse=True)
def plain_networks(monkeypatch):
    """Registers two variants of `Plain`, whose files have other names."""
    variants = {'plain_a': {}, 'plain_b': {'named_as': 'second'}}
    monkeypatch.setattr(registry, 'FAMILIES', [*registry.FAMILIES, Family(Plain, describe, variants)])
    monkeypatch.setattr(identification, 'MODEL_NAMES', (*identification.MODEL_NAMES, *variants))


def blank(model):
    return jax.tree.map(lambda array: np.zeros(array.shape, array.dtype), abstract_variables(model))


@pytest.fixture
def file_of(tmp_path):
    """(network) -> the path of a file of it."""

    def write(model):
        path = str(tmp_path / 'weights.pth')
        write_state_dict(path, to_torch(blank(model), model))
        return path

    return write


def one_line(error, *texts):
    message = str(error.value)
    assert '\n' not in message
    for text in texts:
        assert text in message, message


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'heads': ('aux',)}, "loss terms: none takes the training output 'aux'; declare a Term('aux', ...)"),
        ({'width': 3}, "loss terms: the network has no training output 'edges'; it has logits"),
    ],
)
def test_outputs_and_terms_that_do_not_go_together_are_named_before_any_data_is_read(tmp_path, options, said):
    config = default_config('plain_a')
    config.model.update(options)
    config.data.root = str(tmp_path / 'nothing')
    with pytest.raises(InputError) as error:
        train(config, str(tmp_path / 'run'))
    one_line(error, said)


@pytest.mark.parametrize('num_classes', [0, 256, '19', 2.5])
def test_a_number_of_classes_that_labels_cannot_hold_is_refused(num_classes):
    """Labels are uint8, and 255 is no class: those of more classes would be other classes."""
    with pytest.raises(ValueError, match='num_classes=.*: must be a whole number from 1 to 255'):
        create_model('plain_a', num_classes)
    assert create_model('plain_a', np.int64(255)).num_classes == 255


def test_a_file_of_another_network_is_named(file_of):
    path = file_of(create_model('plain_a', 5))
    with pytest.raises(InputError) as error:
        load_network(path, create_model('pidnet_s', 5, width=4))
    one_line(error, path, 'holds another network, plain_a; give --config=FILE:plain_a')


def test_a_file_of_another_variant_is_named(file_of):
    path = file_of(create_model('plain_b', 5))
    with pytest.raises(InputError) as error:
        load_network(path, create_model('plain_a', 5))
    one_line(error, path, 'holds another network, plain_b; give --config=FILE:plain_b')
    load_network(path, create_model('plain_b', 5))


def test_a_file_of_another_width_says_what_does_not_fit(file_of):
    with pytest.raises(InputError) as error:
        load_network(file_of(create_model('plain_a', 5, width=8)), create_model('plain_a', 5))
    one_line(error, 'does not fit the network', 'misshapen: first.0.weight is 8x3x8x8, not 4x3x8x8')
    assert 'init_strict' not in str(error.value)


def test_a_file_of_other_classes_says_how_to_take_the_rest(file_of):
    path, model = file_of(create_model('plain_a', 7)), create_model('plain_a', 5)
    said = 'has 7 outputs, but there are 5 classes; give the data that it is for'
    with pytest.raises(InputError) as error:
        load_network(path, model, fresh=blank(model))
    one_line(error, f'{said}; --config.init_strict=false leaves such layers fresh')
    with pytest.raises(InputError, match=f'{said}$'):  # where nothing is trained
        load_network(path, model)
    loaded = load_network(path, model, fresh=blank(model), strict=False)
    assert loaded['params']['logits']['conv']['kernel'].shape == (1, 1, 4, 5)


def test_a_size_that_is_too_small_is_said_with_the_nearest_that_works():
    model = create_model('plain_a', 5)
    with pytest.raises(InputError) as error:
        Segmenter(model, blank(model))(np.zeros((1, 9, 40, 3), np.uint8))
    one_line(error, 'images of 9x40: Plain takes heights and widths from 16 pixels on; the nearest size is 16x40')


def test_other_sizes_are_padded_with_zeros_and_the_outputs_cut_back():
    model, generator = create_model('plain_a', 5), np.random.default_rng(0)
    variables = jax.tree.map(lambda a: generator.normal(size=a.shape).astype(np.float32), abstract_variables(model))
    images = generator.normal(size=(2, 33, 46, 3)).astype(np.float32)
    padded = np.zeros((2, 40, 48, 3), np.float32)
    padded[:, :33, :46] = images
    expected = ops.resize_bilinear(model.apply(variables, padded, train=False)['logits'], (40, 48))[:, :33, :46]
    logits = apply(model, variables, images)['logits']
    assert logits.shape == (2, 33, 46, 5)  # at full size, as no pixel of the network's ends at the border
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    assert apply(model, variables, images[:, :32, :40])['logits'].shape == (2, 4, 5, 5)


def test_a_contract_whose_outputs_lie_in_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="^upsampling='nearest': must be one of half_pixel, align_corners$"):
        dataclasses.replace(describe(Plain(3)), upsampling='nearest')
