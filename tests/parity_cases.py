"""What is compared with PyTorch, and our side of it: every number that training depends on.

`NetworkParity` holds the tests. tests/test_parity.py runs them against tests/golden/, tests/parity/test_network.py
against PyTorch itself.
"""

import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from atonet_jax.config import default_config
from atonet_jax.data.augmentation import Augmentation, Geometry
from atonet_jax.models import create_model, network
from atonet_jax.process.devices import create_mesh
from atonet_jax.torch_weights import from_torch, to_torch
from atonet_jax.training.augment import augment
from atonet_jax.training.losses import configured_terms, total_loss
from atonet_jax.training.optimizer import Optimizer, learning_rate_schedule
from atonet_jax.training.step import Objective, StepSchedule, compile_train_step, create_state, gradient_of
from tests import golden_files
from tests.drawn_weights import drawn_variables
from tests.golden_files import assert_close

NUM_CLASSES = 5
TINY = {'width': 16, 'backbone_width': 8}
SIZES = [(64, 128), (128, 128), (96, 160), (180, 240), (161, 97)]
FULL_SIZE = (256, 512)
LEVEL_NAMES = ('layer1', 'layer2', 'layer3', 'layer4', 'spp')
UP_NAMES = ('up1', 'up2', 'up3', 'up4', 'up5')
UNUSED = ('aux_cls1', 'aux_cls2')  # heads of the PyTorch network that the default loss leaves alone
LOSS_NAMES = ('main_loss', 'aux3_loss', 'aux4_loss', 'aux5_loss')
EPOCHS, PEAK, BATCHES = 4, 0.02, 5  # of the twenty steps
AUGMENTATION = Augmentation((64, 96))
SEEDS = {'forward': 1, 'full': 1, 'gradients': 5, 'steps': 8}


def random_images(seed, *shape):
    return np.random.default_rng(seed).normal(size=(*shape, 3)).astype(np.float32)


def random_labels(seed, *shape):
    """A quarter of the pixels ignored."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, NUM_CLASSES, shape).astype(np.uint8)
    return np.where(generator.random(shape) < 0.25, np.uint8(255), labels)


def random_outputs(seed):
    """Outputs of the network in training, for images of 64x96."""
    generator = np.random.default_rng(seed)
    sizes = {'logits': (16, 24), 'aux3': (4, 6), 'aux4': (2, 3), 'aux5': (2, 3)}
    return {name: generator.normal(0, 2, (2, *size, NUM_CLASSES)).astype(np.float32) for name, size in sizes.items()}


def forward_images(size):
    return random_images(2, 2, *size)


def full_images():
    return random_images(2, 1, *FULL_SIZE)


def loss_inputs():
    return random_outputs(3), random_labels(4, 2, 64, 96)


def gradient_inputs():
    return random_images(6, 2, 64, 96), random_labels(7, 2, 64, 96)


def patch_batch(seed):
    """Four images as bytes, as `data.pipeline.train_batches` gives them, whose patches show their class by colour."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, NUM_CLASSES, (4, 4, 6)).astype(np.uint8).repeat(16, 1).repeat(16, 2)
    colours = np.stack([50 * labels, 90 * (labels % 2), 200 - 40 * labels], -1)
    geometry = Geometry(64, 96, 64, 96, 0, 0, 0, 0, flip=0, rotation=0)
    return {
        'image': (colours + generator.integers(0, 40, colours.shape)).astype(np.uint8),
        'label': np.where(generator.random(labels.shape) < 0.25, np.uint8(255), labels),
        'geometry': np.tile(np.array(geometry, np.int32), (4, 1)),
    }


def patch_batches():
    return [patch_batch(seed) for seed in range(BATCHES)]


def augmented(batches):
    """[(images float32, labels uint8)] as the train step makes them of the bytes."""
    program = jax.jit(augment, static_argnums=1)
    return [tuple(map(np.asarray, program(batch, AUGMENTATION, None))) for batch in batches]


def jit_forward(model):
    """(variables, images) -> {'layer1': ..., 'up5': ..., 'logits': ...}."""

    @jax.jit
    def forward(variables, images):
        outputs, state = model.apply(
            variables, images, train=False, mutable=['intermediates'],
            capture_intermediates=lambda module, _: module.name in LEVEL_NAMES + UP_NAMES,
        )  # fmt: skip
        captured = {name: values['__call__'][0] for name, values in state['intermediates'].items()}
        return captured | {'logits': outputs['logits']}

    return forward


def largest(errors):
    name = max(errors, key=errors.get)
    return f'{errors[name]:.1e} ({name})'


@functools.cache
def golden_network():
    """What tests/golden/ has of the network: ({case: {name: Digest}}, names and shapes)."""
    return golden_files.read('atonet')


def golden_settled():
    """{name: array}, the weights that have settled; float16 in one array, in the order of the names."""
    cases, more = golden_network()
    with np.load(golden_files.FOLDER / 'atonet_settled.npz') as file:
        flat, state = file['weights'].astype(np.float32), {}
    for name, shape in more['names']['tiny']:
        if name in cases['steps']:
            size = int(np.prod(shape))
            state[name], flat = flat[:size].reshape(shape), flat[size:]
    assert not flat.size
    return state


