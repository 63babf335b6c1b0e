"""A split, decoded, in the memory of the devices. Batches are cut there, equal to those of pipeline.py. Needs no
TensorFlow.

The host draws, some steps ahead, which example a sample shows and where its crop lies. Each device holds an equal share
of the examples. It cuts the windows of its own examples, and the devices exchange them.
"""

import collections
import concurrent.futures
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

from atonet_jax.data.augmentation import Augmentation, Geometry
from atonet_jax.data.dataset import SegmentationDataset
from atonet_jax.data.examples import Examples
from atonet_jax.data.image_files import read_image_size
from atonet_jax.data.label_files import read_labels
from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.data.sampling import draw_geometry, example_of_sample, nothing_of, window_size
from atonet_jax.errors import InputError
from atonet_jax.process.devices import split_by_batch
from atonet_jax.process.memory import free_memory
from atonet_jax.process.progress import Progress

_log = logging.getLogger(__name__)

_AHEAD = 8  # steps whose samples are drawn ahead
_SHOWN_SIZES = 4
_TOP, _LEFT = (1 + Geometry._fields.index(name) for name in ('window_top', 'window_left'))  # in a row of a plan
_BYTES = 4  # of a pixel: three colours and its label
_PIECE_BYTES = 1 << 28  # of the examples that are decoded on the host before they go to a device


