"""Scores a network on a split: jitted forward pass and confusion matrix, in memory that does not grow."""

import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
import tqdm
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from atonet_jax import visualize
from atonet_jax.config import validate
from atonet_jax.data.examples import Examples
from atonet_jax.data.labels import ClassTable
from atonet_jax.data.sources import load_examples
from atonet_jax.devices import create_mesh, replicated, split_by_batch
from atonet_jax.distributed import is_main_process, main_process_first
from atonet_jax.errors import InputError
from atonet_jax.inference import predict_labels
from atonet_jax.metrics import Scores, confusion_matrix
from atonet_jax.network import trained_network
from atonet_jax.workdir import write_json


class Example(NamedTuple):
    """An image, [H, W, 3] uint8, with its true and its predicted labels, [H, W] uint8 train ids."""

    index: int
    image: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray


class Evaluator:
    """Scores variables of one network on one split, as the config's section `eval` says."""

    def __init__(self, model: nn.Module, examples: Examples, options: ConfigDict, mesh: Mesh):
        """The split's images are read at each `run`, one batch ahead."""
        dataset = examples.dataset
        if dataset.label_paths is None:
            raise InputError(
                f'config.data.eval_split={dataset.split!r}: {dataset.name} has no labels there; choose another split'
            )
        self._examples = examples
        self._options = options
        self._mesh = mesh
        self._step = _compile_eval_step(model, dataset.class_table.num_classes, options, mesh)

    def run(self, variables: dict) -> tuple[Scores, np.ndarray, list[Example]]:
        """Returns the scores, the confusion matrix [C, C] int64 and the first `eval.pictures` examples.

        Among several processes the first two are those of the whole split; the examples are of this process's part.
        """
        from atonet_jax.data.pipeline import eval_batches, prefetch_to_device  # imports TensorFlow

        batches = eval_batches(
            self._examples,
            batch_size=self._options.batch_size,
            shard_index=jax.process_index(),
            num_shards=jax.process_count(),
        )
        batches = prefetch_to_device(batches, split_by_batch(self._mesh))
        num_classes = self._examples.dataset.class_table.num_classes
        confusion = np.zeros((num_classes, num_classes), np.int64)
        examples = []
        quiet = None if is_main_process() else True  # None: where stderr is no terminal
        with tqdm.tqdm(total=len(self._examples), desc='evaluating', unit='image', disable=quiet, leave=False) as bar:
            for batch, counts, predictions in self._one_behind(variables, batches):
                confusion += np.asarray(counts)
                bar.update(jax.process_count() * int(np.sum(_of_this_process(batch['index']) >= 0)))
                if len(examples) < self._options.pictures:
                    examples += _examples(batch, predictions)
        return Scores.from_confusion(confusion), confusion, examples[: self._options.pictures]

    def _one_behind(self, variables: dict, batches: Iterator[dict]) -> Iterator[tuple[dict, jax.Array, jax.Array]]:
        """Yields a batch's results once the next batch is on its way to the devices, which so never wait."""
        waiting = None
        for batch in batches:
            batch = _center_crop(batch, self._options.center_crop) if self._options.center_crop else batch
            results = batch, *self._step(variables, batch['image'], batch['label'])
            if waiting is not None:
                yield waiting
            waiting = results
        if waiting is not None:
            yield waiting


def evaluate(config: ConfigDict, workdir: str) -> Scores:
    """`--mode=evaluate`: scores a run's checkpoint, or the weights of `init_from` where `workdir` holds no run.

    Prints a table, and writes it and pictures into `workdir`.

    Raises:
        InputError: no run, checkpoint or weights, or data that cannot be used.
    """
    mesh = create_mesh()
    validate(config, mesh.size)
    network = trained_network(config, workdir, mesh)
    table = network.class_table
    folder = os.path.join(workdir, 'evaluation')
    os.makedirs(folder, exist_ok=True)
    with main_process_first('data'):
        examples = load_examples(config.data, config.data.eval_split, workdir)
    dataset = examples.dataset
    if dataset.class_table.class_names != table.class_names:
        raise InputError(
            f'config.data: {dataset.name} has other classes ({", ".join(dataset.class_table.class_names)}) than the '
            f'network predicts ({", ".join(table.class_names)}); choose the data that it was trained for'
        )

    evaluator = Evaluator(network.model, examples, config.eval, mesh)
    start = time.perf_counter()
    scores, confusion, shown = evaluator.run(network.variables)
    seconds = time.perf_counter() - start
    used = len(dataset) - len(examples.skipped)
    if not is_main_process():
        return scores

    write_json(
        os.path.join(folder, 'scores.json'),
        {
            'step': network.step,
            'split': dataset.split,
            'images': used,
            'skipped': [str(reason) for reason in examples.skipped.values()],
            'seconds': seconds,
            'options': config.eval.to_dict(),
            **scores.to_dict(table.class_names),
            'confusion': confusion.tolist(),
        },
    )
    pictures = write_pictures(shown, table, folder)
    print(scores.table(table.class_names))
    origin = config.init_from if network.step is None else f'step {network.step}'
    print(f'{origin}; {used} images of {dataset.name} {dataset.split} in {seconds:.1f} s with compilation')
    if examples.skipped:
        print(f'{len(examples.skipped)} images that cannot be read were skipped')
    print(f'scores: {os.path.join(folder, "scores.json")}')
    for picture in pictures:
        print(f'picture: {picture}')
    return scores


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
    """(variables, images, labels) -> (confusion matrix, predictions), jitted, the batch split over the devices."""

    def eval_step(variables, images, labels):
        predictions = predict_labels(
            model,
            variables,
            images,
            scales=options.scales,
            flip=options.flip,
            window=options.window or None,
            window_stride=options.window_stride or None,
        )
        return confusion_matrix(labels, predictions, num_classes), predictions

    whole, split = replicated(mesh), split_by_batch(mesh)
    return jax.jit(eval_step, in_shardings=(whole, split, split), out_shardings=(whole, split))


def _center_crop(batch: dict, size: tuple[int, int]) -> dict:
    (height, width), (rows, columns) = batch['label'].shape[1:], size
    if rows > height or columns > width:
        raise InputError(
            f'config.eval.center_crop={tuple(size)} is larger than an image of {height}x{width}; choose a smaller one'
        )
    top, left = (height - rows) // 2, (width - columns) // 2
    part = (slice(None), slice(top, top + rows), slice(left, left + columns))
    return batch | {'image': batch['image'][part], 'label': batch['label'][part]}


def _examples(batch: dict, predictions: jax.Array) -> list[Example]:
    arrays = map(_of_this_process, (batch['index'], batch['image'], batch['label'], predictions))
    return [Example(int(index), *rest) for index, *rest in zip(*arrays, strict=True) if index >= 0]


def _of_this_process(array: jax.Array) -> np.ndarray:
    """The rows of an array, split by batch, that lie on this process's devices."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])
