"""`--mode=benchmark`: the network's time to four kinds of output, beside the figures that are published."""

import itertools
import os
import platform
import time
from collections.abc import Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from atonet_jax import __version__
from atonet_jax.benchmark.published import published_rows
from atonet_jax.config import benchmark_sizes, create_network
from atonet_jax.data.sources import class_table
from atonet_jax.inference.segmenter import Segmenter
from atonet_jax.models import init_variables, network
from atonet_jax.models.counts import count_macs, count_parameters
from atonet_jax.process.devices import create_mesh
from atonet_jax.process.files import make_folder, write_json
from atonet_jax.process.timing import in_turns
from atonet_jax.runs.environment import cpu_name
from atonet_jax.runs.network import trained_network
from atonet_jax.runs.workdir import holds_run
from atonet_jax.validation import validate

PUBLISHED_BOUNDARY = 'full-resolution logits'
FROM_HOST = 'host image to host label map'
# What is timed: the name of the output, and the method of `Segmenter`.
BOUNDARIES = {
    'coarse logits': 'coarse_logits',
    PUBLISHED_BOUNDARY: 'logits',
    'label map': '__call__',
    FROM_HOST: '__call__',
}

CONVENTIONS = {
    'time': 'of one call, from uint8 images until the result is there (block_until_ready). Images are on the device; '
    f'"{FROM_HOST}" begins and ends with NumPy arrays instead. Calls of the rows take turns',
    'images/s': 'batch size / median time',
    'compile': 'tracing and compiling; the two rows of label maps share one program',
    'memory': 'arguments, outputs and temporaries of the compiled program on one device, as XLA plans them; if the '
    'platform counts it, also the most that the process has held on the first device so far',
    'GMACs': 'multiply-accumulates of the convolutions of one image, counted in the traced program; 2 FLOPs each',
    'XLA GFLOPs': "XLA's own count of all operations of one call on one device, without library calls that it cannot "
    'see into and products with padding',
    'parameters': 'of inference, without auxiliary heads; the file holds them and BN statistics as float32',
    'published': 'batch 1, float32, forward to full-resolution logits, no argmax, images on the device, other '
    'hardware; what the tables call GFLOPs are multiply-accumulates',
}


