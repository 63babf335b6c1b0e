"""Scores a network on a split, by a jitted forward pass and confusion matrix. Memory does not grow with the split."""

import csv
import heapq
import io
import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from atonet_jax.config import validate
from atonet_jax.data import visualize
from atonet_jax.data.examples import Examples
from atonet_jax.data.labels import ClassTable
from atonet_jax.data.sources import load_examples
from atonet_jax.errors import InputError
from atonet_jax.evaluation.metrics import Scores, confusion_matrices, image_scores
from atonet_jax.inference.segmenter import prepared_variables
from atonet_jax.inference.views import predict_labels
from atonet_jax.process.devices import create_mesh, replicated, split_by_batch
from atonet_jax.process.distributed import is_main_process, main_process_first
from atonet_jax.process.progress import Progress
from atonet_jax.runs import environment
from atonet_jax.runs.network import trained_network
from atonet_jax.runs.workdir import make_folder, write_json, write_text

_MOST_EXTREMES = 4  # best examples that are kept, and as many worst ones


class Example(NamedTuple):
    """An image, [H, W, 3] uint8, with its true and predicted labels, [H, W] uint8 train ids."""

    index: int
    image: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray


class ImageScore(NamedTuple):
    """Scores of one image, 0 .. 1; NaN if no pixel has a label.

    Attributes:
        index: position in the data set.
        path: the image file.
        miou: mean IoU over the classes in this image's labels or in its predictions at labelled pixels.
        pixel_accuracy: share of its labelled pixels that are predicted right.
    """

    index: int
    path: str
    miou: float
    pixel_accuracy: float


class Evaluation(NamedTuple):
    """The result of evaluating a split.

    Attributes:
        scores: of the whole split.
        confusion: [C, C] int64 counts by [true class, predicted class], of the whole split.
        per_image: scores of every image, in the order of the split, without skipped ones.
        examples: the first `eval.pictures` of this process's part of the split.
        best: the images of this process's part with the highest mIoU, best first. At most 4, and together with `worst`
            at most `eval.pictures`.
        worst: the images with the lowest mIoU, worst first; none of `best`.
        dataset: name and split, such as 'cityscapes val'.
        skipped: how many images could not be read.
        seconds: duration, with any compilation.
    """

    scores: Scores
    confusion: np.ndarray
    per_image: list[ImageScore]
    examples: list[Example]
    best: list[Example]
    worst: list[Example]
    dataset: str
    skipped: int
    seconds: float


