"""The training run: `--mode=train`."""

import logging
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from atonet_jax.config import create_network
from atonet_jax.data import device_cache
from atonet_jax.data.batches import Batches
from atonet_jax.data.dataset import shared_images_text
from atonet_jax.data.examples import Examples
from atonet_jax.data.label_reading import different_reading_text
from atonet_jax.data.labels import ClassTable
from atonet_jax.data.padding import padding_text
from atonet_jax.data.sources import class_table, load_examples
from atonet_jax.errors import InputError
from atonet_jax.evaluation.evaluator import Evaluator
from atonet_jax.evaluation.metrics import Scores
from atonet_jax.models import network
from atonet_jax.process.devices import create_mesh
from atonet_jax.process.distributed import (
    in_main_process,
    is_main_process,
    main_process_first,
    processes_on_this_host,
)
from atonet_jax.process.progress import say
from atonet_jax.runs.changes import (
    changes_since,
    check_network,
    check_training,
    incomparable_text,
    reads_other_values,
)
from atonet_jax.runs.checkpoint import Checkpoints, has_checkpoint
from atonet_jax.runs.network import blank_variables, starting_variables
from atonet_jax.runs.state import TrainState
from atonet_jax.runs.workdir import REPORT_FILE, claim, lock, read_fresh, record_fresh, with_start
from atonet_jax.training.augment import too_long_text
from atonet_jax.training.class_weights import class_weights
from atonet_jax.training.from_config import (
    backbone_rate_warning,
    check_floor,
    create_objective,
    create_schedule,
    step_options,
    train_augmentation,
    with_crop_size,
)
from atonet_jax.training.loop import Loop
from atonet_jax.training.nonfinite import first_nonfinite
from atonet_jax.training.recorder import Recorder
from atonet_jax.training.skipped import gathering_skipped, list_skipped
from atonet_jax.training.step import Objective, compile_train_step, create_state
from atonet_jax.training.timeline import Timeline
from atonet_jax.validation import validate, validate_batches, validate_classes

_log = logging.getLogger(__name__)


def train(config: ConfigDict, workdir: str) -> Scores:
    """Trains from scratch, or on from the latest checkpoint in `workdir`.

    Prints the mIoU of the final state and where its report is. A run that was stopped and started again ends with the
    parameters of one that was not. Among several processes all call this alike; the first one writes.

    Returns:
        The scores of the final state.

    Raises:
        InputError: a setting, a data file or the workdir does not allow the run, or another run is in the workdir.
        TrainingError: the loss or its gradient is no finite number any more; or a checkpoint cannot be saved.
        Stopped: a signal ended the run in good order.
    """
    mesh = create_mesh()
    validate(config)
    validate_batches(config, mesh.size)
    table = class_table(config.data)
    validate_classes(config, table.num_classes)
    has_begun = in_main_process(lambda: has_checkpoint(workdir))
    check_network(workdir, config, table, has_begun)  # before any data is read
    model = create_network(config, table.num_classes)
    objective = create_objective(config, model)
    if has_begun:
        start = _Start(has_begun, blank_variables(model), read_fresh(workdir))
    else:
        start = _Start(has_begun, *starting_variables(config, model, table, mesh))
    with ExitStack() as held:
        in_main_process(lambda: held.enter_context(lock(workdir)))
        if in_main_process(lambda: has_checkpoint(workdir)) != has_begun:
            raise InputError(f'{workdir}: another run has just saved there; give the same command again to go on')
        scores = _train(config, workdir, mesh, table, objective, start)
    if is_main_process():
        run = shlex.quote(f'--workdir={workdir}')
        command = f'python main.py {run} --mode=evaluate --config.eval.checkpoint=latest'
        say(f'final mIoU {100 * scores.miou:.2f}%; for the scores of each class: {command}')
        say(f'report: {os.path.join(workdir, REPORT_FILE)}')
    return scores


class _Start(NamedTuple):
    """Whether training goes on from a checkpoint, the variables (blank then), and which modules no file has filled."""

    has_begun: bool
    variables: dict[str, Any]
    fresh: Sequence[str]


