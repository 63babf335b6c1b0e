"""Where the memory of a process goes that trains ATONet on CPUs (Linux with glibc).

    python -m benchmarks.process_memory --size 360x480 --batch-size 8 --steps 24

Prints the resident memory and the part of glibc's heap that is in use: after the imports, with the state, after
compiling and after steps; and the block of temporaries that XLA plans for one step. Batches are noise; --no-keep leaves
out `keep_freed_memory`, which `--mode=train` calls.
"""

import argparse
import ctypes
import os
import time

import jax
import psutil

from atonet_jax.process.devices import keep_freed_memory
from atonet_jax.runs.environment import device_names, versions
from benchmarks import command


class _HeapFigures(ctypes.Structure):
    """`struct mallinfo2` of malloc.h."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ('arena', 'ordblks', 'smblks', 'hblks', 'hblkhd', 'usmblks', 'fsmblks', 'uordblks', 'fordblks', '_')
    ]


def heap_in_use() -> int:
    """Bytes of glibc's heap that are in use."""
    mallinfo = ctypes.CDLL('libc.so.6').mallinfo2
    mallinfo.restype = _HeapFigures
    figures = mallinfo()
    return figures.uordblks + figures.hblkhd


def show(what: str, milliseconds: float | None = None) -> None:
    resident = psutil.Process().memory_info().rss
    time_text = '' if milliseconds is None else f'{milliseconds:.0f}'
    print(f'| {what} | {resident / 1e9:.1f} | {heap_in_use() / 1e9:.1f} | {time_text} |', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', type=command.size, default=(360, 480), help='of a crop, HxW')
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--steps', type=int, default=24)
    parser.add_argument('--no-keep', action='store_true', help='freed memory goes back to the system')
    arguments = parser.parse_args()
    if not arguments.no_keep:
        keep_freed_memory()
    print(f'{device_names()}; {versions("jax")}')
    print('| | resident, GB | heap in use, GB | ms |\n|---|---|---|---|')
    show('JAX and libraries')
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    import tensorflow  # noqa: F401  the host pipeline needs it

    show('TensorFlow too')
    from benchmarks.training_memory import TrainingStep

    training = TrainingStep(arguments.size, arguments.batch_size, 'float32', remat=False)
    state = training.state()
    jax.block_until_ready(state)
    show('the state')
    step = training.lower().compile()
    show('the compiled step')
    for number in range(1, arguments.steps + 1):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, training.batch, training.numbers))
        if number & (number - 1) == 0 or number == arguments.steps:
            show(f'step {number}', 1e3 * (time.perf_counter() - start))
    print(f'temporaries of a step: {step.memory_analysis().temp_size_in_bytes / 1e9:.1f} GB')


if __name__ == '__main__':
    command.run(main)
