"""Trains and scores networks on CamVid, 360x480: recipes by networks by seeds, in one process.

    python -m benchmarks.camvid --data data/camvid --backbone resnet18.npz --recipes scratch pretrained --minutes 3
    python -m benchmarks.camvid --data data/camvid --protocol test --recipes best:scratch --seeds 0 1 2
    python -m benchmarks.camvid --data data/camvid --protocol val --recipes scratch+table4     # the paper's Table 4
    python -m benchmarks.camvid --protocol test --networks --chart runs/camvid.png    # of the results that are there

val: trains on train (367 images) and scores on val (101), to choose recipes. test: trains on train+val (468) and scores
the last state once on test (233). `best:START` is the recipe with the best mean mIoU on val among those of a start.
`RECIPE+VARIANT@EPOCHS` is a recipe with one thing changed and another length. `+table4` stands for all its bins and
auxiliary levels, `+trials` for all changes of `TRIALS` (camvid_recipes.py).
Each finished run is a line of the results file, and a run that is there, of the same frames and backbone, is not
repeated. Every few minutes, at Ctrl-C and when the time is up, the state of the run is kept beside that file: the same
command goes on from there. Every split is decoded into the devices' memory once (data.cache=device). Runs share a
compiled step unless they differ in more than numbers, such as rates, decays, lengths and seeds. Step, augmentation,
loss, optimiser and evaluation are those of main.py; no report is written. CPUs compute in float32, accelerators in
bfloat16.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import math
import os
import pathlib
import runpy
import tempfile
import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from flax import linen as nn
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from atonet_jax.config import create_network
from atonet_jax.data.batches import Batches
from atonet_jax.data.labels import CAMVID
from atonet_jax.data.sources import load_examples
from atonet_jax.errors import InputError, Stopped
from atonet_jax.evaluation.evaluator import Evaluation, Evaluator
from atonet_jax.inference import Segmenter
from atonet_jax.models import create_model, init_variables, network
from atonet_jax.process.devices import create_mesh, keep_freed_memory, replicated
from atonet_jax.process.files import replacing
from atonet_jax.process.progress import Progress, say
from atonet_jax.process.stopping import StopSignals
from atonet_jax.runs.environment import device_names, git_revision, now, versions
from atonet_jax.runs.network import starting_variables
from atonet_jax.runs.state import TrainState
from atonet_jax.torch_files import read_state_dict, write_state_dict
from atonet_jax.torch_weights import to_torch
from atonet_jax.training.class_weights import class_weights
from atonet_jax.training.from_config import create_objective, create_schedule, step_options, train_augmentation
from atonet_jax.training.step import StepSchedule, compile_train_step, create_state
from atonet_jax.training.timeline import Timeline
from atonet_jax.validation import validate, validate_batches, validate_classes
from benchmarks.camvid_recipes import FRAME, RECIPES, Recipe, base_settings, chosen
from benchmarks.camvid_results import Results, place_of

SPLITS = {'val': ('train', 'val'), 'test': ('train+val', 'test')}
_ROOT = pathlib.Path(__file__).resolve().parent.parent

_LOOK = 50  # steps between two looks at the loss
_KEEP_SECONDS = 300  # between two states that are kept of a run
_TIMED_CALLS = 20  # of the label map, for the chart
_BARE_STEPS = 100
_ENTRY_BYTES = 500  # that an archive takes beside an array


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
        variables = trained.state.averaged or trained.state.variables
        evaluation = Evaluator(job.model, job.eval_set, config.eval).run(variables)
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
        times = []
        for _ in range(2 + _TIMED_CALLS):
            start = time.perf_counter()
            jax.block_until_ready(segment(frame))
            times.append(time.perf_counter() - start)
        return 1e3 * float(np.median(times[2:]))

    def batches(self, config: ConfigDict, split: str) -> Batches:
        if split not in self._batches:
            with tempfile.TemporaryDirectory() as folder:  # for what it remembers of the files
                self._batches[split] = Batches(load_examples(config.data, split, folder), self._mesh)
        return self._batches[split]


def digest_of(row: dict[str, Any]) -> str:
    """What tells a run from others, in names of files."""
    return _digest(json.dumps(row, sort_keys=True).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


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


def save(prefix: str, model, variables, megabytes: float) -> list[str]:
    """Writes what inference needs of the variables, kernels as float16, in files of limited size: PREFIX_0.npz, ..."""
    unused = network(model).training_only
    files = [{}]
    for path, array in flatten_dict(jax.device_get(variables), sep='/').items():
        if path.split('/')[1] in unused:
            continue
        array = array.astype(np.float16) if array.ndim > 1 else array
        if sum(a.nbytes + _ENTRY_BYTES for a in [*files[-1].values(), array]) > megabytes * 2**20:
            files.append({})
        files[-1][path] = array
    paths = [f'{prefix}_{i}.npz' for i in range(len(files))]
    for path, part in zip(paths, files):
        np.savez(path, **part)
    return paths


def join(out: str, parts: list[str], name: str) -> None:
    """Writes the files of `save` as one file of weights of the network `name`.

    Raises:
        InputError: they are of several runs.
    """
    arrays = {}
    for part in parts:
        found = read_state_dict(part)
        if arrays.keys() & found.keys():
            raise InputError(f'{part}: holds arrays that another file holds too; give the files of one run')
        arrays |= found
    model = create_model(name, CAMVID.num_classes)
    write_state_dict(out, to_torch(unflatten_dict(arrays, sep='/'), model))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default='data/camvid', help='folder of the 360x480 repack')
    parser.add_argument('--backbone', default='', help="file of an ImageNet ResNet-18 in torchvision's names")
    parser.add_argument('--protocol', choices=SPLITS, default='val')
    parser.add_argument('--networks', nargs='*', default=['atonet'], help='none: nothing is trained')
    names = f'best:START, or of {", ".join(RECIPES)}; with +VARIANT and @EPOCHS behind it'
    parser.add_argument('--recipes', nargs='+', default=['scratch'], help=names)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--epochs', type=float, help='instead of those of the recipes')
    parser.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', help='settings over those of all recipes')
    parser.add_argument('--results', default='runs/camvid.jsonl', help='file that lines are added to')
    parser.add_argument('--minutes', type=float, default=math.inf, help='after which no run goes on')
    parser.add_argument('--bare', action='store_true', help='also times steps whose batch is there already')
    parser.add_argument('--save', default='', help='folder for the weights of runs with the first seed')
    parser.add_argument('--chart', default='', help='PNG file: mIoU against the time of a label map, measured here')
    joining = 'instead: writes OUT.safetensors from the files of --save of one run, which follow'
    parser.add_argument('--join', nargs='+', metavar='FILE', help=joining)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    if arguments.join:
        out, *parts = arguments.join
        join(out, parts, arguments.networks[0])
        return
    logging.basicConfig(format='%(message)s')
    logging.getLogger('atonet_jax').setLevel(logging.INFO)
    results = Results(arguments.results)
    runs = Runs(arguments.data, arguments.backbone, time.monotonic() + 60 * arguments.minutes, arguments.bare)
    settings = dict(map(_setting, arguments.set))
    if arguments.epochs is not None:
        settings['train.epochs'] = arguments.epochs
    say(f'{device_names()}; {versions("jax", "flax", "optax")}; revision {git_revision()}')
    left = []
    for title, row, config in planned(runs, results, arguments, settings):
        kept = KeptState(arguments.results, row)
        if results.has(row):
            say(f'{title}: done before')
            kept.remove()
            continue
        try:
            figures, evaluation, model, variables = runs.run(config, kept)
        except OutOfTimeError:
            left.append(title)
            say(f'{title}: left, the time is up')
            continue
        except FloatingPointError as error:
            say(f'{title}: given up, {error}')
            kept.remove()
            continue
        if arguments.save and row['seed'] == arguments.seeds[0]:
            os.makedirs(arguments.save, exist_ok=True)
            name = '{protocol}_{network}_{recipe}_{epochs:g}_{seed}'.format(**row)
            save(os.path.join(arguments.save, f'{name}_{digest_of(row)}'), model, variables, megabytes=15)
        scores = evaluation.scores
        results.add(row | figures | {
            'time': now(),
            'device': device_names(),
            'versions': versions('jax', 'flax', 'optax'),
            'revision': git_revision(),
            **scores.to_dict(CAMVID.class_names),
            'confusion': evaluation.confusion.tolist(),
        })  # fmt: skip
        say(
            f'{title}: mIoU {100 * scores.miou:.2f}%, {figures["ms_per_step"]:.2f} ms a step, '
            f'{figures["seconds_to_first_step"]:.1f} s to the first, {figures["seconds"]:.1f} s in all'
            + (f', bare step {figures["ms_per_bare_step"]:.2f} ms' if 'ms_per_bare_step' in figures else '')
        )
        kept.remove()
    print(results.table())
    if arguments.chart:
        runs.time_label_maps(results, arguments.protocol)
        results.draw(arguments.chart, arguments.protocol)
    if left:
        print(f'left: {"; ".join(left)}; the same command goes on with them')


def planned(
    runs: Runs, results: Results, arguments: argparse.Namespace, settings: dict[str, Any]
) -> list[tuple[str, dict[str, Any], ConfigDict]]:
    """(title, what identifies it in the results, config) of each run.

    Raises:
        InputError: what is asked for cannot be. So nothing is trained before all of it is known to be right.
    """
    plan = []
    for seed in arguments.seeds:
        for name in arguments.networks:
            for text in arguments.recipes:
                best_of = partial(runs.best, results, name)
                for recipe_name, recipe, over in chosen(text, best_of):
                    over = settings | over
                    config = runs.config(name, recipe, seed, arguments.protocol, over)
                    create_objective(config, create_network(config, CAMVID.num_classes))
                    row = {
                        'protocol': arguments.protocol,
                        'network': name,
                        'recipe': recipe_name,
                        'start': recipe.start,
                        'seed': seed,
                        'epochs': config.train.epochs,
                        'settings': base_settings() | recipe.settings | over,
                    }
                    row |= runs.sources(recipe, arguments.protocol)
                    title = f'{arguments.protocol} {name} {recipe_name}, seed {seed}, {config.train.epochs:g} epochs'
                    plan.append((title, row, config))
    return plan


def _setting(pair: str) -> tuple[str, Any]:
    """'KEY=VALUE' -> its parts. A value that is no JSON is a word, or JSON values between commas."""
    key, is_given, text = pair.partition('=')
    if not is_given:
        raise InputError(f'--set {pair}: must be KEY=VALUE, such as train.batch_size=8')
    value = text
    for written in (text, f'[{text}]') if text else ():
        with contextlib.suppress(ValueError):
            value = json.loads(written)
            break
    return key, tuple(value) if isinstance(value, list) else value


if __name__ == '__main__':
    jax.config.update('jax_compilation_cache_dir', os.environ.get('JAX_COMPILATION_CACHE_DIR') or
                      os.path.expanduser('~/.cache/atonet_jax/compiled'))  # fmt: skip
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    keep_freed_memory()
    try:
        main()
    except InputError as failure:
        raise SystemExit(f'error: {failure}') from failure
    except Stopped as stopped:
        print(f'{stopped}; the same command goes on from there')
        raise SystemExit(128 + stopped.signal) from stopped
    except KeyboardInterrupt as interrupt:
        print('interrupted; the same command goes on from the last state that was kept')
        raise SystemExit(130) from interrupt
