"""Kills training runs with SIGKILL at random moments, starts them again, and compares how they end.

    python -m benchmarks.fault_injection --kills 200

Trains configs/tiny.py, which saves at every second step, in processes that are killed after a random time, also while
they start, save or evaluate; none is let live for longer than a run takes that nobody disturbs. The same run is started
again each time until it ends; its parameters must be those of the undisturbed one, bit by bit. Then another run begins,
until so many kills are done. The forked processes share one import of JAX and TensorFlow, and the compilation cache
that main.py keeps; all else is a process's own.
"""

import argparse
import contextlib
import multiprocessing
import os
import pathlib
import random
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from atonet_jax.config import create_network
from atonet_jax.data.sources import load_dataset
from atonet_jax.process.devices import create_mesh
from atonet_jax.runs.checkpoint import Checkpoints
from atonet_jax.training.train import train
from benchmarks import command

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PRELOADED = ['atonet_jax.training.train', 'atonet_jax.data.pipeline']


class Outcome(NamedTuple):
    """Of one run.

    Attributes:
        kills: processes that were killed.
        resumed: starts that went on from a checkpoint.
        half_written: kills after which an unfinished checkpoint was there.
        equal: whether the run ended with the undisturbed parameters.
    """

    kills: int
    resumed: int
    half_written: int
    equal: bool


def final_variables(config: ConfigDict, workdir: str) -> list[np.ndarray]:
    checkpoints = Checkpoints(workdir)
    model = create_network(config, 19)
    variables = checkpoints.restore_variables(checkpoints.step('latest'), model, create_mesh(), averaged=False)
    checkpoints.close()
    return [np.asarray(array) for array in jax.tree.leaves(variables)]


class Undisturbed(NamedTuple):
    """A run that nobody kills.

    Attributes:
        variables: it ended with.
        seconds: it took.
    """

    variables: list[np.ndarray]
    seconds: float


def undisturbed_run(config: ConfigDict, workdir: str) -> Undisturbed:
    """Trains from start to end; the import that all processes share does not count."""
    run_in_process(bool)  # starts the server of forks, which imports
    started = time.perf_counter()
    process = run_in_process(train_quietly, config.to_dict(), workdir)
    seconds = time.perf_counter() - started
    if process.exitcode:
        raise SystemExit(f'{workdir}: the run failed (exit code {process.exitcode})')
    return Undisturbed(final_variables(config, workdir), seconds)


def run_in_process(function: Callable, *arguments, at_most: float | None = None) -> multiprocessing.process.BaseProcess:
    """Runs it in a forked process until that ends, or for `at_most` seconds; then the process is still there."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=function, args=arguments)
    process.start()
    process.join(at_most)
    return process


def train_quietly(config: dict, workdir: str) -> None:
    """What a killed process does; the scenes are there already."""
    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        train(ConfigDict(config), workdir)


def disturbed_run(
    config: ConfigDict,
    workdir: str,
    undisturbed: Undisturbed,
    max_kills: int,
    rng: random.Random,
) -> Outcome:
    """Starts a run again and again, killing it up to `max_kills` times after part of the time that it would take."""
    kills = resumed = half_written = 0
    while True:
        saved = saved_steps(workdir)
        resumed += bool(saved)
        life = rng.uniform(0, undisturbed.seconds) if kills < max_kills else None
        process = run_in_process(train_quietly, config.to_dict(), workdir, at_most=life)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
            half_written += has_unfinished_save(workdir)
            if max(saved_steps(workdir), default=0) < max(saved, default=0):
                raise SystemExit(f'{workdir}: step {max(saved)} was saved and is lost')
        elif process.exitcode == 0:
            break
        else:
            raise SystemExit(f'{workdir}: a run could not go on (exit code {process.exitcode})')
    actual = final_variables(config, workdir)
    equal = all(np.array_equal(one, other) for one, other in zip(actual, undisturbed.variables, strict=True))
    return Outcome(kills, resumed, half_written, equal)


def saved_steps(workdir: str) -> list[int]:
    folder = pathlib.Path(workdir, 'checkpoints')
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()] if folder.exists() else []


def has_unfinished_save(workdir: str) -> bool:
    folder = pathlib.Path(workdir, 'checkpoints')
    return folder.exists() and any('tmp' in path.name for path in folder.iterdir())


def tiny_run(folder: str, steps: int) -> ConfigDict:
    """A run of so many steps over scenes in `folder`, which are made."""
    config = runpy.run_path(str(REPOSITORY / 'configs' / 'tiny.py'))['get_config']()
    config.data.root = os.path.join(folder, 'scenes')
    images = config.data.synthetic.train_scenes
    config.train.epochs = steps * config.train.batch_size / images
    config.train.eval_every_epochs = 4.0
    load_dataset(config.data, 'train')
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=200)
    parser.add_argument('--steps', type=int, default=60, help='of each run')
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', os.path.expanduser('~/.cache/atonet_jax/compiled'))
    rng = random.Random(arguments.seed)
    outcomes, started = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = tiny_run(folder, arguments.steps)
        undisturbed = undisturbed_run(config, os.path.join(folder, 'undisturbed'))
        while sum(outcome.kills for outcome in outcomes) < arguments.kills:
            left = arguments.kills - sum(outcome.kills for outcome in outcomes)
            workdir = os.path.join(folder, f'run{len(outcomes)}')
            outcomes.append(disturbed_run(config, workdir, undisturbed, left, rng))
            print(f'run {len(outcomes)}: {outcomes[-1]}', flush=True)
    kills, resumed, half_written, equal = map(sum, zip(*outcomes))
    print(
        f'{kills} kills in {len(outcomes)} runs of {arguments.steps} steps, {time.perf_counter() - started:.0f} s: '
        f'{resumed} starts from a checkpoint, {half_written} kills that left a half-written one, passed over; '
        f'{equal} of {len(outcomes)} runs ended with the undisturbed parameters, bit by bit'
    )
    sys.exit(0 if equal == len(outcomes) else 1)


if __name__ == '__main__':
    command.run(main)
