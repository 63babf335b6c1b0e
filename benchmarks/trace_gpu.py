"""Where the time of ATONet's programs goes on a GPU, kernel by kernel.

    python -m benchmarks.trace_gpu --out traces            # inference at 1024x2048, training on 16 crops of 1024x1024
    python -m benchmarks.trace_gpu --out traces --tiny     # the same in small, to try it on a CPU

For each program: the time of a call by the clock, and JAX's profile of some calls, read without TensorFlow. A row is a
kernel of an HLO operation: its share of the device's time, its category, what the operation computes (GFLOP, from the
shapes in the compiled program) and moves (MB, operands and results, each once), and the rates that follow. Prints the
longest ones and the sums of the categories; writes all of them as JSON, and the compiled programs, beside it.
By default CUDA graphs are off, with which kernels lose the names of their operations; --graphs leaves them on.

'torch_label_map' is the reference (tests/torch_reference.py) by torch.compile, the same image to the same labels. Its
profile names kernels alone, so GFLOP and MB are not known. It needs PyTorch, and is left out where that is missing.
After --minutes no further program begins.
"""

import argparse
import collections
import glob
import gzip
import importlib.util
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # PyTorch needs memory too
if '--graphs' not in sys.argv and 'command_buffer' not in os.environ.get('XLA_FLAGS', ''):  # before JAX is imported
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_gpu_enable_command_buffer='.strip()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from atonet_jax.config import default_config  # noqa: E402
from atonet_jax.data.labels import CITYSCAPES  # noqa: E402
from atonet_jax.errors import is_out_of_memory  # noqa: E402
from atonet_jax.inference.segmenter import Segmenter  # noqa: E402
from atonet_jax.models import create_model, init_variables  # noqa: E402
from atonet_jax.models.counts import count_macs  # noqa: E402
from atonet_jax.runs.environment import device_names, versions  # noqa: E402
from benchmarks import command  # noqa: E402
from benchmarks.compiled_text import Operations  # noqa: E402
from benchmarks.matrix_rate import matrix_rate  # noqa: E402
from benchmarks.recipe import compiled_step  # noqa: E402

PROGRAMS = ('label_map', 'torch_label_map', 'train', 'coarse_logits')
NUM_CLASSES = CITYSCAPES.num_classes
_SHOWN = 22


class Program(NamedTuple):
    """A compiled program with the arguments that it is called with.

    Attributes:
        name: for people.
        call: starts a call.
        flops: of the convolutions of a call, by the shapes of the network.
        text: as XLA prints it; '' for one of PyTorch.
        wait: until a result is there.
    """

    name: str
    call: Callable[[], Any]
    flops: float
    text: str
    wait: Callable[[Any], Any] = jax.block_until_ready


def inference(name: str, size: tuple[int, int], options: dict[str, Any]) -> Program:
    """Batch 1, from a uint8 image on the device to what the method gives."""
    method = {'label_map': '__call__', 'coarse_logits': 'coarse_logits'}[name]
    model = create_model('atonet', NUM_CLASSES, dtype=jnp.bfloat16, **options)
    segment = Segmenter(model, init_variables(model, 0))
    compiled = segment.compile(method, (1, *size))
    image = jax.device_put(np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8))
    return Program(name, lambda: getattr(segment, method)(image), 2 * count_macs(model, size), compiled.as_text())


def torch_inference(size: tuple[int, int], options: dict[str, Any]) -> Program:
    """Batch 1, from a uint8 image on the device to the label map: on a GPU torch.compile's, else eager."""
    import torch

    from benchmarks.compare_inference import EndToEnd
    from tests import torch_reference

    on_gpu = jax.default_backend() == 'gpu'
    device, memory_format = ('cuda', torch.channels_last) if on_gpu else ('cpu', torch.contiguous_format)
    network = torch_reference.ATONet(NUM_CLASSES, **options).to(device, torch.bfloat16, memory_format=memory_format)
    end_to_end = EndToEnd(network, torch.bfloat16).to(device).eval()
    # With CUDA graphs, kernels are fewer entries of a profile, without their names.
    run = torch.compile(end_to_end, mode='max-autotune-no-cudagraphs') if on_gpu else end_to_end
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)).to(device)

    def call():
        with torch.inference_mode():
            return run(image)

    macs = count_macs(create_model('atonet', NUM_CLASSES, **options), size)
    return Program('torch_label_map', call, 2 * macs, '', lambda _: torch.cuda.synchronize() if on_gpu else None)


def training(size: tuple[int, int], batch_size: int, options: dict[str, Any]) -> Program:
    """The step of --mode=train with the recipe of configs/cityscapes.py, the batch on the device."""
    config = default_config()
    config.update_from_flattened_dict({f'model.{key}': value for key, value in options.items()})
    config.model.dtype = 'bfloat16'
    config.data.crop_size = size
    config.train.batch_size = batch_size
    compiled, call, macs = compiled_step(config, NUM_CLASSES)
    # The gradients of a convolution's input and of its kernel each take what it takes.
    return Program('train', call, 3 * 2 * macs, compiled.as_text())


