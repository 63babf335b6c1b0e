"""Times of single operations on CPUs, by the fast paths of `atonet_jax.ops` and without them.

    JAX_PLATFORMS=cpu python -m benchmarks.cpu_operations

Prints a table of milliseconds: of the forward pass, and of forward and backward pass together. Each is the best of
`--rounds` rounds in which both programs take turns.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from atonet_jax import ops
from atonet_jax.process.timing import in_turns


def conv(size, kernel, **options):
    return f'conv {kernel}, {options}', (size, kernel), lambda x, kernel: ops.conv(x, kernel, **options)


def conv_transpose(size, kernel, **options):
    what = f'conv_transpose {kernel}, {options}'
    return what, (size, kernel), lambda x, kernel: ops.conv_transpose(x, kernel, **options)


def resize_align_corners(size, new):
    return f'resize_align_corners to {new}', (size,), lambda x: ops.resize_align_corners(x, new)


def max_pool(size, window, **options):
    return f'max_pool {window}, {options}', (size,), lambda x: ops.max_pool(x, window, **options)


CASES = [
    conv((4, 64, 128, 64), (3, 3, 64, 64)),
    conv((4, 32, 64, 128), (3, 3, 128, 128)),  # by Winograd
    conv((4, 32, 64, 128), (3, 3, 128, 128), dilation=4),
    conv((2, 2, 4, 512), (3, 3, 512, 512)),  # fewer pixels than taps
    conv((2, 8, 16, 512), (3, 3, 512, 512)),
    conv((2, 15, 23, 512), (7, 7, 512, 4096), padding=0),  # of FCN-8s
    conv((4, 64, 128, 64), (5, 1, 64, 64)),
    conv((2, 256, 512, 48), (3, 3, 48, 48)),  # of FRRN
    conv((2, 128, 256, 32), (3, 3, 32, 32)),
    conv((2, 128, 256, 16), (3, 3, 16, 16)),
    conv((2, 128, 256, 32), (3, 1, 32, 32)),
    conv((4, 64, 128, 64), (3, 3, 1, 64), groups=64),
    conv((4, 64, 128, 64), (3, 3, 1, 64), stride=2, groups=64),
    conv((4, 32, 64, 96), (3, 3, 24, 96), groups=4),
    conv((1, 64, 128, 25), (3, 3, 25, 25), dilation=4),  # of ESPNet
    conv_transpose((1, 128, 256, 16), (2, 2, 16, 19), stride=2, padding=0),  # of ERFNet
    conv_transpose((4, 32, 64, 128), (3, 3, 128, 64), stride=2, padding=1, output_padding=1),
    conv_transpose((1, 32, 64, 19), (4, 4, 19, 1), stride=2, padding=1, groups=19),
    resize_align_corners((1, 32, 64, 128), (128, 256)),  # of DFANet
    max_pool((4, 128, 256, 64), 3, stride=2, padding=1),
    max_pool((4, 128, 256, 64), 2, stride=2, padding=0),
]


def program(function, arrays, fast, backward):
    def run(cotangent, *arrays):
        with ops.cpu.fast_paths(fast):
            if not backward:
                return function(*arrays)
            value, transposed = jax.vjp(function, *arrays)
            return value, transposed(cotangent)

    with ops.cpu.fast_paths(False):
        shape = jax.eval_shape(function, *arrays)
    cotangent = jnp.ones(shape.shape)
    compiled = jax.jit(run).lower(cotangent, *arrays).compile()
    return lambda: jax.block_until_ready(compiled(cotangent, *arrays))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    rounds = parser.parse_args().rounds
    print('| operation | map | forward, plain | forward | with gradients, plain | with gradients |')
    print('|---|---|---|---|---|---|')
    for what, shapes, function in CASES:
        arrays = [jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32) for shape in shapes]
        ways = [(fast, backward) for backward in (False, True) for fast in (False, True)]
        times = in_turns({way: program(function, arrays, *way) for way in ways}, rounds)
        figures = ' | '.join(f'{1e3 * of_way[:, 0].min():.1f}' for of_way in times.values())
        print(f'| {what} | {shapes[0]} | {figures} |', flush=True)


if __name__ == '__main__':
    main()
