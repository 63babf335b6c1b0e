"""The mesh of all devices, and how arrays are placed on it."""

import ctypes
import importlib.util
import mmap
import os

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from atonet_jax.errors import InputError

_HEAP_BYTES = 4 << 30


def check_platforms() -> None:
    """Checks that JAX finds the devices that JAX_PLATFORMS names.

    Raises:
        InputError: it does not.
    """
    wanted = os.environ.get('JAX_PLATFORMS')
    if not wanted:
        return
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # an AssertionError without text for 'cuda' without its plugin
        reason = str(error).partition(' (set JAX_PLATFORMS')[0].splitlines()
        raise InputError(
            f'JAX_PLATFORMS={wanted}: JAX finds no such device{f" ({reason[0]})" if reason else ""}; unset it, give '
            'JAX_PLATFORMS=cpu, or install the JAX of the device, such as jax[cuda13]'
        ) from error


def create_mesh() -> Mesh:
    """All devices in one axis, over which a batch is split. Devices of one process are neighbours, like its samples."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ('data',), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_by_batch(mesh: Mesh) -> NamedSharding:
    """The first axis in equal parts, one for each device."""
    return NamedSharding(mesh, PartitionSpec('data'))


def keep_freed_memory() -> None:
    """Makes a process that computes on CPUs keep freed memory, in large pages. Works with glibc only.

    XLA allocates the temporaries of a program at each call. If freed memory goes back to the system, its pages must be
    mapped and zeroed again, which takes a tenth of a training step; small pages cost as much again. The process then
    grows by several times the memory of its largest program (docs/performance.md). Call this before the first use of
    JAX, which starts threads.
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
    mallopt(arena_max, 1)  # other arenas give large blocks back in any case
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)

    # The heap is extended once, without touching it, so that one call asks for large pages in all of it.
    libc.malloc.restype = ctypes.c_void_p
    block = libc.malloc(ctypes.c_size_t(_HEAP_BYTES))
    if block is None:
        return
    hugepage = 14  # sys/mman.h
    start = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
    madvise(ctypes.c_void_p(start), ctypes.c_size_t(_HEAP_BYTES - mmap.PAGESIZE), hugepage)
    libc.free(ctypes.c_void_p(block))
