"""The report of an evaluation, one HTML file: scores, confusion, curves, pictures, settings, origin."""

import base64
import io
import math

import numpy as np
import PIL.Image
from ml_collections import ConfigDict

from atonet_jax.config import create_network, default_config, flat_settings
from atonet_jax.data import visualize
from atonet_jax.data.labels import ClassTable
from atonet_jax.evaluation.evaluator import Evaluation, Example
from atonet_jax.evaluation.report.charts import chart, confusion_picture, curve, output_names, row_shares
from atonet_jax.evaluation.report.page import write_page
from atonet_jax.models import network
from atonet_jax.runs.metrics import METRICS_FILE, read_metrics
from atonet_jax.runs.workdir import read_starts

_PICTURE_SIZE = 640  # most pixels of an image's longer side, which keeps a report at a few MB
_TABLE_CLASSES = 60  # with more classes the confusion matrix is a picture
_MISTAKES = 12


def write_report(
    path: str,
    evaluation: Evaluation,
    config: ConfigDict,
    table: ClassTable,
    *,
    workdir: str,
    weights: str,
    mode: str,
    environment: dict,
) -> None:
    """Writes the report of one evaluation. Without a run in the workdir, the report says what is missing.

    Args:
        path: of the file. Its folder is made if missing.
        evaluation: the result.
        config: of the run and of the evaluation.
        table: the classes.
        workdir: of the run whose curves are drawn.
        weights: what was evaluated, such as 'step 500'.
        mode: of the command.
        environment: of `environment.describe()`.

    Raises:
        OSError: it cannot be written.
    """
    metrics = read_metrics(workdir)
    scores = evaluation.scores
    score_of = {score.index: score for score in evaluation.per_image}
    shown = {'worst': evaluation.worst, 'best': evaluation.best}
    present = np.unique([c for group in shown.values() for example in group for c in _classes_of(example)])
    published = network(create_network(config, table.num_classes)).published
    defaults = flat_settings(default_config(config.model.name))  # those of ATONet are no other network's
    settings = [
        {'key': key, 'value': repr(value), 'default': repr(defaults.get(key)), 'changed': value != defaults.get(key)}
        for key, value in flat_settings(config).items()
    ]
    num_classes = table.num_classes
    write_page(
        path,
        'report.html',
        title=f'{published.title} on {evaluation.dataset}',
        name=config.model.name,
        published=published,
        evaluation=evaluation,
        scores=scores,
        weights=weights,
        mode=mode,
        workdir=workdir,
        environment=environment,
        starts=read_starts(workdir),
        classes=[
            {
                'name': name,
                'color': '#{:02x}{:02x}{:02x}'.format(*table.class_colors[c]),
                'iou': scores.class_iou[c],
                'accuracy': scores.class_accuracy[c],
                'frequency': scores.class_frequency[c],
            }
            for c, name in enumerate(table.class_names)
        ],
        most_frequent=float(np.nanmax(scores.class_frequency)) if evaluation.confusion.any() else math.nan,
        confusion=row_shares(evaluation.confusion).tolist() if num_classes <= _TABLE_CLASSES else None,
        outputs=output_names(evaluation.confusion, table.class_names),
        confusion_picture=None
        if num_classes <= _TABLE_CLASSES
        else _data_uri(confusion_picture(evaluation.confusion, table.class_names), 'PNG'),
        mistakes=_mistakes(evaluation.confusion, table.class_names),
        charts=_training_charts(metrics),
        metrics_file=METRICS_FILE,
        groups={name: [_shown(example, table) | {'score': score_of[example.index]} for example in group]
                for name, group in shown.items()},
        present=[c for c in present.tolist() if c < num_classes],
        pictures=config.eval.pictures,
        settings=settings,
    )  # fmt: skip


def _training_charts(metrics: list[dict]) -> list[dict]:
    """`charts.chart` of each kind for which `metrics.jsonl` has figures."""
    steps = [line for line in metrics if 'train/loss' in line]
    timed = [line for line in steps if line.get('train/images_per_second')]  # 0 while the first steps compile
    names = list(dict.fromkeys(name for line in steps for name in line))
    terms = ['train/loss', *sorted(name for name in names if name.endswith('_loss'))]  # whatever the network declares
    rates = [name for name in names if name.startswith('train/learning_rate_')]
    charts = {
        'loss': ('Loss and its terms', [curve(steps, name, name.removeprefix('train/')) for name in terms], False),
        'miou': ('mIoU and pixel accuracy, %', [
            curve(metrics, 'eval/miou', 'mIoU', 100),
            curve(metrics, 'eval/pixel_accuracy', 'pixel accuracy', 100),
        ], False),
        'rates': ('Learning rates', [
            curve(steps, name, name.removeprefix('train/learning_rate_')) for name in rates
        ], False),
        'gradient': ('Norm of the gradient', [curve(steps, 'train/gradient_norm', 'norm')], True),
        'speed': ('Images per second', [
            curve(timed, 'train/images_per_second', 'images/s')
        ], False),
    }  # fmt: skip
    drawn = (chart(name, *arguments) for name, arguments in charts.items())
    return [chart for chart in drawn if chart['svg']]


def _mistakes(confusion: np.ndarray, names: tuple[str, ...]) -> list[dict]:
    """The most frequent confusions, by share of the true class, largest first."""
    shares = np.nan_to_num(row_shares(confusion))
    np.fill_diagonal(shares, 0)
    largest = np.argsort(-shares, axis=None, kind='stable')[:_MISTAKES]
    pairs = zip(*np.unravel_index(largest, shares.shape))
    predicted = output_names(confusion, names)
    return [{'true': names[i], 'predicted': predicted[j], 'share': shares[i, j]} for i, j in pairs if shares[i, j] > 0]


def _shown(example: Example, table: ClassTable) -> dict:
    """Its four pictures as data URIs, no larger than `_PICTURE_SIZE`."""
    height, width = example.labels.shape
    factor = min(1, _PICTURE_SIZE / max(height, width))
    size = max(1, round(factor * width)), max(1, round(factor * height))
    image = np.asarray(PIL.Image.fromarray(example.image).resize(size))
    labels, predictions = (
        np.asarray(PIL.Image.fromarray(array).resize(size, PIL.Image.Resampling.NEAREST))
        for array in (example.labels, example.predictions)
    )
    return {
        'image': _data_uri(image, 'JPEG'),
        'labels': _data_uri(visualize.overlay(image, labels, table.palette), 'JPEG'),
        'errors': _data_uri(visualize.error_map(labels, predictions), 'PNG'),
        'predictions': _data_uri(visualize.overlay(image, table.train_ids(predictions), table.palette), 'JPEG'),
        'width': size[0],
        'height': size[1],
    }


def _classes_of(example: Example) -> np.ndarray:
    return np.union1d(example.labels, example.predictions)


def _data_uri(picture: np.ndarray, file_format: str) -> str:
    file = io.BytesIO()
    PIL.Image.fromarray(picture).save(file, file_format, quality=85)
    return f'data:image/{file_format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}'
