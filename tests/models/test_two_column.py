"""The sparse two-column network does what its file says: no other code has it. It is said to be ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from atonet_jax import ops
from atonet_jax.models import abstract_variables, apply, create_model, network
from atonet_jax.models.counts import count_macs, count_parameters
from atonet_jax.models.terms import ExcessMean, Term
from atonet_jax.models.two_column import crop_cells, from_cells, largest, to_cells
from atonet_jax.torch_weights import backbone_from_torch, from_torch, to_torch
from atonet_jax.training.losses import total_loss

pytestmark = pytest.mark.networks

CLASSES = 3


def tiny(**options):
    return create_model('sparse_two_column', CLASSES, width=4, **options)


@pytest.fixture(scope='module')
def variables():
    generator = np.random.default_rng(0)

    def draw(path, array):
        if path[-1].key == 'kernel':
            return generator.normal(0, np.sqrt(2 / np.prod(array.shape[:-1])), array.shape).astype(np.float32)
        low, high = {'scale': (0.8, 1.2), 'var': (0.5, 1.5)}.get(path[-1].key, (-0.1, 0.1))
        return generator.uniform(low, high, array.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_variables(tiny()))


@pytest.fixture(scope='module')
def images():
    """Of two cells by one."""
    return np.random.default_rng(1).normal(size=(2, 256, 128, 3)).astype(np.float32)


def logits_of(model, variables, images):
    return np.asarray(jax.jit(lambda v, x: apply(model, v, x)['logits'])(variables, images))


@pytest.fixture(scope='module')
def dense(variables, images):
    return logits_of(tiny(form='dense'), variables, images)


@pytest.mark.parametrize(
    ('form', 'num_classes', 'size', 'parameters', 'giga_macs'),
    [
        ('dense', 19, (1024, 2048), 3_506_343, 73.34),
        ('sparse', 19, (512, 1024), 3_506_343, 11.34),
        ('dense', 19, (512, 1024), 3_506_343, 19.37),
        ('sparse', 11, (720, 960), 3_503_255, 17.00),
        ('dense', 11, (720, 960), 3_503_255, 28.34),
    ],
)
def test_counts_are_those_of_the_design(form, num_classes, size, parameters, giga_macs):
    model = create_model('sparse_two_column', num_classes, form=form)
    macs, published = count_macs(model, size), network(model).published
    assert count_parameters(model)['parameters'] == parameters
    assert macs / 1e9 == pytest.approx(giga_macs, abs=5e-3)
    if size == (1024, 2048):
        assert (published.parameters, published.macs) == (parameters, (size, macs))


def test_it_is_said_to_be_ours_wherever_it_is_shown(repository):
    published = network('sparse_two_column').published
    assert 'ours' in published.title
    assert 'our own design' in published.source and 'not their network' in published.source
    page = (repository / 'docs' / 'networks.md').read_text()
    assert 'no reproduction' in next(line for line in page.splitlines() if '`sparse_two_column`' in line)


def test_all_cells_with_a_margin_beyond_the_receptive_field_are_the_whole_image(variables, images, dense):
    model = tiny(share=1.0, margin=64)
    np.testing.assert_allclose(logits_of(model, variables, images), dense, atol=1e-4 * np.ptp(dense))


def test_the_cell_with_the_higher_gate_is_refined_and_the_other_one_keeps_its_coarse_scores(variables, images, dense):
    outputs, _ = jax.jit(lambda v, x: apply(tiny(), v, x, train=True, mutable=['batch_stats']))(variables, images)
    assert outputs['coarse'].shape == (2, 16, 8, CLASSES) and outputs['gate'].shape == (2, 16, 8, 1)

    def with_coarse(model, variables, images):
        logits, state = model.apply(variables, images, train=False, capture_intermediates=True)
        return logits['logits'], state['intermediates']

    logits, maps = jax.jit(lambda v, x: with_coarse(tiny(share=0.5), v, x))(variables, images)
    coarse = ops.resize_bilinear(maps['coarse_score']['__call__'][0], (32, 16))
    gates = to_cells(jax.nn.sigmoid(maps['gate']['__call__'][0]), 8).mean((2, 3, 4))
    assert gates.shape == (2, 2)
    for image, best in enumerate(np.argmax(gates, 1)):
        cells, of_coarse, of_dense = (to_cells(x, 16)[image] for x in (logits, coarse, dense))
        np.testing.assert_array_equal(cells[1 - best], of_coarse[1 - best])
        assert np.abs(cells[best] - of_coarse[best]).max() > 0.1
        np.testing.assert_allclose(cells[best], of_dense[best], atol=0.02 * np.ptp(dense))  # but for the margin's end


def test_logits_are_those_of_the_padded_image_cut_where_no_pixel_of_theirs_ends_at_the_border(variables):
    images = np.random.default_rng(3).normal(size=(1, 116, 90, 3)).astype(np.float32)
    padded = np.pad(images, ((0, 0), (0, 12), (0, 38), (0, 0)))
    expected = ops.resize_bilinear(tiny().apply(variables, padded, train=False)['logits'], (128, 128))[:, :116, :90]
    logits = ops.resize(jnp.asarray(logits_of(tiny(), variables, images)), (116, 90), network(tiny()).upsampling)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.ptp(expected))
    assert logits_of(tiny(), variables, images[:, :112, :88]).shape == (1, 14, 11, CLASSES)  # where one does, small


def test_the_share_of_cells_is_rounded_up():
    images = jax.ShapeDtypeStruct((1, 3 * 128, 3 * 128, 3), jnp.float32)
    variables = abstract_variables(tiny())
    for share, cells in ((1 / 9, 1), (3 / 16, 2), (1 / 3, 3), (1.0, 9)):
        program = jax.make_jaxpr(lambda v, x, s=share: apply(tiny(share=s), v, x))(variables, images)
        assert f'f32[{cells},192,192,3]' in str(program), share


def test_places_are_those_of_top_k_also_where_gates_are_equal():
    scores = np.random.default_rng(0).integers(0, 4, (3, 11)).astype(np.float32)
    for count in (1, 4, 11):
        np.testing.assert_array_equal(largest(scores, count), jax.lax.top_k(scores, count)[1])


@pytest.mark.parametrize('margin', [8, 32, 128])
def test_crops_are_cells_with_their_margins(margin):
    images = np.random.default_rng(0).normal(size=(2, 256, 384, 1)).astype(np.float32)
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    places, side = np.array([[5, 0], [1, 3]], np.int32), 128 + 2 * margin
    crops = crop_cells(jnp.asarray(padded), jnp.asarray(places), margin)
    for image in range(2):
        for k, place in enumerate(places[image]):
            row, column = 128 * (place // 3), 128 * (place % 3)
            np.testing.assert_array_equal(crops[image, k], padded[image, row : row + side, column : column + side])
    np.testing.assert_array_equal(from_cells(to_cells(images, 32), (256, 384)), images)


def test_the_second_training_leaves_the_fine_columns_statistics_alone_and_teaches_the_gate(variables, images):
    model = tiny(train_form='sparse')

    def loss(params):
        state = {**variables, 'params': params}
        outputs, changed = apply(model, state, images, train=True, mutable=['batch_stats'])
        return jnp.sum(outputs['logits'] ** 2), changed['batch_stats']

    gradients, statistics = jax.jit(jax.grad(loss, has_aux=True))(variables['params'])
    changes = jax.tree.map(lambda a, b: bool(np.any(a != b)), dict(statistics), variables['batch_stats'])
    changed = {path[0]: is_changed for path, is_changed in flatten_dict(changes).items()}
    assert changed == {'coarse': True, 'fine': False}
    for module in ('gate', 'fine', 'cross', 'fine_score', 'coarse_score'):
        assert all(np.any(gradient) for gradient in jax.tree.leaves(gradients[module])), module


def test_the_loss_counts_the_gates_mean_above_the_share():
    terms = network(tiny(share=0.25)).terms
    assert terms == (Term('logits'), Term('coarse'), Term('gate', target='nothing', criterion=ExcessMean(0.25)))
    labels = np.zeros((1, 8, 8), np.uint8)
    outputs = {'logits': jnp.zeros((1, 2, 2, CLASSES)), 'coarse': jnp.zeros((1, 1, 1, CLASSES))}
    for gate, excess in ((0.75, 0.5), (0.25, 0.0), (0.125, 0.0)):
        loss, values = total_loss(outputs | {'gate': jnp.full((1, 1, 1, 1), gate)}, labels, terms)
        assert values['gate_loss'] == excess
        assert loss == pytest.approx(2 * np.log(CLASSES) + excess, rel=1e-5)
    with pytest.raises(ValueError, match="Term of 'gate': target='nothing' and ExcessMean go together alone"):
        Term('gate', criterion=ExcessMean(0.25))


def test_one_resnet18_starts_both_columns(variables):
    model = tiny()
    file = {name: array for name, array in to_torch(variables, model).items() if name.startswith('coarse.')}
    file = {name.removeprefix('coarse.'): array for name, array in file.items()}
    file |= {'fc.weight': np.zeros((1000, 512)), 'layer4.0.conv1.weight': np.zeros((512, 256, 3, 3))}
    loaded = backbone_from_torch(file, model, jax.tree.map(np.zeros_like, variables))['params']
    jax.tree.map(np.testing.assert_array_equal, loaded['coarse'], variables['params']['coarse'])
    of_both = {name: module for name, module in loaded['coarse'].items() if name != 'layer3'}
    jax.tree.map(np.testing.assert_array_equal, loaded['fine'], of_both)
    assert not np.any(loaded['gate']['conv']['kernel'])
    jax.tree.map(np.testing.assert_array_equal, from_torch(to_torch(variables, model), model), variables)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'form': 'full'}, "form='full': must be one of sparse, dense"),
        ({'train_form': 'full'}, "train_form='full': must be one of sparse, dense"),
        ({'share': 0.0}, 'share=0.0: must be greater than 0 and at most 1'),
        ({'margin': 24}, 'margin=24: must be 8, 16, 32, 64 or 128'),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        create_model('sparse_two_column', 19, **options)
