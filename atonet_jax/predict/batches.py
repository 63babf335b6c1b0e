"""Decoding, computing and drawing at the same time. Pictures of one program go through the network together."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from atonet_jax.errors import InputError
from atonet_jax.predict.labeling import Labeler


def in_order_ahead(function: Callable, things: Iterable[Any], pool: ThreadPoolExecutor) -> Iterator[tuple[Any, Future]]:
    """Yields (thing, future of function(thing)) and computes a few ahead."""
    waiting = collections.deque()
    for thing in things:
        waiting.append((thing, pool.submit(function, thing)))
        if len(waiting) > _workers() + 1:
            yield waiting.popleft()
    yield from waiting


def predicted(
    images: Iterable[tuple[Any, np.ndarray]], label: Labeler, batch_size: int
) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
    """Yields (key, image, labels) for each (key, image): [H, W, 3] uint8 -> [H, W] uint8 train ids.

    The results of a batch are yielded while the devices work on the next one. Images of one program keep their order. A
    batch that is not full is filled with its last image, so that one program takes all.

    Args:
        images: with their keys.
        label: gives the label maps of a batch.
        batch_size: images of a batch.
    """
    under_way = None
    for batch in _batches(images, label, batch_size):
        pixels = [image for _, image in batch]
        labels = label(pixels + (batch_size - len(pixels)) * pixels[-1:])
        if under_way is not None:
            yield from _results(*under_way)
        under_way = batch, labels
    if under_way is not None:
        yield from _results(*under_way)


def _results(batch, labels):
    for (key, image), of_one in zip(batch, np.asarray(labels)):
        yield key, image, of_one[: image.shape[0], : image.shape[1]]


def _batches(images, label, batch_size) -> Iterator[list[tuple[Any, np.ndarray]]]:
    """Batches of one program each. If many wait, the oldest is yielded although it is not full."""
    waiting = {}
    for key, image in images:
        program = label.program_of(image.shape[:2])
        batch = waiting.setdefault(program, [])
        batch.append((key, image))
        if len(batch) == batch_size:
            yield waiting.pop(program)
        elif sum(map(len, waiting.values())) > 4 * batch_size:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


class Background:
    """Runs functions in threads, a few at a time: `submit` waits for a free place. A context manager.

    On leaving it all functions are done. One worker runs them in order.
    """

    def __init__(self, workers: int | None = None):
        self._pool = ThreadPoolExecutor(workers or _workers())
        self._running = collections.deque()

    def __enter__(self) -> 'Background':
        return self

    def __exit__(self, kind, *_) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for future in self._running:
                future.result()

    def submit(self, function: Callable, *args) -> None:
        """Raises:
        InputError: an earlier one raised it.
        """
        self._running.append(self._pool.submit(function, *args))
        while len(self._running) > 2 * _workers():
            self._running.popleft().result()


def _workers() -> int:
    return min(8, os.cpu_count() or 1)


def errors_apart(
    ahead: Iterable[tuple[Any, Future]], failed: Callable[[Any, InputError], None]
) -> Iterator[tuple[Any, np.ndarray]]:
    """Yields the results of those that succeeded, and gives the errors of the others to `failed`."""
    for thing, future in ahead:
        try:
            image = future.result()
        except InputError as error:
            failed(thing, error)
        else:
            yield thing, image
