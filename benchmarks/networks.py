"""Measures every network on this machine, beside what is published of it.

    python -m benchmarks.networks --results runs/networks.jsonl --minutes 90
    python -m benchmarks.networks --results runs/networks.jsonl --report runs/networks      # only tables and chart

Three ways from a uint8 image to a uint8 label map, batch 1: `Segmenter`; plain XLA, which is the module under `jax.jit`
with ATONET_JAX_CPU_FAST_PATHS=0, resizing and argmax; and, on CPUs, the ONNX export in ONNX Runtime. On CPUs images and
labels are NumPy arrays, on accelerators they lie on the device. Weights are random; times do not depend on them.
Each way has a process of its own, so that its memory is its own. A round calls each once, so that disturbances hit all
alike. Sizes: 512x1024 and the one that the network's figures are published for; float32, on accelerators also bfloat16.
`--systems train plain_train`, with results in a file of their own, times a training step on two crops of half the
image's height and width instead, with the package's fast paths for CPUs and without.
Each network is a line of the results file, and its last line counts. A second start measures what is missing or failed.
Systems that a line has already are measured again beside new ones, because ratios need common rounds. --report writes
PATH.md and PATH.png.
"""

import argparse
import contextlib
import json
import logging
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from atonet_jax.errors import InputError
from atonet_jax.models import MODEL_NAMES, distinct_networks, network
from atonet_jax.process.progress import Progress, say
from atonet_jax.process.timing import PAUSE
from atonet_jax.runs.environment import now
from benchmarks import command
from benchmarks.json_lines import add_line, read_lines
from benchmarks.network_report import SYSTEMS, TRAINING, draw_chart, failures_of, published_of, report, size_text
from benchmarks.network_worker import Worker, WorkerError

FEWEST_ROUNDS = 3


class Job(NamedTuple):
    """One measurement: (height, width) of the image, and the dtype that is computed in."""

    network: str
    size: tuple[int, int]
    dtype: str

    def __str__(self) -> str:
        return f'{self.network} {size_text(self.size)} {self.dtype}'


class OutOfTimeError(Exception):
    """The time that was given is over."""


def measure(job: Job, systems: Sequence[str], options: argparse.Namespace, deadline: float) -> dict[str, Any]:
    """The figures of one network: {'systems': {name: figures or {'error': why}}, ...}.

    Raises:
        OutOfTimeError: `deadline`, of time.monotonic, has passed.
    """

    def ask(worker, line):
        left = deadline - time.monotonic()
        try:
            return worker.ask(line, min(options.limit, left))
        except WorkerError:
            if time.monotonic() >= deadline:
                raise OutOfTimeError from None
            raise

    figures = {name: {} for name in systems}
    seconds = {name: [] for name in systems}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        task = {**job._asdict(), 'options': options.options, 'folder': folder}
        # All begin at once: compiling and exporting take longer than measuring.
        begun = {
            name: running.enter_context(Worker(task | {'system': 'export' if name == 'onnx' else name}))
            for name in systems
        }
        workers = {}
        for name, worker in begun.items():
            try:
                figures[name] = ask(worker, '')
                if name == 'onnx':  # its file is there now
                    worker = running.enter_context(Worker(task | {'system': name}))
                    figures[name] = ask(worker, '')
                workers[name] = worker
            except WorkerError as error:
                figures[name] = {'error': str(error)}
        ends = time.monotonic() + options.seconds
        for i in range(options.rounds):
            if (i >= FEWEST_ROUNDS and time.monotonic() > ends) or not workers:
                break
            for name, worker in list(workers.items()):
                time.sleep(PAUSE)
                try:
                    seconds[name].append(ask(worker, 'run')['seconds'])
                except WorkerError as error:
                    figures[name] = {'error': str(error)}
                    del workers[name]
        for name, worker in list(workers.items()):
            try:
                figures[name] |= ask(worker, 'memory')
            except WorkerError as error:
                figures[name] = {'error': str(error)}
                del workers[name]
        labels = {name: np.load(os.path.join(folder, f'{name}.npy')) for name in workers}
    row = {key: figures.get('segmenter', {}).pop(key, None) for key in ('parameters', 'file_bytes', 'macs')}
    for name in workers:
        low, median, high = np.percentile(seconds[name], (5, 50, 95)).tolist()
        figures[name] |= {'median_seconds': median, 'p5_seconds': low, 'p95_seconds': high, 'seconds': seconds[name]}
        if name == 'plain_train' and 'train' in workers:
            figures[name]['times_of_train'] = float(np.median(np.divide(seconds[name], seconds['train'])))
        if name in ('plain', 'onnx') and 'segmenter' in workers:
            ratios = np.divide(seconds[name], seconds['segmenter'])
            figures[name]['times_of_segmenter'] = float(np.median(ratios))
            figures[name]['labels_equal'] = float(np.mean(labels[name] == labels['segmenter']))
    return row | {'systems': figures}


