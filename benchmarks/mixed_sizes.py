"""A folder of pictures of many sizes on this device: with a program for each size, and with programs that sizes share.

    python -m benchmarks.mixed_sizes --networks atonet bisenet pidnet_s

The pictures are noise; their sides are drawn from a range, as photographs that were cut by hand have them. The second
way is that of `--mode=predict` (`inference.canvases.programs_of`). Both label every picture once, one after the other,
in one process without a compilation cache. Times are of compiling and labelling together, CPU seconds of all cores in
brackets. The last column is the share of labels that differ; with random weights near ties are more frequent than with
trained ones.
"""

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from atonet_jax.inference.canvases import Canvases, programs_of
from atonet_jax.inference.segmenter import Segmenter
from atonet_jax.inference.views import WHOLE_IMAGE
from atonet_jax.models import MODEL_NAMES, create_model, init_variables
from atonet_jax.runs.environment import cpu_name
from benchmarks import command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', nargs='+', choices=MODEL_NAMES, default=['atonet'], metavar='NETWORK')
    parser.add_argument('--pictures', type=int, default=24)
    parser.add_argument('--sides', nargs=2, type=int, default=(320, 500), metavar=('LEAST', 'MOST'))
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
    arguments = parser.parse_args()

    jax.config.update('jax_enable_compilation_cache', False)
    generator = np.random.default_rng(0)
    sides = generator.integers(*arguments.sides, (arguments.pictures, 2), endpoint=True)
    pictures = [generator.integers(0, 256, (height, width, 3), np.uint8) for height, width in sides]
    sizes = Counter(picture.shape[:2] for picture in pictures)
    device = jax.devices()[0].device_kind if jax.default_backend() != 'cpu' else f'{os.cpu_count()} cores'
    print(f'{cpu_name()}, {device}; {len(pictures)} pictures of {len(sizes)} sizes, {arguments.dtype}')
    print('| network | a program for each size: s | shared programs: s | how many | times as fast | other labels, % |')
    print('|---|---|---|---|---|---|')
    for name in arguments.networks:
        model = create_model(name, 19, dtype=jnp.dtype(arguments.dtype))
        segment = Segmenter(model, jax.jit(partial(init_variables, model, 0))(), winograd=False)
        own, *own_times = timed(lambda picture: np.asarray(segment(picture[None]))[0], pictures)  # noqa: B023
        program_of = programs_of(sizes, model, WHOLE_IMAGE)
        labels, *times = timed(partial(by_plan, segment, program_of), pictures)
        differ = 100 * np.mean(np.concatenate([(a != b).ravel() for a, b in zip(own, labels, strict=True)]))
        figures = (f'{wall:.1f} ({cpu:.1f})' for wall, cpu in (own_times, times))
        programs = len({program_of(size) for size in sizes})
        print(f'| {name} | {" | ".join(figures)} | {programs} | {own_times[0] / times[0]:.2f} | {differ:.3f} |',
              flush=True)  # fmt: skip


def by_plan(segment: Segmenter, program_of: Callable, picture: np.ndarray) -> np.ndarray:
    height, width, _ = picture.shape
    program = program_of((height, width))
    if isinstance(program, Canvases):
        return np.asarray(segment.on_canvas([picture], program.step))[0, :height, :width]
    return np.asarray(segment(picture[None]))[0]


def timed(label: Callable, pictures: list[np.ndarray]) -> tuple[list[np.ndarray], float, float]:
    """Label maps of all, seconds, and CPU seconds."""
    start, cpu_start = time.perf_counter(), time.process_time()
    results = [label(picture) for picture in pictures]
    return results, time.perf_counter() - start, time.process_time() - cpu_start


if __name__ == '__main__':
    command.run(main)
