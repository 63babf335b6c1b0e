"""The training run: `--mode=train`."""

import logging
import math
import os
import pathlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import jax
from ml_collections import ConfigDict

from atonet_jax.config import create_network
from atonet_jax.data import device_cache
from atonet_jax.data.batches import Batches
from atonet_jax.data.dataset import SegmentationDataset
from atonet_jax.data.examples import Examples
from atonet_jax.data.label_reading import different_reading_text
from atonet_jax.data.padding import padding_text
from atonet_jax.data.sources import class_table, load_examples
from atonet_jax.errors import InputError, TrainingError
from atonet_jax.evaluation.evaluator import Evaluator
from atonet_jax.evaluation.metrics import Scores
from atonet_jax.models import network
from atonet_jax.process.devices import create_mesh
from atonet_jax.process.distributed import decided_by_main_process, is_main_process, main_process_first
from atonet_jax.process.files import write_json, writing
from atonet_jax.process.stopping import Stopped, StopSignals
from atonet_jax.runs.checkpoint import Checkpoints, has_checkpoint
from atonet_jax.runs.network import blank_variables, starting_variables
from atonet_jax.runs.state import TrainState
from atonet_jax.runs.workdir import changes_since, check_claim, claim, holds_run, lock, read_fresh, record_fresh
from atonet_jax.training.augment import too_long_text
from atonet_jax.training.class_weights import class_weights
from atonet_jax.training.from_config import (
    backbone_rate_warning,
    create_objective,
    create_recipe,
    step_options,
    train_augmentation,
    with_crop_size,
)
from atonet_jax.training.nonfinite import first_nonfinite
from atonet_jax.training.recorder import Recorder
from atonet_jax.training.step import Recipe, StepNumbers, compile_train_step, create_state
from atonet_jax.training.timeline import Timeline
from atonet_jax.validation import validate, validate_batches, validate_classes

_log = logging.getLogger(__name__)

_DECIDE_SCORES = ('config.eval.', *(f'config.data.{key} ' for key in ('eval_split', 'name', 'root', 'tfds_dir')))
_DECIDE_NO_SCORES = tuple(f'config.eval.{key} ' for key in ('batch_size', 'pictures', 'output', 'checkpoint'))


def train(config: ConfigDict, workdir: str) -> Scores:
    """Trains from scratch, or on from the latest checkpoint in `workdir`; returns the scores of the final state.

    A run that was stopped and started again ends with the parameters of one that was not. Among several processes all
    call this alike; the first one writes.

    Raises:
        InputError: a setting, a data file or the workdir does not allow the run, or another run is in the workdir.
        TrainingError: the loss or its gradient is no finite number any more; or a checkpoint cannot be saved.
        Stopped: SIGTERM or SIGINT ended the run in good order.
    """
    mesh = create_mesh()
    validate(config)
    validate_batches(config, mesh.size)
    table = class_table(config.data)
    validate_classes(config, table.num_classes)
    resumes = decided_by_main_process(lambda: has_checkpoint(workdir))
    if holds_run(workdir):
        changes_since(workdir, config, table, resumes)  # refuses another network before any data is read
    model = create_network(config, table.num_classes)
    objective = create_objective(config, model)
    if resumes:
        variables, fresh = blank_variables(model), read_fresh(workdir)
    else:
        variables, fresh = starting_variables(config, model, table, mesh)
    with ExitStack() as held:
        decided_by_main_process(lambda: held.enter_context(lock(workdir)))
        if decided_by_main_process(lambda: has_checkpoint(workdir)) != resumes:
            raise InputError(f'{workdir}: another run has just saved there; give the same command again to go on')
        return _train(config, workdir, mesh, table, objective, variables, fresh, resumes)


