"""From decoded examples to batches on the devices.

The host cuts out bytes. Scaling, flipping and normalising happen on the device (training/augment.py). The example of a
training sample and the geometry of its crop are pure functions of (seed, sample number). So training can start at any
sample, and repeats exactly.
"""

import collections
import itertools
import os
from collections.abc import Iterator

import jax
import numpy as np
import tensorflow as tf

from atonet_jax.data.augmentation import Augmentation, Geometry
from atonet_jax.data.examples import Examples
from atonet_jax.data.image_files import read_image_size
from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.data.sampling import draw_geometry, example_of_sample, nothing_of, window_size

# Otherwise TensorFlow would reserve the memory of the accelerators that JAX uses.
tf.config.set_visible_devices([], 'GPU')

_READ_AHEAD = 2  # batches decoded ahead
# One image for each core. tf.data's own choice leaves the cores idle a quarter of the time
# (benchmarks/input_pipeline.py).
_PARALLEL = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
_USED = np.int64(-1)  # in place of the index of an example that could not be


def train_batches(
    examples: Examples,
    *,
    batch_size: int,
    augmentation: Augmentation,
    seed: int,
    start_sample: int,
    num_steps: int,
    shard_index: int = 0,
    num_shards: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields `num_steps` batches of the samples from `start_sample` on, for `augment.augment`.

    Sample g is example `permutation(epoch)[g % n]` of epoch `g // n`: every example occurs once an epoch, and epochs
    run on across the borders of batches. Starting at any sample costs the same.

    Args:
        examples: of a labelled split.
        batch_size: samples a step, over all shards.
        augmentation: what `augment` will make of them.
        seed: not negative.
        start_sample: number of the first sample.
        num_steps: how many batches.
        shard_index: which contiguous slice of each batch this process yields.
        num_shards: how many such slices there are.

    Yields:
        'image': [B, Wh, Ww, 3] uint8 and 'label': [B, Wh, Ww] uint8 train ids, the part of each image that its crop
        needs, with zeros beyond the image; 'geometry': [B, len(Geometry._fields)] int32. B is batch_size / num_shards
        and (Wh, Ww) is `sampling.window_size(augmentation)`. A skipped example is all padding.

    Raises:
        DataError: the split has no labels, or a file cannot be used.
        ValueError: num_shards does not divide batch_size.
    """
    dataset = examples.dataset
    dataset.require_labels()
    shard_size = _shard_size(batch_size, num_shards)
    window = window_size(augmentation)
    nothing = np.array(nothing_of(augmentation), np.int32)
    blank = np.zeros((*window, 3), np.uint8), np.full(window, IGNORE_LABEL, np.uint8), nothing

    def load(g):
        i = example_of_sample(seed, len(examples), g)
        decoded = examples.read(i)
        if decoded is None:
            return *blank, np.int64(i)
        image, labels = decoded
        geometry = draw_geometry(seed, g, labels.shape, augmentation, labels)
        corner = geometry.window_top, geometry.window_left
        return _cut(image, corner, window), _cut(labels, corner, window), np.array(geometry, np.int32), _USED

    def with_shapes(image, label, geometry, fault):
        return {
            'image': tf.ensure_shape(image, (*window, 3)),
            'label': tf.ensure_shape(label, window),
            'geometry': tf.ensure_shape(geometry, (len(Geometry._fields),)),
            'fault': tf.ensure_shape(fault, ()),
        }

    batches = (
        tf.data.Dataset.range(start_sample, start_sample + num_steps * batch_size)
        .filter(lambda g: (g - start_sample) % batch_size // shard_size == shard_index)
        .map(
            lambda g: with_shapes(*tf.numpy_function(load, [g], [tf.uint8, tf.uint8, tf.int32, tf.int64])),
            num_parallel_calls=_PARALLEL,
            deterministic=True,
        )
        .batch(shard_size)
        .prefetch(_READ_AHEAD)
        .with_options(_options())
    )
    for batch in batches.as_numpy_iterator():
        for i in batch.pop('fault'):
            if i != _USED:
                examples.check(int(i))
        yield batch


def eval_batches(
    examples: Examples, *, batch_size: int, shard_index: int = 0, num_shards: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """Yields every example once, in order, at its own size.

    All images of a batch have one size: a new batch begins when the size changes. Batches that are not full are padded,
    so all shards yield the same number of batches with the same shapes. Skipped examples are padding.

    Args:
        examples: of a split; one without labels gives `IGNORE_LABEL` everywhere.
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
    dataset = examples.dataset
    plan = []
    for size, run in itertools.groupby(dataset.usable, lambda i: read_image_size(dataset, i)):
        run = list(run)
        for start in range(shard_index * shard_size, len(run) + shard_index * shard_size, batch_size):
            plan.append((size, run[start : start + shard_size]))

    def load(i):
        decoded = examples.read(int(i))
        return (*decoded, True) if decoded else (np.zeros((0, 0, 3), np.uint8), np.zeros((0, 0), np.uint8), False)

    loaded = (
        tf.data.Dataset.from_tensor_slices(np.array([i for _, batch in plan for i in batch], np.int64))
        .map(
            lambda i: tf.numpy_function(load, [i], [tf.uint8, tf.uint8, tf.bool]),
            num_parallel_calls=_PARALLEL,
            deterministic=True,
        )
        .prefetch(_READ_AHEAD * shard_size)
        .with_options(_options())
        .as_numpy_iterator()
    )
    for (height, width), batch in plan:
        images = np.zeros((shard_size, height, width, 3), np.uint8)
        labels = np.full((shard_size, height, width), IGNORE_LABEL, np.uint8)
        index = np.full(shard_size, -1, np.int32)
        for j, i in enumerate(batch):
            image, label, used = next(loaded)
            if used:
                images[j], labels[j], index[j] = image, label, i
            else:
                examples.check(i)
        yield {'image': images, 'label': labels, 'index': index}


def prefetch_to_device(
    iterator: Iterator[dict[str, np.ndarray]], sharding: jax.sharding.Sharding, size: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """Yields the batches of `iterator` as global arrays, and starts the transfer of `size` batches ahead.

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


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def _shard_size(batch_size: int, num_shards: int) -> int:
    if batch_size % num_shards:
        raise ValueError(f'batch_size {batch_size} is not a multiple of the {num_shards} shards; change batch_size')
    return batch_size // num_shards


def _cut(array: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """The part of `array` [H, W, ...] of `size` from `corner` on, with zeros beyond its lower and right border."""
    (top, left), (height, width) = corner, size
    part = array[top : top + height, left : left + width]
    if part.shape[:2] == (height, width):
        return part
    window = np.zeros((height, width, *array.shape[2:]), array.dtype)
    window[: part.shape[0], : part.shape[1]] = part
    return window
