"""Resizing of maps.

Each kind is a linear map along one axis at a time, so each is a small constant matrix. Bilinear enlargement by a whole
factor needs no matrix: every output pixel is one of `factor` fixed blends of two neighbours, its phases.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from atonet_jax.ops import canvas, plain
from atonet_jax.ops.cpu import has_fast_paths, resizing


def resize(x: jax.Array, size: tuple[int, int], upsampling: str) -> jax.Array:
    """[B, h, w, C] -> [B, *size, C], bilinear; `upsampling` is 'half_pixel' or 'align_corners'."""
    if tuple(x.shape[1:3]) == tuple(size):
        return x
    return (resize_align_corners if upsampling == 'align_corners' else resize_bilinear)(x, size)


def resize_bilinear(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear half-pixel resize (no antialiasing) of [B, H, W, C] to [B, *size, C]."""
    return canvas.resize(x, size, 'half_pixel') if canvas.is_used() else named_resize_bilinear(x, size)


@functools.partial(jax.jit, static_argnames='size')  # a call by name, which the ONNX export recognises
def named_resize_bilinear(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    for axis in (2, 1):  # columns first: the step on the wider map then moves whole rows
        old, new = x.shape[axis], size[axis - 1]
        if new == old:
            continue
        if new % old == 0:
            phases = jnp.stack(enlarged_phases(x, new // old, axis), axis + 1)
            x = phases.reshape(*x.shape[:axis], new, *x.shape[axis + 1 :])
        else:
            x = plain.map_axis(x, half_pixel_matrix(old, new), axis)  # on CPUs too
    return x


def resize_align_corners(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear resize of [B, H, W, C] to [B, *size, C] in which the corner pixels' centres stay where they are."""
    if canvas.is_used():
        return canvas.resize(x, size, 'align_corners')
    rows, columns = (align_corners_matrix(old, new) for old, new in zip(x.shape[1:3], size, strict=True))
    return map_axis(map_axis(x, rows, 1), columns, 2)


def resize_nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resize of [B, H, W, C] to [B, *size, C]: pixel i takes pixel floor(i * old / new), as in torch's 'nearest'."""
    return canvas.resize_nearest(x, size) if canvas.is_used() else named_resize_nearest(x, size)


@functools.partial(jax.jit, static_argnames='size')  # likewise
def named_resize_nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    for axis in (2, 1):
        old, new = x.shape[axis], size[axis - 1]
        if new % old == 0:
            x = jnp.repeat(x, new // old, axis)
        else:
            x = jnp.take(x, np.arange(new) * old // new, axis)
    return x


def resize_bicubic(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bicubic half-pixel resize (no antialiasing) of [B, H, W, C] to [B, *size, C], as in torch and OpenCV."""
    canvas.refuse('bicubic resizing')
    rows, columns = (_bicubic_matrix(old, new) for old, new in zip(x.shape[1:3], size, strict=True))
    return map_axis(map_axis(x, rows, 1), columns, 2)


def phase_factors(old: tuple[int, int], new: tuple[int, int], most: int | None = None) -> tuple[int, int] | None:
    """Row and column factors of an enlargement by whole factors from `old` to `new`, which can go phase by phase.

    None where it is not by whole factors, or has more than `most` phases: programs that spell out each grow with them.
    """
    if new[0] % old[0] or new[1] % old[1]:
        return None
    factors = new[0] // old[0], new[1] // old[1]
    return factors if most is None or factors[0] * factors[1] <= most else None


def enlarged_phases(x: jax.Array, factor: int, axis: int) -> list[jax.Array]:
    """Bilinear half-pixel enlargement by a whole factor, not interleaved.

    Element p holds output pixels p, p + factor, p + 2 * factor, ... along `axis`, in the shape of `x`.
    """
    pixels = with_neighbours(x, axis)
    return [
        sum(weight * part for weight, part in zip(weights, pixels, strict=True) if weight)
        for weights in phase_weights(factor).tolist()
    ]


def with_neighbours(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The pixels before those of `x` along `axis`, these, and those after them; the outermost stand for their own."""
    length = x.shape[axis]
    before = jnp.concatenate([_slice(x, 0, 1, axis), _slice(x, 0, length - 1, axis)], axis)
    after = jnp.concatenate([_slice(x, 1, length, axis), _slice(x, length - 1, length, axis)], axis)
    return before, x, after


def phase_weights(factor: int) -> np.ndarray:
    """[factor, 3] float32: what each phase of an enlargement by `factor` takes of `with_neighbours`."""
    offsets = (np.arange(factor) + 0.5) / factor - 0.5
    return np.stack([np.maximum(-offsets, 0), 1 - np.abs(offsets), np.maximum(offsets, 0)], 1).astype(np.float32)


def _slice(x: jax.Array, start: int, stop: int, axis: int) -> jax.Array:
    return jax.lax.slice_in_dim(x, start, stop, axis=axis)


def map_axis(x: jax.Array, matrix: np.ndarray, axis: int) -> jax.Array:
    """Applies `matrix` [new, old] along axis 1 or 2 of [B, H, W, C].

    On CPUs a matrix of few taps a row is no product of matrices (`ops.cpu.resizing`).
    """
    faster = has_fast_paths() and resizing.is_faster(matrix)
    return (resizing.map_axis if faster else plain.map_axis)(x, matrix, axis)


def half_pixel_matrix(old: int, new: int) -> np.ndarray:
    """[new, old] float32: bilinear resizing in which pixels are areas, and the borders stay where they are."""
    return _two_tap_matrix(_half_pixel_positions(old, new), old)


def align_corners_matrix(old: int, new: int) -> np.ndarray:
    """[new, old] float32: bilinear resizing that leaves the first and the last pixel's centre where they are."""
    return _two_tap_matrix(np.arange(new) * ((old - 1) / max(new - 1, 1)), old)


def _bicubic_matrix(old: int, new: int) -> np.ndarray:
    """[new, old] float32: the four taps of Keys ("Cubic Convolution Interpolation for Digital Image Processing").

    Taps beyond the border take its pixel.
    """
    a = -0.75  # the kernel's slope at 1
    positions = _half_pixel_positions(old, new)
    matrix = np.zeros((new, old))
    for offset in (-1, 0, 1, 2):
        taps = np.floor(positions).astype(int) + offset
        distances = np.abs(positions - taps)
        near = ((a + 2) * distances - (a + 3)) * distances**2 + 1
        far = ((distances - 5) * distances + 8) * distances * a - 4 * a
        np.add.at(matrix, (np.arange(new), np.clip(taps, 0, old - 1)), np.where(distances <= 1, near, far))
    return matrix.astype(np.float32)


def _half_pixel_positions(old: int, new: int) -> np.ndarray:
    return (np.arange(new) + 0.5) * (old / new) - 0.5


def half_pixel_taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `half_pixel_matrix` takes for each new pixel: the lower and the upper old one, and the upper one's weight.

    Returns:
        [new] int32, [new] int32, [new] float32.
    """
    lower, upper, weights = _two_taps(_half_pixel_positions(old, new), old)
    return lower.astype(np.int32), upper.astype(np.int32), weights.astype(np.float32)


def take_between(
    x: jax.Array,
    rows: Sequence[jax.Array],
    columns: Sequence[jax.Array],
    function: Callable[[jax.Array], jax.Array] = lambda pixels: pixels,
) -> jax.Array:
    """Some rows and columns of a bilinear resize: [B, H, W, C] -> [B, len(rows), len(columns), C].

    Args:
        x: the map.
        rows, columns: taps, or parts of them, as `half_pixel_taps` gives them.
        function: of each pixel of `x`, before the blending.
    """

    def row(taken):
        lower, upper = (function(x[:, taken][:, :, tap]) for tap in columns[:2])
        return _between(lower, upper, columns[2][:, None])

    return _between(row(rows[0]), row(rows[1]), rows[2][:, None, None])


def _between(lower, upper, weights):
    return (1 - weights) * lower + weights * upper


def _two_taps(positions: Sequence[float], old: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower and upper pixel of linear interpolation at `positions`, clamped to the first and last, and its weight."""
    positions = np.clip(positions, 0, old - 1)
    lower = np.floor(positions).astype(int)
    return lower, np.ceil(positions).astype(int), positions - lower


def _two_tap_matrix(positions: Sequence[float], old: int) -> np.ndarray:
    """[len(positions), old]: linear interpolation at `positions`, clamped to the first and last pixel."""
    lower, upper, weights = _two_taps(positions, old)
    matrix = np.zeros((len(positions), old))
    rows = np.arange(len(positions))
    np.add.at(matrix, (rows, lower), 1 - weights)
    np.add.at(matrix, (rows, upper), weights)
    return matrix.astype(np.float32)
