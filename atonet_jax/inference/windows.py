"""Label maps of large images by sliding windows: a loop over one compiled program, in memory that does not grow with
the number of windows."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from atonet_jax import ops
from atonet_jax.inference.label_map import argmax
from atonet_jax.inference.views import Views, probabilities, resized_size
from atonet_jax.models import network
from atonet_jax.process.devices import replicated, split_by_batch
from atonet_jax.process.distributed import is_main_process
from atonet_jax.process.progress import Progress

_probabilities = jax.jit(probabilities, static_argnames='model')


class SlidingWindows:
    """(variables, images) -> label maps, from windows that slide over each image.

    Class probabilities are averaged where windows overlap, and over scales and mirror images. The network is compiled
    for at most `batch_size` numbers of windows, whatever the images' sizes, and for those that are smaller than the
    window and clip it. Only the rows of probabilities that windows still add to are kept, so memory grows with an
    image's width and not with its height, apart from the image and its labels.
    """

    def __init__(self, model: nn.Module, mesh: Mesh, views: Views, batch_size: int = 1):
        """
        Args:
            model: the network.
            mesh: the devices that the windows are split over.
            views: with windows.
            batch_size: windows that go through the network together.
        """
        self._mesh = mesh
        self._window = views.window
        self._stride = views.stride or tuple(max(1, 2 * length // 3) for length in views.window)
        self._height = views.height
        mirrored = (False, True) if views.flip else (False,)
        self._views = [(scale, is_mirrored) for scale in views.scales for is_mirrored in mirrored]
        self._batch_size = batch_size
        self._normalization = network(model).normalization
        self._probabilities = functools.partial(_probabilities, model)

    def __call__(self, variables: Mapping[str, Any], images: jax.Array | np.ndarray) -> jax.Array:
        """Label maps of images: [B, H, W, 3] uint8 RGB -> [B, H, W] uint8 train ids.

        Args:
            variables: of the network, on all devices of the mesh.
            images: of one size. They are split over the devices, if these divide them; else the windows are.
        """
        mesh, (count, height, width) = self._mesh, images.shape[:3]
        sharding = split_by_batch(mesh) if count % mesh.size == 0 else replicated(mesh)
        images = jax.device_put(images, sharding)
        strip = min(self._stride[0], self._window[0], height)
        resized = resized_size((height, width), self._height)
        views = [
            _View(
                (height, width),
                tuple(max(1, round(scale * length)) for length in resized),
                mirrored, self._window, self._stride, strip,
            )
            for scale, mirrored in self._views
        ]  # fmt: skip
        classes = self._num_classes(variables, views[0].part)
        bands = [jnp.zeros((count, view.band_height, view.size[1], classes), device=sharding) for view in views]
        strips = []
        windows = sum(len(view.tops) * len(view.lefts) for view in views)
        with Progress('windows', count * windows, 'window', quiet=not is_main_process()) as progress:
            for number in range(-(-height // strip)):
                summed = jnp.zeros((count, strip, width, classes), device=sharding)
                for i, view in enumerate(views):
                    bands[i] = _shifted(bands[i], view.shifts[number], sharding)
                    for top in view.tops_for(number):
                        bands[i] = self._add_row(variables, images, view, bands[i], top, view.starts[number], progress)
                    rows = tuple(taps[number * strip : (number + 1) * strip] for taps in view.rows)
                    is_resized = view.size != (height, width)
                    summed = _plus(summed, bands[i], rows, view.columns, view.starts[number], is_resized, sharding)
                strips.append(_labels(summed, sharding))
        return _joined(strips, height, sharding)

    def _add_row(self, variables, images, view, band, top, band_start, progress):
        """Adds the probabilities of a row of windows to a band, which begins at row `band_start` of its image."""
        at_once = self._windows_at_once(len(images), len(view.lefts))
        for first in range(0, len(view.lefts), at_once):
            lefts = view.lefts[first : first + at_once]
            used = len(lefts)
            lefts = np.pad(lefts, (0, at_once - used), mode='edge')  # the same program for the last ones
            cut = _cut(
                images, top, lefts, view.taps, view.part, view.size, view.mirrored, self._normalization,
                split_by_batch(self._mesh),
            )  # fmt: skip
            of_windows = self._probabilities(variables, cut)
            band = _add(band, of_windows, top - band_start, lefts, used, view.mirrored, band.sharding)
            jax.block_until_ready(band)  # otherwise the windows of all batches would wait in memory
            progress.update(used * len(images))
        return band

    def _num_classes(self, variables, part) -> int:
        window = jax.ShapeDtypeStruct((1, *part, 3), jnp.float32)
        return jax.eval_shape(self._probabilities, variables, window).shape[-1]

    def _windows_at_once(self, images: int, columns: int) -> int:
        """Of each image, in batches of nearly one size: filled ones would cost more than another program."""
        most = max(1, self._batch_size // images)
        batches = -(-columns // most)
        at_once = -(-columns // batches)
        return at_once if images % self._mesh.size == 0 else -(-at_once // self._mesh.size) * self._mesh.size


class _View:
    """Where the windows of one scaled image lie, and which of its rows make each strip of the result.

    Attributes:
        size: (height, width) of the scaled image.
        part: (height, width) of a window.
        mirrored: whether the network sees the windows mirrored.
        tops, lefts: of the windows in the scaled image. Those of a mirrored one begin at the right.
        taps: of the rows and the columns of the scaled image in the image itself.
        rows, columns: taps of the result in the scaled image. Rows go on to the end of the last strip.
        starts: the first row of the scaled image that each strip needs or adds to.
        shifts: by how much it is below that of the strip before.
        band_height: rows that are needed at a time.
    """

    def __init__(self, size, scaled, mirrored, window, stride, strip):
        """Of images of `size`, scaled to `scaled`, with a result in strips of `strip` rows."""
        self.size = scaled
        self.part = tuple(min(part, length) for part, length in zip(window, self.size, strict=True))
        self.mirrored = mirrored
        self.tops, self.lefts = map(_starts, self.size, self.part, stride)
        if mirrored:
            self.lefts = self.size[1] - self.part[1] - self.lefts
        self.taps = tuple(map(ops.half_pixel_taps, size, self.size))
        rows, self.columns = map(ops.half_pixel_taps, self.size, size)
        strips = -(-size[0] // strip)
        self.rows = tuple(np.pad(tap, (0, strips * strip - size[0]), mode='edge') for tap in rows)
        lower, upper, _ = self.rows
        self._windows = np.searchsorted(self.tops, upper[strip - 1 :: strip], side='right')  # rows of them
        # In an enlarged image the first window that a strip adds may begin above the rows that the strip needs.
        first = np.append(self.tops, self.size[0])[[0, *self._windows[:-1]]]
        self.starts = np.minimum(lower[::strip], first)
        self.shifts = np.diff(self.starts, prepend=0)
        bottoms = self.tops[self._windows - 1] + self.part[0]
        self.band_height = int(max(bottoms - self.starts))

    def tops_for(self, strip: int) -> np.ndarray:
        """Tops of the windows that a strip needs, beside those of the strips before."""
        return self.tops[self._windows[strip - 1] if strip else 0 : self._windows[strip]]


def _starts(length: int, part: int, step: int) -> np.ndarray:
    """Where parts begin that cover `length`; the last one ends at the border."""
    step = min(step, part)  # no gaps where the image is smaller than the window
    return np.unique(np.minimum(np.arange(0, length - part + step, step), length - part))


@functools.partial(jax.jit, static_argnames=('part', 'size', 'mirrored', 'normalization', 'sharding'))
def _cut(images, top, lefts, taps, part, size, mirrored, normalization, sharding):
    """Normalised windows of scaled images: [B, H, W, 3] uint8 -> [B * len(lefts), *part, 3]."""

    def window(left):
        if images.shape[1:3] == size:
            pixels = jax.lax.dynamic_slice(images, (0, top, left, 0), (len(images), *part, 3))
            return normalization(pixels)
        rows, columns = (
            tuple(jax.lax.dynamic_slice_in_dim(tap, start, length) for tap in axis)
            for axis, start, length in zip(taps, (top, left), part, strict=True)
        )
        return ops.take_between(images, rows, columns, normalization)

    windows = jax.vmap(window, out_axes=1)(lefts).reshape(-1, *part, 3)
    return jax.lax.with_sharding_constraint(windows[:, :, ::-1] if mirrored else windows, sharding)


@functools.partial(jax.jit, static_argnames=('mirrored', 'sharding'), donate_argnames='band')
def _add(band, probabilities, top, lefts, used, mirrored, sharding):
    """Adds the first `used` of len(lefts) windows of each image, [B * len(lefts), h, w, C], one after the other."""
    probabilities = probabilities[:, :, ::-1] if mirrored else probabilities
    probabilities = probabilities.reshape(len(band), -1, *probabilities.shape[1:])

    def add(i, band):
        start = 0, top, lefts[i], 0
        part = probabilities[:, i]
        return jax.lax.dynamic_update_slice(band, jax.lax.dynamic_slice(band, start, part.shape) + part, start)

    return jax.lax.with_sharding_constraint(jax.lax.fori_loop(0, used, add, band), sharding)


@functools.partial(jax.jit, static_argnames='sharding', donate_argnames='band')
def _shifted(band, rows, sharding):
    """Without the first `rows` rows, and with as many of zeros after the last."""
    below = jnp.pad(band, ((0, 0), (0, band.shape[1]), (0, 0), (0, 0)))
    shifted = jax.lax.dynamic_slice_in_dim(below, jnp.minimum(rows, band.shape[1]), band.shape[1], axis=1)
    return jax.lax.with_sharding_constraint(shifted, sharding)


@functools.partial(jax.jit, static_argnames=('is_resized', 'sharding'), donate_argnames='summed')
def _plus(summed, band, rows, columns, start, is_resized, sharding):
    """`summed`, [B, strip, W, C], plus the mean probabilities in a band, which begins at row `start` of its image."""
    if not is_resized:
        band = band[:, : summed.shape[1]]
    mean = band / jnp.sum(band, axis=-1, keepdims=True)
    if is_resized:
        lower, upper, weights = rows
        mean = ops.take_between(mean, (lower - start, upper - start, weights), columns)
    return jax.lax.with_sharding_constraint(summed + mean, sharding)


@functools.partial(jax.jit, static_argnames='sharding')
def _labels(summed, sharding):
    return jax.lax.with_sharding_constraint(argmax(summed), sharding)


@functools.partial(jax.jit, static_argnames=('height', 'sharding'))
def _joined(strips, height, sharding):
    """[B, strip, W] each -> [B, height, W]."""
    return jax.lax.with_sharding_constraint(jnp.concatenate(strips, axis=1)[:, :height], sharding)
