"""Scores a network on a split, by a jitted forward pass and confusion matrix. Memory does not grow with the split."""

import heapq
import logging
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from atonet_jax.data.batches import Batches
from atonet_jax.errors import InputError
from atonet_jax.evaluation.metrics import Scores, image_scores
from atonet_jax.evaluation.steps import eval_step
from atonet_jax.inference.canvases import programs_of
from atonet_jax.inference.segmenter import prepared_variables
from atonet_jax.inference.views import Views, many_sizes_text, winograd_pays
from atonet_jax.process.distributed import is_main_process
from atonet_jax.process.progress import Progress

_log = logging.getLogger(__name__)

_MOST_EXTREMES = 4  # best examples that are kept, and as many worst ones
_LONGEST_SIDE = 2048  # pixels of a kept example; of larger ones every second pixel is kept, or every third, ...


class Example(NamedTuple):
    """An image to show, [H, W, 3] uint8, with its true and predicted labels, [H, W] uint8 train ids.

    Larger images are thinned out, so that no side is longer than 2048 pixels.
    """

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
        confusion: [C, C] int64 counts by [true class, predicted class], of the whole split. A network with an output
            for pixels of no class adds a last column.
        per_image: scores of every image, in the order of the split, without skipped ones.
        examples: the first `eval.pictures` of this process's part of the split.
        best: the images of this process's part with the highest mIoU, best first. At most 4, and at most half of
            `eval.pictures`, rounded up.
        worst: as many with the lowest mIoU, worst first; none of `best`.
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

    def __init__(self, model: nn.Module, batches: Batches, options: ConfigDict):
        """Each `run` reads the images of the split, one batch ahead.

        Raises:
            InputError: an image is smaller than `options.center_crop`, or than the network takes after `options`.
        """
        self._views = Views.of(options)
        dataset = batches.examples.dataset
        sizes = Counter(size for size in dataset.sizes or () if size is not None)
        if options.center_crop:
            for size in sizes:
                _check_center_crop(size, options.center_crop)
            sizes = Counter({tuple(options.center_crop): len(dataset)})
        for size in sizes:
            self._views.check_size(model, size)
        program_of = programs_of(sizes, model, self._views)
        programs = len({program_of(size) for size in sizes})
        if many := many_sizes_text(f'the images of {dataset.name} {dataset.split}', sizes, programs, self._views):
            _log.info('%s', many)
        self._winograd = winograd_pays(sizes, programs, self._views)
        self._batches = batches
        self._options = options
        self._model = model
        num_classes = dataset.class_table.num_classes
        self._shape = num_classes, model.num_classes  # of confusion matrices
        self._step = eval_step(model, self._shape, self._views, batches.mesh, options.batch_size, program_of)

    def run(self, variables: dict) -> Evaluation:
        """Reads and scores the split once. With several processes, all call this and get the same scores.

        The pictures are those of the process's own part of the split.
        """
        start = time.perf_counter()
        mesh, dataset = self._batches.mesh, self._batches.examples.dataset
        variables = prepared_variables(self._model, variables, mesh, self._winograd)
        images_at_once = self._views.images_at_once(-(-self._options.batch_size // mesh.size))
        batches = self._batches.evaluate(images_at_once * mesh.size)
        confusion = np.zeros(self._shape, np.int64)
        per_image, shown = [], _Shown(self._options.pictures)
        with Progress('evaluating', len(dataset), 'image', quiet=not is_main_process()) as progress:
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
                arrays[2] = arrays[2][:, : arrays[1].shape[1], : arrays[1].shape[2]]  # which may lie on a canvas
            step = -(-max(arrays[1].shape[1:]) // _LONGEST_SIDE)
            thin = (array[row, ::step, ::step].copy() for array in arrays)  # frees the rest of the batch
            example = Example(index, *thin)
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


def _check_center_crop(size: tuple[int, int], crop: tuple[int, int]) -> None:
    if crop[0] > size[0] or crop[1] > size[1]:
        raise InputError(
            f'config.eval.center_crop={tuple(crop)} is larger than an image of {size[0]}x{size[1]}; choose a smaller '
            'one'
        )


def _center_crop(batch: dict, size: tuple[int, int]) -> dict:
    (height, width), (rows, columns) = batch['label'].shape[1:], size
    _check_center_crop((height, width), size)
    top, left = (height - rows) // 2, (width - columns) // 2
    part = (slice(None), slice(top, top + rows), slice(left, left + columns))
    return batch | {'image': batch['image'][part], 'label': batch['label'][part]}


def _of_this_process(array: jax.Array) -> np.ndarray:
    """The rows of an array, split by batch, that lie on this process's devices."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])
