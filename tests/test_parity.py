"""Every number that training depends on is that of PyTorch: torch_reference.py, torch's optimiser and schedule.

Random weights and running statistics, fresh inputs. `pytest tests/test_parity.py -rP | grep parity` prints the largest
errors.
"""

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from atonet_jax.config import default_config
from atonet_jax.data.augmentation import Augmentation, Geometry
from atonet_jax.models import create_model, network
from atonet_jax.process.devices import create_mesh
from atonet_jax.torch_weights import from_torch, to_torch
from atonet_jax.training.augment import augment
from atonet_jax.training.losses import configured_terms, total_loss
from atonet_jax.training.optimizer import create_optimizer, learning_rate_schedule
from atonet_jax.training.step import Objective, compile_train_step, create_state, gradient_of
from tests import torch_reference

NUM_CLASSES = 5
TINY = {'width': 16, 'backbone_width': 8}
LEVEL_NAMES = ('layer1', 'layer2', 'layer3', 'layer4', 'spp')
UP_NAMES = ('up1', 'up2', 'up3', 'up4', 'up5')
AUGMENT = jax.jit(augment, static_argnums=1)
UNUSED = ('aux_cls1', 'aux_cls2')  # heads of the PyTorch network that the default loss leaves alone
def random_reference(seed, num_classes=NUM_CLASSES, **options):
    """A PyTorch network with random weights, BN scales and running statistics; no dropout."""
    torch.manual_seed(seed)
    reference = torch_reference.ATONet(num_classes, dropout=0.0, **options)
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return reference


def random_images(seed, *shape):
    return np.random.default_rng(seed).normal(size=(*shape, 3)).astype(np.float32)


def random_labels(seed, *shape):
    """A quarter of the pixels ignored."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, NUM_CLASSES, shape).astype(np.uint8)
    return np.where(generator.random(shape) < 0.25, np.uint8(255), labels)


def to_nchw(images):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))


def to_nhwc(tensor):
    return np.moveaxis(tensor.detach().numpy(), 1, -1)


def to_int64(labels):
    return torch.from_numpy(labels.astype(np.int64))


def assert_close(name, actual, expected, bound):
    """The largest difference is at most `bound` times the expected values' range."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, name
    error = np.abs(actual - expected).max() / max(np.ptp(expected), np.abs(expected).max())
    assert error <= bound, f'{name}: {error:.2e}'
    return error


def largest(errors):
    name = max(errors, key=errors.get)
    return f'{errors[name]:.1e} ({name})'


@pytest.fixture(scope='module')
def model():
    return create_model('atonet', NUM_CLASSES, dropout_rate=0.0, **TINY)


@pytest.fixture(scope='module')
def forward(model):
    """(variables, images) -> {'layer1': ..., 'up5': ..., 'logits': ...}, jitted."""
    return jit_forward(model)


def jit_forward(model):
    @jax.jit
    def forward(variables, images):
        outputs, state = model.apply(
            variables, images, train=False, mutable=['intermediates'],
            capture_intermediates=lambda module, _: module.name in LEVEL_NAMES + UP_NAMES,
        )  # fmt: skip
        captured = {name: values['__call__'][0] for name, values in state['intermediates'].items()}
        return captured | {'logits': outputs['logits']}

    return forward


def reference_forward(reference, images):
    """What `jit_forward` gives, of the PyTorch network."""
    captured = {}

    def capture(name):
        return lambda module, inputs, output: captured.__setitem__(name, to_nhwc(output))

    hooks = [getattr(reference, name).register_forward_hook(capture(name)) for name in LEVEL_NAMES]
    hooks += [getattr(reference, name).blend_conv.register_forward_hook(capture(name)) for name in UP_NAMES]
    reference.eval()
    with torch.no_grad():
        captured['logits'] = to_nhwc(reference(to_nchw(images)))
    for hook in hooks:
        hook.remove()
    return captured


def assert_same_forward(reference, model, forward, images):
    expected = reference_forward(reference, images)
    actual = forward(from_torch(reference.state_dict(), model), images)
    assert list(expected) == sorted(expected, key=list(LEVEL_NAMES + UP_NAMES + ('logits',)).index)
    errors = {name: assert_close(name, actual[name], expected[name], 1e-4) for name in expected}
    print(f'parity: forward {images.shape[1]}x{images.shape[2]}: logits {errors["logits"]:.1e}, all {largest(errors)}')


@pytest.mark.parametrize('size', [(64, 128), (128, 128), (96, 160), (180, 240), (161, 97)])
def test_logits_and_every_intermediate(model, forward, size):
    assert_same_forward(random_reference(seed=1, **TINY), model, forward, random_images(2, 2, *size))


def test_logits_of_the_full_size_network():
    model = create_model('atonet', 19)
    images = random_images(2, 1, 256, 512)
    assert_same_forward(random_reference(seed=1, num_classes=19), model, jit_forward(model), images)


