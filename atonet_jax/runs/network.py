"""The network of a config, and its variables: freshly drawn, from a PyTorch file, or from a run's checkpoint."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from atonet_jax import identification, published_weights
from atonet_jax.config import create_network, default_config
from atonet_jax.data.labels import CLASS_TABLES, ClassTable
from atonet_jax.data.sources import class_table
from atonet_jax.errors import InputError
from atonet_jax.models import abstract_variables, create_model, init_variables, network
from atonet_jax.process.devices import replicated
from atonet_jax.runs.changes import check_network
from atonet_jax.runs.checkpoint import Checkpoints
from atonet_jax.runs.workdir import holds_run, load_class_table, load_config
from atonet_jax.torch_files import read_state_dict
from atonet_jax.torch_weights import class_layers

_log = logging.getLogger(__name__)

_SHOWN = 8  # modules of a message


class TrainedNetwork(NamedTuple):
    """A network with the variables that it is used with.

    Attributes:
        model: the module.
        variables: as in training, on every device.
        class_table: the classes that it predicts. With `has_void_output`, the label after the last class is void.
        step: of the checkpoint; None if the variables are from a file.
        height: `config.eval.height`, to which images are resized for it; 0: not at all.
    """

    model: nn.Module
    variables: dict[str, Any]
    class_table: ClassTable
    step: int | None
    height: int = 0

    def in_float32(self) -> 'TrainedNetwork':
        """The same, computing in float32."""
        return self._replace(model=self.model.clone(dtype=jnp.float32))


def starting_variables(
    config: ConfigDict, model: nn.Module, table: ClassTable, mesh: Mesh
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Freshly drawn variables. Those of `init_from` or `model.pretrained_backbone` replace them, if given.

    Returns:
        The variables, and the modules of the backbone that its file lacks.

    Raises:
        InputError: the file or run cannot be read or does not fit.
    """
    if config.init_from and holds_run(config.init_from):
        return _from_run(config, model, table, mesh), ()
    variables = init_variables(model, config.seed)
    if config.init_from:
        return published_weights.load_network(config.init_from, model, variables, strict=config.init_strict), ()
    if config.model.pretrained_backbone:
        return published_weights.load_backbone(
            config.model.pretrained_backbone, model, variables, strict=config.model.pretrained_strict
        )
    return variables, ()


def _from_run(config: ConfigDict, model: nn.Module, table: ClassTable, mesh: Mesh) -> dict[str, Any]:
    """The weights of the run in `init_from`, at our `eval.checkpoint`. Layers for other classes are freshly drawn."""
    workdir = config.init_from
    of_run = load_config(workdir)
    of_run.eval.checkpoint = config.eval.checkpoint
    try:
        source, name = trained_network(of_run, workdir, mesh), of_run.model.name
    except InputError as error:
        raise InputError(f'config.init_from={workdir}: {error}') from error
    learned, flat = (flatten_dict(tree, sep='/') for tree in (source.variables, abstract_variables(model)))
    of_classes = class_layers(model) if source.class_table.class_names != table.class_names else set()
    misfits = {path for path in flat if path not in learned or learned[path].shape != flat[path].shape}
    of_training = {path for path in flat if path.split('/')[1] in network(model).training_only}  # not in exports
    wrong = misfits - of_classes - of_training
    if wrong and (config.init_strict or type(source.model) is not type(model)):
        if name != config.model.name:
            raise InputError(
                f'config.init_from={workdir}: is a run of {name}, not of {config.model.name}; give a run of the same '
                f'network, or --config=FILE:{name}'
            )
        raise InputError(
            f'config.init_from={workdir}: has no weights of these shapes for {_modules(wrong)}; give the options of '
            'that run, or --config.init_strict=false to start these layers fresh'
        )
    fresh = misfits | of_classes
    named = f'; fresh: {_modules(fresh)}' if fresh else ''
    _log.info('network from step %d of %s%s', source.step, workdir, named)
    drawn = flatten_dict(init_variables(model, config.seed, fresh), sep='/') if fresh else {}
    return unflatten_dict({path: drawn[path] if path in fresh else learned[path] for path in flat}, sep='/')


