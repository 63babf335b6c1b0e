"""Orbax checkpoints of a run: the latest few, and the best one by mIoU."""

import asyncio
import contextlib
import errno
import glob
import json
import logging
import os
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore
from flax import linen as nn
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers

from atonet_jax.errors import InputError, TrainingError, first_line, is_out_of_memory
from atonet_jax.models import abstract_variables, network
from atonet_jax.process.devices import replicated
from atonet_jax.process.distributed import in_main_process, is_main_process
from atonet_jax.process.files import sync, sync_tree, write_json, writing
from atonet_jax.runs.state import TrainState

MIOU = 'miou'
_log = logging.getLogger(__name__)

_PAUSES = (0.5, 2.0)  # seconds before a checkpoint that could not be read is tried again
_TREES = ('variables', 'optimizer', 'averaged')
_SCORE = 'metrics'  # Orbax's name of the part that holds the mIoU
# An error with one of these codes, or with none, is of a damaged checkpoint, which is moved away. Others may pass.
_OF_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


def has_checkpoint(workdir: str) -> bool:
    """Whether one is saved in `workdir`, in which training is to save more.

    Raises:
        InputError: the folder of the checkpoints cannot be read, or none can be saved under its name.
    """
    folder = _folder(workdir, writes=True)
    return bool(_names(folder)) and ocp.utils.any_checkpoint_step(folder) is not None


