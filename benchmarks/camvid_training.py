"""Trains and scores one network on CamVid, for benchmarks/camvid.py, and keeps the state of a run until it ends."""

import hashlib
import json
import math
import os
import pathlib
import runpy
import tempfile
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from flax import linen as nn
from flax import serialization
from ml_collections import ConfigDict

from atonet_jax.config import create_network
from atonet_jax.data.batches import Batches
from atonet_jax.data.labels import CAMVID
from atonet_jax.data.sources import load_examples
from atonet_jax.errors import InputError, Stopped
from atonet_jax.evaluation.evaluator import Evaluation, Evaluator
from atonet_jax.inference import Segmenter
from atonet_jax.models import init_variables, network
from atonet_jax.process.devices import create_mesh, replicated
from atonet_jax.process.files import replacing
from atonet_jax.process.progress import Progress, say
from atonet_jax.process.stopping import StopSignals
from atonet_jax.process.timing import in_turns
from atonet_jax.runs.environment import device_names, now
from atonet_jax.runs.network import starting_variables
from atonet_jax.runs.state import TrainState
from atonet_jax.training.class_weights import class_weights
from atonet_jax.training.from_config import create_objective, create_schedule, step_options, train_augmentation
from atonet_jax.training.step import StepSchedule, compile_train_step, create_state
from atonet_jax.training.timeline import Timeline
from atonet_jax.validation import validate, validate_batches, validate_classes
from benchmarks.camvid_recipes import FRAME, Recipe, base_settings
from benchmarks.camvid_results import Results, place_of

SPLITS = {'val': ('train', 'val'), 'test': ('train+val', 'test')}
_ROOT = pathlib.Path(__file__).resolve().parent.parent

_LOOK = 50  # steps between two looks at the loss
_KEEP_SECONDS = 300  # between two states that are kept of a run
_TIMED_CALLS = 20  # of the label map, for the chart
_BARE_STEPS = 100


class OutOfTimeError(Exception):
    """The time that was given is up."""


class Job(NamedTuple):
    """One run before its first step."""

    config: ConfigDict
    model: nn.Module
    train_set: Batches
    eval_set: Batches
    timeline: Timeline
    step_fn: Callable
    schedule: StepSchedule
    state: TrainState


class Trained(NamedTuple):
    """The last state of a run, the losses that were seen, and times."""

    state: TrainState
    losses: list[float]
    seconds_to_first_step: float
    ms_per_step: float
    bare_ms_per_step: float | None


