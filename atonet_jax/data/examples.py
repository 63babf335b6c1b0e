"""Decoded examples of a split, read each time or kept in memory or on disk. Bad ones are reported or skipped."""

import errno
import hashlib
import logging
import math
import os
import re
import shutil
import threading
import weakref
from collections.abc import Mapping

import numpy as np

from atonet_jax.data.dataset import DataError, SegmentationDataset
from atonet_jax.data.decode import read_example
from atonet_jax.errors import InputError
from atonet_jax.process.distributed import gathered
from atonet_jax.process.files import replacing
from atonet_jax.process.memory import free_memory

_log = logging.getLogger(__name__)

_memory_caches = weakref.WeakSet()  # of this process, which share its memory
_disk_caches = weakref.WeakSet()  # the same of disks
_CACHED = re.compile('[0-9a-f]{32}')  # names of files in a disk cache
_LEFT_FREE = 0.5e9  # bytes of a disk, for checkpoints

Decoded = tuple[np.ndarray, np.ndarray]


class Examples:
    """The examples that the pipeline reads. Safe to use from many threads.

    Attributes:
        dataset: the split.
        skipped: {index: reason} of the unusable examples that this process has met so far; see `gather_skipped`.
        on_device: whether `Batches` is to keep the split in the devices' memory.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        *,
        cache: str = 'none',
        cache_dir: str = '',
        on_corrupt: str = 'error',
        processes: int = 1,
    ):
        """
        Args:
            dataset: a split; from `verify` if `cache` is not 'none', because the cache needs the sizes.
            cache: 'none', 'memory', 'disk' or 'device'. An example takes 4 bytes a pixel; with 'memory', in each
                process. With 'device', `Batches` keeps them.
            cache_dir: folder for 'disk', which runs and processes can share.
            on_corrupt: 'error' or 'skip', what `check` does about an example that cannot be used.
            processes: how many on this host make the same of their own; with 'memory' its free memory is for all.

        Raises:
            InputError: memory or disk does not hold the cache.
        """
        self.dataset = dataset
        self.skipped: dict[int, DataError] = dict(dataset.unusable)
        self.on_device = cache == 'device'
        self._on_corrupt = on_corrupt
        self._faults: dict[int, DataError] = dict(dataset.unusable)
        self._cache = None
        if cache == 'memory':
            self._cache = _MemoryCache(dataset, processes)
        elif cache == 'disk':
            self._cache = _DiskCache(dataset, cache_dir)

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, i: int) -> Decoded | None:
        """Image [H, W, 3] uint8 RGB and labels [H, W] uint8 train ids of example `i`. Do not write to them.

        None if the example cannot be used. The iterating thread then calls `check`, which says why.
        """
        if i in self._faults:
            return None
        try:
            cached = self._cache and self._cache.read(i)
            if not cached:
                cached = read_example(self.dataset, i)
                if self._cache:
                    self._cache.write(i, cached)
        except DataError as error:
            self._faults[i] = error
            return None
        return cached

    def check(self, i: int) -> None:
        """For an example for which `read` returned None: raises its DataError, or logs it once and counts it as
        skipped.

        Raises:
            DataError: the example's own, if `on_corrupt` is 'error'; or no example is left.
        """
        if self._on_corrupt == 'error':
            raise self._faults[i]
        if i not in self.skipped:
            if len(self.skipped) + 1 == len(self.dataset):
                raise DataError(
                    f'{self.dataset.name} {self.dataset.split}: none of the {len(self.dataset)} examples can be used; '
                    f'the last: {self._faults[i]}'
                )
            self.skipped[i] = self._faults[i]
            _log.warning('skipped: %s', self._faults[i])

    def gather_skipped(self) -> None:
        """Adds to `skipped` what the other processes of the run have skipped. All processes call this alike."""
        if self._on_corrupt == 'skip':
            for skipped in gathered(self.skipped):
                self.skipped |= skipped


def decoded_bytes(dataset: SegmentationDataset) -> int:
    """Bytes of all decoded examples of a verified split."""
    return sum(4 * size[0] * size[1] for size in dataset.sizes if size is not None)


class _MemoryCache:
    """
    Attributes:
        missing: bytes that are still to be written.
    """

    def __init__(self, dataset: SegmentationDataset, processes: int):
        needed = decoded_bytes(dataset)
        free = max(0, free_memory() // processes - sum(cache.missing for cache in _memory_caches))
        share = f' for each of {processes} processes' if processes > 1 else ''
        _announce(dataset, 'memory', needed, f'{_gigabytes(free)} are free{share}')
        if needed > free:
            raise InputError(
                f'config.data.cache=memory: {dataset.name} {dataset.split} takes {_gigabytes(needed)} decoded, but '
                f'{_gigabytes(free)} of memory are free{share}; choose disk or none'
            )
        self.missing = needed
        self._decoded: dict[int, Decoded] = {}
        _memory_caches.add(self)

    def read(self, i: int) -> Decoded | None:
        return self._decoded.get(i)

    def write(self, i: int, example: Decoded) -> None:
        self.missing -= 0 if i in self._decoded else sum(array.nbytes for array in example)
        self._decoded[i] = example


class _DiskCache:
    """One file for each example. Its name depends on the source files, so that a changed source is decoded again.

    Attributes:
        disk: the file system.
        sizes: {path: bytes} of all its files, those that are still to be written among them.
    """

    def __init__(self, dataset: SegmentationDataset, folder: str):
        self._dataset = dataset
        self._folder = folder
        self._full = False
        self._lock = threading.Lock()
        try:
            os.makedirs(folder, exist_ok=True)
            self.disk = os.stat(folder).st_dev
            free = shutil.disk_usage(folder).free - _LEFT_FREE
        except OSError as error:
            raise InputError(
                f'config.data.cache_dir={folder}: cannot be used ({error.strerror}); choose another'
            ) from error
        self._paths = {
            i: os.path.join(folder, hashlib.sha256(os.fsencode(dataset.fingerprint(i))).hexdigest()[:32])
            for i in dataset.usable
        }
        self.sizes = {path: 4 * math.prod(dataset.sizes[i]) for i, path in self._paths.items()}
        there = set(filter(os.path.exists, self.sizes))
        planned = {}  # by the other caches, which may share files with this one
        for cache in _disk_caches:
            if cache.disk == self.disk:
                planned |= cache.sizes
        free = max(0, free - sum(size for path, size in planned.items() if not os.path.exists(path)))
        missing = sum(size for path, size in self.sizes.items() if path not in there and path not in planned)
        state = f'{len(there)} of {len(self.sizes)} are there, {_gigabytes(free)} are free'
        _announce(dataset, folder, decoded_bytes(dataset), state)
        if missing > free:
            raise InputError(
                f'config.data.cache=disk: {dataset.name} {dataset.split} takes {_gigabytes(missing)} more in '
                f'{folder}, but {_gigabytes(free)} are free; {_others_text(folder, self.sizes | planned)}give another '
                'config.data.cache_dir or choose none'
            )
        _disk_caches.add(self)

    def read(self, i: int) -> Decoded | None:
        height, width = self._dataset.sizes[i]
        try:
            pixels = np.memmap(self._paths[i], np.uint8, 'r', shape=(4, height, width))
        except (OSError, ValueError):  # not there, not readable, or of another length: decoded again
            return None
        return pixels.reshape(-1)[: 3 * height * width].reshape(height, width, 3), pixels[3]

    def write(self, i: int, example: Decoded) -> None:
        if self._full:
            return
        try:
            if shutil.disk_usage(self._folder).free < _LEFT_FREE:  # others write there too
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with replacing(self._paths[i], durable=False) as temporary, open(temporary, 'wb') as file:
                for array in example:
                    file.write(np.ascontiguousarray(array))
        except OSError as error:
            with self._lock:
                first, self._full = not self._full, True
            if first:
                _log.warning(
                    '%s: the cache cannot grow (%s); training continues without it', self._folder, error.strerror
                )


def _others_text(folder: str, used: Mapping[str, int]) -> str:
    """What else lies in a disk cache, such as images decoded under other settings: nothing ever removes them."""
    with os.scandir(folder) as entries:
        others = [e.stat().st_size for e in entries if _CACHED.fullmatch(e.name) and e.path not in used]
    if not others:
        return ''
    return f'{len(others)} other files there take {_gigabytes(sum(others))}: delete those that no run needs; '


def _announce(dataset: SegmentationDataset, place: str, needed: int, state: str) -> None:
    _log.info('%s %s: decoded %s in %s; %s', dataset.name, dataset.split, _gigabytes(needed), place, state)


def _gigabytes(count: int) -> str:
    return f'{count / 1e9:.2f} GB'
