"""What the main process of a training run shows and writes: progress, metrics.jsonl, TensorBoard, a report."""

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import jax
import numpy as np
from ml_collections import ConfigDict

from atonet_jax.config import flat_settings
from atonet_jax.data import visualize
from atonet_jax.data.labels import ClassTable
from atonet_jax.errors import TrainingError
from atonet_jax.evaluation.evaluator import Evaluation
from atonet_jax.evaluation.report import write_report
from atonet_jax.evaluation.report.charts import confusion_picture
from atonet_jax.process.distributed import is_main_process
from atonet_jax.process.progress import Progress, say
from atonet_jax.runs import environment
from atonet_jax.runs.metrics import MetricsLog
from atonet_jax.runs.workdir import REPORT_FILE, record_start
from atonet_jax.training.tensorboard import EventFile
from atonet_jax.training.timeline import Timeline

_log = logging.getLogger(__name__)

_PICTURES = 4  # validation examples that TensorBoard shows


class Recorder:
    """Writes into a workdir; in other processes than the main one, nowhere."""

    def __init__(self, workdir: str, config: ConfigDict, table: ClassTable, timeline: Timeline):
        """
        Args:
            workdir: of the run.
            config: of the run.
            table: the classes.
            timeline: of the run. What steps after its `start_step` have written is forgotten: they are taken anew.

        Raises:
            TrainingError: the disk does not take it.
        """
        self.options = config.train
        self.timeline = timeline
        start_step = timeline.start_step
        self._config = config
        self._table = table
        self._workdir = workdir
        self._writes = is_main_process()
        self._failed = False
        if self._writes:
            self._environment = environment.describe()
            with self._writing(start_step), ExitStack() as opened:
                record_start(workdir, start_step, self._environment)
                self._metrics = opened.enter_context(closing(MetricsLog(workdir, start_step)))
                self._board = opened.enter_context(
                    closing(EventFile(os.path.join(workdir, 'tensorboard'), start_step + 1))
                )
                self._board.text('config', _code_block(config), start_step)
                opened.pop_all()  # stay open

    @contextmanager
    def progress(self) -> Iterator['StepFigures']:
        total, done = self.timeline.total_steps, self.timeline.start_step
        with Progress('training', total, 'step', done=done, quiet=not self._writes) as bar:
            yield StepFigures(self, bar)

    def evaluation(self, step: int, evaluation: Evaluation, numbers: dict[str, float]) -> None:
        """The scores after a step, pictures, and the report.

        Raises:
            TrainingError: the disk does not take them.
        """
        scores = evaluation.scores
        values = {name: value for name, value in scores._asdict().items() if np.ndim(value) == 0}
        values |= {f'iou/{name}': iou for name, iou in zip(self._table.class_names, scores.class_iou, strict=True)}
        values |= {'best_miou': numbers['best_miou'], 'train_seconds': numbers['seconds']}
        self.write(step, {f'eval/{name}': float(value) for name, value in values.items() if not np.isnan(value)})
        if not self._writes:
            return
        with self._writing(step):
            for i, example in enumerate(evaluation.examples[:_PICTURES]):
                picture = visualize.comparison(example.image, example.labels, example.predictions, self._table)
                self._board.image(f'example/{i}', picture, step)
            self._board.image('confusion', confusion_picture(evaluation.confusion, self._table.class_names), step)
            self._board.flush()
        self.report(step, evaluation)
        if np.isnan(scores.miou):
            say(f'step {step}: no score, because no pixel of {evaluation.dataset} has a label')
            return
        say(
            f'step {step}: mIoU {100 * scores.miou:.2f}%, pixel accuracy {100 * scores.pixel_accuracy:.2f}% '
            f'(best mIoU {100 * numbers["best_miou"]:.2f}% at step {numbers["best_step"]})'
        )

    def report(self, step: int, evaluation: Evaluation) -> None:
        """Writes report.html over that of the evaluation before.

        Raises:
            TrainingError: the disk does not take it.
        """
        if not self._writes:
            return
        with self._writing(step):
            write_report(
                os.path.join(self._workdir, REPORT_FILE),
                evaluation,
                self._config,
                self._table,
                workdir=self._workdir,
                weights=f'step {step}',
                mode='train',
                environment=self._environment | {'time': environment.now()},
            )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Figures by name.

        Raises:
            TrainingError: the disk does not take them.
        """
        if not self._writes:
            return
        with self._writing(step):
            self._metrics.write(step, values)
            for name, value in values.items():
                self._board.scalar(name, value, step)

    def sync(self, step: int) -> None:
        """Returns when the figures up to `step` have reached the disk.

        Raises:
            TrainingError: the disk does not take them.
        """
        if self._writes:
            with self._writing(step):
                self._metrics.sync()
                self._board.sync()

    @contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failed = True
            raise TrainingError(
                f'{self._workdir}: the figures of step {step} cannot be written ({error.strerror}); the checkpoints '
                'are whole; free space or mend the disk, then give the same command again'
            ) from error

    def close(self) -> None:
        if not self._writes:
            return
        for file in (self._metrics, self._board):
            try:
                file.close()
            except OSError as error:
                if not self._failed:  # else it has been said
                    _log.warning('%s: the last figures cannot be written (%s)', self._workdir, error.strerror)


def _code_block(config: ConfigDict) -> str:
    """Markdown: a line a setting."""
    return '\n'.join(f'    {key} = {value!r}' for key, value in flat_settings(config).items())


class StepFigures:
    """Shows how far training is, and writes the figures of every so many steps."""

    def __init__(self, recorder: Recorder, bar: Progress):
        self._recorder = recorder
        self._bar = bar
        self._step_time = _StepTime()

    def look(self, pending: list[tuple[int, dict[str, jax.Array]]]) -> None:
        """Shows and writes the figures of the steps since the last look."""
        options, timeline, pending = self._recorder.options, self._recorder.timeline, jax.device_get(pending)
        images_per_second = options.batch_size / self._step_time.lap(len(pending))
        for step, metrics in pending:
            if step % options.log_every_steps == 0 or step == timeline.total_steps:
                values = {f'train/{name}': float(value) for name, value in metrics.items()}
                values['train/epoch'] = timeline.epoch(step)
                values['train/images_per_second'] = images_per_second
                self._recorder.write(step, values)
        _, metrics = pending[-1]
        self._bar.update(len(pending), f'loss {metrics["loss"]:.3f}, {images_per_second:.1f} images/s')

    def restart(self) -> None:
        """Leaves out of the speed what passed since the last look."""
        self._step_time.restart()


class _StepTime:
    """Seconds a step, averaged over the last dozens; evaluations and saving left out."""

    _WEIGHT = 0.05

    def __init__(self):
        self._average = None
        self.restart()

    def restart(self) -> None:
        self._started = time.perf_counter()

    def lap(self, steps: int) -> float:
        """After so many steps more."""
        now = time.perf_counter()
        seconds, self._started = (now - self._started) / steps, now
        if self._average is None:
            self._average = math.inf  # the first step compiles
        elif self._average == math.inf:
            self._average = seconds
        else:
            self._average += (1 - (1 - self._WEIGHT) ** steps) * (seconds - self._average)
        return self._average
