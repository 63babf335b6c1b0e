"""All devices in one row, and how arrays lie on them."""

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