class Checkpoints:
    """The checkpoints in `workdir/checkpoints`, one for each saved step.

    Each holds three parts: the network's variables, the rest of the training state, and a small dictionary of numbers.
    They are stored separately, so that evaluation reads only the network. Saving is asynchronous.
    """

    def __init__(self, workdir: str, keep: int | None = None):
        """
        Args:
            workdir: of the run.
            keep: how many of the latest checkpoints are kept, beside the one with the highest mIoU. None outside of
                training: unfinished checkpoints of other processes are then left alone.

        Raises:
            InputError: the folder of the checkpoints, or a score in it, cannot be read; or, where they are to be
                written, none can be saved under its name.
        """
        self._folder = _folder(workdir, writes=keep is not None)
        names = _names(self._folder)
        if keep is not None:
            _warn_of_half_written(self._folder, names)
        for step, reason in in_main_process(lambda: _damaged_scores(self._folder, names)):
            if keep is None:
                raise InputError(
                    f'{os.path.join(self._folder, step, _SCORE)}: is damaged ({reason}); delete it, and the checkpoint '
                    'counts as one without a score'
                )
            aside = in_main_process(lambda step=step: self._set_aside(os.path.join(step, _SCORE)))
            _log.warning('checkpoint %s: its score cannot be read (%s), and is now in %s', step, reason, aside)
        self._manager = ocp.CheckpointManager(
            self._folder,
            # Given here, because otherwise item_metadata fails until something was saved or restored.
            item_handlers={name: ocp.StandardCheckpointHandler() for name in _TREES}
            | {'numbers': ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                best_fn=lambda metrics: metrics[MIOU],
                create=keep is not None,
                cleanup_tmp_directories=keep is not None,
                temporary_path_class=_DurablePath,
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    [
                        checkpoint_managers.LatestN(keep or 1),
                        checkpoint_managers.BestN(
                            get_metric_fn=lambda metrics: metrics[MIOU], n=1, keep_checkpoints_without_metrics=False
                        ),
                    ]
                ),
            ),
        )

    def step(self, which: str) -> int:
        """The step of the 'best' or the 'latest' checkpoint.

        Raises:
            InputError: there is none.
        """

        def find():
            step = self._manager.best_step() if which == 'best' else None
            if step is None:
                step = self._manager.latest_step()
            if step is None:
                raise InputError(f'{self._folder}: no checkpoint; train first, or name another --workdir')
            return step

        return in_main_process(find)

    def save(self, state: TrainState, numbers: dict[str, float], miou: float | None) -> None:
        """Starts to save `state`, with `miou` if it was just evaluated.

        Raises:
            TrainingError: this checkpoint, or the one before, could not be saved.
        """
        items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        with self._explains_failure():
            is_saved = self._manager.save(
                int(state.step),
                args=ocp.args.Composite(**items, numbers=ocp.args.JsonSave(numbers)),
                metrics=None if miou is None else {MIOU: miou},
            )
            if not is_saved:
                raise RuntimeError('there is a later one')

    def has_score(self, step: int) -> bool:
        return in_main_process(lambda: os.path.exists(self._score_path(step)))

    def add_score(self, step: int, miou: float) -> None:
        """Gives a saved checkpoint its score, from which the next start knows the best one."""
        if is_main_process():
            with writing(self._folder):
                os.makedirs(os.path.dirname(self._score_path(step)), exist_ok=True)
                write_json(self._score_path(step), {MIOU: miou})

    def _score_path(self, step: int) -> str:
        return os.path.join(self._folder, str(step), _SCORE, _SCORE)

    def save_variables(self, step: int, variables: dict[str, Any]) -> None:
        """Saves only a network's variables: enough to evaluate, not to continue training.

        Raises:
            OSError: the disk does not take them.
        """
        try:
            self._manager.save(step, args=ocp.args.Composite(variables=ocp.args.StandardSave(variables)))
            self._manager.wait_until_finished()
        except Exception as error:  # TensorStore raises ValueError for a full disk
            if (code := _os_error_code(error)) is None:
                raise
            raise OSError(code, _reason(error)) from error

    def restore_latest(self, state: TrainState) -> tuple[TrainState, dict[str, float]]:
        """`restore` of the latest readable step. Unreadable ones are moved to `workdir/unusable` and logged.

        The main process finds it for all. If reading fails for another reason than damaged content, such as the disk or
        the devices' memory, the run ends and nothing is moved.

        Raises:
            InputError: none can be read, or not now.
        """
        step, failures = in_main_process(self._latest_readable)
        for bad, reason in failures:
            aside = in_main_process(lambda bad=bad: self._set_aside(str(bad)))
            _log.warning(
                'checkpoint %d cannot be read (%s): it is now in %s, and the run continues from step %d',
                bad, reason, aside, step,
            )  # fmt: skip
        if failures:
            self._manager.reload()
        restore = partial(self.restore, state)
        try:  # several processes restore together, so that none can try again alone
            return _patiently(restore, step) if jax.process_count() == 1 else restore(step)
        except Exception as error:
            raise self._not_now(step, error) from error

    def _latest_readable(self) -> tuple[int, list[tuple[int, str]]]:
        """The latest step that this process can read, and (step, why) of later ones that are damaged.

        Raises:
            InputError: there is none, or reading fails for another reason than damage.
        """
        steps, failures = sorted(self._manager.all_steps(), reverse=True), []
        if not any(pathlib.Path(self._folder, str(step), 'optimizer').exists() for step in steps):
            raise InputError(
                f'{os.path.dirname(self._folder)}: holds weights alone, which training cannot go on from; start a '
                'new run from them: --config.init_from=FOLDER and another --workdir'
            )
        for step in steps:
            try:
                _patiently(self._read_alone, step)
                return step, failures
            except Exception as error:  # TensorStore raises many kinds of errors for a damaged file
                if _may_pass(error):
                    raise self._not_now(step, error) from error
                failures.append((step, _reason(error)))
        _, reason = failures[0]
        raise InputError(
            f'{self._folder}: no checkpoint can be read (the latest one: {reason}); restore the folder '
            'from a copy, or give a new --workdir'
        )

    def _read_alone(self, step: int) -> None:
        """Reads all of a checkpoint in this process alone. Orbax would wait for the other processes."""
        for name in _TREES:
            if name != 'averaged' or self.holds_averages(step):
                self._read_tree(step, name)
        json.loads(pathlib.Path(self._folder, str(step), 'numbers', 'metadata').read_text())

    def _read_tree(self, step: int, name: str) -> None:
        """Reads one of `_TREES`. Orbax would print a traceback for each array of a damaged one."""
        tree = pathlib.Path(self._folder, str(step), name)
        for part in {tree / '_METADATA', *tree.glob('_*'), *tree.glob('array_metadatas/*')}:
            json.loads(part.read_text())
        store = {'driver': 'ocdbt', 'base': {'driver': 'file', 'path': f'{tree}/'}}
        for entry in json.loads((tree / '_METADATA').read_text())['tree_metadata'].values():
            if not entry['value_metadata']['skip_deserialize']:  # as of what optimisers leave out
                array = '.'.join(str(key['key']) for key in entry['key_metadata'])
                tensorstore.open({'driver': 'zarr', 'kvstore': store | {'path': f'{array}/'}}).result().read().result()

    def _not_now(self, step: int, error: Exception) -> InputError:
        return InputError(
            f'{self._folder}: checkpoint {step} cannot be read now ({_reason(error)}), and is left as it is; give the '
            'same command again, or move it away to go on from the one before'
        )

    def restore(self, state: TrainState, step: int) -> tuple[TrainState, dict[str, float]]:
        """The whole training state, placed on devices as `state` is, and the numbers saved with it."""
        items = {
            name: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))
            for name, tree in _items(state).items()
        }
        restored = self._manager.restore(step, args=ocp.args.Composite(**items, numbers=ocp.args.JsonRestore()))
        restored_state = TrainState(
            step=restored.optimizer['step'],
            variables=restored.variables,
            opt_state=restored.optimizer['opt_state'],
            averaged=restored.get('averaged'),
        )
        return restored_state, restored.numbers

    def holds_averages(self, step: int) -> bool:
        """Whether averaged parameters were saved too (`optimizer.ema_decay`)."""
        return os.path.exists(os.path.join(self._folder, str(step), 'averaged'))

    def restore_variables(self, step: int, model: nn.Module, mesh: Mesh, averaged: bool) -> dict[str, Any]:
        """Only the network's variables, on every device of the mesh. With `averaged`, the averaged ones.

        Modules that only training has are left out if the checkpoint lacks them, as exported weights do.

        Raises:
            InputError: the checkpoint cannot be read.
        """
        item = 'averaged' if averaged else 'variables'
        try:
            self._read_tree(step, item)
            return self._restore_variables(step, model, mesh, item)
        except Exception as error:  # TensorStore raises many kinds of errors for a damaged file
            if is_out_of_memory(error):
                raise
            raise InputError(
                f'{self._folder}: checkpoint {step} cannot be read ({_reason(error)}); copy it again, or give another '
                'by --config.eval.checkpoint'
            ) from error

    def _restore_variables(self, step: int, model: nn.Module, mesh: Mesh, item: str) -> dict[str, Any]:
        saved = self._modules(step, item)
        optional = network(model).training_only
        variables = {
            collection: {
                name: tree for name, tree in modules.items() if name not in optional or (collection, name) in saved
            }
            for collection, modules in abstract_variables(model).items()
        }
        variables = jax.tree.map(
            lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=replicated(mesh)), variables
        )
        args = {item: ocp.args.StandardRestore(variables)}
        return self._manager.restore(step, args=ocp.args.Composite(**args))[item]

    def _modules(self, step: int, item: str) -> set[tuple[str, str]]:
        """(collection, module at the top) of the variables in a checkpoint.

        Read from Orbax's file, because Orbax itself opens every array of all items to tell.
        """
        with contextlib.suppress(FileNotFoundError):  # of which restoring tells
            metadata = json.loads(pathlib.Path(self._folder, str(step), item, '_METADATA').read_text())
            paths = [[key['key'] for key in entry['key_metadata']] for entry in metadata['tree_metadata'].values()]
            return {tuple(path[:2]) for path in paths}
        return set()

    def wait(self) -> None:
        """Waits until all checkpoints are saved.

        Raises:
            TrainingError: saving failed.
        """
        with self._explains_failure():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does, then ends the threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _set_aside(self, name: str) -> str:
        """Moves a checkpoint, or a part of one, away. Returns the folder in which it is now."""
        folder = os.path.join(os.path.dirname(self._folder), 'unusable')
        target = os.path.join(folder, name)
        with writing(folder):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if os.path.exists(target):
                shutil.rmtree(target)
            shutil.move(os.path.join(self._folder, name), target)  # the checkpoints may be a link to another disk
        return folder

    @contextmanager
    def _explains_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            steps = [int(name) for name in _names(self._folder) if name.isdecimal()]
            kept = f'that of step {max(steps)} is complete' if steps else 'there is no other'
            raise TrainingError(
                f'{self._folder}: a checkpoint could not be saved ({_reason(error)}); {kept}; free space or repair '
                'the disk, then give the same command again'
            ) from error


