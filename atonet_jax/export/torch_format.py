"""`torch`: the published PyTorch network's names and layouts, for its own code to load."""

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from atonet_jax.errors import ExportError
from atonet_jax.runs.network import TrainedNetwork
from atonet_jax.torch_files import read_state_dict, write_state_dict
from atonet_jax.torch_weights import from_torch, to_torch

ENDING = '.pth'


def write(path: str, trained: TrainedNetwork, config: ConfigDict) -> None:
    write_state_dict(path, to_torch(trained.variables, trained.model))


def check(path: str, trained: TrainedNetwork, config: ConfigDict) -> str:
    """PyTorch itself may not be there: what is compared is every number."""
    read_back = flatten_dict(from_torch(read_state_dict(path), trained.model))
    if not all(np.array_equal(read_back[path], array) for path, array in flatten_dict(trained.variables).items()):
        raise ExportError('read back, the file holds other numbers than the network; nothing was written')
    return 'read back, every number is the same'
