"""`--mode=export`: a trained network as a file for other programs, read back before the command says done."""

import os

import jax
import numpy as np
from ml_collections import ConfigDict

from atonet_jax.config import validate
from atonet_jax.devices import create_mesh
from atonet_jax.errors import InputError
from atonet_jax.network import TrainedNetwork, trained_network
from atonet_jax.torch_files import read_state_dict, write_state_dict
from atonet_jax.torch_weights import from_torch, to_torch


def export(config: ConfigDict, workdir: str, force: bool) -> str:
    """Writes the run in `workdir`, or the weights of `init_from`, as `config.export` says; returns the file's path.

    Raises:
        InputError: no run, checkpoint or weights, or a file that is there already and not to be replaced.
    """
    mesh = create_mesh()
    validate(config, mesh.size)
    write, ending = _FORMATS[config.export.format]
    path = config.export.output or os.path.join(workdir, 'export', f'{config.model.name}{ending}')
    if os.path.exists(path) and not force:
        raise InputError(f'{path}: is there already; name another file with --config.export.output, or give --force')
    network = trained_network(config, workdir, mesh)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    print(f'{path}: {write(path, network)}')
    return path


def _write_torch(path: str, network: TrainedNetwork) -> str:
    """The published PyTorch network's names and layouts; returns what reading it back showed."""
    write_state_dict(path, to_torch(network.variables))
    read_back = from_torch(read_state_dict(path), network.model)
    jax.tree.map(np.testing.assert_array_equal, read_back, jax.device_get(network.variables))
    return f'{os.path.getsize(path) / 1e6:.1f} MB; read back, it holds the same numbers'


_FORMATS = {'torch': (_write_torch, '.pth')}