class NetworkParity:
    """The tests. A subclass gives the other side by `expected` and `settled`."""

    def expected(self, case):
        """{name: array or Digest} of PyTorch."""
        raise NotImplementedError

    def settled(self):
        """{name: array} that the twenty steps begin with, in PyTorch's names."""
        raise NotImplementedError

    @pytest.fixture(scope='class')
    @classmethod
    def model(cls):
        return create_model('atonet', NUM_CLASSES, dropout_rate=0.0, **TINY)

    @pytest.fixture(scope='class')
    @classmethod
    def forward(cls, model):
        forward, variables = jit_forward(model), drawn_variables(model, SEEDS['forward'])
        return lambda images: forward(variables, images)

    def assert_same(self, case, actual, bound):
        expected = self.expected(case)
        assert set(expected) == set(actual)
        return {name: assert_close(name, actual[name], expected[name], bound) for name in expected}

    @pytest.mark.parametrize('size', SIZES)
    def test_logits_and_every_intermediate(self, forward, size):
        case = f'forward_{size[0]}x{size[1]}'
        errors = self.assert_same(case, forward(forward_images(size)), 1e-4)
        print(f'parity: {case}: logits {errors["logits"]:.1e}, all {largest(errors)}')

    def test_logits_of_the_full_size_network(self):
        model = create_model('atonet', 19)
        outputs = jit_forward(model)(drawn_variables(model, SEEDS['full']), full_images())
        errors = self.assert_same('full', outputs, 1e-4)
        print(f'parity: full size: logits {errors["logits"]:.1e}, all {largest(errors)}')

    @pytest.mark.parametrize('mining', [False, True])
    def test_loss_terms_with_ignored_pixels(self, model, mining):
        outputs, labels = loss_inputs()
        options = default_config().loss
        options.mining = mining
        terms = configured_terms(network(model).terms, options)
        loss, terms = jax.jit(lambda outputs, labels: total_loss(outputs, labels, terms))(outputs, labels)
        actual = {name: np.reshape(value, 1) for name, value in terms.items()} | {'loss': np.reshape(loss, 1)}
        errors = self.assert_same(f'loss_{"mining" if mining else "mean"}', actual, 1e-5)
        print(f'parity: loss terms{" with mining" if mining else ""}: {largest(errors)}')

    def test_gradients_of_all_parameters_and_running_statistics_after_a_step(self, model):
        variables = drawn_variables(model, SEEDS['gradients'])
        images, labels = gradient_inputs()
        gradient = jax.jit(
            lambda variables: gradient_of(Objective.of(model), variables, images, labels, jax.random.key(0))
        )(variables)
        self.assert_same('gradient_loss', {'loss': np.reshape(gradient.loss, 1)}, 1e-5)
        batch_stats = gradient.collections['batch_stats']
        named = to_torch({'params': gradient.params, 'batch_stats': batch_stats}, model)
        named = {
            name: array for name, array in named.items() if not name.startswith(UNUSED) and not name.endswith('tracked')
        }
        statistics = {name: array for name, array in named.items() if '.running_' in name}
        gradients = {name: array for name, array in named.items() if name not in statistics}
        assert len(gradients) == len(jax.tree.leaves(gradient.params))
        assert len(statistics) == len(jax.tree.leaves(batch_stats))
        print(f'parity: gradients: {largest(self.assert_same("gradients", gradients, 1e-3))}')
        print(f'parity: running statistics: {largest(self.assert_same("statistics", statistics, 1e-5))}')

    def test_twenty_steps_of_the_recipe(self, model):
        """Parameters, running statistics and both groups' rates, through our whole train step: 4 epochs of 5 batches.

        It begins from weights that have settled. From fresh ones training is chaotic: torch itself ends tens of per
        cent apart if its weights begin 1e-7 apart.
        """
        batches = patch_batches()
        learning_rates = {
            group: learning_rate_schedule(
                peak=factor * PEAK,
                name='cosine',
                total_steps=EPOCHS * BATCHES,
                epoch_of_step=lambda step: step // BATCHES,
                total_epochs=EPOCHS,
            )
            for group, factor in {'backbone': 0.1, 'rest': 1.0}.items()
        }
        schedule = StepSchedule(learning_rates, {'backbone': 1e-5, 'rest': 1e-4})
        optimizer = Optimizer('sgd', model, momentum=0.9)
        mesh = create_mesh()
        state = create_state(from_torch(self.settled(), model), optimizer, averaging=False, mesh=mesh)
        step_fn = compile_train_step(
            mesh,
            objective=Objective.of(model),
            optimizer=optimizer,
            augmentation=AUGMENTATION,
        )
        figures = {'losses': [], 'rates_backbone': [], 'rates_rest': []}
        for step, batch in enumerate(EPOCHS * batches):
            state, metrics = step_fn(state, batch, schedule.at(step))
            figures['losses'].append(float(metrics['loss']))
            for group in ('backbone', 'rest'):
                figures[f'rates_{group}'].append(float(metrics[f'learning_rate_{group}']))

        expected = self.expected('steps_figures')
        for name, bound in {'losses': 1e-3, 'rates_backbone': 1e-5, 'rates_rest': 1e-5}.items():
            values = getattr(expected[name], 'sample', expected[name])
            np.testing.assert_allclose(figures[name], values, rtol=bound, err_msg=name)
        named = to_torch(state.variables, model)
        ended = {name: named[name] for name in self.expected('steps')}
        assert len(ended) == len(flatten_dict(state.variables))
        print(f'parity: 20 steps: {largest(self.assert_same("steps", ended, 1e-3))}')
