"""PIDNet-S is the authors' network: their outputs, counts, names and loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atonet_jax.data.labels import CAMVID
from atonet_jax.models import abstract_variables, apply, create_model, network, prepare
from atonet_jax.models.counts import count_parameters
from atonet_jax.models.terms import (
    BalancedBinaryCrossEntropy,
    CrossEntropy,
    Edges,
    HardExampleCount,
    LabelsOnEdges,
)
from atonet_jax.published_weights import load_network
from atonet_jax.torch_files import read_state_dict, write_state_dict
from atonet_jax.torch_weights import from_torch, to_torch
from tests.models import golden as goldens

# Behind the batch normalisation that sees two values a channel, which magnifies rounding.
MAGNIFIED = ('spp.scale_process', 'spp.compression', 'dfm', 'final_layer')


@pytest.fixture(scope='module')
def golden():
    return goldens.load('pidnet_s')


@pytest.fixture(scope='module')
def model(golden):
    return create_model('pidnet_s', golden.num_classes)


@pytest.fixture(scope='module')
def variables(golden, model):
    return from_torch(golden.state_dict, model)


def test_parameters_in_training_and_of_11_classes_are_the_published_ones():
    trained = abstract_variables(create_model('pidnet_s', 19))['params']
    assert sum(array.size for array in jax.tree.leaves(trained)) == 7_720_935
    assert count_parameters(create_model('pidnet_s', 11))['parameters'] == 7_624_683


def test_training_outputs_and_statistics_are_those_of_the_authors_code(golden, model, variables):
    outputs, _ = goldens.train_mode(model, variables, golden.inputs['train'])
    assert set(outputs) == {'logits', 'aux_p', 'boundary'}
    for name, output in outputs.items():
        assert golden.outputs[f'train_{name}'].error(output) <= goldens.ALLOWED, name
    errors = goldens.statistics_errors(golden, model, variables)
    assert len(errors) == len(golden.statistics)
    for name, error in errors.items():
        assert error <= (1e-3 if name.startswith(MAGNIFIED) else 1e-4), name


def test_prepared_logits_are_those_of_the_authors_code(golden, model, variables):
    prepared = prepare(model, variables, transform_kernels=True)
    logits = jax.jit(lambda v, x: apply(model, v, x)['logits'])(prepared, golden.inputs['96x72'])
    assert golden.outputs['logits_96x72'].error(logits[0]) <= goldens.ALLOWED


def test_outputs_of_the_authors_camvid_files_come_in_the_order_of_the_classes_here():
    theirs = ('bicyclist', 'building', 'car', 'pole', 'fence', 'pedestrian', 'road', 'pavement', 'sign', 'sky', 'tree')
    model = create_model('pidnet_s', len(theirs), width=8)
    blank = jax.tree.map(lambda array: np.zeros(array.shape, np.float32), abstract_variables(model))
    file = {f'model.{name}': array for name, array in to_torch(blank, model).items()}
    numbers = np.arange(len(theirs), dtype=np.float32)
    file |= {f'model.{head}.conv2.bias': numbers for head in ('final_layer', 'seghead_p')}
    np.testing.assert_array_equal(from_torch(file, model)['params']['final']['conv2']['bias'], numbers)  # one of ours
    file |= {name: np.array(7) for name in file if name.endswith('num_batches_tracked')}
    params = from_torch(file, model)['params']
    for head in ('final', 'aux_p'):
        assert tuple(theirs[int(i)] for i in params[head]['conv2']['bias']) == CAMVID.class_names


def test_a_checkpoint_of_the_authors_training_is_read_with_the_buffers_of_its_losses(tmp_path):
    model = create_model('pidnet_s', 5, width=4)
    generator = np.random.default_rng(0)
    variables = jax.tree.map(lambda a: generator.normal(size=a.shape).astype(np.float32), abstract_variables(model))
    beside = {f'model.{name}': array for name, array in to_torch(variables, model).items()}
    path = str(tmp_path / 'cityscapes.pt')
    write_state_dict(path, beside | {'sem_loss.criterion.weight': np.ones(5, np.float32)})
    assert 'sem_loss.criterion.weight' in read_state_dict(path)
    jax.tree.map(np.testing.assert_array_equal, load_network(path, model), variables)


def test_a_file_without_the_heads_of_training_is_enough(model, variables, golden):
    kept = {name: array for name, array in golden.state_dict.items() if not name.startswith('seghead')}
    loaded = from_torch(kept, model)
    assert set(variables['params']) - set(loaded['params']) == {'aux_p', 'boundary'}


def test_the_loss_is_the_authors(model):
    contract = network(model)
    terms = [(term.output, term.weight, term.target, term.criterion) for term in contract.terms]
    assert terms == [
        ('logits', 1.0, 'labels', HardExampleCount(0.9, 131_072)),
        ('aux_p', 0.4, 'labels', CrossEntropy('all')),
        ('boundary', 20.0, Edges(border=6, width=4), BalancedBinaryCrossEntropy()),
        ('logits', 1.0, LabelsOnEdges('boundary', 0.8), HardExampleCount(0.9, 131_072)),
    ]
    assert {term.at for term in contract.terms} == {'labels'}
    assert contract.upsampling == 'align_corners'
    on_camvid = network(create_model('pidnet_s', 11, edge_border=0))
    assert on_camvid.terms[2].target == Edges(border=0, width=4)
    with pytest.raises(ValueError, match='edge_border=-1: must be 0 or more'):
        create_model('pidnet_s', 11, edge_border=-1)


def test_sides_that_8_does_not_divide_give_logits_at_the_size_that_the_stem_gives(model):
    variables = abstract_variables(model)
    for size, wanted in {(8, 8): (1, 1), (45, 59): (6, 8), (200, 264): (25, 33)}.items():
        images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
        outputs = jax.eval_shape(
            lambda v, x: apply(model, v, x, train=True, mutable=['batch_stats'])[0], variables, images
        )
        assert {output.shape[1:3] for output in outputs.values()} == {wanted}
