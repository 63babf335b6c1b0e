"""What takes the time in a network's `Segmenter` on CPUs, by kind of operation.

    JAX_PLATFORMS=cpu python -m benchmarks.network_operations dfanet_b dfanet_a espnet

For each network a line a kind: ms of a call, GMAC that it computes, MB that it moves (operands and results, each once;
most of them lie in the cache), and the rates that follow. Convolutions and matrix products are one kind; the others are
named after what XLA has fused: additions are depthwise convolutions, biases and sums; pads, copies and concatenations
move maps alone. The time of each operation is the shortest of `--calls` calls. Weights are random.
"""

import argparse
import collections
import re

import jax
import numpy as np

from atonet_jax.inference import Segmenter
from atonet_jax.models import create_model, init_variables
from benchmarks.networks import _size
from benchmarks.trace_gpu import Program, profile

NUM_CLASSES = 19
KINDS = {
    'convolutions and products': r'$^',  # by their arithmetic
    'pools': r'reduce_window|reduce-window',
    'pads, copies, concatenations': r'pad|copy|concatenate|transpose|bitcast_convert|slice',
    'label map': r'compare_select|reduce',
    'element by element': '',
}


def kinds_of(name: str, size: tuple[int, int], calls: int) -> dict[str, np.ndarray]:
    """{kind: (ms, GMAC, MB)} of a call on one image."""
    model = create_model(name, NUM_CLASSES)
    segment = Segmenter(model, jax.jit(lambda: init_variables(model, 0))())
    program = segment.compile('__call__', (1, *size))
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    traced = Program(name, lambda: np.asarray(segment(image)), 0, program.as_text())
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
    parser.add_argument('networks', nargs='+')
    parser.add_argument('--size', type=_size, default=(512, 1024), help='HxW')
    parser.add_argument('--calls', type=int, default=8)
    options = parser.parse_args(argv)
    print('| network | operations | ms | GMAC | MB moved | GFLOP/s | GB/s |')
    print('|---|---|---|---|---|---|---|')
    for name in options.networks:
        sums = kinds_of(name, options.size, options.calls)
        sums['all'] = sum(sums.values())
        for kind in (*KINDS, 'all'):
            ms, gmac, moved = sums[kind]
            if ms:
                rates = f'{2e3 * gmac / ms:.0f} | {moved / ms:.1f}'
                print(f'| {name} | {kind} | {ms:.1f} | {gmac:.2f} | {moved:.0f} | {rates} |', flush=True)


if __name__ == '__main__':
    main()
