"""`--mode=evaluate`: scores, pictures and a report of a trained network on a split."""

import csv
import io
import json
import os
import pathlib
import re

import numpy as np
from ml_collections import ConfigDict

from atonet_jax.data import visualize
from atonet_jax.data.batches import Batches
from atonet_jax.data.labels import ClassTable, class_difference
from atonet_jax.data.sources import load_examples
from atonet_jax.errors import InputError
from atonet_jax.evaluation.evaluator import Evaluator, Example, ImageScore
from atonet_jax.evaluation.metrics import Scores
from atonet_jax.process.devices import create_mesh
from atonet_jax.process.distributed import is_main_process, main_process_first, processes_on_this_host
from atonet_jax.process.files import make_folder, replacing, write_json, write_text, writing
from atonet_jax.runs import environment
from atonet_jax.runs.network import trained_network
from atonet_jax.runs.scores import EVALUATION_FOLDER, SCORES_FILE
from atonet_jax.validation import validate


def evaluate(config: ConfigDict, workdir: str) -> Scores:
    """`--mode=evaluate`: scores a run's checkpoint, or the weights of `init_from` if `workdir` holds no run.

    Prints a table, and writes into `eval.output`, or else into `evaluation/` of the workdir: scores.json, images.csv
    with the scores of each image, pictures, and report.html.

    Raises:
        InputError: no run, checkpoint or weights, data that cannot be used, or nothing can be written.
    """
    from atonet_jax.evaluation.report import write_report  # imports matplotlib

    mesh = create_mesh()
    validate(config)
    trained = trained_network(config, workdir, mesh)
    table = trained.class_table
    folder = config.eval.output or os.path.join(workdir, EVALUATION_FOLDER)
    make_folder(folder, '--config.eval.output')
    processes = processes_on_this_host()
    with main_process_first('data'):
        kept_in = workdir if os.access(workdir, os.W_OK) else folder  # the run's folder may be read-only
        examples = load_examples(config.data, config.data.eval_split, kept_in, processes)
    dataset = examples.dataset
    difference = class_difference(table, dataset.class_table)
    if difference:
        raise InputError(
            f'config.data: {dataset.name} has other classes than the network predicts ({difference}); choose the data '
            'that it was trained for'
        )

    evaluation = Evaluator(trained.model, Batches(examples, mesh), config.eval).run(trained.variables)
    examples.gather_skipped()
    scores = evaluation.scores
    if not is_main_process():
        return scores

    print(scores.table(table.class_names))  # before writing: a full disk must not lose them
    origin = environment.describe()
    scores_path = os.path.join(folder, SCORES_FILE)
    with writing(folder):
        for name in _pictures_listed(scores_path):
            pathlib.Path(folder, name).unlink(missing_ok=True)
        write_json(
            scores_path,
            {
                'step': trained.step,
                'dataset': dataset.name,
                'split': dataset.split,
                'root': config.data.tfds_dir or config.data.root,
                'images': len(evaluation.per_image),
                'skipped': [str(reason) for _, reason in sorted(examples.skipped.items())],
                'seconds': evaluation.seconds,
                'options': config.eval.to_dict(),
                'pictures': [_picture_name(example) for example in evaluation.examples],
                'environment': origin,
                **scores.to_dict(table.class_names),
                'confusion': evaluation.confusion.tolist(),
            },
        )
        write_text(os.path.join(folder, 'images.csv'), _images_csv(evaluation.per_image))
        pictures = write_pictures(evaluation.examples, table, folder)
        weights = config.init_from if trained.step is None else f'step {trained.step}'
        report = os.path.join(folder, 'report.html')
        write_report(
            report, evaluation, config, table, workdir=workdir, weights=weights, mode='evaluate', environment=origin
        )
    print(f'{weights}; {len(evaluation.per_image)} images of {evaluation.dataset} in {evaluation.seconds:.1f} s '
          'with compilation')  # fmt: skip
    if evaluation.skipped:
        print(f'{evaluation.skipped} images that cannot be read were skipped')
    print(f'scores: {scores_path}')
    print(f'scores of each image: {os.path.join(folder, "images.csv")}')
    for picture in pictures:
        print(f'picture: {picture}')
    print(f'report: {report}')
    return scores


def _images_csv(scores: list[ImageScore]) -> str:
    """One row for each image, the worst first. Images without a score come last, with empty cells."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['path', 'miou', 'pixel_accuracy'])
    for score in sorted(scores, key=lambda score: (np.isnan(score.miou), score.miou)):
        cells = ('' if np.isnan(value) else f'{value:.6f}' for value in (score.miou, score.pixel_accuracy))
        writer.writerow([score.path, *cells])
    return file.getvalue()


def write_pictures(examples: list[Example], table: ClassTable, folder: str) -> list[str]:
    """Draws examples beside their labels, predictions and errors into PNG files; returns their paths."""
    paths = []
    for example in examples:
        picture = visualize.comparison(example.image, example.labels, example.predictions, table)
        present = np.union1d(example.labels, example.predictions)
        paths.append(os.path.join(folder, _picture_name(example)))
        with replacing(paths[-1]) as temporary:
            visualize.with_legend(picture, table, present).save(temporary)
    return paths


def _picture_name(example: Example) -> str:
    return f'example_{example.index:04d}.png'


def _pictures_listed(scores_path: str) -> list[str]:
    """The names of the pictures that the evaluation wrote whose scores are there. Others in the folder are not ours."""
    try:
        listed = json.loads(pathlib.Path(scores_path).read_text())['pictures']
        return [name for name in listed if re.fullmatch(r'example_\d+\.png', name)]
    except (OSError, ValueError, KeyError, TypeError):  # no file, no JSON, or of a version that listed none
        return []