def _names(folder: str) -> list[str]:
    """Of all that lies in a folder; [] where there is none."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f'{folder}: cannot be read ({error.strerror}); check its permissions') from error


def _damaged_scores(folder: str, names: Iterable[str]) -> list[tuple[str, str]]:
    """(step, why) of checkpoints whose score is no JSON, over which Orbax would fail whichever checkpoint is wanted."""
    damaged = []
    for step in filter(str.isdecimal, names):
        path = pathlib.Path(folder, step, _SCORE, _SCORE)
        try:
            json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError):  # without a score
            continue
        except ValueError as error:
            damaged.append((step, str(error)))
        except OSError as error:
            raise InputError(f'{path}: cannot be read ({error.strerror}); give the same command again') from error
    return damaged


def _warn_of_half_written(folder: str, names: list[str]) -> None:
    """Logs half-written checkpoints of a killed run. Orbax ignores and removes them."""
    for name in names:
        if ocp.utils.TMP_DIR_SUFFIX in name:
            _log.warning('%s: a half-written checkpoint, skipped', os.path.join(folder, name))


class _DurablePath(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """A checkpoint gets its name, by which it counts as saved, when its content has reached the disk."""

    async def finalize(self) -> None:
        await asyncio.to_thread(sync_tree, str(self.get()))
        await super().finalize()
        # Orbax has just written two files of its own, without which a checkpoint can be read as well; and the name.
        await asyncio.to_thread(sync_tree, str(self.get_final()))
        await asyncio.to_thread(sync, str(self.get_final().parent))


def _patiently(read: Callable[[int], Any], step: int) -> Any:
    """`read(step)`, tried again after a while where it fails."""
    for pause in _PAUSES:
        try:
            return read(step)
        except Exception:
            time.sleep(pause)
    return read(step)


def _may_pass(error: Exception) -> bool:
    """Whether the system could not read, so that nothing is known of the file's content."""
    code = _os_error_code(error)
    return isinstance(error, MemoryError) or (code is not None and code not in _OF_DAMAGE)


