"""Orbax checkpoints of a run: the latest few, and the best one by mIoU."""

import os
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import linen as nn
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers

from atonet_jax.devices import replicated
from atonet_jax.errors import InputError
from atonet_jax.models import abstract_variables
from atonet_jax.train_step import TrainState

MIOU = 'miou'


def has_checkpoint(workdir: str) -> bool:
    folder = _folder(workdir)
    return os.path.isdir(folder) and ocp.utils.any_checkpoint_step(folder) is not None


class Checkpoints:
    """The checkpoints in `workdir/checkpoints`, one a step.

    Each holds the network's variables, what else training needs to go on, and a small dictionary of numbers,
    separately, so that evaluation reads the network alone. Saving is asynchronous.
    """

    def __init__(self, workdir: str, keep: int = 1):
        """keep: how many of the latest stay; the one with the highest mIoU stays beside them."""
        self._folder = _folder(workdir)
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                best_fn=lambda metrics: metrics[MIOU],
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    [
                        checkpoint_managers.LatestN(keep),
                        checkpoint_managers.BestN(
                            get_metric_fn=lambda metrics: metrics[MIOU], n=1, keep_checkpoints_without_metrics=False
                        ),
                    ]
                ),
            ),
        )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def step(self, which: str) -> int:
        """The step of the 'best' or the 'latest' checkpoint.

        Raises:
            InputError: there is none.
        """
        step = self._manager.best_step() if which == 'best' else None
        if step is None:
            step = self._manager.latest_step()
        if step is None:
            raise InputError(f'{self._folder}: no checkpoint; train first, or name another --workdir')
        return step

    def save(self, state: TrainState, numbers: dict[str, float], miou: float | None) -> None:
        """Begins to save what `state` holds now; `miou` where it was just evaluated."""
        items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(**items, numbers=ocp.args.JsonSave(numbers)),
            metrics=None if miou is None else {MIOU: miou},
        )

    def save_variables(self, step: int, variables: dict[str, Any]) -> None:
        """Begins to save a network's variables alone: enough to evaluate, not to train on."""
        self._manager.save(step, args=ocp.args.Composite(variables=ocp.args.StandardSave(variables)))

    def restore(self, state: TrainState, step: int) -> tuple[TrainState, dict[str, float]]:
        """The whole training state, placed as `state` is, and the numbers saved with it."""
        items = {
            name: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))
            for name, tree in _items(state).items()
        }
        restored = self._manager.restore(
            step, args=ocp.args.Composite(**items, numbers=ocp.args.JsonRestore())
        )
        restored_state = TrainState(
            step=restored.optimizer['step'],
            variables=restored.variables,
            opt_state=restored.optimizer['opt_state'],
            averaged=restored.get('averaged'),
        )
        return restored_state, restored.numbers

    def restore_variables(self, step: int, model: nn.Module, mesh: Mesh, averaged: bool) -> dict[str, Any]:
        """The network's variables alone, on every device of the mesh; the averaged ones where asked."""
        item = 'averaged' if averaged else 'variables'
        variables = jax.tree.map(
            lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=replicated(mesh)),
            abstract_variables(model),
        )
        args = {item: ocp.args.StandardRestore(variables)}
        return self._manager.restore(step, args=ocp.args.Composite(**args))[item]

    def close(self) -> None:
        """Waits until all that was begun is saved."""
        self._manager.wait_until_finished()
        self._manager.close()


def _folder(workdir: str) -> str:
    return os.path.abspath(os.path.join(workdir, 'checkpoints'))


def _items(state: TrainState) -> dict[str, Any]:
    """The parts of a state that are saved apart."""
    items = {'variables': state.variables, 'optimizer': {'step': state.step, 'opt_state': state.opt_state}}
    return items if state.averaged is None else items | {'averaged': state.averaged}
