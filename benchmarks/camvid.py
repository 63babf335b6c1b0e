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
import json
import logging
import math
import os
import time
from functools import partial
from typing import Any

import jax
from ml_collections import ConfigDict

from atonet_jax.config import create_network
from atonet_jax.data.labels import CAMVID
from atonet_jax.errors import InputError, Stopped
from atonet_jax.process.devices import keep_freed_memory
from atonet_jax.process.progress import say
from atonet_jax.runs.environment import device_names, git_revision, now, versions
from atonet_jax.training.from_config import create_objective
from benchmarks import camvid_weights
from benchmarks.camvid_recipes import RECIPES, base_settings, chosen
from benchmarks.camvid_results import Results
from benchmarks.camvid_training import SPLITS, KeptState, OutOfTimeError, Runs, digest_of


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
        camvid_weights.join(out, parts, arguments.networks[0])
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
            prefix = os.path.join(arguments.save, f'{name}_{digest_of(row)}')
            camvid_weights.save(prefix, model, variables, megabytes=15)
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
