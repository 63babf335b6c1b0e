"""From files to batches on the devices.

The host decodes files and cuts out bytes; scaling, flipping and normalising happen on the device (augment.py).
Which example a training sample shows, and how it is augmented, is a pure function of (seed, sample number): any step
can be started from at once, and repeats exactly.
"""

import collections
import functools
import itertools
import math
from collections.abc import Iterable, Iterator

import jax
import numpy as np
import tensorflow as tf

from atonet_jax.augment import Geometry
from atonet_jax.data.dataset import DataError, SegmentationDataset, read_example, read_image_size, read_labels
from atonet_jax.data.labels import IGNORE_LABEL

# TensorFlow would otherwise reserve the memory of the accelerators that JAX computes on.
tf.config.set_visible_devices([], 'GPU')

_READ_AHEAD = 2  # batches decoded before they are asked for


def train_batches(
    dataset: SegmentationDataset,
    *,
    batch_size: int,
    crop_size: tuple[int, int],
    scale_range: tuple[float, float],
    flip: bool,
    seed: int,
    start_step: int,
    num_steps: int,
    shard_index: int = 0,
    num_shards: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches of steps start_step .. start_step + num_steps - 1, for `augment.augment`.

    Sample g = step * batch_size + j is example `permutation(epoch)[g % n]` of epoch `g // n`: every example occurs
    once an epoch, and epochs run on across the borders of batches. Starting at any step costs the same.

    Args:
        dataset: a labelled split.
        batch_size: samples a step, over all shards.
        crop_size: (height, width) of the crops that `augment` will make.
        scale_range: (lowest, highest) factor by which images are scaled, drawn uniformly.
        flip: whether half of the crops are mirrored.
        seed: not negative.
        start_step: the first step.
        num_steps: how many.
        shard_index: which contiguous slice of each batch this process yields.
        num_shards: how many such slices there are.

    Yields:
        'image': [B, Wh, Ww, 3] uint8 and 'label': [B, Wh, Ww] uint8 train ids, the part of each image that its crop
        needs, with zeros beyond the image; 'geometry': [B, len(Geometry._fields)] int32. B is batch_size / num_shards
        and (Wh, Ww) is `window_size(crop_size, scale_range)`.

    Raises:
        DataError: the split has no labels, or a file cannot be used.
        ValueError: num_shards does not divide batch_size.
    """
    if dataset.label_paths is None:
        raise DataError(f'{dataset.name} {dataset.split}: has no labels to train on; choose another split')
    shard_size = _shard_size(batch_size, num_shards)
    window = window_size(crop_size, scale_range)

    def cut_sample(g, i, image):
        labels = read_labels(dataset, i, image.shape[:2])
        geometry = draw_geometry(seed, g, image.shape[:2], crop_size, scale_range, flip)
        corner = geometry.window_top, geometry.window_left
        return _cut(image, corner, window), _cut(labels, corner, window), np.array(geometry, np.int32)

    def load(g):
        i = tf.numpy_function(lambda g: _example_of_sample(seed, len(dataset), g), [g], tf.int64)
        image, label, geometry = tf.numpy_function(
            cut_sample, [g, i, _decode_image(dataset, i)], [tf.uint8, tf.uint8, tf.int32]
        )
        return {
            'image': tf.ensure_shape(image, (*window, 3)),
            'label': tf.ensure_shape(label, window),
            'geometry': tf.ensure_shape(geometry, (len(Geometry._fields),)),
        }

    batches = (
        tf.data.Dataset.range(start_step * batch_size, (start_step + num_steps) * batch_size)
        .filter(lambda g: g % batch_size // shard_size == shard_index)
        .map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(shard_size)
        .prefetch(_READ_AHEAD)
        .as_numpy_iterator()
    )
    for step in range(start_step, start_step + num_steps):
        first = step * batch_size + shard_index * shard_size
        samples = range(first, first + shard_size)
        yield _next(batches, dataset, (_example_of_sample(seed, len(dataset), g) for g in samples))


def eval_batches(
    dataset: SegmentationDataset, *, batch_size: int, shard_index: int = 0, num_shards: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """Yields every example once, in order, at its own size.

    All images of a batch have the same size: where the size changes a new batch begins. What then lacks to a full
    batch is padded, so all shards yield the same number of batches with the same shapes.

    Args:
        dataset: a split; one without labels gives `IGNORE_LABEL` everywhere.
        batch_size: examples a batch, over all shards.
        shard_index: which contiguous slice of each batch this process yields.
        num_shards: how many such slices there are.

    Yields:
        'image': [B, H, W, 3] uint8, zeros as padding; 'label': [B, H, W] uint8 train ids, `IGNORE_LABEL` as padding;
        'index': [B] int32 position in the data set, -1 as padding. B is batch_size / num_shards.

    Raises:
        DataError: a file cannot be used.
        ValueError: num_shards does not divide batch_size.
    """
    shard_size = _shard_size(batch_size, num_shards)
    plan = []
    for size, run in itertools.groupby(range(len(dataset)), lambda i: read_image_size(dataset.image_paths[i])):
        run = list(run)
        for start in range(shard_index * shard_size, len(run) + shard_index * shard_size, batch_size):
            plan.append((size, run[start : start + shard_size]))

    def load(i):
        image = _decode_image(dataset, i)
        label = tf.numpy_function(lambda i, size: read_labels(dataset, i, size), [i, tf.shape(image)[:2]], tf.uint8)
        return image, label

    examples = (
        tf.data.Dataset.from_tensor_slices(np.array([i for _, batch in plan for i in batch], np.int64))
        .map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .prefetch(_READ_AHEAD * shard_size)
        .as_numpy_iterator()
    )
    for (height, width), batch in plan:
        images = np.zeros((shard_size, height, width, 3), np.uint8)
        labels = np.full((shard_size, height, width), IGNORE_LABEL, np.uint8)
        index = np.full(shard_size, -1, np.int32)
        for j, i in enumerate(batch):
            images[j], labels[j] = _next(examples, dataset, [i])
            index[j] = i
        yield {'image': images, 'label': labels, 'index': index}


def prefetch_to_device(
    iterator: Iterator[dict[str, np.ndarray]], sharding: jax.sharding.Sharding, size: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """Yields the batches of `iterator` as global arrays, with the transfer of `size` batches under way ahead.

    Args:
        iterator: this process's slices of the batches.
        sharding: how a batch lies on the devices of all processes.
        size: batches in flight.
    """
    in_flight = collections.deque()
    for batch in iterator:
        in_flight.append(
            {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}
        )
        if len(in_flight) > size:
            yield in_flight.popleft()
    yield from in_flight


def window_size(crop_size: tuple[int, int], scale_range: tuple[float, float]) -> tuple[int, int]:
    """(height, width) that holds every source pixel of a crop, at the lowest scale too."""
    lowest, _ = scale_range
    # Beside the length itself: a row for the start between two pixels, and one for bilinear's second neighbour.
    return tuple(math.ceil(length / lowest) + 2 for length in crop_size)


def draw_geometry(
    seed: int,
    g: int,
    image_size: tuple[int, int],
    crop_size: tuple[int, int],
    scale_range: tuple[float, float],
    flip: bool,
) -> Geometry:
    """The augmentation of sample number `g`: scale, place of the crop, and whether it is mirrored.

    A scaled image that is smaller than the crop lies wholly in it, at a uniformly drawn place.
    """
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, g], np.uint64)))
    scale = rng.uniform(*scale_range)
    scaled_size = [max(1, round(length * scale)) for length in image_size]
    crop_start, window_start = [], []
    for length, scaled, crop in zip(image_size, scaled_size, crop_size):
        room = scaled - crop
        start = int(rng.integers(min(room, 0), max(room, 0), endpoint=True))
        crop_start.append(start)
        # The pixel left of where the first scaled pixel that the crop shows falls in the image: half-pixel centres.
        window_start.append(max(0, ((2 * max(start, 0) + 1) * length - scaled) // (2 * scaled)))
    return Geometry(*image_size, *scaled_size, *crop_start, *window_start, flip=int(flip and rng.random() < 0.5))


def _shard_size(batch_size: int, num_shards: int) -> int:
    if batch_size % num_shards:
        raise ValueError(f'batch_size {batch_size} is not a multiple of the {num_shards} shards; change batch_size')
    return batch_size // num_shards


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, num_examples: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


def _example_of_sample(seed: int, num_examples: int, g: int) -> np.int64:
    epoch, position = divmod(int(g), num_examples)
    return _epoch_order(seed, num_examples, epoch)[position]


def _decode_image(dataset: SegmentationDataset, i: tf.Tensor) -> tf.Tensor:
    contents = tf.io.read_file(tf.gather(tf.constant(dataset.image_paths), i))
    # Decodes PNG too. The accurate method is what Pillow uses.
    return tf.io.decode_jpeg(contents, channels=3, dct_method='INTEGER_ACCURATE')


def _cut(array: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """The part of `array` [H, W, ...] of `size` from `corner` on, with zeros beyond its lower and right border."""
    (top, left), (height, width) = corner, size
    part = array[top : top + height, left : left + width]
    window = np.zeros((height, width, *array.shape[2:]), array.dtype)
    window[: part.shape[0], : part.shape[1]] = part
    return window


def _next(iterator: Iterator, dataset: SegmentationDataset, examples: Iterable[int]):
    """The iterator's next element; where TensorFlow fails, finds out which of `examples` is at fault."""
    try:
        return next(iterator)
    except tf.errors.OpError as error:
        examples = list(examples)
        for i in examples:
            read_example(dataset, i)
        paths = ', '.join(dataset.image_paths[i] for i in examples)
        reason = error.message.splitlines()[0]
        raise DataError(f'{paths}: TensorFlow cannot read one of these ({reason}); save them anew as PNG') from error