def benchmark(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Times the network as `config.benchmark` says, for each of its dtypes, batch sizes and image sizes.

    The weights are those of the run in `workdir`, else of `init_from`, else freshly drawn; times do not depend on them.
    Prints tables, and writes all figures to `workdir/benchmark/`.

    Returns:
        The figures, as in the file.

    Raises:
        InputError: a setting that cannot work, or weights that cannot be used.
    """
    mesh = create_mesh()
    validate(config)
    model, variables, weights = _network(config, workdir, mesh)
    path = os.path.join(workdir, 'benchmark', f'{config.model.name}_{jax.default_backend()}.json')
    make_folder(os.path.dirname(path))
    published = network(model).published
    figures = {
        'model': {
            'name': config.model.name,
            'title': published.title,
            'source': published.source,
            'notes': published.notes,
            'num_classes': model.num_classes,
            'weights': weights,
            **count_parameters(model),
        },
        'config': {'model': config.model.to_dict(), 'benchmark': config.benchmark.to_dict()},
        'environment': environment(),
        'conventions': CONVENTIONS,
        'measurements': [],
    }
    print(_heading(figures))
    if config.eval.height:
        print(f'config.eval.height={config.eval.height} is not applied: sizes are those that the network sees')
    options = config.benchmark
    if config.model.dtype not in options.dtypes:
        given = "--config.benchmark.dtypes=\"('float32','bfloat16')\""
        print(f'config.model.dtype={config.model.dtype} is not timed: config.benchmark.dtypes says which; give {given}')
    for dtype in options.dtypes:
        segment = Segmenter(model.clone(dtype=jnp.dtype(dtype)), variables)
        for batch_size, size in itertools.product(options.batch_sizes, benchmark_sizes(config)):
            figures['measurements'].append(measure(segment, batch_size, size, options))
            write_json(path, figures)
            print(_table(figures['model'], figures['measurements'][-1]))
    print('\n' + '\n'.join(f'{name}: {text}.' for name, text in CONVENTIONS.items()))
    print(f'figures: {path}')
    return figures


def measure(segment: Segmenter, batch_size: int, size: tuple[int, int], options: ConfigDict) -> dict[str, Any]:
    """Compiles and times every kind of output.

    Args:
        segment: computes in its model's dtype.
        batch_size: over all devices.
        size: (height, width) of the images, which are noise.
        options: `config.benchmark`.

    Returns:
        Figures for JSON, by name of the output, in seconds and bytes.
    """
    shape = (batch_size, *size)
    programs, needs = {}, {}
    for method in dict.fromkeys(BOUNDARIES.values()):
        start = time.perf_counter()
        programs[method] = segment.compile(method, shape)
        needs[method] = {'compile_seconds': time.perf_counter() - start, **_needs(programs[method])}

    host_images = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    _, placement = programs['__call__'].input_shardings[0]
    images = jax.device_put(host_images, placement)
    calls = {
        name: lambda method=method: jax.block_until_ready(getattr(segment, method)(images))
        for name, method in BOUNDARIES.items()
    }
    calls[FROM_HOST] = lambda: np.asarray(segment(host_images))
    warmup = in_turns(calls, options.warmup, warmup=0, limit=options.seconds)
    times = in_turns(calls, options.rounds, warmup=0, limit=options.seconds)
    macs = count_macs(segment.model, size)
    return {
        'dtype': segment.model.dtype.name,
        'batch_size': batch_size,
        'height': size[0],
        'width': size[1],
        'conv_macs_per_image': macs,
        'conv_flops_per_image': 2 * macs,
        'warmup_rounds': len(warmup[FROM_HOST]),
        'rounds': len(times[FROM_HOST]),
        'boundaries': {
            name: needs[method] | summarize(times[name][:, 0], batch_size) for name, method in BOUNDARIES.items()
        },
        'device_peak_bytes': (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use'),
        'published': published_rows(size),
    }


def summarize(seconds: Sequence[float], batch_size: int) -> dict[str, Any]:
    """Median, 5th and 95th percentile of the calls' `seconds`, images per second of the median, and all of them."""
    p5, median, p95 = (float(value) for value in np.percentile(seconds, (5, 50, 95)))
    return {
        'median_seconds': median,
        'p5_seconds': p5,
        'p95_seconds': p95,
        'images_per_second': batch_size / median,
        'seconds': list(seconds),
    }


def environment() -> dict[str, Any]:
    """What the figures depend on besides the network: devices, versions, settings of JAX and XLA."""
    device = jax.devices()[0]
    return {
        'platform': device.platform,
        'device_kind': device.device_kind,
        'devices': jax.device_count(),
        'cpu': cpu_name(),
        'cpu_cores': os.cpu_count(),
        'system': platform.platform(),
        'versions': {
            'atonet_jax': __version__,
            'jax': jax.__version__,
            'jaxlib': jaxlib.__version__,
            'flax': flax.__version__,
            'numpy': np.__version__,
            'python': platform.python_version(),
            'runtime': ' '.join(device.client.platform_version.split()),  # of several lines on GPU
        },
        'xla_flags': os.environ.get('XLA_FLAGS', ''),
        'matmul_precision': jax.config.jax_default_matmul_precision or 'default',
        'compilation_cache': jax.config.jax_compilation_cache_dir or '',
    }


def _network(config: ConfigDict, workdir: str, mesh: Mesh) -> tuple[nn.Module, dict[str, Any], str]:
    """The network, its variables, and where these come from."""
    if holds_run(workdir) or config.init_from:
        trained = trained_network(config, workdir, mesh)
        weights = config.init_from if trained.step is None else f'{workdir}, step {trained.step}'
        return trained.model, trained.variables, weights
    model = create_network(config, class_table(config.data).num_classes)
    return model, init_variables(model, config.seed), 'freshly drawn'


def _needs(program: jax.stages.Compiled) -> dict[str, float | None]:
    """Memory and arithmetic of a program as XLA reports them; None if the platform reports nothing."""
    memory = program.memory_analysis()
    return {
        'program_bytes': memory
        and memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes,
        'xla_flops': (program.cost_analysis() or {}).get('flops'),
    }


def _heading(figures: dict[str, Any]) -> str:
    model, where = figures['model'], figures['environment']
    lines = [
        f'{model["title"]} ({model["source"]})' if model['source'] else model['title'],
        *([f'note: {model["notes"]}'] if model['notes'] else []),
        f'{model["name"]}: {model["parameters"]:,} parameters, {model["file_bytes"] / 1e6:.1f} MB as a file; '
        f'weights: {model["weights"]}',
        f'{where["devices"]} x {where["device_kind"]}; {where["cpu"]}, {where["cpu_cores"]} cores; {where["system"]}',
        ', '.join(f'{name} {version}' for name, version in where['versions'].items()),
        f'matmul precision {where["matmul_precision"]}; XLA_FLAGS={where["xla_flags"]}',
    ]
    if where['compilation_cache']:
        lines.append(f'programs may come compiled from {where["compilation_cache"]}: compile times may be too short')
    return '\n'.join(lines)


def _table(model: dict[str, Any], figures: dict[str, Any]) -> str:
    """A table for the screen: one measurement, and the published figures for its size."""
    size = f'{figures["height"]}x{figures["width"]}'
    setting = f'{figures["dtype"]}, batch {figures["batch_size"]}'
    macs = figures['conv_macs_per_image'] / 1e9
    lines = [
        f'\n{size}, {setting}: {macs:.5g} GMACs ({2 * macs:.5g} GFLOPs) of convolutions an image; '
        f'{figures["rounds"]} rounds after {figures["warmup_rounds"]}',
        _row('', 'median ms', 'p5 ms', 'p95 ms', 'images/s', 'compile s', 'memory MB', 'XLA GFLOPs'),
    ]
    for name, row in figures['boundaries'].items():
        milliseconds = (_cell(1e3 * row[f'{key}_seconds']) for key in ('median', 'p5', 'p95'))
        needs = (_cell(row['compile_seconds']), _cell(row['program_bytes'], 1e6), _cell(row['xla_flops'], 1e9))
        lines.append(_row(name, *milliseconds, _cell(row['images_per_second']), *needs))
    if figures['device_peak_bytes'] is not None:
        lines.append(f'most memory that the process held on the device: {figures["device_peak_bytes"] / 1e6:.2f} MB')
    if not figures['published']:
        return '\n'.join([*lines, f'no figures are published for {size}'])
    lines.append(_row(f'to {PUBLISHED_BOUNDARY}', 'GMACs', 'params M', 'images/s', 'mIoU %'))
    for row in figures['published']:
        cells = (_cell(row[key]) for key in ('gflops', 'params_m', 'fps', 'miou'))
        lines.append(_row(row['method'], *cells) + f'  {row["table"]}')
    speed = figures['boundaries'][PUBLISHED_BOUNDARY]['images_per_second']
    cells = (_cell(value) for value in (macs, model['parameters'] / 1e6, speed, None))
    lines.append(_row(f'measured: {model["name"]}', *cells) + f'  {setting}, here')
    return '\n'.join(lines)


def _row(name: str, *cells: str) -> str:
    return f'{name:{len(FROM_HOST)}}' + ''.join(f'{cell:>11}' for cell in cells)


def _cell(value: float | None, unit: float = 1) -> str:
    return '-' if value is None else f'{value / unit:.2f}'