def _train(
    config: ConfigDict, workdir: str, mesh: Mesh, table: ClassTable, objective: Objective, start: _Start
) -> Scores:
    """`train` in a workdir that is ours."""
    has_begun = start.has_begun
    train_set, eval_set = _load(config, workdir, mesh)
    sizes = Counter(size for size in train_set.dataset.sizes if size is not None)
    config = with_crop_size(with_start(config, workdir) if has_begun else config, sizes)
    augmentation = train_augmentation(config)
    if too_long := too_long_text(sizes, augmentation):
        raise InputError(too_long)
    in_main_process(lambda: check_training(workdir, config, table, has_begun))
    changes = in_main_process(lambda: changes_since(workdir, config))
    has_other_labels = in_main_process(lambda: reads_other_values(workdir, table))
    if has_begun and (warning := incomparable_text(changes, has_other_labels)):
        _log.warning('%s', warning)
    if not has_begun:
        in_main_process(lambda: record_fresh(workdir, start.fresh))
    weights = class_weights(config, network(objective.model).class_weights, train_set.dataset, workdir)
    padding, is_much = padding_text(sizes, augmentation)
    _log.log(logging.WARNING if is_much else logging.INFO, '%s', padding)

    options = step_options(config, objective, start.fresh)
    state = _first_state(config, options, start, mesh)
    _log.info('%d training and %d evaluation images', len(train_set), len(eval_set))
    timeline = Timeline(config.train.batch_size, len(train_set), config.train.epochs)
    figures = {'best_miou': -1.0, 'best_step': 0, 'seconds': 0.0, 'samples': 0}
    here, moved = {'images': len(train_set), 'devices': mesh.size}, []
    checkpoints = Checkpoints(workdir, config.train.keep_checkpoints)
    with _closing(checkpoints.close):
        if has_begun:
            state, saved = checkpoints.restore_latest(state)
            step = int(state.step)
            figures |= {'samples': timeline.sample(step)} | saved  # runs from before these were counted lack them
            timeline = timeline.after(step, saved.get('epochs', timeline.epoch(step)))
            moved = [f'{k} were {saved[k]}, are {v}' for k, v in here.items() if saved.get(k, v) != v]
        in_main_process(lambda: claim(workdir, config, table))
        schedule = create_schedule(config, timeline, weights)
        _log.info('%s', _course(config, workdir, timeline, changes, moved, figures['samples'], schedule))
        recorder = Recorder(workdir, config, table, timeline)
        step_fn = compile_train_step(mesh, donate=not config.debug.nans, **options)
        explain = partial(
            first_nonfinite, **{key: options[key] for key in ('objective', 'augmentation', 'accumulation')}
        )
        listing = (partial(list_skipped, part, workdir) for part in (train_set, eval_set))
        with _closing(recorder.close, *listing), gathering_skipped(train_set, eval_set):
            return Loop(config, workdir, checkpoints, recorder, figures | here).run(
                state,
                step_fn,
                schedule,
                Evaluator(objective.model, Batches(eval_set, mesh), config.eval),
                Batches(train_set, mesh).train(
                    batch_size=timeline.batch_size,
                    augmentation=options['augmentation'],
                    seed=config.seed,
                    start_sample=timeline.start_sample,
                    num_steps=timeline.total_steps - timeline.start_step,
                ),
                explain if config.debug.nans else None,
            )


def _first_state(config: ConfigDict, options: dict[str, Any], start: _Start, mesh: Mesh) -> TrainState:
    """The state before the first step, or what a checkpoint is restored into. Warns of rates that do not fit it."""
    params = start.variables['params']
    groups = set(jax.tree.leaves(options['optimizer'].groups(params)))
    check_floor(config, groups)
    starts_fresh = not (start.has_begun or config.init_from or config.model.pretrained_backbone)
    if warning := backbone_rate_warning(config, groups, starts_fresh):
        _log.warning('%s', warning)
    parameters = sum(array.size for array in jax.tree.leaves(params))
    devices = f'{mesh.size} {jax.default_backend()} device(s)'
    _log.info('%s: %d parameters, on %s', config.model.name, parameters, devices)
    return create_state(start.variables, options['optimizer'], averaging=config.optimizer.ema_decay > 0, mesh=mesh)


def _load(config: ConfigDict, workdir: str, mesh: Mesh) -> tuple[Examples, Examples]:
    """The images of training and of evaluation."""
    processes = processes_on_this_host()
    with main_process_first('data'):
        train_set, eval_set = (
            load_examples(config.data, split, workdir, processes)
            for split in (config.data.train_split, config.data.eval_split)
        )
    if train_set.on_device and eval_set.on_device:
        device_cache.check([train_set.dataset, eval_set.dataset], mesh)
    for text_of in (shared_images_text, different_reading_text):
        if warning := text_of(train_set.dataset, eval_set.dataset):
            _log.warning('%s', warning)
    return train_set, eval_set


@contextmanager
def _closing(*closes: Callable[[], None]) -> Iterator[None]:
    """Calls all of them at the end. Where an error has ended the body, theirs are only logged and do not mask it."""
    try:
        yield
    except BaseException:
        for close in closes:
            try:
                close()
            except Exception as error:
                _log.warning('%s', error)
        raise
    with ExitStack() as stack:
        for close in reversed(closes):
            stack.callback(close)


def _course(config, workdir, timeline, changes, moved, samples, schedule) -> str:
    """One line: where the run goes on, what has changed, and what is to come."""
    step, total = timeline.start_step, timeline.total_steps
    line = f'resumed from step {step} of {workdir}, after {samples} samples ({timeline.epoch(step):.4g} epochs); '
    if not step:
        line = ''
    if changes or moved:
        line += f'changed since: {"; ".join([*map(str, changes), *moved])}; '
    if step == total:
        return f'{line}nothing is left to train, as config.train.epochs={config.train.epochs:g}'
    left = '1 step' if total - step == 1 else f'{total - step} steps'
    line += (
        f'left to do: {left} of {timeline.batch_size} images, to epoch {timeline.epoch(total):.4g}, from a learning '
        f'rate of {schedule.learning_rates["rest"](step):.3g} on'
    )
    if any(change.key in ('train.batch_size', 'train.accumulation') for change in changes):
        line += f'; batch normalisation sees {timeline.batch_size // config.train.accumulation} images at a time'
    return line
