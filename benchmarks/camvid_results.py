"""The results of benchmarks/camvid.py: a file of JSON lines, and what is made of it: a Markdown table and a chart."""

import contextlib
import csv
import json
import os
import pathlib
from typing import Any

import numpy as np

from atonet_jax.data.labels import CAMVID
from atonet_jax.errors import InputError

_PUBLISHED = 'atonet_jax/benchmark/published/table2_camvid_test.csv'


class Results:
    """The lines of a results file: of runs, and of the time of label maps ('protocol' is 'latency')."""

    def __init__(self, path: str):
        self._path = path
        self.rows = []
        self._ends_within_a_line = False
        with contextlib.suppress(FileNotFoundError), open(path) as file:
            for line in file:
                self._ends_within_a_line = not line.endswith('\n')  # of a process that was killed
                with contextlib.suppress(ValueError):
                    self.rows.append(json.loads(line))

    def has(self, row: dict[str, Any]) -> bool:
        row = json.loads(json.dumps(row))
        return any(all(other.get(key) == value for key, value in row.items()) for other in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        os.makedirs(os.path.dirname(os.path.abspath(self._path)), exist_ok=True)
        with open(self._path, 'a') as file:
            file.write('\n' * self._ends_within_a_line + json.dumps(row) + '\n')
            file.flush()
            os.fsync(file.fileno())
        self._ends_within_a_line = False
        self.rows.append(row)

    def _runs(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if 'miou' in row]

    def draw(self, path: str, protocol: str) -> None:
        """Draws mean mIoU against the time of a label map, and published figures as hollow marks."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        times = {_place(row): row['ms'] for row in self.rows if row['protocol'] == 'latency'}
        groups = {}
        for row in self._runs():
            if row['protocol'] == protocol and _place(row) in times:
                groups.setdefault((_place(row), row['recipe']), []).append(100 * row['miou'])
        best = {}
        for (place, recipe), scores in groups.items():
            best[place] = max(best.get(place, (0.0, '')), (float(np.mean(scores)), recipe))
        figure = Figure(figsize=(8, 5), dpi=120, layout='constrained')
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        sets = {}
        for (name, height, device), (miou, recipe) in best.items():
            sets.setdefault(f'here: {device}', []).append((times[name, height, device], miou, f'{name} ({recipe})'))
        for label, points in sets.items():
            axes.scatter(*zip(*[point[:2] for point in points]), label=label)
        published = [(1e3 / float(row['fps']), float(row['miou']), row['method'])
                     for row in _published() if row['fps']]  # fmt: skip
        axes.scatter(*zip(*[point[:2] for point in published]), facecolors='none', edgecolors='gray',
                     label='published, 720x960, on other machines')  # fmt: skip
        for x, y, title in [*published, *(point for points in sets.values() for point in points)]:
            axes.annotate(title, (x, y), xytext=(5, 3), textcoords='offset points', fontsize=7)
        axes.set_xscale('log')
        axes.margins(x=0.25)
        axes.set_xlabel('ms from one frame to its labels')
        axes.set_ylabel(f'mIoU on {protocol}, %')
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc='lower right')
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        figure.savefig(path)

    def best(self, network: str, start: str) -> str:
        """The recipe of a start with the best mean mIoU on val.

        Raises:
            InputError: there is no such result.
        """
        scores = {}
        for row in self._runs():
            if row['protocol'] == 'val' and row['network'] == network and row['start'] == start:
                scores.setdefault(row['recipe'], []).append(row['miou'])
        if not scores:
            raise InputError(f'best:{start}: {self._path} holds no score of {network} on val; run --protocol=val first')
        return max(scores, key=lambda recipe: np.mean(scores[recipe]))

    def table(self) -> str:
        """Markdown: a row a network, recipe and length, over its seeds; then the IoU of each class."""
        groups = {}
        for row in self._runs():
            groups.setdefault((row['protocol'], row['network'], row['recipe'], row['epochs']), []).append(row)
        order = sorted(groups, key=lambda key: (key[0], -np.mean([row['miou'] for row in groups[key]])))
        lines = ['| scored on | network | recipe | epochs | seeds | mIoU % mean | each | pixel accuracy % | ms/step '
                 '| s a run |', '|---|---|---|---|---|---|---|---|---|---|']  # fmt: skip
        for key in order:
            rows = groups[key]
            each = ', '.join(f'{100 * row["miou"]:.2f}' for row in rows)
            mean = {name: np.mean([row[name] for row in rows])
                    for name in ('miou', 'pixel_accuracy', 'ms_per_step', 'seconds')}  # fmt: skip
            lines.append(
                f'| {key[0]} | {key[1]} | {key[2]} | {key[3]:g} | {len(rows)} | {100 * mean["miou"]:.2f} | {each} '
                f'| {100 * mean["pixel_accuracy"]:.2f} | {mean["ms_per_step"]:.2f} | {mean["seconds"]:.0f} |'
            )
        lines += ['', '| IoU % | ' + ' | '.join(CAMVID.class_names) + ' |', '|---' * (1 + CAMVID.num_classes) + '|']
        for key in order:
            ious = [[row['classes'][name]['iou'] or 0.0 for name in CAMVID.class_names] for row in groups[key]]
            ious = np.mean(ious, axis=0)
            lines.append(f'| {key[0]} {key[1]} {key[2]} | ' + ' | '.join(f'{100 * iou:.1f}' for iou in ious) + ' |')
        return '\n'.join(lines)


def height_of(row: dict[str, Any]) -> int:
    """To which the frames of a run are enlarged for the network; 0: they are not."""
    return row['settings'].get('eval.height', 0)


def _place(row: dict[str, Any]) -> tuple[str, int, str]:
    """Network, height and device, which decide the time of a label map."""
    return row['network'], row['height'] if row['protocol'] == 'latency' else height_of(row), row['device']


def _published() -> list[dict[str, str]]:
    """Rows of the paper's Table 2."""
    with open(pathlib.Path(__file__).resolve().parent.parent / _PUBLISHED, encoding='utf-8') as file:
        return list(csv.DictReader(file))
