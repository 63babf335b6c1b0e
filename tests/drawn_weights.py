"""Weights that follow from their names in PyTorch, so that no file needs to hold them."""

import zlib
from collections.abc import Iterable

import numpy as np

from atonet_jax.models import network
from atonet_jax.runs.network import blank_variables
from atonet_jax.torch_weights import from_torch, to_torch

_COUNTER = '.num_batches_tracked'


def drawn_state(shapes: Iterable[tuple[str, tuple[int, ...]]], seed: int) -> dict[str, np.ndarray]:
    """{name: float32 array} in PyTorch's names and layouts, of random weights and running statistics.

    Kernels are normal with the variance 2 / fan_in; of BNs scale and running variance are uniform in [0.5, 1.5], bias
    and running mean normal with the deviation 0.2, and so are other biases.
    """
    state = {}
    for name, shape in shapes:
        if name.endswith(_COUNTER):
            continue
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        if len(shape) > 1:
            array = generator.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith(('weight', 'running_var')):
            array = generator.uniform(0.5, 1.5, shape)
        else:
            array = 0.2 * generator.standard_normal(shape)
        state[name] = array.astype(np.float32)
    return state


def drawn_variables(model, seed: int = 1) -> dict:
    """Variables of a network of this package with such weights, auxiliary heads included."""
    whole = network(model).weights[0].whole(model)  # what is missing would be drawn, which takes long
    shapes = [(name, array.shape) for name, array in to_torch(blank_variables(whole), model).items()]
    return from_torch(drawn_state(shapes, seed), model)
