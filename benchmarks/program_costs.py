"""What the program of one size of images costs on a CPU: plain, with Winograd's algorithm, and on a canvas.

    python -m benchmarks.program_costs --networks atonet bisenet --sizes 360x480 512x1024

Compiling with Winograd's algorithm takes longer, and a label map less time. One column says from how many megapixels of
a size on it pays (`inference.views.winograd_pays`). A program on a canvas takes images of many sizes. What a
program is worth is how many megapixels are labelled in the time that compiling it takes
(`inference.canvases.programs_of`). All times are CPU seconds of all cores. The compilation cache is off; weights
are random.
"""

import argparse
import os
import time
from functools import partial

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
    print('| network | size | compile: s | by Winograd: s | on a canvas: s | label map: s | by Winograd: s | '
          'on a canvas: s | Winograd pays from: MP | worth: MP | on a canvas: MP |')  # fmt: skip
    print('|---|---|---|---|---|---|---|---|---|---|---|')
    for name in arguments.networks:
        model = create_model(name, 19)
        variables = jax.jit(partial(init_variables, model, 0))()
        plain, by_winograd = (Segmenter(model, variables, winograd=winograd) for winograd in (False, True))
        for height, width in arguments.sizes:
            image, shape = np.zeros((height, width, 3), np.uint8), (1, height, width)
            compiling = [
                seconds_to_compile(plain, '__call__', shape),
                seconds_to_compile(by_winograd, '__call__', shape),
                seconds_to_compile(plain, 'on_canvas', shape),
            ]
            calls = {
                'plain': lambda: np.asarray(plain(image[None])),  # noqa: B023
                'by Winograd': lambda: np.asarray(by_winograd(image[None])),  # noqa: B023
                'on a canvas': lambda: plain.of_any_size(image),  # noqa: B023
            }
            label_map = [np.median(times[:, 1]) for times in in_turns(calls, arguments.rounds).values()]
            megapixels = height * width / 1e6
            gain = (label_map[0] - label_map[1]) / megapixels
            pays = (compiling[1] - compiling[0]) / gain if gain > 0 else np.inf
            worth = [seconds * megapixels / label_map[0] for seconds in (compiling[0], compiling[2])]
            print(f'| {name} | {height}x{width} | {" | ".join(f"{figure:.2f}" for figure in compiling + label_map)} | '
                  f'{pays:.0f} | {" | ".join(f"{figure:.1f}" for figure in worth)} |', flush=True)  # fmt: skip


def seconds_to_compile(segment: Segmenter, method: str, shape: tuple[int, int, int]) -> float:
    start = time.process_time()
    segment.compile(method, shape)
    return time.process_time() - start


if __name__ == '__main__':
    command.run(main)