def profile(program: Program, calls: int) -> list[dict[str, Any]]:
    """Kernels of the program with their time in one call, the longest first."""
    operations = Operations(program.text)
    times, counts = (_jax_times if program.text else _torch_times)(program, operations, calls)
    longest = {}
    for (operation, kernel), nanoseconds in times.items():
        if nanoseconds > times.get((operation, longest.get(operation)), -1):
            longest[operation] = kernel
    rows = []
    for (operation, kernel), nanoseconds in times.most_common():
        seconds = nanoseconds / calls / 1e9
        is_main = longest[operation] == kernel and operation != ''
        flops = operations.flops(operation) if is_main else 0
        moved = operations.bytes(operation) if is_main else 0
        rows.append({
            'ms': 1e3 * seconds,
            'calls': counts[operation, kernel] / calls,
            'category': category(operation, kernel, operations.text(operation), flops),
            'operation': operation,
            'kernel': kernel,
            'what': operations.kind(operation),
            'origin': operations.origin(operation),
            'gflop': flops / 1e9,
            'tflop_per_s': flops / seconds / 1e12 if seconds else 0,
            'mb': moved / 1e6,
            'gb_per_s': moved / seconds / 1e9 if seconds else 0,
        })  # fmt: skip
    return rows


def _jax_times(program: Program, operations: Operations, calls: int) -> tuple[collections.Counter, collections.Counter]:
    """{(operation, kernel): nanoseconds} and how often each ran, in all calls."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            program.wait([program.call() for _ in range(calls)])
        (path,) = glob.glob(f'{folder}/**/*.xplane.pb', recursive=True)
        planes = list(jax.profiler.ProfileData.from_file(path).planes)
        devices = [plane for plane in planes if plane.name.startswith('/device:GPU')]
        times, counts = collections.Counter(), collections.Counter()
        for plane in devices or planes:
            for line in plane.lines:
                if devices and not line.name.startswith('Stream'):
                    continue  # sums that the profiler forms
                for event in line.events:
                    stats = dict(event.stats)
                    if devices or 'hlo_op' in stats:
                        key = str(stats.get('hlo_op') or operations.of_kernel(event.name)), event.name
                        times[key] += event.duration_ns
                        counts[key] += 1
    return times, counts


def _torch_times(program: Program, _, calls: int) -> tuple[collections.Counter, collections.Counter]:
    """The same of PyTorch, whose kernels belong to no operation. On a CPU they are PyTorch's own operations."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = jax.default_backend() == 'gpu'
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
        for _ in range(calls):
            program.wait(program.call())
    times, counts = collections.Counter(), collections.Counter()
    for event in profiled.key_averages():
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if microseconds:
            times['', event.key] += 1e3 * microseconds
            counts['', event.key] += event.count
    return times, counts


def category(operation: str, kernel: str, line: str, flops: float) -> str:
    """What kind of work a kernel does."""
    name = f'{operation} {kernel}'.lower()
    if re.search(r'nchwtonhwc|nhwctonchw|transpose|memcpy|memset|\bcopy|copy_|convert_tensor', name):
        return 'transpose, copy'
    if re.search(r'convolution|conv_general|cudnn-conv|[fdw]prop|wgrad|dgrad', name) or '__cudnn' in line:
        return 'convolution'
    if flops or 'gemm' in name:
        return 'matrix product'
    if 'select-and-scatter' in line or 'reduce-window' in line or 'select_and_scatter' in name:
        return 'pooling'
    if 'scatter' in name or 'gather' in name:
        return 'scatter, gather'
    if 'reduce' in name:
        return 'fusion with a reduction'
    return 'fusion' if 'fusion' in name or 'fusion(' in line else 'other'


