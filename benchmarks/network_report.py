"""The tables and the chart of benchmarks/networks.py."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from atonet_jax.benchmark.published import all_published_rows
from atonet_jax.models import distinct_networks, network

COMMON_SIZE = 512, 1024
SYSTEMS = {'segmenter': 'Segmenter', 'plain': 'plain XLA', 'onnx': 'ONNX Runtime'}
TRAINING = {'train': 'training step', 'plain_train': 'training step, plain XLA'}
_SLOWER = 1.03  # times that count as slower
# Where the name of a point may stand.
_PLACES = (
    {'xytext': (6, -2), 'ha': 'left'},
    {'xytext': (-6, -2), 'ha': 'right'},
    {'xytext': (0, 7), 'ha': 'center'},
    {'xytext': (0, -12), 'ha': 'center'},
)
_ALIKE = 0.99  # share of equal labels below which they are said to differ


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: for each device, dtype and size a table of what was measured, and what is published beside it."""
    text, rows = [], _registered(rows)
    if not rows:
        return 'Nothing is measured yet.\n'
    groups = {}
    for row in rows:
        groups.setdefault((row['device'], row['dtype']), []).append(row)
    for (device, dtype), members in sorted(groups.items()):
        versions = ', '.join(sorted({row['versions'] for row in members}))
        text += [f'## {device}, {dtype}', '', f'Batch 1, 19 classes, random weights; {versions}.', '']
        measured = [row for row in members if SYSTEMS.keys() & row['systems'].keys()]
        common = [row for row in measured if tuple(row['size']) == COMMON_SIZE]
        others = [row for row in measured if tuple(row['size']) != COMMON_SIZE]
        if common:
            text += [f'### {size_text(COMMON_SIZE)}', '', *_measured_table(common), '']
        if others:
            text += ['### Other sizes', '', *_measured_table(others, with_size=True), '']
        trained = [row for row in members if TRAINING.keys() & row['systems'].keys()]
        if trained:
            text += ['### A training step', '', *_training_table(trained), '']
        text += [*_remarks(members), '', '### Beside published figures', '', *_published_table(members), '']
    return '\n'.join(text)