def jobs_of(names: Sequence[str], sizes: Sequence[str], dtypes: Sequence[str]) -> list[Job]:
    """What is to be measured: one size after the other, and of each the cheapest networks first.

    Args:
        names: of networks.
        sizes: 'HxW', or 'paper': of the network's published counts, and of its published accuracy.
        dtypes: 'float32', 'bfloat16'.

    Raises:
        InputError: no such network, or no size.
    """
    first = {other: name for name, others in distinct_networks().items() for other in (name, *others)}
    unknown = [name for name in names if name not in first]
    if unknown:
        raise InputError(f'--networks {" ".join(unknown)}: no such network; there is {", ".join(MODEL_NAMES)}')
    jobs = {}
    for text in sizes:
        of_size = []
        for name in dict.fromkeys(first[name] for name in names):
            published = network(name).published.macs
            for size in _papers_sizes(name) if text == 'paper' else [command.size(text)]:
                cost = published[1] * math.prod(size) / math.prod(published[0]) if published else math.inf
                of_size += [(cost, Job(name, size, dtype)) for dtype in dtypes]
        jobs |= dict.fromkeys(job for _, job in sorted(of_size, key=lambda each: each[0]))
    return list(jobs)


def _papers_sizes(name: str) -> list[tuple[int, int]]:
    """Of the published counts, and of the published accuracy."""
    macs, (_, size_of_miou) = network(name).published.macs, published_of(name).get('miou', (None, None))
    return list(dict.fromkeys([*([macs[0]] if macs else []), *([size_of_miou] if size_of_miou else [])]))


def read_rows(path: str) -> dict[tuple, dict[str, Any]]:
    """{(network, size, dtype, device): the last line of it}."""
    return {(row['network'], tuple(row['size']), row['dtype'], row['device']): row for row in read_lines(path)}


def run(options: argparse.Namespace) -> list[Job]:
    """Measures what the results file lacks; returns what the time did not allow."""
    deadline = time.monotonic() + 60 * options.minutes
    with Worker({'system': 'machine'}) as worker:
        machine = worker.ask('', options.limit)
    on_cpu = machine['backend'] == 'cpu'
    dtypes = options.dtypes or (['float32'] if on_cpu else ['float32', 'bfloat16'])
    systems = [name for name in options.systems if on_cpu or name != 'onnx']
    jobs = jobs_of(options.networks or MODEL_NAMES, options.sizes, dtypes)
    say(f'{machine["device"]}; {machine["versions"]}; revision {machine["revision"]}')
    rows = read_rows(options.results)
    if any(row.get('options', {}) != options.options for row in rows.values()):
        raise InputError(f'--results {options.results}: holds figures of other --options; give another file')

    def is_done(job):
        row = rows.get((*job, machine['device']))
        return row is not None and not failures_of(row) and set(systems) <= set(row['systems'])

    missing = [job for job in jobs if not is_done(job)]
    with Progress('networks', len(jobs), 'network', done=len(jobs) - len(missing)) as progress:
        for i, job in enumerate(missing):
            progress.update(0, str(job))
            try:
                if time.monotonic() >= deadline:
                    raise OutOfTimeError
                earlier = rows.get((*job, machine['device']), {}).get('systems', {})
                wanted = [name for name in SYSTEMS | TRAINING if name in systems or name in earlier]
                figures = measure(job, wanted, options, deadline)
            except OutOfTimeError:
                return missing[i:]
            row = job._asdict() | {'options': options.options, 'time': now(), **machine}
            row |= figures
            add_line(options.results, row)
            say(f'{job}: {summary(row)}')
            progress.update(1, str(job))
    return []


def summary(row: dict[str, Any]) -> str:
    """One line for the screen."""
    parts = []
    for name, figures in row['systems'].items():
        time_or_error = figures.get('error') or f'{1e3 * figures["median_seconds"]:.1f} ms'
        parts.append(f'{(SYSTEMS | TRAINING)[name]} {time_or_error}')
    return ', '.join(parts)


def write_report(prefix: str, results: str) -> None:
    rows = list(read_rows(results).values())
    os.makedirs(os.path.dirname(os.path.abspath(prefix)), exist_ok=True)
    pathlib.Path(f'{prefix}.md').write_text(report(rows), encoding='utf-8')
    written = [f'{prefix}.md', *([f'{prefix}.png'] if draw_chart(f'{prefix}.png', rows) else [])]
    print(f'written: {", ".join(written)}')


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--results', default='runs/networks.jsonl', help='file that lines are added to')
    parser.add_argument('--report', default='', metavar='PATH', help='measures nothing, writes PATH.md and PATH.png')
    parser.add_argument('--networks', nargs='+', default=[], help='by default all')
    parser.add_argument('--sizes', nargs='+', default=['512x1024', 'paper'], help='HxW, or paper')
    parser.add_argument('--dtypes', nargs='+', default=[], choices=('float32', 'bfloat16'))
    parser.add_argument('--systems', nargs='+', default=list(SYSTEMS), choices=[*SYSTEMS, *TRAINING])
    parser.add_argument('--minutes', type=float, default=math.inf, help='after which nothing is begun or goes on')
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--seconds', type=float, default=20.0, help='after which, and three rounds, none begins')
    parser.add_argument('--limit', type=float, default=900.0, help='seconds for any one answer of a process')
    parser.add_argument('--options', type=json.loads, default={}, help='of the networks, as JSON: {"width": 4}')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    options = parse_arguments(argv)
    logging.basicConfig(format='%(message)s', force=True)
    logging.getLogger('atonet_jax').setLevel(logging.INFO)
    if options.report:
        write_report(options.report, options.results)
        return
    left = run(options)
    write_report(os.path.splitext(options.results)[0], options.results)
    if left:
        print(f'left, as the time is over: {", ".join(map(str, left))}; the same command goes on with them')


if __name__ == '__main__':
    try:
        main()
    except (InputError, WorkerError) as failure:
        raise SystemExit(f'error: {failure}') from failure
    except KeyboardInterrupt:
        raise SystemExit('interrupted; the same command goes on') from None