def seconds_per_call(program: Program, calls: int) -> float:
    """The median of five runs of so many calls, dispatched one after the other without waiting."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(calls):
            results = program.call()
        program.wait(results)
        times.append((time.perf_counter() - start) / calls)
    return sorted(times)[2]


def report(program: Program, rows: list[dict[str, Any]], wall: float, rate: float) -> str:
    """Markdown: sums by category, and the longest kernels."""
    total = sum(row['ms'] for row in rows)
    lines = [
        f'## {program.name}: {1e3 * wall:.3f} ms a call by the clock, kernels {total:.3f} ms; convolutions '
        f'{program.flops / 1e9:.1f} GFLOP, {1e3 * program.flops / rate:.3f} ms at the matrix rate: '
        f'{100 * program.flops / rate / wall:.1f} % of it',
        '| category | ms | % | kernels | TFLOP/s |',
        '|---|---|---|---|---|',
    ]
    for name in sorted({row['category'] for row in rows}, key=lambda name: -_sum(rows, name, 'ms')):
        ms = _sum(rows, name, 'ms')
        lines.append(f'| {name} | {ms:.3f} | {100 * ms / total:.1f} | {_sum(rows, name, "calls"):.0f} '
                     f'| {_sum(rows, name, "gflop") / ms if ms else 0:.0f} |')  # fmt: skip
    columns = ['ms', '%', 'category', 'what', 'from', 'kernel', 'GFLOP', 'MB', '% of the matrix rate', 'GB/s']
    lines += [f'| {" | ".join(columns)} |', '|---' * len(columns) + '|']
    for row in rows[:_SHOWN]:
        share = 100e12 * row['tflop_per_s'] / rate
        computed = f'{row["gflop"]:.1f} | {row["mb"]:.1f} | {share:.0f} | {row["gb_per_s"]:.0f}'
        lines.append(
            f'| {row["ms"]:.3f} | {100 * row["ms"] / total:.1f} | {row["category"]} | {row["what"][:44]} '
            f'| {row["origin"][-44:]} | {row["kernel"][:40]} | {computed if program.text else "– | – | – | –"} |'
        )
    return '\n'.join(lines)


def _sum(rows, category, key):
    return sum(row[key] for row in rows if row['category'] == category)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', default='runs/traces', help='folder')
    parser.add_argument('--programs', nargs='+', choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument('--size', type=command.size, default=(1024, 2048), help='of inference, HxW')
    parser.add_argument('--crop-size', type=command.size, default=(1024, 1024), help='of training, HxW')
    parser.add_argument('--batch-size', type=int, default=16, help='of training; halved where memory does not hold it')
    parser.add_argument('--minutes', type=float, default=8, help='after which no further program begins')
    parser.add_argument('--graphs', action='store_true', help='leaves CUDA graphs on')
    parser.add_argument('--tiny', action='store_true', help='small shapes')
    arguments = parser.parse_args(argv)
    os.makedirs(arguments.out, exist_ok=True)
    size, crop_size, batch_size, options = arguments.size, arguments.crop_size, arguments.batch_size, {}
    if arguments.tiny:
        size, crop_size, batch_size, options = (64, 128), (64, 64), 2, {'width': 16, 'backbone_width': 8}
    began = time.perf_counter()
    rate = matrix_rate('bfloat16', 256, 2) if arguments.tiny else matrix_rate('bfloat16', 8192, 20)
    figures = {'device': device_names(), 'versions': versions('jax', 'jaxlib'), 'matrix_tflop_per_s': rate / 1e12,
               'xla_flags': os.environ.get('XLA_FLAGS', ''), 'programs': {}}  # fmt: skip
    print(f'{figures["device"]}; {figures["versions"]}; bfloat16 matrices: {rate / 1e12:.1f} TFLOP/s', flush=True)
    for name in arguments.programs:
        start = time.perf_counter()
        if start - began > 60 * arguments.minutes:
            print(f'{name} was not begun: {arguments.minutes:g} minutes are over', flush=True)
            continue
        if name == 'torch_label_map' and not importlib.util.find_spec('torch'):
            print(f'{name} was left out: PyTorch is not installed', flush=True)
            continue
        while True:
            try:
                if name == 'train':
                    program = training(crop_size, batch_size, options)
                elif name == 'torch_label_map':
                    program = torch_inference(size, options)
                else:
                    program = inference(name, size, options)
                program.wait(program.call())
                break
            except jax.errors.JaxRuntimeError as error:
                if name != 'train' or batch_size == 1 or not is_out_of_memory(error):
                    raise
                batch_size //= 2
                print(f'memory does not hold the batch; with {batch_size} crops', flush=True)
        compiled = time.perf_counter() - start
        calls = 2 if arguments.tiny else 5 if name == 'train' else 20
        wall = seconds_per_call(program, calls)
        rows = profile(program, calls)
        with gzip.open(os.path.join(arguments.out, f'{name}.hlo.gz'), 'wt') as file:
            file.write(program.text)
        figures['programs'][name] = {
            'size': size if name != 'train' else crop_size,
            'batch_size': 1 if name != 'train' else batch_size,
            'seconds_to_first_call': compiled,
            'ms_by_the_clock': 1e3 * wall,
            'gflop_of_convolutions': program.flops / 1e9,
            'share_of_matrix_rate': program.flops / rate / wall,
            'kernels': rows,
        }
        with open(os.path.join(arguments.out, 'kernels.json'), 'w') as file:
            json.dump(figures, file, indent=1)
        print(report(program, rows, wall, rate), flush=True)
        print(f'{time.perf_counter() - began:.0f} s so far', flush=True)


if __name__ == '__main__':
    command.run(main)
