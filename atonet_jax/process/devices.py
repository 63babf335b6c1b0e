"""All devices in one row, and how arrays lie on them."""

import ctypes
import importlib.util
import mmap
import os

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_HEAP_BYTES = 4 << 30


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
    """Lets a process that computes on CPUs keep the memory that it frees, in large pages, where glibc manages it.

    XLA allocates a program's temporaries at each call. Given back in between, their pages come zeroed, one fault after
    the other, which takes a tenth of a training step; small ones cost as much again. The process grows instead, by
    about what its largest program takes. To be called before JAX starts its threads, at its first use.
    """
    has_accelerator = any(map(importlib.util.find_spec, ('jax_plugins', 'libtpu')))
    if has_accelerator and os.environ.get('JAX_PLATFORMS') != 'cpu':
        return
    try:
        libc = ctypes.CDLL('libc.so.6')
        mallopt, madvise = libc.mallopt, libc.madvise
    except (OSError, AttributeError):  # another C library
        return
    arena_max, mmap_max, trim_threshold = -8, -4, -1  # malloc.h
    mallopt(arena_max, 1)  # others give large blocks back whatever is set
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)

    # The heap is stretched once, untouched, so that one call asks for large pages in all that will be used of it.
    libc.malloc.restype = ctypes.c_void_p
    block = libc.malloc(ctypes.c_size_t(_HEAP_BYTES))
    if block is None:
        return
    hugepage = 14  # sys/mman.h
    start = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
    madvise(ctypes.c_void_p(start), ctypes.c_size_t(_HEAP_BYTES - mmap.PAGESIZE), hugepage)
    libc.free(ctypes.c_void_p(block))
