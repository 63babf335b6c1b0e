"""The training run: `--mode=train`."""

import logging
import math
import os
import time
from collections.abc import Iterator

import jax
import numpy as np
import tqdm
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from atonet_jax import visualize
from atonet_jax.augment import Augmentation
from atonet_jax.checkpoint import Checkpoints, has_checkpoint
from atonet_jax.config import validate, validate_classes
from atonet_jax.data.examples import Examples
from atonet_jax.data.labels import ClassTable
from atonet_jax.data.sources import class_table, load_examples
from atonet_jax.devices import create_mesh, split_by_batch
from atonet_jax.errors import TrainingError
from atonet_jax.evaluate import Evaluator, Example
from atonet_jax.losses import HardExampleMining
from atonet_jax.metrics import Scores
from atonet_jax.network import blank_variables, create_network, starting_variables
from atonet_jax.optimizer import create_optimizer, learning_rate_schedule
from atonet_jax.train_step import TrainState, compile_train_step, create_state
from atonet_jax.workdir import MetricsLog, changes_since, claim, holds_run, write_json

_log = logging.getLogger(__name__)

_PICTURES = 4  # validation examples that TensorBoard shows
_SECONDS_BETWEEN_LINES = 60


def train(config: ConfigDict, workdir: str) -> Scores:
    """Trains from scratch, or on from the latest checkpoint in `workdir`; returns the scores of the final state.

    A run that was stopped and started again ends with the parameters of one that was not.

    Raises:
        InputError: a setting, a data file or the workdir does not allow the run.
        TrainingError: the loss or its gradient is no finite number any more.
    """
    mesh = create_mesh()
    validate(config, mesh.size)
    table = class_table(config.data)
    validate_classes(config, table.num_classes)
    if holds_run(workdir):
        changes_since(workdir, config, table)  # refuses another network before any data is read
    model = create_network(config, table.num_classes)
    resumes = has_checkpoint(workdir)
    variables = blank_variables(model) if resumes else starting_variables(config, model)
    train_set, eval_set = (
        load_examples(config.data, split, workdir) for split in (config.data.train_split, config.data.eval_split)
    )
    for change in claim(workdir, config, table):
        _log.info('since the run in %s began: %s', workdir, change)

    total_steps = max(1, round(config.train.epochs * len(train_set) / config.train.batch_size))
    learning_rates, optimizer = _create_optimizer(config, len(train_set), total_steps)
    averaging = config.optimizer.ema_decay > 0
    state = create_state(variables, optimizer, averaging=averaging, mesh=mesh)
    _log.info(
        '%s: %d parameters; %d training and %d evaluation images; %d steps of %d images on %d %s device(s)',
        config.model.name,
        sum(array.size for array in jax.tree.leaves(state.variables['params'])),
        len(train_set),
        len(eval_set),
        total_steps,
        config.train.batch_size,
        mesh.size,
        jax.default_backend(),
    )

    checkpoints = Checkpoints(workdir, config.train.keep_checkpoints)
    numbers = {'best_miou': -1.0, 'best_step': 0, 'seconds': 0.0}
    if resumes:
        state, numbers = checkpoints.restore(state, checkpoints.latest_step())
        _log.info('resumed from step %d of %s', int(state.step), workdir)
    run = _Run(config, workdir, table, checkpoints, numbers, int(state.step), total_steps, len(train_set))

    step_fn = compile_train_step(
        mesh,
        model=model,
        optimizer=optimizer,
        learning_rates=learning_rates,
        loss_options=_loss_options(config),
        augmentation=train_augmentation(config),
        seed=config.seed,
        ema_decay=config.optimizer.ema_decay,
    )
    evaluator = Evaluator(model, eval_set, config.eval, mesh)
    try:
        return run.train(state, step_fn, evaluator, _batches(config, train_set, int(state.step), total_steps, mesh))
    finally:
        run.close()
        for examples in (train_set, eval_set):
            _list_skipped(examples, workdir)


