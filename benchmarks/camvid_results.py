"""The results of benchmarks/camvid.py: a file of JSON lines, and what is made of it: a Markdown table and a chart."""

import json
import os
from typing import Any

import numpy as np

from atonet_jax.benchmark.published import all_published_rows
from atonet_jax.data.labels import CAMVID
from atonet_jax.errors import InputError
from atonet_jax.process.progress import say
from benchmarks.json_lines import add_line, read_lines

# The first follows from the device, the others are of training alone.
_NO_OPTIONS = 'model.dtype', 'model.aux_levels', 'model.remat', 'model.pretrained_strict'
# Of a run, but for its seed.
_IDENTITY = ('protocol', 'network', 'recipe', 'start', 'epochs', 'settings', 'frames', 'backbone', 'device')


class Results:
    """The lines of a results file: of runs, and of the time of label maps ('protocol' is 'latency')."""

    def __init__(self, path: str):
        self._path = path
        self.rows = read_lines(path)

    def has(self, row: dict[str, Any]) -> bool:
        row = json.loads(json.dumps(row))
        return any(all(other.get(key) == value for key, value in row.items()) for other in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        add_line(self._path, row)
        self.rows.append(json.loads(json.dumps(row)))

    def _runs(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if 'miou' in row]

    def times(self) -> dict[tuple, float]:
        """{`place_of`: milliseconds of a label map}."""
        return {place_of(row): row['ms'] for row in self.rows if row['protocol'] == 'latency'}

    def draw(self, path: str, protocol: str) -> None:
        """Draws mean mIoU against the time of a label map, and published figures as hollow marks."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        times = self.times()
        best = {}
        for rows in self._alike():
            place = place_of(rows[0])
            if rows[0]['protocol'] == protocol and place in times:
                found = _mean(rows, 'miou'), rows[0]['start'], rows[0]['recipe']
                best[place] = max(best.get(place, found), found)
        figure = Figure(figsize=(8, 5), dpi=120, layout='constrained')
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        sets = {}
        for place, (miou, start, recipe) in best.items():
            name, _, _, device = place
            title = name if recipe == start else f'{name} ({recipe})'
            sets.setdefault(f'here, {start}: {device}', []).append((times[place], 100 * miou, title))
        for label, points in sets.items():
            axes.scatter(*zip(*[point[:2] for point in points]), label=label)
        published = [(1e3 / row['fps'], row['miou'], row['method']) for row in all_published_rows()
                     if row['table'] == 'Table 2, CamVid test' and row['fps'] and row['miou']]  # fmt: skip
        axes.scatter(*zip(*[point[:2] for point in published]), facecolors='none', edgecolors='gray',
                     label='published, 720x960, on other machines')  # fmt: skip
        marks = [*published, *(point for points in sets.values() for point in points)]
        rightmost = max((x for x, _, _ in marks), default=0)
        for x, y, title in marks:
            side, offset = ('right', -5) if x == rightmost else ('left', 5)
            axes.annotate(title, (x, y), xytext=(offset, 3), textcoords='offset points', fontsize=7, ha=side)
        axes.set_xscale('log')
        axes.margins(x=0.35)
        axes.set_xlabel('ms from one frame to its labels')
        axes.set_ylabel(f'mIoU on {protocol}, %')
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc='lower right')
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        figure.savefig(path)

    def best(self, network: str, start: str, sources: dict[str, str]) -> str:
        """The recipe of a start with the best mean mIoU on val; runs of other lengths or settings are not averaged.

        sources: what the runs have that tells their frames and their backbone.

        Raises:
            InputError: there is no such result.
        """
        wanted = {'protocol': 'val', 'network': network, 'start': start} | sources
        groups = [rows for rows in self._alike() if wanted.items() <= {key: rows[0].get(key) for key in wanted}.items()]
        if not groups:
            raise InputError(
                f'best:{start}: {self._path} holds no score of {network} on these val frames; run --protocol=val first'
            )
        best = max(groups, key=lambda rows: _mean(rows, 'miou'))
        recipe, epochs = best[0]['recipe'], best[0]['epochs']
        say(
            f'best:{start} of {network}: {recipe}, {100 * _mean(best, "miou"):.2f}% on val after {epochs:g} epochs, '
            f'seeds {", ".join(str(row["seed"]) for row in best)}, of {len(groups)} that were scored; it had '
            f'{json.dumps(best[0]["settings"])}'
        )
        return recipe

    def _alike(self) -> list[list[dict[str, Any]]]:
        """Runs that differ in their seeds alone, together."""
        groups = {}
        for row in self._runs():
            identity = {key: row.get(key) for key in _IDENTITY}
            groups.setdefault(json.dumps(identity, sort_keys=True), []).append(row)
        return list(groups.values())

    def table(self) -> str:
        """Markdown: a row for runs that differ in seeds alone; then the IoU of each class."""
        groups = sorted(self._alike(), key=lambda rows: (rows[0]['protocol'], -_mean(rows, 'miou')))
        lines = ['| scored on | network | recipe | epochs | crops a step | seeds | mIoU % mean | each '
                 '| pixel accuracy % | ms/step | s a run |', f'{11 * "|---"}|']  # fmt: skip
        for rows in groups:
            first, each = rows[0], ', '.join(f'{100 * row["miou"]:.2f}' for row in rows)
            crops = first['settings'].get('train.batch_size', 16)
            mean = {name: _mean(rows, name) for name in ('miou', 'pixel_accuracy', 'ms_per_step', 'seconds')}
            lines.append(
                f'| {first["protocol"]} | {first["network"]} | {first["recipe"]} | {first["epochs"]:g} | {crops} '
                f'| {len(rows)} | {100 * mean["miou"]:.2f} | {each} | {100 * mean["pixel_accuracy"]:.2f} '
                f'| {mean["ms_per_step"]:.2f} | {mean["seconds"]:.0f} |'
            )
        lines += ['', '| IoU % | ' + ' | '.join(CAMVID.class_names) + ' |', '|---' * (1 + CAMVID.num_classes) + '|']
        for rows in groups:
            each = [[row['classes'][name]['iou'] or 0.0 for name in CAMVID.class_names] for row in rows]
            ious = np.mean(each, axis=0)
            title = ' '.join(str(rows[0][key]) for key in ('protocol', 'network', 'recipe'))
            lines.append(f'| {title} | ' + ' | '.join(f'{100 * iou:.1f}' for iou in ious) + ' |')
        return '\n'.join(lines)


def place_of(row: dict[str, Any]) -> tuple[str, int, str, str]:
    """What decides the time of a label map: network, the height that frames are enlarged to (0: none), the network's
    options as JSON, and device."""
    if row['protocol'] == 'latency':
        height, options = row.get('height', 0), row.get('options', {})
    else:
        settings = row['settings']
        height = settings.get('eval.height', 0)
        options = {key: value for key, value in settings.items() if key.startswith('model.') and key not in _NO_OPTIONS}
    return row['network'], height, json.dumps(options, sort_keys=True), row['device']


def _mean(rows: list[dict[str, Any]], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))
