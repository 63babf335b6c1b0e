"""The network that a config describes, and where its variables come from: drawn, a PyTorch file, a run's checkpoint."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from atonet_jax import torch_weights
from atonet_jax.data.labels import ClassTable
from atonet_jax.data.sources import class_table
from atonet_jax.models import abstract_variables, create_model, init_variables, option_names
from atonet_jax.process.devices import replicated
from atonet_jax.runs.checkpoint import Checkpoints
from atonet_jax.runs.workdir import changes_since, holds_run, load_class_table


class TrainedNetwork(NamedTuple):
    """A network with the variables that it is used with.

    Attributes:
        model: the module.
        variables: {'params', 'batch_stats'}, on every device.
        class_table: the classes that it predicts.
        step: of the checkpoint; None where the variables are from a file.
    """

    model: nn.Module
    variables: dict[str, Any]
    class_table: ClassTable
    step: int | None

    def in_float32(self) -> 'TrainedNetwork':
        """The same, computing in float32."""
        return self._replace(model=self.model.clone(dtype=jnp.float32))


def create_network(config: ConfigDict, num_classes: int) -> nn.Module:
    """The network of the config's section `model`; of its options, those that the network has."""
    options = dict(config.model) | {'dtype': jnp.dtype(config.model.dtype)}
    options = {key: value for key, value in options.items() if key in option_names(config.model.name)}
    return create_model(config.model.name, num_classes, **options)


def starting_variables(config: ConfigDict, model: nn.Module) -> dict[str, Any]:
    """Freshly drawn variables, over which those of `init_from` or `model.pretrained_backbone` are laid, where given.

    Raises:
        InputError: the file cannot be read or does not fit.
    """
    variables = jax.jit(lambda: init_variables(model, config.seed))()
    if config.init_from:
        return torch_weights.load_network(config.init_from, model, None if config.init_strict else variables)
    if config.model.pretrained_backbone:
        return torch_weights.load_backbone(config.model.pretrained_backbone, variables)
    return variables


def blank_variables(model: nn.Module) -> dict[str, Any]:
    """Zeros, to be filled from a checkpoint: drawing takes seconds to compile."""
    return jax.tree.map(lambda array: np.zeros(array.shape, array.dtype), abstract_variables(model))


def trained_network(config: ConfigDict, workdir: str, mesh: Mesh) -> TrainedNetwork:
    """What the run in `workdir` has learned; the weights of `init_from` where it holds no run.

    Raises:
        InputError: neither is there, or what is there does not fit the config.
    """
    table = load_class_table(workdir) if holds_run(workdir) else class_table(config.data)
    model = create_network(config, table.num_classes)
    if config.init_from and not holds_run(workdir):
        variables = jax.device_put(torch_weights.load_network(config.init_from, model), replicated(mesh))
        return TrainedNetwork(model, variables, table, step=None)
    changes_since(workdir, config, table)
    checkpoints = Checkpoints(workdir)
    step = checkpoints.step(config.eval.checkpoint)
    variables = checkpoints.restore_variables(step, model, mesh, averaged=config.optimizer.ema_decay > 0)
    checkpoints.close()
    return TrainedNetwork(model, variables, table, step)