def _os_error_code(error: Exception) -> int | None:
    told = re.search(r"os_error_code='(\d+)'", str(error))  # how TensorStore passes it on
    return int(told[1]) if told else error.errno if isinstance(error, OSError) else None


def _reason(error: Exception) -> str:
    """The system's message, such as 'No space left on device'; without one, the error's first line."""
    if (code := _os_error_code(error)) is not None:
        return os.strerror(code)
    return first_line(error)[:200]


def _folder(workdir: str, *, writes: bool) -> str:
    """The folder of the checkpoints.

    Raises:
        InputError: they could not be read there again. TensorStore takes UTF-8 alone, and a backslash for a slash.
            Orbax takes the path for a pattern when it puts together what processes have written.
    """
    folder = os.path.abspath(os.path.join(workdir, 'checkpoints'))
    try:
        folder.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f'{folder}: this path is no UTF-8 text; rename its folder, give another one, or set LC_ALL=C.UTF-8 where '
            'the system has another encoding'
        ) from error
    if '\\' in folder or (writes and glob.has_magic(folder)):
        raise InputError(
            f'{folder}: this path has one of the signs * ? [ \\, with which checkpoints would be lost; rename its '
            'folder, or give another one'
        )
    return folder


def _items(state: TrainState) -> dict[str, Any]:
    """The separately saved parts of a state."""
    items = {'variables': state.variables, 'optimizer': {'step': state.step, 'opt_state': state.opt_state}}
    return items if state.averaged is None else items | {'averaged': state.averaged}
