"""All devices in one row, and how arrays lie on them."""

import ctypes
import importlib.util
import os

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def create_mesh() -> Mesh:
    """All devices in one row, over which a batch is split; those of a process lie side by side, as its samples do."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ('data',), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_by_batch(mesh: Mesh) -> NamedSharding:
    """The first axis in equal parts, one a device."""
    return NamedSharding(mesh, PartitionSpec('data'))


def keep_freed_memory() -> None:
    """Lets a process that computes on CPUs keep the memory that it frees, where glibc manages it.

    XLA allocates a program's temporaries at each call. Given back in between, their pages come zeroed, one fault after
    the other, which takes a tenth of a training step. The process grows instead, by about what its largest program
    takes. To be called before JAX starts its threads, at its first use.
    """
    has_accelerator = any(map(importlib.util.find_spec, ('jax_plugins', 'libtpu')))
    if has_accelerator and os.environ.get('JAX_PLATFORMS') != 'cpu':
        return
    try:
        mallopt = ctypes.CDLL('libc.so.6').mallopt
    except (OSError, AttributeError):  # another C library
        return
    arena_max, mmap_max, trim_threshold = -8, -4, -1  # malloc.h
    mallopt(arena_max, 1)  # others give large blocks back whatever is set
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