def _registered(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of networks that are still registered, in their order."""
    order = list(distinct_networks())
    known = [row for row in rows if row['network'] in order]
    return sorted(known, key=lambda row: order.index(row['network']))


def _measured_table(rows: Sequence[dict[str, Any]], with_size: bool = False) -> list[str]:
    """Rows of Markdown."""
    headings = ['network', *(['size'] if with_size else []), 'parameters', 'GMACs', 'weights MB', 'Segmenter ms',
                'ms per GMAC', 'plain XLA ms', 'times Segmenter', 'ONNX Runtime ms', 'memory MB', 'of plain XLA',
                'of ONNX Runtime']  # fmt: skip
    lines = [_line(headings), '|---' * len(headings) + '|']
    for row in rows:
        ours, plain, onnx = (row['systems'].get(name, {}) for name in SYSTEMS)
        cells = [
            row['network'],
            *([size_text(row['size'])] if with_size else []),
            '–' if row['parameters'] is None else f'{row["parameters"]:,}',
            _number(row['macs'], 1e9, 2),
            _number(row['file_bytes'], 1e6, 1),
            _number(ours.get('median_seconds'), 1e-3),
            _number(ms_per_gmac(row), 1, 2),
            _number(plain.get('median_seconds'), 1e-3),
            _number(plain.get('times_of_segmenter'), 1, 2),
            _number(onnx.get('median_seconds'), 1e-3),
            *(_number(memory_of(figures, row['backend']), 1e6, 0) for figures in (ours, plain, onnx)),
        ]
        lines.append(_line(cells))
    return lines


def _training_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows of Markdown: a step on two crops, those that gain most first."""
    headings = ['network', 'two crops of', 'GMACs', 'step ms', 'ms per GMAC', 'plain XLA ms', 'times ours']
    lines = [_line(headings), '|---' * len(headings) + '|']
    for row in sorted(rows, key=lambda row: -row['systems'].get('plain_train', {}).get('times_of_train', 0.0)):
        ours, plain = (row['systems'].get(name, {}) for name in TRAINING)
        cells = [
            row['network'],
            size_text([length // 2 for length in row['size']]),
            _number(ours.get('forward_macs'), 1e9, 2),
            _number(ours.get('median_seconds'), 1e-3),
            _number(training_ms_per_gmac(row), 1, 2),
            _number(plain.get('median_seconds'), 1e-3),
            _number(plain.get('times_of_train'), 1, 2),
        ]
        lines.append(_line(cells))
    return lines


def ms_per_gmac(row: dict[str, Any]) -> float | None:
    """Of `Segmenter`."""
    return _ratio(row['systems'].get('segmenter', {}).get('median_seconds'), row['macs'])


def training_ms_per_gmac(row: dict[str, Any]) -> float | None:
    """Of a step, for each GMAC of its forward pass."""
    figures = row['systems'].get('train', {})
    return _ratio(figures.get('median_seconds'), figures.get('forward_macs'))


def _ratio(seconds: float | None, macs: float | None) -> float | None:
    return None if seconds is None or not macs else 1e12 * seconds / macs


def memory_of(figures: dict[str, Any], backend: str) -> float | None:
    """What one process took beside its libraries; on an accelerator what the program was planned to take there."""
    return figures.get('memory_bytes' if backend == 'cpu' else 'planned_bytes')


def _remarks(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the tables do not show: slow and failed ones, and labels that differ."""
    lines = []
    slower = {}
    for row in rows:
        times = row['systems'].get('plain', {}).get('times_of_segmenter')
        if times is not None and times < 1 / _SLOWER:
            slower[f'{row["network"]} at {size_text(row["size"])}'] = times
    if slower:
        named = ', '.join(f'{name} ({times:.2f})' for name, times in slower.items())
        lines.append(f'- Plain XLA takes less time than `Segmenter`: {named}.')
    elif any('plain' in row['systems'] for row in rows):
        lines.append(f'- `Segmenter` is nowhere more than {100 * (_SLOWER - 1):.0f} % slower than plain XLA.')
    for what, cost_of in (
        ('Most time for each GMAC', ms_per_gmac),
        ('Most time of a training step for each GMAC of its forward pass', training_ms_per_gmac),
    ):
        costs = sorted(((cost_of(row) or 0.0, row) for row in rows), key=lambda each: -each[0])[:3]
        named = ', '.join(
            f'{row["network"]} at {size_text(row["size"])} ({cost:.1f} ms)' for cost, row in costs if cost
        )
        if named:
            lines.append(f'- {what}: {named}.')
    for row in rows:
        for name, why in failures_of(row).items():
            what = f'{row["network"]} at {size_text(row["size"])}, {(SYSTEMS | TRAINING)[name]}'
            lines.append(f'- Not measured: {what}: {why}')
        for name, figures in row['systems'].items():
            share = figures.get('labels_equal', 1)
            if share < _ALIKE:
                what = f'{row["network"]} at {size_text(row["size"])}'
                lines.append(f'- {what}: {100 * share:.1f} % of the labels of {SYSTEMS[name]} are those of Segmenter.')
    if rows[0]['backend'] == 'cpu':
        memory = 'the most that the process took while it computed, beyond its libraries; with program and weights'
    else:
        memory = "the program's arguments, results and temporaries on the device, as XLA plans them"
    return [*lines, f'- Memory: {memory}.']


def published_of(name: str, size: Sequence[int] | None = None) -> dict[str, tuple[float, tuple[int, int]]]:
    """{'gflops', 'params_m', 'fps', 'miou': (published figure, (height, width) that it is of)}, where there is one.

    A figure of `size`, or of the size that the network's own figures are for, comes before one of another size.
    """
    published = network(name).published
    first = tuple(size) if size else published.macs and published.macs[0]
    rows = [row for row in all_published_rows() if row['method'] in published.rows and 'Cityscapes' in row['table']]
    figures = {}
    for row in sorted(rows, key=lambda row: (row['height'], row['width']) != first):
        for key in ('gflops', 'params_m', 'fps', 'miou'):
            if row[key] is not None:
                figures.setdefault(key, (row[key], (row['height'], row['width'])))
    return figures


def _published_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    headings = ['network', 'size', 'parameters M', 'published', 'GMACs', 'published GFLOPs', 'Segmenter ms',
                'images/s', 'published FPS', 'published mIoU %', 'note']  # fmt: skip
    lines = [_line(headings), '|---' * len(headings) + '|']
    for row in rows:
        contract, printed = network(row['network']).published, published_of(row['network'], row['size'])
        if tuple(row['size']) not in {size for _, size in printed.values()}:
            continue
        seconds = row['systems'].get('segmenter', {}).get('median_seconds')

        def shown(key, printed=printed, size=tuple(row['size'])):
            value, of = printed.get(key, (None, size))
            if value is None:
                return '–'
            return f'{value:g}' if of == size or key == 'params_m' else f'{value:g} ({size_text(of)})'

        cells = [
            row['network'],
            size_text(row['size']),
            _number(row['parameters'], 1e6, 2),
            shown('params_m'),
            _number(row['macs'], 1e9, 2),
            shown('gflops'),
            _number(seconds, 1e-3),
            _number(1 / seconds if seconds else None),
            shown('fps'),
            shown('miou'),
            contract.notes,
        ]
        lines.append(_line(cells))
    camvid = [f'{row["method"]} {row["miou"]:g}' for row in all_published_rows() if 'CamVid' in row['table']]
    ours = {method for name in distinct_networks() for method in network(name).published.rows}
    others = [
        f'{row["method"]} ({size_text((row["height"], row["width"]))}: {row["gflops"]:g} GFLOPs, {row["fps"]:g} FPS, '
        f'{row["miou"]:g} %)'
        for row in all_published_rows()
        if row['method'] not in ours and 'Cityscapes' in row['table']
    ]
    return [
        *lines,
        '',
        'Published speeds were measured on other machines, a different one for each paper.',
        *(['', f'The published tables also have, without a public definition: {", ".join(others)}.'] if others else []),
        '',
        f"ATONet's Table 2 prints these mIoU, in %, for CamVid's test frames at 720x960: {', '.join(camvid)}. The "
        'figures of SegNet and ENet are really of 360x480, and SegNet had 3,433 training images.',
    ]


def _line(cells: Sequence[str]) -> str:
    return '| ' + ' | '.join(cells) + ' |'


def _number(value: float | None, unit: float = 1, digits: int = 1) -> str:
    return '–' if value is None else f'{value / unit:.{digits}f}'


def draw_chart(path: str, rows: Sequence[dict[str, Any]]) -> bool:
    """Published accuracy on Cityscapes against measured time of `Segmenter`, at the size of the published accuracy.

    Of networks that share a published row the first one of their family is drawn. Hollow points are of the validation
    split. Returns whether there was anything to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
    from matplotlib.transforms import Bbox

    points = {}
    on_val = {row['method'] for row in all_published_rows() if 'val' in row['table']}
    for row in _registered(rows):
        contract = network(row['network']).published
        miou, size = published_of(row['network']).get('miou', (None, None))
        seconds = row['systems'].get('segmenter', {}).get('median_seconds')
        if seconds and size == tuple(row['size']) and row['dtype'] == 'float32':
            title = contract.title.removesuffix(' on a ResNet-18')
            point = 1e3 * seconds, miou, f'{title}, {size_text(size)}', contract.rows[0] in on_val
            points.setdefault((row['device'], contract.rows), point)
    if not points:
        return False
    figure = Figure(figsize=(9, 5.5), dpi=120, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter('{x:g}'))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel('ms from image to labels, measured here, at the size of the published figure')
    axes.set_ylabel('published mIoU, %')
    axes.grid(alpha=0.3)
    for device in dict.fromkeys(device for device, _ in points):
        (color,) = axes.scatter([], [], label=device).get_facecolor()
        x, y, _, is_hollow = zip(*(point for (of, _), point in points.items() if of == device))
        axes.scatter(x, y, facecolors=np.outer(~np.array(is_hollow), color), edgecolors=color)
    axes.margins(x=0.25)
    axes.legend(fontsize=8, loc='lower right')
    figure.draw_without_rendering()  # so that places are known
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in
             (axes.transData.transform(point[:2]) for point in points.values())]  # fmt: skip
    for x, y, title, _ in points.values():
        for where in _PLACES:  # the last one, where all are taken
            label = axes.annotate(title, (x, y), textcoords='offset points', fontsize=7, **where)
            box = label.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
            if where is not _PLACES[-1]:
                label.remove()
        taken.append(box)
    figure.savefig(path)
    return True


def failures_of(row: dict[str, Any]) -> dict[str, str]:
    return {name: figures['error'] for name, figures in row['systems'].items() if 'error' in figures}


def size_text(size: Sequence[int]) -> str:
    return 'x'.join(map(str, size))
