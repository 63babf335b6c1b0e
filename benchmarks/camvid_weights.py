"""The weights of a run of benchmarks/camvid.py, in files that are small enough to be carried, and as one file again."""

from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from atonet_jax.data.labels import CAMVID
from atonet_jax.errors import InputError
from atonet_jax.models import create_model, network
from atonet_jax.torch_files import read_state_dict, write_state_dict
from atonet_jax.torch_weights import to_torch

_ENTRY_BYTES = 500  # that an archive takes beside an array


def save(prefix: str, model: nn.Module, variables: dict[str, Any], megabytes: float) -> list[str]:
    """Writes what inference needs of the variables, kernels as float16, in files of limited size: PREFIX_0.npz, ..."""
    unused = network(model).training_only
    files = [{}]
    for path, array in flatten_dict(jax.device_get(variables), sep='/').items():
        if path.split('/')[1] in unused:
            continue
        array = array.astype(np.float16) if array.ndim > 1 else array
        if sum(a.nbytes + _ENTRY_BYTES for a in [*files[-1].values(), array]) > megabytes * 2**20:
            files.append({})
        files[-1][path] = array
    paths = [f'{prefix}_{i}.npz' for i in range(len(files))]
    for path, part in zip(paths, files):
        np.savez(path, **part)
    return paths


def join(out: str, parts: list[str], name: str) -> None:
    """Writes the files of `save` as one file of weights of the network `name`.

    Raises:
        InputError: they are of several runs.
    """
    arrays = {}
    for part in parts:
        found = read_state_dict(part)
        if arrays.keys() & found.keys():
            raise InputError(f'{part}: holds arrays that another file holds too; give the files of one run')
        arrays |= found
    model = create_model(name, CAMVID.num_classes)
    write_state_dict(out, to_torch(unflatten_dict(arrays, sep='/'), model))