def _train(config, workdir, mesh, table, objective, variables, fresh, resumes) -> Scores:
    """`train` in a workdir that is ours."""
    with main_process_first('data'):
        train_set, eval_set = (
            load_examples(config.data, split, workdir) for split in (config.data.train_split, config.data.eval_split)
        )
    if train_set.on_device and eval_set.on_device:
        device_cache.check([train_set.dataset, eval_set.dataset], mesh)
    for text_of in (shared_images_text, different_reading_text):
        if warning := text_of(train_set.dataset, eval_set.dataset):
            _log.warning('%s', warning)
    sizes = Counter(size for size in train_set.dataset.sizes if size is not None)
    config = with_crop_size(config, sizes)
    augmentation = train_augmentation(config)
    if too_long := too_long_text(sizes, augmentation):
        raise InputError(too_long)
    changes = decided_by_main_process(lambda: check_claim(workdir, config, table, resumes))
    if resumes and (warning := incomparable_text(changes)):
        _log.warning('%s', warning)
    if not resumes:
        decided_by_main_process(lambda: record_fresh(workdir, fresh))
    weights = class_weights(config, network(objective.model).class_weights, train_set.dataset, workdir)
    padding, is_much = padding_text(sizes, augmentation)
    _log.log(logging.WARNING if is_much else logging.INFO, '%s', padding)

    timeline = Timeline(config.train.batch_size, len(train_set), config.train.epochs)

    options = step_options(config, objective, fresh)
    groups = set(jax.tree.leaves(options['optimizer'].groups(variables['params'])))
    starts_fresh = not (resumes or config.init_from or config.model.pretrained_backbone)
    if warning := backbone_rate_warning(config, groups, starts_fresh):
        _log.warning('%s', warning)
    state = create_state(variables, options['optimizer'], averaging=config.optimizer.ema_decay > 0, mesh=mesh)
    _log.info(
        '%s: %d parameters; %d training and %d evaluation images; on %d %s device(s)',
        config.model.name,
        sum(array.size for array in jax.tree.leaves(state.variables['params'])),
        len(train_set),
        len(eval_set),
        mesh.size,
        jax.default_backend(),
    )

    checkpoints = Checkpoints(workdir, config.train.keep_checkpoints)
    numbers = {'best_miou': -1.0, 'best_step': 0, 'seconds': 0.0, 'samples': 0}
    here = {'images': len(train_set), 'devices': mesh.size}
    with _closing(checkpoints.close):
        if resumes:
            state, saved = checkpoints.restore_latest(state)
            step = int(state.step)
            numbers |= {'samples': timeline.sample(step)} | saved  # runs from before these were counted lack them
            timeline = timeline.after(step, saved.get('epochs', timeline.epoch(step)))
            changes += [f'{k} were {saved[k]}, are {v}' for k, v in here.items() if saved.get(k, v) != v]
        decided_by_main_process(lambda: claim(workdir, config, table, resumes))
        recipe = create_recipe(config, timeline.num_images, timeline.total_steps, timeline.offset, weights)
        _log.info('%s', _course(config, workdir, timeline, changes, numbers['samples'], recipe))
        recorder = Recorder(workdir, config, table, timeline)
        step_fn = compile_train_step(mesh, donate=not config.debug.nans, **options)
        explain = partial(
            first_nonfinite, **{key: options[key] for key in ('objective', 'augmentation', 'accumulation')}
        )
        with _closing(recorder.close, *(partial(_list_skipped, part, workdir) for part in (train_set, eval_set))):
            return _Run(config, workdir, checkpoints, recorder, numbers | here).train(
                state,
                step_fn,
                recipe,
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


def _course(config, workdir, timeline, changes, samples, recipe) -> str:
    """One line: where the run goes on, what has changed, and what is to come."""
    step, total = timeline.start_step, timeline.total_steps
    line = f'resumed from step {step} of {workdir}, after {samples} samples ({timeline.epoch(step):.4g} epochs); '
    if not step:
        line = ''
    if changes:
        line += f'changed since: {"; ".join(changes)}; '
    if step == total:
        return f'{line}nothing is left to train, as config.train.epochs={config.train.epochs:g}'
    left = '1 step' if total - step == 1 else f'{total - step} steps'
    line += (
        f'left to do: {left} of {timeline.batch_size} images, to epoch {timeline.epoch(total):.4g}, from a learning '
        f'rate of {recipe.learning_rates["rest"](step):.3g} on'
    )
    if any(change.startswith(('config.train.batch_size ', 'config.train.accumulation ')) for change in changes):
        line += f'; batch normalisation sees {timeline.batch_size // config.train.accumulation} images at a time'
    return line


class _Run:
    """The loop over steps."""

    def __init__(self, config: ConfigDict, workdir: str, checkpoints: Checkpoints, recorder: Recorder, numbers: dict):
        """
        Args:
            config: of the run.
            workdir: of the run.
            checkpoints: in the workdir.
            recorder: of the workdir; it knows the timeline.
            numbers: as they are saved with the state: 'best_miou', 'best_step', 'seconds' of training and 'samples' so
                far, 'images' and 'devices' of now. 'epochs' so far are added.
        """
        self._config = config
        self._workdir = workdir
        self._checkpoints = checkpoints
        self._recorder = recorder
        self._numbers = numbers

    def train(
        self,
        state: TrainState,
        step_fn: Callable,
        recipe: Recipe,
        evaluator: Evaluator,
        batches: Iterator[dict[str, jax.Array]],
        explain: Callable[[TrainState, dict[str, jax.Array], StepNumbers], str] | None,
    ) -> Scores:
        """Steps from `state.step` to the end of the timeline, evaluating and saving on the way.

        The figures of steps are looked at a few at a time, so that the device never waits for the host; a loss that is
        no number stays one, and is found at the next look, which comes before anything is saved.

        Raises:
            Stopped: a signal said so; the last step is saved.
            TrainingError: the loss or its gradient is no finite number any more; or nothing can be saved.
        """
        train, timeline, scores = self._config.train, self._recorder.timeline, None
        total_steps, first_step = timeline.total_steps, timeline.start_step + 1
        self._last_good_step = timeline.start_step
        pending = []
        started, before_this = time.perf_counter(), dict(self._numbers)
        with self._recorder.progress() as progress, StopSignals() as signals:
            for step, batch in enumerate(batches, first_step):
                of_step = recipe.at(step - 1)
                before, (state, metrics) = state, step_fn(state, batch, of_step)
                pending.append((step, metrics))
                stop = signals.received(step)
                evaluates = step == total_steps or timeline.passes(step, train.eval_every_epochs)
                saves = evaluates or step % train.checkpoint_every_steps == 0 or stop is not None
                if saves or explain or step == first_step or step % train.log_every_steps == 0:
                    self._check(pending, explain and (lambda: explain(before, batch, of_step)))
                    progress.look(pending)
                    pending = []
                if saves:
                    self._numbers |= {
                        'seconds': before_this['seconds'] + time.perf_counter() - started,
                        'samples': before_this['samples'] + (step - timeline.start_step) * timeline.batch_size,
                        'epochs': timeline.epoch(step),
                    }
                    scores = self._evaluate(step, state, evaluator) if evaluates else None
                    self._recorder.sync(step)
                    miou = scores.miou if scores is not None and not math.isnan(scores.miou) else None
                    self._checkpoints.save(state, dict(self._numbers), miou)
                    self._last_good_step = step
                    progress.restart()
                    if stop is None and step < total_steps:
                        stop = signals.received(step)  # which came while it evaluated
                if stop is not None and step < total_steps:
                    self._checkpoints.wait()
                    raise Stopped(stop, step)
            self._checkpoints.wait()  # while a signal still leaves it the time
        if scores is None:  # resumed where nothing was left to do
            evaluation = evaluator.run(state.averaged or state.variables)
            self._recorder.report(first_step - 1, evaluation)
            scores = evaluation.scores
        return scores

    def _check(self, pending: list[tuple[int, dict[str, jax.Array]]], explain: Callable[[], str] | None) -> None:
        """Stops at the first loss that is no number."""
        for step, metrics in jax.device_get(pending):
            for name in ('loss', 'gradient_norm'):
                if math.isfinite(metrics[name]):
                    continue
                where = _explained(explain) if explain else '--config.debug.nans=true says in which layer'
                last = self._last_good_step
                kept = f'the checkpoint of step {last} in {self._workdir} is kept' if last else 'nothing was saved yet'
                raise TrainingError(
                    f'step {step}: {name} is {metrics[name]}; {where}; {kept}; start again with a lower '
                    'config.optimizer.learning_rate or more config.schedule.warmup_epochs'
                )

    def _evaluate(self, step: int, state: TrainState, evaluator: Evaluator) -> Scores:
        evaluation = evaluator.run(state.averaged or state.variables)
        scores = evaluation.scores
        if scores.miou > self._numbers['best_miou']:
            self._numbers |= {'best_miou': scores.miou, 'best_step': step}
        self._recorder.evaluation(step, evaluation, self._numbers)
        return scores


def _explained(explain: Callable[[], str]) -> str:
    try:
        return explain()
    except RuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        return "the device's memory is too small to find the layer"


def _list_skipped(examples: Examples, workdir: str) -> None:
    """Writes which images the main process has skipped in this start, and why."""
    if not is_main_process():
        return
    dataset = examples.dataset
    path = os.path.join(workdir, f'skipped_{dataset.split}.json')
    reasons = {dataset.image_paths[i]: str(reason) for i, reason in sorted(examples.skipped.items())}
    with writing(workdir):
        if not reasons:
            pathlib.Path(path).unlink(missing_ok=True)  # of an earlier start
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)  # a split may be named train/a
        write_json(path, reasons)
    _log.warning('%d of %d images of %s were skipped; %s lists them', len(reasons), len(examples), dataset.split, path)


def incomparable_text(changes: list[str]) -> str:
    """One line if changes since a run began make scores of other images, or of other views of them; '' if not."""
    changes = [c for c in changes if c.startswith(_DECIDE_SCORES) and not c.startswith(_DECIDE_NO_SCORES)]
    if not changes:
        return ''
    return (
        f'{"; ".join(changes)}: scores may not be comparable with those before, among which the best one may be; '
        '--config.eval.checkpoint=latest takes the last checkpoint'
    )


def shared_images_text(train: SegmentationDataset, evaluated: SegmentationDataset) -> str:
    """One line if images of the evaluation are trained on; '' if not."""
    shared = sorted(set(train.image_paths) & set(evaluated.image_paths))
    if not shared:
        return ''
    return (
        f'config.data.eval_split={evaluated.split}: {len(shared)} of its {len(evaluated)} images are in '
        f'config.data.train_split={train.split} too, such as {shared[0]}; the scores say nothing of other images'
    )
