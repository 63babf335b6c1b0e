"""The training run: `--mode=train`."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from atonet_jax.config import create_network, validate, validate_batches, validate_classes
from atonet_jax.data.augmentation import Augmentation
from atonet_jax.data.examples import Examples
from atonet_jax.data.sources import class_table, load_examples
from atonet_jax.errors import TrainingError
from atonet_jax.evaluation.evaluator import Evaluator
from atonet_jax.evaluation.metrics import Scores
from atonet_jax.models import abstract_variables, network
from atonet_jax.models.contract import Network
from atonet_jax.process.devices import create_mesh, split_by_batch
from atonet_jax.process.distributed import is_main_process, main_process_first
from atonet_jax.process.stopping import Stopped, StopSignals
from atonet_jax.runs.checkpoint import Checkpoints, has_checkpoint
from atonet_jax.runs.network import blank_variables, starting_variables
from atonet_jax.runs.state import TrainState
from atonet_jax.runs.workdir import changes_since, claim, holds_run, lock, write_json
from atonet_jax.training.class_weights import class_weights_of
from atonet_jax.training.losses import check_terms, configured_terms
from atonet_jax.training.nonfinite import first_nonfinite
from atonet_jax.training.optimizer import create_optimizer, learning_rate_schedule
from atonet_jax.training.recorder import Recorder
from atonet_jax.training.step import Objective, compile_train_step, create_state

_log = logging.getLogger(__name__)


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
    if holds_run(workdir):
        changes_since(workdir, config, table)  # refuses another network before any data is read
    model = create_network(config, table.num_classes)
    objective = _create_objective(config, model)
    resumes = has_checkpoint(workdir)
    variables = blank_variables(model) if resumes else starting_variables(config, model, table, mesh)
    with lock(workdir) if is_main_process() else nullcontext():
        return _train(config, workdir, mesh, table, objective, variables, resumes)


def _train(config, workdir, mesh, table, objective, variables, resumes) -> Scores:
    """`train` in a workdir that is ours."""
    with main_process_first('data'):
        train_set, eval_set = (
            load_examples(config.data, split, workdir) for split in (config.data.train_split, config.data.eval_split)
        )
    with main_process_first('claim'):
        for change in claim(workdir, config, table):
            _log.info('since the run in %s began: %s', workdir, change)
    rule = network(objective.model).class_weights
    if rule is not None and not config.loss.class_weights:
        with main_process_first('class weights'):
            skips = config.data.on_corrupt == 'skip'
            weights = class_weights_of(rule, train_set.dataset, workdir, skips_corrupt=skips, writes=is_main_process())
        objective = objective._replace(class_weights=weights)

    batch_size = config.train.batch_size
    total_steps = max(1, round(config.train.epochs * len(train_set) / batch_size))
    learning_rates, optimizer = _create_optimizer(config, network(objective.model), len(train_set), total_steps)
    averaging = config.optimizer.ema_decay > 0
    state = create_state(variables, optimizer, averaging=averaging, mesh=mesh)
    _log.info(
        '%s: %d parameters; %d training and %d evaluation images; %d steps of %d images on %d %s device(s)',
        config.model.name,
        sum(array.size for array in jax.tree.leaves(state.variables['params'])),
        len(train_set),
        len(eval_set),
        total_steps,
        batch_size,
        mesh.size,
        jax.default_backend(),
    )

    checkpoints = Checkpoints(workdir, config.train.keep_checkpoints)
    numbers = {'best_miou': -1.0, 'best_step': 0, 'seconds': 0.0}
    if resumes:
        state, numbers = checkpoints.restore_latest(state)
        _log.info('resumed from step %d of %s', int(state.step), workdir)
    recorder = Recorder(workdir, config, table, int(state.step), len(train_set))
    step_options = {'objective': objective, 'augmentation': train_augmentation(config), 'seed': config.seed}
    step_fn = compile_train_step(
        mesh,
        optimizer=optimizer,
        learning_rates=learning_rates,
        ema_decay=config.optimizer.ema_decay,
        accumulation=config.train.accumulation,
        donate=not config.debug.nans,
        **step_options,
    )
    try:
        return _Run(config, workdir, checkpoints, recorder, numbers).train(
            state,
            total_steps,
            max(1, round(config.train.eval_every_epochs * len(train_set) / batch_size)),
            step_fn,
            Evaluator(objective.model, eval_set, config.eval, mesh),
            _batches(config, train_set, int(state.step), total_steps, mesh),
            partial(first_nonfinite, **step_options) if config.debug.nans else None,
        )
    finally:
        recorder.close()
        for examples in (train_set, eval_set):
            _list_skipped(examples, workdir)
        checkpoints.close()


class _Run:
    """The loop over steps."""

    def __init__(self, config: ConfigDict, workdir: str, checkpoints: Checkpoints, recorder: Recorder, numbers: dict):
        """numbers: 'best_miou', 'best_step' and 'seconds' of training so far, as they are saved with the state."""
        self._config = config
        self._workdir = workdir
        self._checkpoints = checkpoints
        self._recorder = recorder
        self._numbers = numbers

    def train(
        self,
        state: TrainState,
        total_steps: int,
        eval_steps: int,
        step_fn: Callable,
        evaluator: Evaluator,
        batches: Iterator[dict[str, jax.Array]],
        explain: Callable[[TrainState, dict[str, jax.Array]], str] | None,
    ) -> Scores:
        """Steps from `state.step` to `total_steps`, evaluating every `eval_steps` and saving on the way.

        The figures of steps are looked at a few at a time, so that the device never waits for the host; a loss that is
        no number stays one, and is found at the next look, which comes before anything is saved.

        Raises:
            Stopped: a signal said so; the last step is saved.
            TrainingError: the loss or its gradient is no finite number any more; or nothing can be saved.
        """
        train, scores = self._config.train, None
        first_step = self._last_good_step = int(state.step) + 1
        self._last_good_step -= 1
        pending = []
        started, counted_from = time.perf_counter(), self._numbers['seconds']
        with self._recorder.progress(int(state.step), total_steps) as progress, StopSignals() as signals:
            for step, batch in enumerate(batches, first_step):
                before, (state, metrics) = state, step_fn(state, batch)
                pending.append((step, metrics))
                stop = signals.received(step)
                evaluates = step == total_steps or step % eval_steps == 0
                saves = evaluates or step % train.checkpoint_every_steps == 0 or stop is not None
                if saves or explain or step == first_step or step % train.log_every_steps == 0:
                    self._check(pending, explain and (lambda: explain(before, batch)))
                    progress.look(pending)
                    pending = []
                if saves:
                    self._numbers['seconds'] = counted_from + time.perf_counter() - started
                    scores = self._evaluate(step, state, evaluator) if evaluates else None
                    self._checkpoints.save(state, dict(self._numbers), scores and scores.miou)
                    self._last_good_step = step
                    progress.restart()
                    if stop is None and step < total_steps:
                        stop = signals.received(step)  # which came while it evaluated
                if stop is not None and step < total_steps:
                    self._checkpoints.wait()
                    raise Stopped(stop, step)
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
                where = explain() if explain else '--config.debug.nans=true says in which layer'
                raise TrainingError(
                    f'step {step}: {name} is {metrics[name]}; {where}; the checkpoint of step {self._last_good_step} '
                    f'in {self._workdir} is kept; start again with a lower config.optimizer.learning_rate or more '
                    'config.schedule.warmup_epochs'
                )

    def _evaluate(self, step: int, state: TrainState, evaluator: Evaluator) -> Scores:
        evaluation = evaluator.run(state.averaged or state.variables)
        scores = evaluation.scores
        if scores.miou > self._numbers['best_miou']:
            self._numbers |= {'best_miou': scores.miou, 'best_step': step}
        self._recorder.evaluation(step, evaluation, self._numbers)
        return scores


def _batches(
    config: ConfigDict, examples: Examples, start_step: int, total_steps: int, mesh: Mesh
) -> Iterator[dict[str, jax.Array]]:
    options = {
        'batch_size': config.train.batch_size,
        'augmentation': train_augmentation(config),
        'seed': config.seed,
        'start_step': start_step,
        'num_steps': max(0, total_steps - start_step),
    }
    cache = examples.device_cache(mesh)
    if cache is not None:
        return cache.train_batches(**options)
    from atonet_jax.data.pipeline import prefetch_to_device, train_batches  # imports TensorFlow

    batches = train_batches(examples, **options, shard_index=jax.process_index(), num_shards=jax.process_count())
    return prefetch_to_device(batches, split_by_batch(mesh))


def _list_skipped(examples: Examples, workdir: str) -> None:
    if examples.skipped and is_main_process():
        dataset = examples.dataset
        path = os.path.join(workdir, f'skipped_{dataset.split}.json')
        write_json(path, {dataset.image_paths[i]: str(reason) for i, reason in sorted(examples.skipped.items())})
        count = len(examples.skipped)
        _log.warning('%d of %d images of %s were skipped; %s lists them', count, len(examples), dataset.split, path)


def train_augmentation(config: ConfigDict) -> Augmentation:
    """What the config's section `data` makes of a training image."""
    data = config.data
    return Augmentation(
        crop_size=tuple(data.crop_size), scale_range=tuple(data.scale_range), flip=data.flip, **data.augmentation
    )


