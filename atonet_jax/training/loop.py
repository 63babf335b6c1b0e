"""The loop over the steps of a run: when it looks at figures, evaluates, saves and stops."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import numpy as np
from ml_collections import ConfigDict

from atonet_jax.errors import Stopped, TrainingError, is_out_of_memory
from atonet_jax.evaluation.evaluator import Evaluator
from atonet_jax.evaluation.metrics import Scores
from atonet_jax.process.stopping import StopSignals
from atonet_jax.runs.checkpoint import Checkpoints
from atonet_jax.runs.state import TrainState
from atonet_jax.training.recorder import Recorder
from atonet_jax.training.step import StepNumbers, StepSchedule

_log = logging.getLogger(__name__)

_ENDS = 'stopping: this step, or the evaluation under way, is finished and saved first; a second signal stops at once'
_GENTLER = 'start again with a lower config.optimizer.learning_rate or more config.schedule.warmup_epochs'


class Loop:
    """Trains to the end of a run's timeline."""

    def __init__(self, config: ConfigDict, workdir: str, checkpoints: Checkpoints, recorder: Recorder, figures: dict):
        """
        Args:
            config: of the run.
            workdir: of the run.
            checkpoints: in the workdir.
            recorder: of the workdir; it knows the timeline.
            figures: as they are saved with the state: 'best_miou', 'best_step', 'seconds' of training and 'samples' so
                far, 'images' and 'devices' of now. 'epochs' so far and 'evaluated_step' are added.
        """
        self._config = config
        self._workdir = workdir
        self._checkpoints = checkpoints
        self._recorder = recorder
        self._figures = figures

    def run(
        self,
        state: TrainState,
        step_fn: Callable,
        schedule: StepSchedule,
        evaluator: Evaluator,
        batches: Iterator[dict[str, jax.Array]],
        explain: Callable[[TrainState, dict[str, jax.Array], StepNumbers], str] | None,
    ) -> Scores:
        """Steps from `state.step` to the end of the timeline, evaluating and saving on the way.

        The figures of steps are looked at a few at a time, so that the device never waits for the host. Once a loss is
        NaN, all later ones are. So the next look finds it, and there is a look before anything is saved.

        Raises:
            Stopped: a signal said so; the last step is saved.
            TrainingError: the loss, its gradient or the parameters are not finite any more; or nothing can be saved.
        """
        train, timeline, scores = self._config.train, self._recorder.timeline, None
        total_steps, first_step = timeline.total_steps, timeline.start_step + 1
        self._last_good_step = timeline.start_step
        self._state, self._pending = state, []
        self._started, self._before_this = time.perf_counter(), dict(self._figures)
        with self._recorder.progress() as self._progress, StopSignals(_ENDS) as signals, self._saving_before_a_fault():
            for step, batch in enumerate(batches, first_step):
                of_step = schedule.at(step - 1)
                before, (self._state, metrics) = self._state, step_fn(self._state, batch, of_step)
                self._pending.append((step, metrics))
                stop = signals.received(step)
                is_due = step == total_steps or timeline.passes(step, train.eval_every_epochs)
                evaluates = is_due and (stop is None or step == total_steps)  # a signal leaves little time
                saves = is_due or step % train.checkpoint_every_steps == 0 or stop is not None
                if saves or explain or step == first_step or step % train.log_every_steps == 0:
                    self._look(explain and (lambda: explain(before, batch, of_step)))
                if saves:
                    self._count(step)
                    scores = self._evaluate(step, evaluator) if evaluates else None
                    self._save(step, _miou(scores))
                    self._progress.restart()
                    if stop is None and step < total_steps:
                        stop = signals.received(step)  # which came while it evaluated
                if stop is not None and step < total_steps:
                    self._checkpoints.wait()
                    raise Stopped(stop, step)
            self._checkpoints.wait()  # while a signal still leaves it the time
        return self._score_of_before(evaluator) if scores is None else scores

    def _score_of_before(self, evaluator: Evaluator) -> Scores:
        """The scores of a run that has nothing left to train. If the checkpoint has none yet, it gets them."""
        step = self._last_good_step
        if self._figures.get('evaluated_step', step) != step and not self._checkpoints.has_score(step):
            scores = self._evaluate(step, evaluator)
            if (miou := _miou(scores)) is not None:
                self._checkpoints.add_score(step, miou)
            return scores
        evaluation = evaluator.run(self._state.averaged or self._state.variables)
        self._recorder.report(step, evaluation)
        return evaluation.scores

    def _look(self, explain: Callable[[], str] | None) -> None:
        self._check(self._pending, explain)
        self._progress.look(self._pending)
        self._pending = []

    def _count(self, step: int) -> None:
        """Brings the figures up to a step that is to be saved."""
        timeline, before = self._recorder.timeline, self._before_this
        self._figures |= {
            'seconds': before['seconds'] + time.perf_counter() - self._started,
            'samples': before['samples'] + (step - timeline.start_step) * timeline.batch_size,
            'epochs': timeline.epoch(step),
        }
        _check_finite(step, self._state, self._kept())

    def _save(self, step: int, miou: float | None) -> None:
        self._recorder.sync(step)
        self._checkpoints.save(self._state, dict(self._figures), miou)
        self._last_good_step = step

    @contextmanager
    def _saving_before_a_fault(self) -> Iterator[None]:
        """Saves the state before a fault of something else, such as an image that cannot be read, ends the run."""
        try:
            yield
        except (Stopped, TrainingError):
            raise
        except Exception:
            self._save_after_a_fault()
            raise

    def _save_after_a_fault(self) -> bool:
        """Whether there was a sound state that no checkpoint held, and now one does."""
        has_failed_itself = any(array.is_deleted() for array in jax.tree.leaves(self._state))
        if has_failed_itself or jax.process_count() > 1:  # others would not be here to save with
            return False
        step = int(self._state.step)
        if step <= self._last_good_step:
            return False
        try:
            if self._pending:
                self._look(None)
            self._count(step)
            self._save(step, None)
            self._checkpoints.wait()
        except Exception as error:
            _log.warning('step %d is not saved: %s', step, error)
            return False
        _log.warning('step %d is saved; the same command goes on from there', step)
        return True

    def _check(self, pending: list[tuple[int, dict[str, jax.Array]]], explain: Callable[[], str] | None) -> None:
        """Stops at the first loss that is no number."""
        for step, metrics in jax.device_get(pending):
            for name in ('loss', 'gradient_norm'):
                if math.isfinite(metrics[name]):
                    continue
                where = _explained(explain) if explain else '--config.debug.nans=true says in which layer'
                raise TrainingError(f'step {step}: {name} is {metrics[name]}; {where}; {self._kept()}; {_GENTLER}')

    def _kept(self) -> str:
        last = self._last_good_step
        return f'the checkpoint of step {last} in {self._workdir} is kept' if last else 'nothing was saved yet'

    def _evaluate(self, step: int, evaluator: Evaluator) -> Scores:
        try:
            evaluation = evaluator.run(self._state.averaged or self._state.variables)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            saved = ' (it is saved)' if self._save_after_a_fault() else ''
            raise TrainingError(
                f"step {step}: the device's memory is too small to evaluate it{saved}; a smaller "
                '--config.eval.batch_size takes less, and so does --config.eval.window="(512,512)"'
            ) from error
        scores = evaluation.scores
        self._figures['evaluated_step'] = step
        if scores.miou > self._figures['best_miou']:
            self._figures |= {'best_miou': scores.miou, 'best_step': step}
        self._recorder.evaluation(step, evaluation, self._figures)
        return scores


def _miou(scores: Scores | None) -> float | None:
    """As a checkpoint has it: None where nothing was scored."""
    return None if scores is None or math.isnan(scores.miou) else scores.miou


def _check_finite(step: int, state: TrainState, kept: str) -> None:
    """Refuses to save parameters that are not finite. The loss, from before the update, does not show them."""
    if not all(np.isfinite(array).all() for array in jax.tree.leaves(jax.device_get(state.variables))):
        raise TrainingError(f'step {step}: its update made parameters that are not finite; {kept}; {_GENTLER}')


def _explained(explain: Callable[[], str]) -> str:
    try:
        return explain()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return "the device's memory is too small to find the layer"