def _modules(paths: Iterable[str]) -> str:
    """The top-level modules that own these variables, or the first few of many."""
    modules = sorted({path.split('/')[1] for path in paths})
    more = f' and {len(modules) - _SHOWN} more' if len(modules) > _SHOWN else ''
    return ', '.join(modules[:_SHOWN]) + more


def config_of_file(path: str) -> ConfigDict:
    """A config for the network in a file of published weights: of its variant, and data of as many classes.

    Raises:
        InputError: the file cannot be read, or holds no network that is known, or of a number of classes that none of
            the data sets has.
    """
    if holds_run(path):
        raise _is_a_run(path)
    state_dict = read_state_dict(path)
    name = identification.identify(state_dict)
    outputs = name and identification.num_outputs(state_dict, create_model(name, 19))
    if not outputs and identification.holds_backbone(state_dict):
        raise InputError(f'{path}: holds a backbone alone; train a network from it: --config.model.pretrained_backbone')
    if not outputs:
        raise InputError(f'{path}: holds none of the known networks; give --config=configs/NAME.py:NETWORK')
    model = create_model(name, 19).clone(num_classes=outputs)
    has_void = published_weights.has_void_output(model)
    data = next((data for data, table in CLASS_TABLES.items() if table.num_classes == outputs - has_void), None)
    if data is None:
        needed = published_weights.needed_options(model)
        more = f' and {" ".join(needed)}' if needed else ''
        raise InputError(
            f'{path}: holds {name} for {outputs} classes, which is not the number of {" or ".join(CLASS_TABLES)}; give '
            f'--config=FILE:{name} with the data that it is for{more}'
        )
    config = default_config(name)
    config.init_from = path
    config.data.update(name=data, root=f'data/{data}')
    config.eval.height = max(names.heights.get(outputs, 0) for names in network(model).weights)
    void = ' and void' if has_void else ''
    height = f', trained on images of height {config.eval.height}' if config.eval.height else ''
    _log.info('%s holds %s for the classes of %s%s%s', path, name, data, void, height)
    return config


def _is_a_run(path: str) -> InputError:
    return InputError(f'config.init_from={path}: is a run; name it by --workdir')


def blank_variables(model: nn.Module) -> dict[str, Any]:
    """Zeros, to be filled from a checkpoint. Drawing would take seconds to compile."""
    return jax.tree.map(lambda array: np.zeros(array.shape, array.dtype), abstract_variables(model))


def trained_network(config: ConfigDict, workdir: str, mesh: Mesh) -> TrainedNetwork:
    """The weights of the run in `workdir`, or of `init_from` if it holds no run.

    Raises:
        InputError: neither is there, or what is there does not fit the config.
    """
    table = load_class_table(workdir) if holds_run(workdir) else class_table(config.data)
    model = create_network(config, table.num_outputs)
    if config.init_from and not holds_run(workdir):
        if holds_run(config.init_from):
            raise _is_a_run(config.init_from)
        outputs = identification.num_outputs(read_state_dict(config.init_from), model)
        with_void = model.clone(num_classes=table.num_classes + 1)
        if outputs == with_void.num_classes and published_weights.has_void_output(with_void):
            table, model = dataclasses.replace(table, has_void_output=True), with_void
        variables = jax.device_put(published_weights.load_network(config.init_from, model), replicated(mesh))
        return TrainedNetwork(model, variables, table, None, config.eval.height)
    load_config(workdir)  # says so where there is no run
    check_network(workdir, config, table)
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        step = checkpoints.step(config.eval.checkpoint)
        averaged = config.optimizer.ema_decay > 0
        if averaged and not checkpoints.holds_averages(step):
            raise InputError(
                f'config.optimizer.ema_decay={config.optimizer.ema_decay}: {workdir} was trained without averaged '
                'parameters; leave the setting out'
            )
        variables = checkpoints.restore_variables(step, model, mesh, averaged)
    return TrainedNetwork(model, variables, table, step, config.eval.height)