class Runs:
    """Trains and scores; keeps the data on the devices, which runs share."""

    def __init__(self, root: str, backbone: str, deadline: float, measure_bare_steps: bool = False):
        """
        Args:
            root: folder of CamVid.
            backbone: file of a ResNet-18, or ''.
            deadline: of time.monotonic, after which no run goes on.
            measure_bare_steps: after the first run also times steps on one batch that is there already.
        """
        self._measured = not measure_bare_steps
        self._root = root
        self._backbone = backbone
        self._deadline = deadline
        self._mesh = create_mesh()
        self._batches = {}

    def config(self, name: str, recipe: Recipe, seed: int, protocol: str, settings: dict[str, Any]) -> ConfigDict:
        """The config of a run; `settings` go over those of the recipe.

        Raises:
            InputError: a setting cannot work.
        """
        config = runpy.run_path(str(_ROOT / 'configs' / 'camvid.py'))['get_config'](name)
        train_split, eval_split = SPLITS[protocol]
        where = {'seed': seed, 'data.root': self._root, 'data.train_split': train_split, 'data.eval_split': eval_split}
        for key, value in (base_settings() | recipe.settings | settings | where).items():
            try:
                config.update_from_flattened_dict({key: value})
            except (KeyError, TypeError, AttributeError) as error:
                raise InputError(f'{key}={value}: {name} has no such setting, or it is of another type') from error
        if recipe.start == 'pretrained':
            if not network(name).backbones:
                raise InputError(f'--networks {name}: has no backbone that is published alone; leave out {name}')
            config.model.pretrained_backbone = self._backbone
        validate(config)
        validate_batches(config, self._mesh.size)
        validate_classes(config, CAMVID.num_classes)
        return config

    def sources(self, recipe: Recipe, protocol: str) -> dict[str, str]:
        """What tells the frames and the backbone of a run from others: digests."""
        splits = [[self._frames(part) for part in split.split('+')] for split in SPLITS[protocol]]
        sources = {'frames': _digest(json.dumps(splits).encode())}
        if recipe.start == 'pretrained':
            sources['backbone'] = self._backbone_digest
        return sources

    def best(self, results: Results, network: str, start: str) -> str:
        """The name of the recipe of a start that is best on these val frames; InputError where none was scored."""
        return results.best(network, start, self.sources(Recipe(start, {}), 'val'))

    @cached_property
    def _backbone_digest(self) -> str:
        if not self._backbone:
            raise InputError('recipes with a pretrained backbone need --backbone=FILE')
        try:
            return _digest(pathlib.Path(self._backbone).read_bytes())
        except OSError as error:
            raise InputError(f'--backbone {self._backbone}: cannot be read ({error.strerror})') from error

    def _frames(self, part: str) -> list[str]:
        """The size of the first frame of a part, and the names of all."""
        folder = os.path.join(self._root, part)
        try:
            names = sorted(os.listdir(folder))
            with PIL.Image.open(os.path.join(folder, names[0])) as image:
                return [f'{image.width}x{image.height}', *names]
        except (OSError, IndexError) as error:
            raise InputError(f'--data {self._root}: {part} has no frames; give the 360x480 repack of CamVid') from error

    def run(self, config: ConfigDict, kept: 'KeptState') -> tuple[dict[str, Any], Evaluation, Any, Any]:
        """Trains once, or goes on; returns figures, the evaluation of the last state, the model and its variables.

        Raises:
            OutOfTimeError: the time is up; the state is kept.
            Stopped: Ctrl-C or SIGTERM; the state is kept.
        """
        start = time.monotonic()
        self._check_time()
        job = self._job(config)
        state, seconds_before = kept.restore(job.state)
        begun = start - seconds_before  # as if all of it were one stretch
        job = job._replace(state=jax.device_put(state, replicated(self._mesh)))
        trained = self._train(job, kept, start, begun)
        evaluator = Evaluator(job.model, job.eval_set, config.eval)
        variables = trained.state.averaged or trained.state.variables
        evaluation = evaluator.run(variables)
        figures = {
            'steps': job.timeline.total_steps,
            'images': job.timeline.num_images,
            'seconds': round(time.monotonic() - begun, 2),
            'seconds_to_first_step': round(trained.seconds_to_first_step, 2),
            'ms_per_step': round(trained.ms_per_step, 3),
            'seconds_of_evaluation': round(evaluation.seconds, 2),
            'loss': float(np.mean(trained.losses[-_LOOK:])) if trained.losses else math.nan,
        }
        if trained.bare_ms_per_step is not None:
            figures['ms_per_bare_step'] = round(trained.bare_ms_per_step, 3)
        if trained.state.averaged:  # training is the same without the average
            figures['miou_not_averaged'] = evaluator.run(trained.state.variables).scores.miou
        return figures, evaluation, job.model, variables

    def _job(self, config: ConfigDict) -> Job:
        """What a run begins with."""
        model = create_network(config, CAMVID.num_classes)
        train_set, eval_set = (
            self.batches(config, split) for split in (config.data.train_split, config.data.eval_split)
        )
        timeline = Timeline(config.train.batch_size, len(train_set.examples), config.train.epochs)
        variables, fresh = starting_variables(config, model, CAMVID, self._mesh)
        options = step_options(config, create_objective(config, model), fresh)
        with tempfile.TemporaryDirectory() as folder:  # for the counts
            weights = class_weights(config, network(model).class_weights, train_set.examples.dataset, folder)
        return Job(
            config,
            model,
            train_set,
            eval_set,
            timeline,
            compile_train_step(self._mesh, **options),
            create_schedule(config, timeline, weights),
            create_state(variables, options['optimizer'], averaging=config.optimizer.ema_decay > 0, mesh=self._mesh),
        )

    def _train(self, job: Job, kept: 'KeptState', start: float, begun: float) -> Trained:
        """Takes the steps that are left. Of time.monotonic: `start` of this stretch, `begun` as if there were one."""
        state, total_steps, first_step = job.state, job.timeline.total_steps, int(job.state.step)
        batches = job.train_set.train(
            batch_size=job.timeline.batch_size,
            augmentation=train_augmentation(job.config),
            seed=job.config.seed,
            start_sample=first_step * job.timeline.batch_size,
            num_steps=total_steps - first_step,
        )
        first, shown, losses, pending, kept_at = start, first_step, [], [], start
        on_cpu = jax.default_backend() == 'cpu'
        ahead, look = (1, 5) if on_cpu else (_LOOK, _LOOK)  # steps are long there, and nothing is gained by haste
        with Progress('training', total_steps - first_step, 'step') as progress, StopSignals() as signals:
            for step, batch in enumerate(batches, first_step + 1):
                state, metrics = job.step_fn(state, batch, job.schedule.at(step - 1))
                pending.append(metrics['loss'])
                if step == first_step + 1:
                    jax.block_until_ready(state.step)
                    first = time.monotonic()
                if step % look == 0 or step == total_steps:
                    # The steps of one look are still under way while the losses of the look before are read.
                    losses += self._read(pending[:-ahead])
                    pending = pending[-ahead:]
                    progress.update(step - shown, f'loss {losses[-1]:.3f}' if losses else '')
                    shown = step
                now_, stop = time.monotonic(), signals.received(step)
                is_late = now_ > self._deadline and step % look == 0
                if step < total_steps and (stop or is_late or now_ - kept_at > _KEEP_SECONDS):
                    losses, pending = losses + self._read(pending), []  # a state of such a loss is not kept
                    kept.keep(state, now_ - begun)
                    kept_at = now_
                    if stop:
                        raise Stopped(stop, step)
                    if is_late:
                        raise OutOfTimeError
        losses += self._read(pending)  # where the last steps end
        jax.block_until_ready(state)
        end = time.monotonic()
        kept.keep(state, end - begun)  # until its scores are written
        if stop := signals.received(total_steps):
            raise Stopped(stop, total_steps)
        if first_step == total_steps:  # another process took them
            return Trained(state, losses, 0.0, 1e3 * (start - begun) / total_steps, None)
        ms = 1e3 * (end - first) / max(1, total_steps - first_step - 1)
        return Trained(state, losses, first - start, ms, self._bare_milliseconds(job, state, batch))

    def _bare_milliseconds(self, job: Job, state, batch) -> float | None:
        """Time of a step whose batch is there already; None where it was measured, or is not asked for."""
        if self._measured:
            return None
        self._measured = True
        state = jax.tree.map(jnp.copy, state)
        jax.block_until_ready(state)
        start = time.monotonic()
        for step in range(_BARE_STEPS):
            state, _ = job.step_fn(state, batch, job.schedule.at(step))
        jax.block_until_ready(state)
        return 1e3 * (time.monotonic() - start) / _BARE_STEPS

    def _read(self, losses: list[jax.Array]) -> list[float]:
        values = [float(loss) for loss in jax.device_get(losses)]
        if not all(map(math.isfinite, values)):
            raise FloatingPointError('the loss is no finite number')
        return values

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise OutOfTimeError

    def time_label_maps(self, results: Results, protocol: str) -> None:
        """Adds what is not there yet: the time of each `place_of` that was trained on these devices."""
        device = device_names()
        trained = {place_of(row) for row in results.rows if (row['protocol'], row.get('device')) == (protocol, device)}
        for place in sorted(trained):
            if place not in results.times():
                name, height, options, _ = place
                row = {'protocol': 'latency', 'network': name, 'height': height, 'options': json.loads(options)}
                ms = self._milliseconds_of_label_map(name, height, row['options'])
                results.add(row | {'device': device, 'ms': ms, 'time': now()})

    def _milliseconds_of_label_map(self, name: str, height: int, options: dict[str, Any]) -> float:
        """The median time from one frame to its labels. Random weights take as long as trained ones."""
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        model = create_network(self.config(name, Recipe('scratch', {}), 0, 'test', options), CAMVID.num_classes)
        segment = Segmenter(model, init_variables(model, 0), height=height, shapes=[(1, *FRAME)])
        frame = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, *FRAME, 3), np.uint8))
        times = in_turns({'frame': lambda: jax.block_until_ready(segment(frame))}, _TIMED_CALLS, warmup=2)['frame']
        return 1e3 * float(np.median(times[:, 0]))

    def batches(self, config: ConfigDict, split: str) -> Batches:
        if split not in self._batches:
            with tempfile.TemporaryDirectory() as folder:  # for what it remembers of the files
                self._batches[split] = Batches(load_examples(config.data, split, folder), self._mesh)
        return self._batches[split]