def _create_optimizer(config: ConfigDict, contract: Network, num_images: int, total_steps: int):
    """Learning rate schedules by parameter group, and the optimiser that follows them."""
    batch_size = config.train.batch_size
    # The published run steps torch's scheduler once an epoch, so that the rate is constant within it.
    epoch_of_step = (lambda step: step * batch_size // num_images) if config.schedule.per == 'epoch' else None
    factors = {'backbone': config.optimizer.backbone_factor, 'rest': 1.0}
    learning_rates = {
        group: learning_rate_schedule(
            peak=factor * config.optimizer.learning_rate,
            name=config.schedule.name,
            total_steps=total_steps,
            epoch_of_step=epoch_of_step,
            total_epochs=config.train.epochs,
            floor=config.schedule.floor,
            power=config.schedule.power,
            step_epochs=config.schedule.step_epochs,
            step_factor=config.schedule.step_factor,
            warmup_steps=round(config.schedule.warmup_epochs * num_images / batch_size),
        )
        for group, factor in factors.items()
    }
    decay_factors = factors if config.optimizer.backbone_factor_on == 'both' else dict.fromkeys(factors, 1.0)
    optimizer = create_optimizer(
        config.optimizer.name,
        learning_rates,
        contract,
        momentum=config.optimizer.momentum,
        second_beta=config.optimizer.second_beta,
        decayed=config.optimizer.decayed,
        weight_decays={group: factor * config.optimizer.weight_decay for group, factor in decay_factors.items()},
        frozen=config.optimizer.frozen,
    )
    return learning_rates, optimizer


def _create_objective(config: ConfigDict, model: nn.Module) -> Objective:
    """What the config's section `loss` makes of the terms that the network declares.

    Class weights that a network takes from the training labels are not among it (`class_weights_of`).

    Raises:
        InputError: the settings do not fit the terms, or the terms not the network's outputs.
    """
    terms = configured_terms(network(model).terms, config.loss)
    weights = tuple(config.loss.class_weights)
    objective = Objective(model, terms, weights if len(weights) > 1 else None, config.train.remat)
    images = jax.ShapeDtypeStruct((1, *config.data.crop_size, 3), jnp.float32)
    outputs, _ = jax.eval_shape(objective.outputs, abstract_variables(model), images, jax.random.key(0))
    check_terms(outputs, terms)
    return objective


def step_arguments(config: ConfigDict, model: nn.Module, num_images: int, total_steps: int) -> dict:
    """Keyword arguments of `train_step` as a run of this config has them. Numbers of the recipe may be traced."""
    learning_rates, optimizer = _create_optimizer(config, network(model), num_images, total_steps)
    return {
        'objective': _create_objective(config, model),
        'optimizer': optimizer,
        'learning_rates': learning_rates,
        'augmentation': train_augmentation(config),
        'seed': config.seed,
        'ema_decay': config.optimizer.ema_decay,
        'accumulation': config.train.accumulation,
    }
