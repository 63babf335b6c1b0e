"""int8 exports: calibrated on training images, and scored beside the float export before the command says done."""

import itertools
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from atonet_jax.data.examples import Decoded, Examples
from atonet_jax.data.labels import class_difference
from atonet_jax.data.sources import load_examples
from atonet_jax.errors import ExportError, InputError
from atonet_jax.evaluation.metrics import Scores, confusion_matrix
from atonet_jax.export.comparison import labels_of, network_inputs
from atonet_jax.process.progress import Progress
from atonet_jax.process.timing import in_turns
from atonet_jax.runs.environment import cpu_name
from atonet_jax.runs.network import TrainedNetwork

_log = logging.getLogger(__name__)

_ROUNDS = 10  # of the latency


class Figures(NamedTuple):
    """What the float and the int8 export score and take.

    Attributes:
        calibration: what the ranges come from: how many images, name and split.
        convolutions_alone: int8 is in the convolutions alone, because the network has PReLU or lost too much otherwise.
        device: the processor that it was timed on. All runtimes of int8 compute on it, whatever JAX computes on.
        runtime: that scored and timed it, with its version.
        scored: name and split of the scored data, and how many images of it; None where nothing could be scored.
        why_not_scored: a line; None where it was.
        miou: 0 .. 1, of float and int8; None where nothing could be scored.
        milliseconds: median from an image to its labels in the export's runtime, of float and int8; of a batch, divided
            by its size.
    """

    calibration: str
    convolutions_alone: bool
    device: str
    runtime: str
    scored: str | None
    why_not_scored: str | None
    miou: tuple[float, float] | None
    milliseconds: tuple[float, float]

    def lost(self) -> float:
        """Points of mIoU that int8 loses; 0 where nothing was scored."""
        return 100 * (self.miou[0] - self.miou[1]) if self.miou else 0.0

    def __str__(self) -> str:
        rest = 'float {:.1f} ms, int8 {:.1f} ms an image in {}; calibrated on {}'.format(
            *self.milliseconds, self.runtime, self.calibration
        )
        if self.miou is None:
            return f'not scored ({self.why_not_scored}); {rest}'
        float_miou, int8_miou = self.miou
        return f'mIoU float {float_miou:.2%}, int8 {int8_miou:.2%}, of {self.scored}; {rest}'


def write(
    path: str, form: ModuleType, trained: TrainedNetwork, config: ConfigDict, workdir: str, any_loss: bool
) -> Figures:
    """Writes the int8 export, of a float export that was compared with the network.

    Args:
        path: of the int8 export.
        form: the module of the format.
        trained: what is exported.
        config: of the run: `data` names the images, `export` says what to write.
        workdir: remembers which files were checked.
        any_loss: keeps an export that loses more than `export.int8_tolerance`.

    Raises:
        InputError: the training images cannot be read.
        ExportError: the float export is not the network, or int8 loses too much.
    """
    examples = load_examples(config.data, config.data.train_split, workdir)
    images = _calibration_images(examples, config.export)
    float_path = f'{path}.float{form.ENDING}'
    form.write(float_path, trained, config)
    form.check(float_path, trained, config)
    given = [network_inputs(image, trained, config.export) for image in images]
    in_float = _runner(form.load(float_path), trained, config.export)
    try:
        scored = _load_scored(trained, config, workdir)
        float_miou, why_not = _miou('float', in_float, scored, trained, config.export), None
    except InputError as error:
        scored, float_miou, why_not = None, None, str(error)

    def figures_of_int8(path: str, **options) -> Figures:
        convolutions_alone = form.write_int8(path, trained, config, given, **options)
        in_int8 = _runner(form.load(path), trained, config.export)
        figures = Figures(
            calibration=f'{len(images)} images of {examples.dataset.name} {examples.dataset.split}',
            convolutions_alone=convolutions_alone,
            device=f'{cpu_name()}, {os.cpu_count()} cores',
            runtime=form.RUNTIME,
            scored=None,
            why_not_scored=why_not,
            miou=None,
            milliseconds=_latencies((in_float, in_int8), images[0], config.export.batch_size or 1),
        )
        if scored is None:
            return figures
        int8_miou = _miou('int8', in_int8, scored, trained, config.export)
        return figures._replace(scored=_in_words(scored, config.export.size), miou=(float_miou, int8_miou))

    figures, tolerance = figures_of_int8(path), config.export.int8_tolerance
    if figures.lost() > tolerance and form.HAS_CAREFUL_INT8 and not figures.convolutions_alone:
        _log.info('int8 loses %.2f points of mIoU; it is tried in convolutions alone', figures.lost())
        careful_path = f'{path}.careful{form.ENDING}'
        careful = figures_of_int8(careful_path, careful=True)
        if careful.lost() < figures.lost():
            os.replace(careful_path, path)
            figures = careful
        else:
            _log.info('int8 in convolutions alone loses %.2f points, no less', careful.lost())
    if figures.lost() > tolerance:
        loss = f'int8 loses {figures.lost():.2f} points of mIoU'
        limit = f'more than config.export.int8_tolerance={tolerance}'
        if not any_loss:
            more = 'give more config.export.calibration_images, or ' if len(examples) > len(images) else ''
            allowed = f'--config.export.int8_tolerance={math.ceil(figures.lost())} allows it'
            raise ExportError(f'{loss} ({figures}), {limit}; nothing was written: {more}{allowed}')
        _log.warning('%s, %s; --force writes it all the same', loss, limit)
    return figures


