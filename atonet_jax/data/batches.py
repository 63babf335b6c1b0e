"""Batches on the devices: from the device cache, or from the host pipeline, which needs TensorFlow."""

import functools
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from atonet_jax.data.augmentation import Augmentation
from atonet_jax.data.device_cache import DeviceCache
from atonet_jax.data.examples import Examples
from atonet_jax.process.devices import split_by_batch
from atonet_jax.process.distributed import in_main_process


class Batches:
    """Batches of a labelled split, divided among the devices of a mesh. With `data.cache=device` the first call decodes
    the split, which is then kept.

    Attributes:
        examples: of the split.
        mesh: of all devices.
    """

    def __init__(self, examples: Examples, mesh: Mesh):
        """
        Raises:
            DataError: the split has no labels.
        """
        examples.dataset.require_labels()
        self.examples = examples
        self.mesh = mesh
        self._is_on_device = in_main_process(lambda: examples.on_device)  # `auto` may differ

    def train(
        self, *, batch_size: int, augmentation: Augmentation, seed: int, start_sample: int, num_steps: int
    ) -> Iterator[dict[str, jax.Array]]:
        """Yields the batches of `pipeline.train_batches` over all processes.

        Raises:
            InputError: the devices cannot hold the cache, or a file cannot be used.
        """
        options = {
            'batch_size': batch_size,
            'augmentation': augmentation,
            'seed': seed,
            'start_sample': start_sample,
            'num_steps': num_steps,
        }
        if self._is_on_device:
            return self._device_cache.train_batches(**options)
        from atonet_jax.data.pipeline import train_batches  # imports TensorFlow

        return self._sent(train_batches, options)

    def evaluate(self, batch_size: int) -> Iterator[dict[str, jax.Array]]:
        """Yields the batches of `pipeline.eval_batches` over all processes.

        Raises:
            InputError: as `train`.
        """
        if self._is_on_device:
            return self._device_cache.eval_batches(batch_size)
        from atonet_jax.data.pipeline import eval_batches  # imports TensorFlow

        return self._sent(eval_batches, {'batch_size': batch_size})

    @functools.cached_property
    def _device_cache(self) -> DeviceCache:
        return DeviceCache(self.examples, self.mesh)

    def _sent(self, read, options) -> Iterator[dict[str, jax.Array]]:
        from atonet_jax.data.pipeline import prefetch_to_device

        batches = read(self.examples, **options, shard_index=jax.process_index(), num_shards=jax.process_count())
        return prefetch_to_device(batches, split_by_batch(self.mesh))
