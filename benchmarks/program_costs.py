"""What the program of one size of images costs on a CPU, with Winograd's algorithm and without it.

    python -m benchmarks.program_costs --networks atonet bisenet --sizes 360x480 512x1024

Compiling with it takes longer, and a label map less time. The last columns say from how many images of a size on, and
from how many megapixels, it pays (`inference.views.winograd_pays`). All times are CPU seconds of all cores. The
compilation cache is off; weights are random.
"""

import argparse
import os
import time

import jax
import numpy as np

from atonet_jax.inference.segmenter import Segmenter
from atonet_jax.models import MODEL_NAMES, create_model, init_variables
from atonet_jax.process.timing import in_turns
from atonet_jax.runs.environment import cpu_name
from benchmarks import command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', nargs='+', choices=MODEL_NAMES, default=['atonet'], metavar='NETWORK')
    parser.add_argument('--sizes', nargs='+', type=command.size, default=[(360, 480), (512, 1024)], metavar='HxW')
    parser.add_argument('--rounds', type=int, default=7)
    arguments = parser.parse_args()

    jax.config.update('jax_enable_compilation_cache', False)
    print(f'{cpu_name()}, {os.cpu_count()} cores')
    print('| network | size | compiling: s | by Winograd: s | label map: s | by Winograd: s | pays from | megapixels |')
    print('|---|---|---|---|---|---|---|---|')
    for name in arguments.networks:
        model = create_model(name, 19)
        variables = jax.jit(lambda: init_variables(model, 0))()  # noqa: B023
        segmenters = {winograd: Segmenter(model, variables, winograd=winograd) for winograd in (False, True)}
        for height, width in arguments.sizes:
            compiling = {
                winograd: seconds_to_compile(segment, height, width) for winograd, segment in segmenters.items()
            }
            images = np.zeros((1, height, width, 3), np.uint8)
            calls = {
                winograd: lambda segment=segment: np.asarray(segment(images))
                for winograd, segment in segmenters.items()
            }
            label_map = {
                winograd: np.median(times[:, 1]) for winograd, times in in_turns(calls, arguments.rounds).items()
            }
            gain = label_map[False] - label_map[True]
            images_to_pay = (compiling[True] - compiling[False]) / gain if gain > 0 else np.inf
            figures = (compiling[False], compiling[True], label_map[False], label_map[True])
            print(f'| {name} | {height}x{width} | {" | ".join(f"{figure:.2f}" for figure in figures)} | '
                  f'{images_to_pay:.0f} | {images_to_pay * height * width / 1e6:.0f} |', flush=True)  # fmt: skip


def seconds_to_compile(segment: Segmenter, height: int, width: int) -> float:
    start = time.process_time()
    segment.compile('__call__', (1, height, width))
    return time.process_time() - start


if __name__ == '__main__':
    command.run(main)
