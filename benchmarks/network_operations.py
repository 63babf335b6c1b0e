"""What takes the time in a network's `Segmenter` on CPUs, or in its training step, by kind of operation.

    JAX_PLATFORMS=cpu python -m benchmarks.network_operations dfanet_b dfanet_a espnet
    JAX_PLATFORMS=cpu python -m benchmarks.network_operations dfanet_b dfanet_a espnet --train

The training step is that of `benchmarks.networks`, on two crops of half the size. For each network a line a kind: ms of
a call, GMAC that it computes, MB that it moves (operands and results, each once; most of them lie in the cache), and
the rates that follow. Convolutions and matrix products are one kind; the others are named after what XLA has fused:
additions are depthwise convolutions, biases and sums; pads, copies and concatenations move maps alone; reductions are
the label map, and in training the sums of batch normalisation and of the loss. The time of each operation is the
shortest of `--calls` calls. Weights are random.
"""

import argparse
import collections
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from atonet_jax.inference import Segmenter
from atonet_jax.models import MODEL_NAMES, create_model, init_variables
from benchmarks import command
from benchmarks.network_worker import NUM_CLASSES, training_step
from benchmarks.trace_gpu import Program, profile

KINDS = {
    'convolutions and products': r'$^',  # by their arithmetic
    'pools': r'reduce_window|reduce-window|scatter',
    'pads, copies, concatenations': r'pad|copy|concatenate|transpose|bitcast_convert|slice',
    'reductions': r'compare_select|reduce',
    'element by element': '',
}


def inference(name: str, size: tuple[int, int]) -> tuple[Any, Callable[[], np.ndarray]]:
    """The compiled program from one image to its label map, and a call of it."""
    model = create_model(name, NUM_CLASSES)
    segment = Segmenter(model, jax.jit(lambda: init_variables(model, 0))())
    program = segment.compile('__call__', (1, *size))
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    return program, lambda: np.asarray(segment(image))


def training(name: str, size: tuple[int, int]) -> tuple[Any, Callable[[], np.ndarray]]:
    """The compiled training step, and a call of it."""
    task = {'network': name, 'options': {}, 'dtype': 'float32', 'size': size, 'system': 'train'}
    program, call, _ = training_step(task)
    return program, call


def kinds_of(name: str, program: Any, call: Callable[[], np.ndarray], calls: int) -> dict[str, np.ndarray]:
    """{kind: (ms, GMAC, MB)} of a call."""
    traced = Program(name, call, 0, program.as_text())
    traced.call()
    shortest = {}
    for _ in range(calls):
        for row in profile(traced, 1):
            if re.match(r'while|call|conditional', row['operation']):
                continue  # their operations are rows of their own
            old = shortest.setdefault(row['operation'], row)
            shortest[row['operation']] = min(old, row, key=lambda row: row['ms'])
    sums = collections.defaultdict(lambda: np.zeros(3))
    for operation, row in shortest.items():
        sums[_kind(operation, row)] += row['ms'], row['gflop'] / 2, row['mb']
    return sums


def _kind(operation, row):
    if row['gflop']:
        return next(iter(KINDS))
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, operation))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('networks', nargs='+', choices=MODEL_NAMES, metavar='NETWORK')
    parser.add_argument('--size', type=command.size, default=(512, 1024), help='HxW')
    parser.add_argument('--train', action='store_true', help='the training step')
    parser.add_argument('--calls', type=int, default=8)
    options = parser.parse_args(argv)
    print('| network | operations | ms | GMAC | MB moved | GFLOP/s | GB/s |')
    print('|---|---|---|---|---|---|---|')
    for name in options.networks:
        prepare = training if options.train else inference
        sums = kinds_of(name, *prepare(name, options.size), options.calls)
        sums['all'] = sum(sums.values())
        for kind in (*KINDS, 'all'):
            ms, gmac, moved = sums[kind]
            if ms:
                rates = f'{2e3 * gmac / ms:.0f} | {moved / ms:.1f}'
                print(f'| {name} | {kind} | {ms:.1f} | {gmac:.2f} | {moved:.0f} | {rates} |', flush=True)


if __name__ == '__main__':
    command.run(main)