class KeptState:
    """The state of a run that has not ended, in a file beside the results."""

    def __init__(self, results: str, row: dict[str, Any]):
        """row: what identifies the run."""
        self._path = f'{results}.{digest_of(row)}.state'

    def restore(self, state) -> tuple[Any, float]:
        """The state that is kept, and the seconds that the run has taken; `state`, which is fresh, where none is.

        Raises:
            InputError: the file is damaged.
        """
        try:
            content = pathlib.Path(self._path).read_bytes()
        except FileNotFoundError:
            return state, 0.0
        try:
            restored = serialization.from_bytes({'state': state, 'seconds': 0.0}, content)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f'{self._path}: damaged; remove it, and the run begins anew') from error
        say(f'goes on after step {int(restored["state"].step)}')
        return restored['state'], restored['seconds']

    def keep(self, state, seconds: float) -> None:
        os.makedirs(os.path.dirname(os.path.abspath(self._path)), exist_ok=True)
        with replacing(self._path) as temporary:
            content = serialization.to_bytes({'state': jax.device_get(state), 'seconds': seconds})
            pathlib.Path(temporary).write_bytes(content)

    def remove(self) -> None:
        pathlib.Path(self._path).unlink(missing_ok=True)


def digest_of(row: dict[str, Any]) -> str:
    """What tells a run from others, in names of files."""
    return _digest(json.dumps(row, sort_keys=True).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