class _Run:
    """The loop, and what it writes."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: str,
        table: ClassTable,
        checkpoints: Checkpoints,
        numbers: dict[str, float],
        start_step: int,
        total_steps: int,
        num_images: int,
    ):
        self._config = config
        self._table = table
        self._checkpoints = checkpoints
        self._numbers = numbers
        self._start_step = start_step
        self._total_steps = total_steps
        self._num_images = num_images
        self._workdir = workdir
        self._metrics = MetricsLog(workdir, start_step)
        self._board = SummaryWriter(os.path.join(workdir, 'tensorboard'), purge_step=start_step + 1)
        self._step_time = _StepTime()
        self._shown = time.perf_counter()
        self._last_good_step = start_step

    def train(
        self, state: TrainState, step_fn, evaluator: Evaluator, batches: Iterator[dict[str, jax.Array]]
    ) -> Scores:
        """Steps from `start_step` to `total_steps`, evaluating and saving on the way."""
        train, scores = self._config.train, None
        eval_steps = max(1, round(train.eval_every_epochs * self._num_images / train.batch_size))
        # Looks at a step's figures once the next step is on its way, so that the device never waits for it.
        waiting = None
        started, counted_from = time.perf_counter(), self._numbers['seconds']
        bar = tqdm.tqdm(total=self._total_steps, initial=self._start_step, desc='training', unit='step', disable=None)
        with bar:
            for step, batch in enumerate(batches, self._start_step + 1):
                state, metrics = step_fn(state, batch)
                if waiting is not None:
                    self._look_at(*waiting, bar)
                waiting = step, metrics

                is_last = step == self._total_steps
                evaluates = is_last or step % eval_steps == 0
                if evaluates or step % train.checkpoint_every_steps == 0:
                    self._look_at(*waiting, bar)
                    waiting = None
                    self._numbers['seconds'] = counted_from + time.perf_counter() - started
                    scores = self._evaluate(step, state, evaluator) if evaluates else None
                    self._checkpoints.save(state, dict(self._numbers), scores and scores.miou)
                    self._last_good_step = step
                    self._step_time.restart()
        if scores is None:  # resumed where nothing was left to do
            scores, _, _ = evaluator.run(state.averaged or state.variables)
        return scores

    def close(self) -> None:
        self._checkpoints.close()
        self._metrics.close()
        self._board.close()

    def _look_at(self, step: int, metrics: dict[str, jax.Array], bar: tqdm.tqdm) -> None:
        """Stops at a loss that is no number; shows and writes the figures of every so many steps."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in ('loss', 'gradient_norm'):
            if not math.isfinite(values[name]):
                raise TrainingError(
                    f'step {step}: {name} is {values[name]}; the checkpoint of step {self._last_good_step} in '
                    f'{self._workdir} is kept; start again with a lower config.optimizer.learning_rate or more '
                    'config.schedule.warmup_epochs'
                )
        images_per_second = self._config.train.batch_size / self._step_time.lap()
        self._show_progress(bar, step, f'loss {values["loss"]:.3f}, {images_per_second:.1f} images/s')
        if step % self._config.train.log_every_steps == 0 or step == self._total_steps:
            values['epoch'] = step * self._config.train.batch_size / self._num_images
            values['images_per_second'] = images_per_second
            self._write(step, {f'train/{name}': value for name, value in values.items()})

    def _show_progress(self, bar: tqdm.tqdm, step: int, figures: str) -> None:
        """On a terminal the bar; elsewhere a line now and then."""
        bar.set_postfix_str(figures, refresh=False)
        bar.update()
        now = time.perf_counter()
        if bar.disable and now - self._shown > _SECONDS_BETWEEN_LINES:
            self._shown = now
            _log.info('step %d of %d: %s', step, self._total_steps, figures)

    def _evaluate(self, step: int, state: TrainState, evaluator: Evaluator) -> Scores:
        scores, _, examples = evaluator.run(state.averaged or state.variables)
        if scores.miou > self._numbers['best_miou']:
            self._numbers |= {'best_miou': scores.miou, 'best_step': step}
        values = {name: value for name, value in scores._asdict().items() if np.ndim(value) == 0}
        values |= {f'iou/{name}': iou for name, iou in zip(self._table.class_names, scores.class_iou, strict=True)}
        values |= {'best_miou': self._numbers['best_miou'], 'train_seconds': self._numbers['seconds']}
        self._write(step, {f'eval/{name}': float(value) for name, value in values.items() if not np.isnan(value)})
        self._draw(step, examples[:_PICTURES])
        tqdm.tqdm.write(
            f'step {step}: mIoU {100 * scores.miou:.2f}%, pixel accuracy {100 * scores.pixel_accuracy:.2f}% '
            f'(best mIoU {100 * self._numbers["best_miou"]:.2f}% at step {self._numbers["best_step"]})'
        )
        return scores

    def _write(self, step: int, values: dict[str, float]) -> None:
        self._metrics.write(step, values)
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def _draw(self, step: int, examples: list[Example]) -> None:
        for i, example in enumerate(examples):
            picture = visualize.comparison(example.image, example.labels, example.predictions, self._table)
            self._board.add_image(f'example/{i}', picture, step, dataformats='HWC')


class _StepTime:
    """Seconds a step, averaged over the last dozens; evaluations and saving left out."""

    _WEIGHT = 0.05

    def __init__(self):
        self._average = None
        self.restart()

    def restart(self) -> None:
        self._started = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._started = now - self._started, now
        if self._average is None:
            self._average = math.inf  # the first step compiles
        elif self._average == math.inf:
            self._average = seconds
        else:
            self._average += self._WEIGHT * (seconds - self._average)
        return self._average


def _batches(
    config: ConfigDict, examples: Examples, start_step: int, total_steps: int, mesh: Mesh
) -> Iterator[dict[str, jax.Array]]:
    from atonet_jax.data.pipeline import prefetch_to_device, train_batches  # imports TensorFlow

    batches = train_batches(
        examples,
        batch_size=config.train.batch_size,
        augmentation=train_augmentation(config),
        seed=config.seed,
        start_step=start_step,
        num_steps=max(0, total_steps - start_step),
    )
    return prefetch_to_device(batches, split_by_batch(mesh))


def _list_skipped(examples: Examples, workdir: str) -> None:
    if examples.skipped:
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


def _create_optimizer(config: ConfigDict, num_images: int, total_steps: int):
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
            warmup_steps=round(config.schedule.warmup_epochs * num_images / batch_size),
        )
        for group, factor in factors.items()
    }
    optimizer = create_optimizer(
        config.optimizer.name,
        learning_rates,
        momentum=config.optimizer.momentum,
        weight_decays={group: factor * config.optimizer.weight_decay for group, factor in factors.items()},
    )
    return learning_rates, optimizer


def _loss_options(config: ConfigDict) -> dict:
    """Keyword arguments of `segmentation_loss`."""
    loss = config.loss
    names = (f'aux{level}' for level in config.model.aux_levels)
    return {
        'aux_weights': dict(zip(names, loss.aux_weights, strict=True)),
        'aux_target': loss.aux_target,
        'mining': HardExampleMining(loss.mining_threshold, loss.mining_min_kept) if loss.mining else None,
        'class_weights': loss.class_weights or None,
    }