@pytest.mark.parametrize('mining', [False, True])
def test_loss_terms_with_ignored_pixels(model, mining):
    generator = np.random.default_rng(3)
    sizes = {'logits': (16, 24), 'aux3': (4, 6), 'aux4': (2, 3), 'aux5': (2, 3)}
    logits = {name: generator.normal(0, 2, (2, *size, NUM_CLASSES)).astype(np.float32) for name, size in sizes.items()}
    labels = random_labels(4, 2, 64, 96)
    average = torch_reference.mean_loss if not mining else torch_reference.hard_example_loss
    aux = {level: to_nchw(logits[f'aux{level}']) for level in torch_reference.AUX_LEVELS}
    expected = torch_reference.loss_terms((to_nchw(logits['logits']), aux), to_int64(labels), average)

    outputs = {name: logits[name] for name in ('logits', 'aux3', 'aux4', 'aux5')}
    options = default_config().loss
    options.mining = mining
    terms = configured_terms(network(model).terms, options)
    loss, terms = jax.jit(lambda o, y: total_loss(o, y, terms))(outputs, labels)

    names = ['main_loss', 'aux3_loss', 'aux4_loss', 'aux5_loss']
    assert sorted(terms) == sorted(names)
    errors = {name: abs(float(terms[name]) / float(term) - 1) for name, term in zip(names, expected, strict=True)}
    assert max(errors.values()) <= 1e-5, errors
    assert float(loss) == pytest.approx(float(sum(expected)), rel=1e-5)
    print(f'parity: loss terms{" with mining" if mining else ""}: {largest(errors)}')


def test_gradients_of_all_parameters_and_running_statistics_after_a_step(model):
    reference = random_reference(seed=5, **TINY)
    variables = from_torch(reference.state_dict(), model)
    images, labels = random_images(6, 2, 64, 96), random_labels(7, 2, 64, 96)

    reference.train()
    expected_loss = sum(torch_reference.loss_terms(reference(to_nchw(images)), to_int64(labels)))
    expected_loss.backward()

    gradient = jax.jit(
        lambda variables: gradient_of(Objective.of(model), variables, images, labels, jax.random.key(0))
    )(variables)
    gradients, batch_stats = gradient.params, gradient.collections['batch_stats']

    assert float(gradient.loss) == pytest.approx(expected_loss.item(), rel=1e-5)
    actual = to_torch({'params': gradients, 'batch_stats': batch_stats}, model)
    expected = {name: p.grad.numpy() for name, p in reference.named_parameters() if not name.startswith(UNUSED)}
    assert len(expected) == len(jax.tree.leaves(gradients))
    errors = {name: assert_close(name, actual[name], gradient, 1e-3) for name, gradient in expected.items()}
    print(f'parity: gradients: {largest(errors)}')

    actual = to_torch({'params': variables['params'], 'batch_stats': batch_stats}, model)
    errors = {
        name: assert_close(name, actual[name], buffer.numpy(), 1e-5)
        for name, buffer in reference.named_buffers()
        if name.endswith(('running_mean', 'running_var')) and not name.startswith(UNUSED)
    }
    assert len(errors) == len(jax.tree.leaves(batch_stats))
    print(f'parity: running statistics: {largest(errors)}')


def test_twenty_steps_of_the_recipe(model):
    """Parameters, running statistics and both groups' rates, through our whole train step: 4 epochs of 5 batches.

    It begins from weights that have settled. From fresh ones training is chaotic: torch itself ends tens of per cent
    apart if its weights begin 1e-7 apart.
    """
    epochs, peak = 4, 0.02
    batches = [patch_batch(seed) for seed in range(5)]
    reference = random_reference(seed=8, **TINY)
    train_reference(reference, batches, epochs=10, peak=0.05)
    settled = from_torch(reference.state_dict(), model)
    expected_losses, expected_rates = train_reference(reference, batches, epochs, peak)

    learning_rates = {
        group: learning_rate_schedule(
            peak=factor * peak,
            name='cosine',
            total_steps=epochs * len(batches),
            epoch_of_step=lambda step: step // len(batches),
            total_epochs=epochs,
        )
        for group, factor in {'backbone': 0.1, 'rest': 1.0}.items()
    }
    optimizer = create_optimizer(
        'sgd', learning_rates, network(model), momentum=0.9, weight_decays={'backbone': 1e-5, 'rest': 1e-4}
    )
    mesh = create_mesh()
    state = create_state(settled, optimizer, averaging=False, mesh=mesh)
    step_fn = compile_train_step(
        mesh,
        objective=Objective.of(model),
        optimizer=optimizer,
        learning_rates=learning_rates,
        augmentation=Augmentation((64, 96)),
        seed=0,
        ema_decay=0.0,
    )
    losses, rates = [], []
    for batch in epochs * batches:
        state, metrics = step_fn(state, batch)
        losses.append(float(metrics['loss']))
        rates.append([float(metrics[f'learning_rate_{group}']) for group in ('backbone', 'rest')])

    np.testing.assert_allclose(rates, expected_rates, rtol=1e-5)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-3)
    expected = flatten_dict(from_torch(reference.state_dict(), model), sep='/')
    actual = flatten_dict(state.variables, sep='/')
    errors = {name: assert_close(name, actual[name], expected[name], 1e-3) for name in expected}
    print(f'parity: 20 steps: {largest(errors)}')


def train_reference(reference, batches, epochs, peak):
    """Trains the PyTorch network by the recipe; returns the loss and both groups' rates at each step."""
    optimizer = torch_reference.recipe_optimizer(reference, peak)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs, eta_min=1e-6)
    reference.train()
    losses, rates = [], []
    for _ in range(epochs):
        for batch in batches:
            images, labels = (np.asarray(array) for array in AUGMENT(batch, Augmentation((64, 96)), None))
            loss = sum(torch_reference.loss_terms(reference(to_nchw(images)), to_int64(labels)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            rates.append([group['lr'] for group in optimizer.param_groups])
        scheduler.step()
    return losses, rates


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