def _calibration_images(examples: Examples, options: ConfigDict) -> list[np.ndarray]:
    """[1, H, W, 3] uint8 of the export's size, spread evenly over the split."""
    count = min(options.calibration_images, len(examples))
    spread = np.linspace(0, len(examples) - 1, count).round().astype(int).tolist()
    images = [image[None] for image, _ in _readable(examples, spread, options.size)]
    if not images:
        dataset = examples.dataset
        raise InputError(
            f'config.export.calibration_images={options.calibration_images}: none of the {count} that were chosen of '
            f'{dataset.name} {dataset.split} can be read; give more'
        )
    return images


def _readable(examples: Examples, indices: Iterable[int], size: tuple[int, int]) -> Iterator[Decoded]:
    """Those that can be read, at `size`; `config.data.on_corrupt` says what becomes of the others."""
    for i in indices:
        example = examples.read(i)
        if example is None:
            examples.check(i)
        else:
            yield _at_size(example, size)


def _at_size(example: Decoded, size: tuple[int, int]) -> Decoded:
    """The example, enlarged or reduced where it has another size."""
    image, labels = example
    if labels.shape == tuple(size):
        return example
    to = size[1], size[0]
    return (
        np.asarray(Image.fromarray(image).resize(to, Image.Resampling.BILINEAR)),
        np.asarray(Image.fromarray(labels).resize(to, Image.Resampling.NEAREST)),
    )


def _runner(run: Callable, trained: TrainedNetwork, options: ConfigDict) -> Callable[[np.ndarray], np.ndarray]:
    """[n, H, W, 3] uint8 -> [n, H, W] uint8, up to the export's batch size, to which it fills them up."""
    batch_size = options.batch_size or 1

    def labels(images: np.ndarray) -> np.ndarray:
        whole = np.pad(images, ((0, batch_size - len(images)), (0, 0), (0, 0), (0, 0)), mode='edge')
        return labels_of(run(network_inputs(whole, trained, options)), options)[: len(images)]

    return labels


def _latencies(runs: Sequence[Callable], image: np.ndarray, batch_size: int) -> tuple[float, ...]:
    """Median milliseconds an image of each, measured in turns, with batches of one image."""
    images = np.repeat(image, batch_size, axis=0)
    times = in_turns({i: partial(run, images) for i, run in enumerate(runs)}, _ROUNDS)
    return tuple(1e3 * float(np.median(of_run[:, 0])) / batch_size for of_run in times.values())


def _load_scored(trained: TrainedNetwork, config: ConfigDict, workdir: str) -> Examples:
    """The evaluation split. Raises InputError where it cannot be scored."""
    examples = load_examples(config.data, config.data.eval_split, workdir)
    dataset = examples.dataset
    difference = class_difference(trained.class_table, dataset.class_table)
    if difference:
        raise InputError(f'config.data: {dataset.name} has other classes than the network predicts ({difference})')
    return examples


def _miou(what: str, run: Callable, examples: Examples, trained: TrainedNetwork, options: ConfigDict) -> float:
    """Of a runner, 0 .. 1, over the examples at the export's size. what: the export, for the progress bar."""
    shape = examples.dataset.class_table.num_classes, trained.model.num_classes
    confusion = np.zeros(shape, np.int64)
    decoded = _readable(examples, range(len(examples)), options.size)
    with Progress(f'scoring {what}', len(examples), 'image') as progress:
        while batch := list(itertools.islice(decoded, options.batch_size or 1)):
            images, labels = (np.stack(arrays) for arrays in zip(*batch, strict=True))
            confusion += np.asarray(confusion_matrix(labels, run(images), *shape))
            progress.update(len(batch))
    miou = Scores.from_confusion(confusion).miou
    if math.isnan(miou):
        raise InputError(f'{examples.dataset.name} {examples.dataset.split} has no labelled pixel to score with')
    return miou


def _in_words(examples: Examples, size: tuple[int, int]) -> str:
    """'5 images of synthetic val', and whether they were resized."""
    dataset = examples.dataset
    resized = any(each is not None and tuple(each) != tuple(size) for each in dataset.sizes)
    how = f' resized to {size[0]}x{size[1]}' if resized else ''
    return f'{len(examples) - len(examples.skipped)} images of {dataset.name} {dataset.split}{how}'


def card(figures: Figures) -> dict[str, Any]:
    """For the model card."""
    return figures._asdict() | {
        'miou': figures.miou and dict(zip(('float32', 'int8'), figures.miou, strict=True)),
        'milliseconds': dict(zip(('float32', 'int8'), figures.milliseconds, strict=True)),
    }
