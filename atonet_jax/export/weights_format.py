"""`weights`: a folder of Orbax parameters that every mode and `Segmenter.from_workdir` take as a workdir."""

from ml_collections import ConfigDict

from atonet_jax.config import default_config
from atonet_jax.export.comparison import compare
from atonet_jax.inference.segmenter import Segmenter
from atonet_jax.models import network
from atonet_jax.runs.checkpoint import Checkpoints
from atonet_jax.runs.network import TrainedNetwork
from atonet_jax.runs.workdir import claim

ENDING = '_weights'


def write(path: str, trained: TrainedNetwork, config: ConfigDict) -> None:
    """Of what a workdir holds, the config, the class table and one checkpoint, without what training alone has."""
    config = config.copy_and_resolve_references()
    config.init_from = ''
    config.export = default_config(config.model.name).export  # whose output is this very folder
    config.optimizer.ema_decay = 0.0  # averaged parameters are the parameters from here on
    claim(path, config, trained.class_table)
    training_only = network(trained.model).training_only
    variables = {
        collection: {name: tree for name, tree in modules.items() if name not in training_only}
        for collection, modules in trained.variables.items()
    }
    checkpoints = Checkpoints(path, keep=1)
    checkpoints.save_variables(trained.step or 0, variables)
    checkpoints.close()


def check(path: str, trained: TrainedNetwork, config: ConfigDict) -> str:
    options = config.export.copy_and_resolve_references()
    options.update(inputs='uint8', outputs='labels', layout='NHWC')
    return compare(Segmenter.from_workdir(path), trained, options, in_jax=True)
