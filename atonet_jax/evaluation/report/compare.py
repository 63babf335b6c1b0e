"""`--mode=compare`: several runs side by side in one HTML file."""

import os
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from atonet_jax.config import create_network, flat_settings
from atonet_jax.data.labels import ClassTable
from atonet_jax.errors import InputError
from atonet_jax.evaluation.report.charts import chart, color_of, curve
from atonet_jax.evaluation.report.page import NONE, percent, rate, write_page
from atonet_jax.models.counts import count_parameters
from atonet_jax.runs.changes import READING
from atonet_jax.runs.metrics import read_metrics
from atonet_jax.runs.scores import read_scores
from atonet_jax.runs.workdir import load_class_table, load_config, read_starts

REPORT_FILE = 'compare.html'
_SCORES = {
    'miou': 'mIoU, %',
    'pixel_accuracy': 'pixel accuracy, %',
    'mean_accuracy': 'mean class accuracy, %',
    'frequency_weighted_iou': 'frequency-weighted IoU, %',
}
_WAYS = ('center_crop', 'height', 'window', 'window_stride', 'scales', 'flip')  # settings of `eval` that change scores


class Run(NamedTuple):
    """What a workdir holds about its run.

    Attributes:
        name: of the run in this comparison.
        workdir: its folder.
        table: its classes.
        settings: {whole key: value}.
        metrics: lines of metrics.jsonl.
        scores: what `read_scores` gives; empty if the run was not evaluated yet.
        ious: {name: IoU} of the classes that occur.
        ways: how it was evaluated: settings of `eval`.
        images_per_second: median of training; None without a record.
        parameters: of inference.
        start: the last start of training, as `workdir.record_start` wrote it; empty without a record.
    """

    name: str
    workdir: str
    table: ClassTable
    settings: dict[str, Any]
    metrics: list[dict]
    scores: dict[str, Any]
    ious: dict[str, float]
    ways: dict[str, Any]
    images_per_second: float | None
    parameters: int
    start: dict


def compare(workdirs: Sequence[str], folder: str) -> str:
    """Writes compare.html into `folder`, prints a table, and returns the file's path.

    Raises:
        InputError: no workdir is given, one holds no run or a damaged file, or the report cannot be written.
    """
    if not workdirs:
        raise InputError('--mode=compare needs runs: python main.py --mode=compare runs/a runs/b')
    names = _names(workdirs)
    runs = [_read_run(name, workdir) for name, workdir in zip(names, workdirs)]
    path = os.path.join(folder, REPORT_FILE)
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    first = runs[0]
    try:
        write_page(
            path,
            'compare.html',
            title=f'{len(runs)} runs compared' if len(runs) > 1 else first.name,
            runs=runs,
            colors=[color_of(i) for i in range(len(runs))],
            score_names=_SCORES,
            class_names=list(dict.fromkeys(name for run in runs for name in run.table.class_names)),
            notes=_notes(runs),
            charts=_charts(runs),
            settings={
                key: [repr(run.settings[key]) if key in run.settings else NONE for run in runs]
                for key in keys
                if any(key not in run.settings or run.settings[key] != first.settings.get(key) for run in runs)
            },
        )
    except OSError as error:
        raise InputError(f'{path}: cannot be written ({error.strerror}); choose another --workdir') from error
    print(_table(runs))
    for note in _notes(runs):
        print(f'note: {note}')
    print(f'report: {path}')
    return path


def _names(workdirs: Sequence[str]) -> list[str]:
    """The names of the folders, or whole paths if two names are equal."""
    names = [os.path.basename(os.path.abspath(workdir)) for workdir in workdirs]
    return names if len(set(names)) == len(names) else list(workdirs)


def _read_run(name: str, workdir: str) -> Run:
    config, table, metrics = load_config(workdir), load_class_table(workdir), read_metrics(workdir)
    scores = read_scores(workdir) or {}
    ious = {name: values['iou'] for name, values in scores.get('classes', {}).items() if values['iou'] is not None}
    options = scores.get('options', config.eval)
    speeds = curve(metrics, 'train/images_per_second', '').values
    speeds = [speed for speed in speeds if speed > 0]  # 0 while the first steps compile
    return Run(
        name=name,
        workdir=workdir,
        table=table,
        settings=flat_settings(config),
        metrics=metrics,
        scores=scores,
        ious=ious,
        ways={key: str(options[key]).strip('[(,)]') for key in _WAYS},  # tuples or JSON's lists
        images_per_second=statistics.median(speeds) if speeds else None,
        parameters=count_parameters(create_network(config, table.num_outputs))['parameters'],
        start=(read_starts(workdir) or [{}])[-1],
    )


def _notes(runs: list[Run]) -> list[str]:
    """Notes that a reader needs before comparing the figures."""
    notes, first = [], runs[0]
    for run in runs[1:]:
        names, others = set(first.table.class_names), set(run.table.class_names)
        if names != others:
            notes.append(
                f'{run.name} has other classes than {first.name} ({len(others - names)} more, {len(names - others)} '
                'fewer): their mean scores are over different classes; compare classes of the same name'
            )
    scored = [run for run in runs if run.scores]
    reading = [key for key in first.settings if key.startswith(READING)]
    compared = {
        'on different data': ['{dataset} {split} in {root}'.format(**run.scores) for run in scored],
        'of different numbers of images': [run.scores['images'] for run in scored],
        **{f'with different config.{key}': [run.settings[key] for run in scored] for key in reading},
        'from different files': [run.scores['source'] for run in scored],
        **{f'with different config.eval.{key}': [run.ways[key] or '()' for run in scored] for key in _WAYS},
    }
    for what, values in compared.items():
        known = {run.name: value for run, value in zip(scored, values) if value is not None}
        if len(set(known.values())) > 1:
            listed = '; '.join(f'{name}: {value}' for name, value in known.items())
            notes.append(f'the scores are {what} ({listed})')
    notes += [f'{run.name} was not evaluated yet' for run in runs if not run.scores]
    return notes


def _charts(runs: list[Run]) -> list[dict]:
    charts = {
        'loss': ('Loss', 'train/loss', 1),
        'miou': ('mIoU, %', 'eval/miou', 100),
        'accuracy': ('Pixel accuracy, %', 'eval/pixel_accuracy', 100),
        'rate': ('Learning rate', 'train/learning_rate_rest', 1),
    }
    drawn = (
        chart(name, title, [curve(run.metrics, key, run.name, factor) for run in runs])
        for name, (title, key, factor) in charts.items()
    )
    return [chart for chart in drawn if chart['svg']]


def _table(runs: list[Run]) -> str:
    """A table for the screen, one line for each run."""
    width = max(len('run'), *(len(run.name) for run in runs))
    lines = [f'{"run":{width}}  {"step":>8}  {"mIoU %":>7}  {"accuracy %":>10}  {"images/s":>8}  {"parameters":>10}']
    for run in runs:
        step = run.scores.get('step')
        speed = rate(run.images_per_second)
        miou, accuracy = (percent(run.scores.get(key)) for key in ('miou', 'pixel_accuracy'))
        lines.append(
            f'{run.name:{width}}  {NONE if step is None else step:>8}  {miou:>7}  {accuracy:>10}  {speed:>8}  '
            f'{run.parameters:>10,}'
        )
    return '\n'.join(lines)