class DeviceCache:
    """A split in the memory of all devices of a mesh."""

    def __init__(self, examples: Examples, mesh: Mesh):
        """Decodes the split. Each process decodes the share of its devices.

        Args:
            examples: of a split whose images have one size.
            mesh: of all devices.

        Raises:
            InputError: the images have several sizes, or the devices' memory does not hold them.
            DataError: a file cannot be used, and `examples` does not skip it.
        """
        dataset = examples.dataset
        self._examples = examples
        self._mesh = mesh
        check([dataset], mesh)
        self._size = _only_size(dataset)
        self._share = _share(dataset, mesh)
        needed, free = _needed_bytes(dataset, mesh) / 1e9, _free_bytes(mesh)
        free = '' if free is None else f'; {free / 1e9:.2f} GB are free there'
        _log.info('%s %s: decoded %.2f GB in the memory of each of %d device(s)%s',
                  dataset.name, dataset.split, needed, mesh.size, free)  # fmt: skip
        self._images, self._labels, self._usable = self._load()
        self._host_labels = {}

    def train_batches(
        self, *, batch_size: int, augmentation: Augmentation, seed: int, start_sample: int, num_steps: int
    ) -> Iterator[dict[str, jax.Array]]:
        """The batches of `pipeline.train_batches` over all processes, split over the devices. Equal bit for bit."""
        dataset = self._examples.dataset
        dataset.require_labels()
        window = window_size(augmentation)
        rows = self._rows_of_this_process(batch_size)
        if augmentation.class_aware_crops:
            self._read_host_labels()

        def draw(step):
            plan = np.empty((len(rows), 1 + len(Geometry._fields)), np.int32)
            for row, j in enumerate(rows):
                g = start_sample + step * batch_size + j
                i = example_of_sample(seed, len(dataset), g)
                if self._usable[i]:
                    plan[row] = i, *draw_geometry(seed, g, self._size, augmentation, self._host_labels.get(i))
                else:
                    plan[row] = -1, *nothing_of(augmentation)
            return plan

        for plan in _drawn_ahead(draw, range(num_steps)):
            image, label, _, geometry = self._cut(plan, window)
            yield {'image': image, 'label': label, 'geometry': geometry}

    def eval_batches(self, batch_size: int) -> Iterator[dict[str, jax.Array]]:
        """The batches of `pipeline.eval_batches` over all processes, split over the devices."""
        dataset = self._examples.dataset
        rows = self._rows_of_this_process(batch_size)
        indices = np.array(dataset.usable, np.int32)
        indices = np.where(self._usable[indices], indices, -1)
        indices = np.pad(indices, (0, -len(indices) % batch_size), constant_values=-1)
        for start in range(0, len(indices), batch_size):
            plan = np.zeros((len(rows), 1 + len(Geometry._fields)), np.int32)
            plan[:, 0] = indices[start:][rows]
            image, label, index, _ = self._cut(plan, self._size)
            yield {'image': image, 'label': label, 'index': index}

    def _load(self):
        """Images [n, H, 3 W] and labels [n, H, W] on the devices, and which examples can be used, [n] bool.

        With a last axis of three, a TPU would need forty times the memory.
        """
        height, width = self._size
        count = self._share * self._mesh.size
        sharding = split_by_batch(self._mesh)
        usable = np.zeros(count, np.bool_)
        shards = [
            self._load_share(device, range(count)[part], usable)
            for device, (part,) in sharding.addressable_devices_indices_map((count,)).items()
        ]
        if jax.process_count() > 1:
            usable = np.any(multihost_utils.process_allgather(usable), axis=0)

        def whole(arrays, shape):
            return jax.make_array_from_single_device_arrays((count, *shape), sharding, list(arrays))

        images, labels = zip(*shards)
        return whole(images, (height, 3 * width)), whole(labels, (height, width)), usable

    def _load_share(self, device: jax.Device, numbers: range, usable: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """Images and labels of the examples of a device, there. Marks in `usable` which can be used.

        The host holds one piece of them at a time.
        """
        dataset, (height, width) = self._examples.dataset, self._size
        images = jnp.zeros((len(numbers), height, 3 * width), jnp.uint8, device=device)
        labels = jnp.full((len(numbers), height, width), IGNORE_LABEL, jnp.uint8, device=device)
        real = range(numbers.start, min(numbers.stop, len(dataset)))
        at_once = max(os.cpu_count(), _PIECE_BYTES // (_BYTES * height * width))
        with (
            concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
            Progress(f'decoding {dataset.name} {dataset.split}', len(real), 'image') as progress,
        ):
            for start in range(0, len(real), at_once):
                piece = real[start : start + at_once]
                piece_images = np.zeros((len(piece), height, 3 * width), np.uint8)
                piece_labels = np.full((len(piece), height, width), IGNORE_LABEL, np.uint8)

                def load(i):
                    decoded = self._examples.read(i)
                    if decoded is not None:
                        usable[i] = True
                        piece_images[i - piece.start] = decoded[0].reshape(height, -1)
                        piece_labels[i - piece.start] = decoded[1]

                for _ in pool.map(load, piece):
                    progress.update()
                images, labels = _written(images, piece_images, start), _written(labels, piece_labels, start)
                jax.block_until_ready((images, labels))  # the host then no longer needs the piece
        for i in real:
            if not usable[i] and i not in dataset.unusable:
                self._examples.check(i)
        return images, labels

    def _rows_of_this_process(self, batch_size: int) -> range:
        """The rows of each batch that lie on this process's devices."""
        if batch_size % self._mesh.size:
            raise ValueError(f'batch_size {batch_size} is not a multiple of the {self._mesh.size} devices; change it')
        share = batch_size // jax.process_count()
        return range(jax.process_index() * share, (jax.process_index() + 1) * share)

    def _read_host_labels(self) -> None:
        """Keeps all labels on the host, one byte a pixel. Class-aware crops are drawn there and need them."""
        dataset = self._examples.dataset
        missing = [i for i in range(len(dataset)) if self._usable[i] and i not in self._host_labels]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            labels = pool.map(lambda i: read_labels(dataset, i, self._size), missing)
            self._host_labels |= dict(zip(missing, labels))

    def _cut(self, plan: np.ndarray, window: tuple[int, int]):
        """(image, label, index, geometry) of a batch. `plan` holds index and geometry of this process's rows."""
        if jax.process_count() > 1:
            plan = jax.make_array_from_process_local_data(split_by_batch(self._mesh), plan)
        # One process hands the numbers over with the call, which takes a fifth of the time.
        return _compiled_cut(self._mesh, window)(self._images, self._labels, plan)


def suits(dataset: SegmentationDataset, mesh: Mesh) -> bool:
    """Whether `auto` chooses the device: an accelerator, one image size, a share within a quarter of free memory."""
    if mesh.devices.flat[0].platform == 'cpu' or len(_sizes(dataset)) != 1:
        return False
    free = _free_bytes(mesh)
    return free is not None and _needed_bytes(dataset, mesh) <= free / 4


def check(datasets: Sequence[SegmentationDataset], mesh: Mesh) -> None:
    """Checks that splits can be kept together.

    Raises:
        InputError: the images of one have several sizes, or the devices' memory does not hold them all.
    """
    needed, free = sum(_needed_bytes(dataset, mesh) for dataset in datasets), _free_bytes(mesh)
    if free is not None and needed > free:
        names = ' and '.join(f'{dataset.name} {dataset.split}' for dataset in datasets)
        raise InputError(
            f'config.data.cache=device: {names} take {needed / 1e9:.2f} GB of each device decoded, but '
            f'{free / 1e9:.2f} GB are free; choose memory, disk or none'
        )


def _share(dataset: SegmentationDataset, mesh: Mesh) -> int:
    """Examples on each device."""
    return -(-len(dataset) // mesh.size)


def _needed_bytes(dataset: SegmentationDataset, mesh: Mesh) -> int:
    """Of each device."""
    height, width = _only_size(dataset)
    return _share(dataset, mesh) * _BYTES * height * width


def _sizes(dataset: SegmentationDataset) -> set[tuple[int, int]]:
    return {read_image_size(dataset, i) for i in dataset.usable}


def _only_size(dataset: SegmentationDataset) -> tuple[int, int]:
    sizes = sorted(_sizes(dataset))
    if len(sizes) == 1:
        return sizes[0]
    shown = ', '.join(f'{height}x{width}' for height, width in sizes[:_SHOWN_SIZES])
    more = f' and {len(sizes) - _SHOWN_SIZES} more' if len(sizes) > _SHOWN_SIZES else ''
    raise InputError(
        f'config.data.cache=device: the images of {dataset.name} {dataset.split} have {len(sizes)} sizes '
        f'({shown}{more}), and it takes one; choose memory, disk or none'
    )


def _free_bytes(mesh: Mesh) -> int | None:
    """Free memory of the fullest of this process's devices.

    None where accelerators do not tell, as with XLA_PYTHON_CLIENT_ALLOCATOR=platform.
    """
    devices = mesh.local_devices
    if devices[0].platform == 'cpu':
        return free_memory() // len(devices)
    statistics = [device.memory_stats() for device in devices]
    return min(one['bytes_limit'] - one['bytes_in_use'] for one in statistics) if all(statistics) else None


def _drawn_ahead(draw: Callable[[int], np.ndarray], steps: range) -> Iterator[np.ndarray]:
    """`draw` of each step, some steps ahead in a thread, so that the device never waits."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = collections.deque()
        try:
            for step in steps:
                waiting.append(pool.submit(draw, step))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@functools.partial(jax.jit, donate_argnames='whole')
def _written(whole: jax.Array, piece: jax.Array, start: int) -> jax.Array:
    """`whole` [n, ...] with `piece` [m, ...] from row `start` on, in place."""
    return jax.lax.dynamic_update_slice_in_dim(whole, piece, start, axis=0)


@functools.lru_cache(maxsize=16)
def _compiled_cut(mesh: Mesh, window: tuple[int, int]) -> Callable:
    """(images [n, H, 3 W], labels [n, H, W], plan [B, 1 + geometry]), all split -> image, label, index, geometry.

    `image` [B, *window, 3] and `label` [B, *window] are zeros beyond the image; with index -1 they are all padding.
    """

    def cut(array, row, depth):
        """The window of one image, [H, W depth] -> [Wh, Ww depth]."""
        corner, extent = (row[_TOP], row[_LEFT] * depth), (window[0], window[1] * depth)
        array = jnp.pad(array, ((0, extent[0]), (0, extent[1])))  # a slice does not begin beyond the image
        return jax.lax.dynamic_slice(array, corner, extent)

    def of_device(images, labels, plan):
        everywhere = jax.lax.all_gather(plan, 'data', tiled=True)
        local = everywhere[:, 0] - jax.lax.axis_index('data') * images.shape[0]
        is_here = (local >= 0) & (local < images.shape[0]) & (everywhere[:, 0] >= 0)
        local = jnp.clip(local, 0, images.shape[0] - 1)

        def windows(arrays, depth):
            def of_sample(i, row, is_here):
                array = jax.lax.dynamic_index_in_dim(arrays, i, keepdims=False)
                return jnp.where(is_here, cut(array, row, depth), jnp.uint8(0))

            # One device holds each sample; the others add zeros.
            parts = jax.vmap(of_sample)(local, everywhere, is_here)
            return jax.lax.psum_scatter(parts, 'data', scatter_dimension=0, tiled=True) if mesh.size > 1 else parts

        image = windows(images, 3).reshape(-1, *window, 3)
        is_padding = plan[:, 0] < 0
        label = jnp.where(is_padding[:, None, None], jnp.uint8(IGNORE_LABEL), windows(labels, 1))
        return image, label, plan[:, 0], plan[:, 1:]

    split = PartitionSpec('data')
    mapped = jax.shard_map(of_device, mesh=mesh, in_specs=split, out_specs=split)
    return jax.jit(mapped, in_shardings=split_by_batch(mesh))