class Evaluator:
    """Scores a network's variables on one split, as the config's section `eval` says."""

    def __init__(self, model: nn.Module, examples: Examples, options: ConfigDict, mesh: Mesh):
        """Each `run` reads the images of the split, one batch ahead."""
        dataset = examples.dataset
        dataset.require_labels()
        self._examples = examples
        self._options = options
        self._mesh = mesh
        self._model = model
        self._step = _compile_eval_step(model, dataset.class_table.num_classes, options, mesh)

    def run(self, variables: dict) -> Evaluation:
        """Reads and scores the split once. With several processes, all call this and get the same scores.

        The pictures are those of the process's own part of the split.
        """
        start = time.perf_counter()
        variables = prepared_variables(self._model, variables, self._mesh)
        batches = self._batches(-(-self._options.batch_size // self._mesh.size) * self._mesh.size)
        dataset = self._examples.dataset
        confusion = np.zeros((dataset.class_table.num_classes,) * 2, np.int64)
        per_image, shown = [], _Shown(self._options.pictures)
        with Progress('evaluating', len(self._examples), 'image', quiet=not is_main_process()) as progress:
            for batch, confusions, indices, predictions in self._one_behind(variables, batches):
                confusions, indices = np.asarray(confusions), np.asarray(indices)
                confusion += confusions.sum(0, dtype=np.int64)
                used = indices >= 0  # others are padding
                scores = [
                    ImageScore(int(i), dataset.image_paths[i], float(miou), float(accuracy))
                    for i, miou, accuracy in zip(indices[used], *image_scores(confusions[used]), strict=True)
                ]
                per_image += scores
                progress.update(len(scores))
                shown.look(batch, predictions, {score.index: score.miou for score in scores})
        return Evaluation(
            Scores.from_confusion(confusion),
            confusion,
            per_image,
            shown.first,
            *shown.extremes(),
            dataset=f'{dataset.name} {dataset.split}',
            skipped=len(dataset) - len(per_image),
            seconds=time.perf_counter() - start,
        )

    def _batches(self, batch_size: int) -> Iterator[dict[str, jax.Array]]:
        cache = self._examples.device_cache(self._mesh)
        if cache is not None:
            return cache.eval_batches(batch_size)
        from atonet_jax.data.pipeline import eval_batches, prefetch_to_device  # imports TensorFlow

        batches = eval_batches(
            self._examples, batch_size=batch_size, shard_index=jax.process_index(), num_shards=jax.process_count()
        )
        return prefetch_to_device(batches, split_by_batch(self._mesh))

    def _one_behind(self, variables: dict, batches: Iterator[dict]) -> Iterator[tuple]:
        """Yields the results of a batch after the next batch was sent to the devices, so that these never wait."""
        waiting = None
        for batch in batches:
            batch = _center_crop(batch, self._options.center_crop) if self._options.center_crop else batch
            results = batch, *self._step(variables, batch['image'], batch['label'], batch['index'])
            if waiting is not None:
                yield waiting
            waiting = results
        if waiting is not None:
            yield waiting


class _Shown:
    """Keeps the examples that are drawn: the first, the best and the worst ones."""

    def __init__(self, pictures: int):
        self.first: list[Example] = []
        self._pictures = pictures
        self._extremes = min(_MOST_EXTREMES, -(-pictures // 2))
        self._best, self._worst = [], []  # heaps of (rank, example), the first to go on top
        self._ranked = 0

    def look(self, batch: dict[str, jax.Array], predictions: jax.Array, mious: dict[int, float]) -> None:
        """Keeps examples of this process's part of a batch. mious: {index: mIoU}."""
        arrays = None
        for row, index in enumerate(_of_this_process(batch['index']).tolist()):
            if index < 0:
                continue
            heaps = []
            if not np.isnan(mious[index]):
                self._ranked += 1
                ranks = (mious[index], -index), (-mious[index], -index)
                heaps = [(h, rank) for h, rank in zip((self._best, self._worst), ranks) if self._wants(h, rank)]
            if not heaps and len(self.first) == self._pictures:
                continue
            if arrays is None:
                arrays = [_of_this_process(array) for array in (batch['image'], batch['label'], predictions)]
            example = Example(index, *(array[row].copy() for array in arrays))  # frees the rest of the batch
            if len(self.first) < self._pictures:
                self.first.append(example)
            for heap, rank in heaps:
                heapq.heappush(heap, (rank, example))
                if len(heap) > self._extremes:
                    heapq.heappop(heap)

    def _wants(self, heap: list, rank: tuple[float, int]) -> bool:
        return len(heap) < self._extremes or (len(heap) > 0 and rank > heap[0][0])

    def extremes(self) -> tuple[list[Example], list[Example]]:
        """The best ones, best first, and the worst ones, worst first. No image is in both."""
        best, worst = ([example for _, example in sorted(heap, reverse=True)] for heap in (self._best, self._worst))
        return best[: -(-self._ranked // 2)], worst[: self._ranked // 2]


def evaluate(config: ConfigDict, workdir: str) -> Scores:
    """`--mode=evaluate`: scores a run's checkpoint, or the weights of `init_from` if `workdir` holds no run.

    Prints a table, and writes into `evaluation/` of the workdir: scores.json, images.csv with the scores of each image,
    pictures, and report.html.

    Raises:
        InputError: no run, checkpoint or weights, data that cannot be used, or nothing can be written.
    """
    from atonet_jax.evaluation.report import write_report  # imports matplotlib

    mesh = create_mesh()
    validate(config)
    network = trained_network(config, workdir, mesh)
    table = network.class_table
    folder = os.path.join(workdir, 'evaluation')
    make_folder(folder)
    with main_process_first('data'):
        examples = load_examples(config.data, config.data.eval_split, workdir)
    dataset = examples.dataset
    if dataset.class_table.class_names != table.class_names:
        raise InputError(
            f'config.data: {dataset.name} has other classes ({", ".join(dataset.class_table.class_names)}) than the '
            f'network predicts ({", ".join(table.class_names)}); choose the data that it was trained for'
        )

    evaluation = Evaluator(network.model, examples, config.eval, mesh).run(network.variables)
    scores = evaluation.scores
    if not is_main_process():
        return scores

    origin = environment.describe()
    write_json(
        os.path.join(folder, 'scores.json'),
        {
            'step': network.step,
            'dataset': dataset.name,
            'split': dataset.split,
            'images': len(evaluation.per_image),
            'skipped': [str(reason) for reason in examples.skipped.values()],
            'seconds': evaluation.seconds,
            'options': config.eval.to_dict(),
            'environment': origin,
            **scores.to_dict(table.class_names),
            'confusion': evaluation.confusion.tolist(),
        },
    )
    write_text(os.path.join(folder, 'images.csv'), _images_csv(evaluation.per_image))
    pictures = write_pictures(evaluation.examples, table, folder)
    weights = config.init_from if network.step is None else f'step {network.step}'
    report = os.path.join(folder, 'report.html')
    write_report(
        report, evaluation, config, table, workdir=workdir, weights=weights, mode='evaluate', environment=origin
    )
    print(scores.table(table.class_names))
    print(f'{weights}; {len(evaluation.per_image)} images of {evaluation.dataset} in {evaluation.seconds:.1f} s '
          'with compilation')  # fmt: skip
    if evaluation.skipped:
        print(f'{evaluation.skipped} images that cannot be read were skipped')
    print(f'scores: {os.path.join(folder, "scores.json")}')
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
        paths.append(os.path.join(folder, f'example_{example.index:04d}.png'))
        visualize.with_legend(picture, table, present).save(paths[-1])
    return paths


def _compile_eval_step(model: nn.Module, num_classes: int, options: ConfigDict, mesh: Mesh) -> Callable:
    """(variables, images, labels, index) -> (confusion matrix of each image, index, predictions), jitted.

    The batch is split over the devices, and so are the predictions. Every process gets all other results.
    """

    def eval_step(variables, images, labels, index):
        predictions = predict_labels(
            model,
            variables,
            images,
            scales=options.scales,
            flip=options.flip,
            window=options.window or None,
            window_stride=options.window_stride or None,
        )
        return confusion_matrices(labels, predictions, num_classes), index, predictions

    whole, split = replicated(mesh), split_by_batch(mesh)
    return jax.jit(eval_step, in_shardings=(whole, split, split, split), out_shardings=(whole, whole, split))


def _center_crop(batch: dict, size: tuple[int, int]) -> dict:
    (height, width), (rows, columns) = batch['label'].shape[1:], size
    if rows > height or columns > width:
        raise InputError(
            f'config.eval.center_crop={tuple(size)} is larger than an image of {height}x{width}; choose a smaller one'
        )
    top, left = (height - rows) // 2, (width - columns) // 2
    part = (slice(None), slice(top, top + rows), slice(left, left + columns))
    return batch | {'image': batch['image'][part], 'label': batch['label'][part]}


def _of_this_process(array: jax.Array) -> np.ndarray:
    """The rows of an array, split by batch, that lie on this process's devices."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])
