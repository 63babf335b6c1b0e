"""How near the networks are to independent outputs of the originals, over a folder of goldens.

    python -m benchmarks.goldens tests/golden
    python -m benchmarks.goldens tests/golden --networks erfnet icnet

A golden is a pair NAME.json, NAME.npz (tests/models/golden.py reads them; those of tests/golden/ are short). Prints for
each network the outputs of its inference mode, and the largest error in units of what the original's own rounding to
float32 changes; up to 10 is a match. Training outputs and statistics are compared by the tests alone.
"""

import argparse
import pathlib
import sys

from atonet_jax.models import MODEL_NAMES
from tests.models.golden import ALLOWED, is_there, logits_errors, with_weights


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=pathlib.Path)
    parser.add_argument('--networks', nargs='+', help='names of goldens; none: all')
    arguments = parser.parse_args()
    wanted = arguments.networks or MODEL_NAMES
    names = [name for name in wanted if is_there(name, arguments.folder)]
    if not names or (arguments.networks and names != wanted):
        sys.exit(f'error: {arguments.folder}: holds no goldens of {", ".join(set(wanted) - set(names))}')
    print(f'| network | outputs | largest error | of | allowed |\n{5 * "|---"}|')
    misses = 0
    for name in names:
        expected, _, variables = with_weights(name, arguments.folder)
        found = logits_errors(expected, variables)
        worst = max(found, key=found.get)
        misses += found[worst] > ALLOWED
        print(f'| {name} | {len(found)} | {found[worst]:.2f} | {worst} | {ALLOWED} |', flush=True)
    return 1 if misses else 0


if __name__ == '__main__':
    sys.exit(main())
