"""PyTorch's side of tests/parity_cases.py."""

import functools

import numpy as np
import torch

from tests import torch_reference
from tests.drawn_weights import drawn_state
from tests.parity_cases import (
    BATCHES,
    EPOCHS,
    LEVEL_NAMES,
    LOSS_NAMES,
    NUM_CLASSES,
    PEAK,
    SEEDS,
    SIZES,
    TINY,
    UNUSED,
    UP_NAMES,
    augmented,
    forward_images,
    full_images,
    gradient_inputs,
    loss_inputs,
    patch_batches,
)


def drawn_reference(seed, num_classes=NUM_CLASSES, **options):
    """The PyTorch network with the weights that `drawn_state` gives its names; no dropout."""
    reference = torch_reference.ATONet(num_classes, dropout=0.0, **options)
    shapes = [(name, tuple(tensor.shape)) for name, tensor in reference.state_dict().items()]
    state = {name: torch.from_numpy(array) for name, array in drawn_state(shapes, seed).items()}
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith('num_batches_tracked') for name in missing)
    return reference


def numpy_state(module):
    """{name: array} of a network, copied."""
    return {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}


def to_nchw(images):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))


def to_nhwc(tensor):
    return np.moveaxis(tensor.detach().numpy(), 1, -1)


def to_int64(labels):
    return torch.from_numpy(labels.astype(np.int64))


def forward(reference, images):
    """{'layer1': ..., 'up5': ..., 'logits': ...}."""
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


def loss_terms(mining):
    outputs, labels = loss_inputs()
    aux = {level: to_nchw(outputs[f'aux{level}']) for level in torch_reference.AUX_LEVELS}
    average = torch_reference.hard_example_loss if mining else torch_reference.mean_loss
    terms = torch_reference.loss_terms((to_nchw(outputs['logits']), aux), to_int64(labels), average)
    named = dict(zip(LOSS_NAMES, terms, strict=True)) | {'loss': sum(terms)}
    return {name: np.reshape(term.numpy(), 1) for name, term in named.items()}


@functools.cache
def gradients():
    """(loss, gradients, running statistics) of a step, by name."""
    reference = drawn_reference(SEEDS['gradients'], **TINY)
    images, labels = gradient_inputs()
    reference.train()
    loss = sum(torch_reference.loss_terms(reference(to_nchw(images)), to_int64(labels)))
    loss.backward()
    named = {name: p.grad.numpy() for name, p in reference.named_parameters() if not name.startswith(UNUSED)}
    return {'loss': np.reshape(loss.item(), 1)}, named, statistics_of(reference)


def statistics_of(reference):
    return {
        name: buffer.numpy().copy()
        for name, buffer in reference.named_buffers()
        if '.running_' in name and not name.startswith(UNUSED)
    }


def train(reference, epochs, peak):
    """Trains by the recipe; returns the losses and both groups' rates at each step."""
    optimizer = torch_reference.recipe_optimizer(reference, peak)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs, eta_min=1e-6)
    reference.train()
    batches = augmented(patch_batches())
    figures = {'losses': [], 'rates_backbone': [], 'rates_rest': []}
    for _ in range(epochs):
        for images, labels in batches:
            loss = sum(torch_reference.loss_terms(reference(to_nchw(images)), to_int64(labels)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            figures['losses'].append(loss.item())
            for name, group in zip(('backbone', 'rest'), optimizer.param_groups, strict=True):
                figures[f'rates_{name}'].append(group['lr'])
        scheduler.step()
    return {name: np.array(values) for name, values in figures.items()}


@functools.cache
def settled():
    """{name: array} after 50 steps, rounded so that few bytes hold them (see `rounded`)."""
    reference = drawn_reference(SEEDS['steps'], **TINY)
    train(reference, 50 // BATCHES, peak=0.05)
    state = numpy_state(reference)
    return {
        name: rounded(array)
        for name, array in state.items()
        if not name.startswith(UNUSED) and not name.endswith('tracked')
    }


def rounded(array):
    """Float16 with five bits of fraction: a fifth of a file's bytes, and as settled as before."""
    bits = array.astype(np.float16).view(np.uint16)
    return ((bits + 16) & 0xFFE0).view(np.float16).astype(np.float32)


def steps_from(start):
    """(figures of twenty steps from a state, parameters and statistics after them)."""
    reference = drawn_reference(SEEDS['steps'], **TINY)
    reference.load_state_dict({name: torch.from_numpy(array) for name, array in start.items()}, strict=False)
    figures = train(reference, EPOCHS, PEAK)
    return figures, {name: array for name, array in numpy_state(reference).items() if name in start}


@functools.cache
def steps():
    return steps_from(settled())


CASES = {
    f'forward_{height}x{width}': functools.partial(
        lambda size: forward(drawn_reference(SEEDS['forward'], **TINY), forward_images(size)), (height, width)
    )
    for height, width in SIZES
} | {
    'full': lambda: forward(drawn_reference(SEEDS['full'], num_classes=19), full_images()),
    'loss_mean': lambda: loss_terms(mining=False),
    'loss_mining': lambda: loss_terms(mining=True),
    'gradient_loss': lambda: gradients()[0],
    'gradients': lambda: gradients()[1],
    'statistics': lambda: gradients()[2],
    'steps_figures': lambda: steps()[0],
    'steps': lambda: steps()[1],
}
