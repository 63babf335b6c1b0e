"""The loop over the steps of a run: when it looks at figures, evaluates, saves and stops."""

import math
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from atonet_jax.errors import TrainingError, is_out_of_memory
from atonet_jax.evaluation.evaluator import Evaluator
from atonet_jax.evaluation.metrics import Scores
from atonet_jax.process.stopping import Stopped, StopSignals
from atonet_jax.runs.checkpoint import Checkpoints
from atonet_jax.runs.state import TrainState
from atonet_jax.training.recorder import Recorder
from atonet_jax.training.step import StepNumbers, StepSchedule

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

        The figures of steps are looked at a few at a time, so that the device never waits for the host; a loss that is
        no number stays one, and is found at the next look, which comes before anything is saved.

        Raises:
            Stopped: a signal said so; the last step is saved.
            TrainingError: the loss, its gradient or the parameters are not finite any more; or nothing can be saved.
        """
        train, timeline, scores = self._config.train, self._recorder.timeline, None
        total_steps, first_step = timeline.total_steps, timeline.start_step + 1
        self._last_good_step = timeline.start_step
        pending = []
        started, before_this = time.perf_counter(), dict(self._figures)
        with self._recorder.progress() as progress, StopSignals() as signals:
            for step, batch in enumerate(batches, first_step):
                of_step = schedule.at(step - 1)
                before, (state, metrics) = state, step_fn(state, batch, of_step)
                pending.append((step, metrics))
                stop = signals.received(step)
                is_due = step == total_steps or timeline.passes(step, train.eval_every_epochs)
                evaluates = is_due and (stop is None or step == total_steps)  # a signal leaves little time
                saves = is_due or step % train.checkpoint_every_steps == 0 or stop is not None
                if saves or explain or step == first_step or step % train.log_every_steps == 0:
                    self._check(pending, explain and (lambda: explain(before, batch, of_step)))
                    progress.look(pending)
                    pending = []
                if saves:
                    self._figures |= {
                        'seconds': before_this['seconds'] + time.perf_counter() - started,
                        'samples': before_this['samples'] + (step - timeline.start_step) * timeline.batch_size,
                        'epochs': timeline.epoch(step),
                    }
                    _check_finite(step, state, self._kept())
                    scores = self._evaluate(step, state, evaluator) if evaluates else None
                    self._recorder.sync(step)
                    miou = scores.miou if scores is not None and not math.isnan(scores.miou) else None
                    self._checkpoints.save(state, dict(self._figures), miou)
                    self._last_good_step = step
                    progress.restart()
                    if stop is None and step < total_steps:
                        stop = signals.received(step)  # which came while it evaluated
                if stop is not None and step < total_steps:
                    self._checkpoints.wait()
                    raise Stopped(stop, step)
            self._checkpoints.wait()  # while a signal still leaves it the time
        if scores is None:  # resumed where nothing was left to do
            step = first_step - 1
            if self._figures.get('evaluated_step', step) != step:  # its evaluation had failed
                return self._evaluate(step, state, evaluator)
            evaluation = evaluator.run(state.averaged or state.variables)
            self._recorder.report(step, evaluation)
            scores = evaluation.scores
        return scores

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

    def _evaluate(self, step: int, state: TrainState, evaluator: Evaluator) -> Scores:
        try:
            evaluation = evaluator.run(state.averaged or state.variables)
        except Exception as error:
            is_saved = jax.process_count() == 1 and step > self._last_good_step  # others would not be here to save with
            if is_saved:
                self._checkpoints.save(state, dict(self._figures), None)
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                f"step {step}: the device's memory is too small to evaluate it{' (it is saved)' if is_saved else ''}; "
                'a smaller --config.eval.batch_size takes less, and so does --config.eval.window="(512,512)"'
            ) from error
        scores = evaluation.scores
        self._figures['evaluated_step'] = step
        if scores.miou > self._figures['best_miou']:
            self._figures |= {'best_miou': scores.miou, 'best_step': step}
        self._recorder.evaluation(step, evaluation, self._figures)
        return scores


def _check_finite(step: int, state: TrainState, kept: str) -> None:
    """Refuses to save a step whose update went beyond all numbers, of which the loss before it knows nothing."""
    if not all(np.isfinite(array).all() for array in jax.tree.leaves(jax.device_get(state.variables))):
        raise TrainingError(f'step {step}: its update made parameters that are not finite; {kept}; {_GENTLER}')


def _explained(explain: Callable[[], str]) -> str:
    try:
        return explain()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return "the device's memory is too small to find the layer"
