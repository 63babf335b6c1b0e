"""What the label map itself says of class boundaries: edges, and distances to another class. Integers throughout."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# tan(22.5 degrees) in units of 2 ** -15, as OpenCV rounds it.
_TANGENT = 13_573


def edge_map(labels: jax.Array, border: int = 0, width: int = 4) -> jax.Array:
    """Canny's edges of the label map, made wider: PIDNet's boundary target.

    Args:
        labels: [B, H, W] uint8 train ids, ignored pixels included: 255 is a value as any other.
        border: pixels along the map's border that hold no edge before it is made wider.
        width: side of the box of ones that makes edges wider, as OpenCV centres it: pixel p becomes an edge where one
            of p - width // 2 .. p - width // 2 + width - 1 is one, along both axes.

    Returns:
        [B, H, W] bool.
    """
    edges = canny(labels)
    if border:
        rows, columns = ((np.arange(n) >= border) & (np.arange(n) < n - border) for n in labels.shape[1:])
        edges &= rows[:, None] & columns
    return _dilate(_dilate(edges, width, 1), width, 2)


def canny(labels: jax.Array) -> jax.Array:
    """Edges of [B, H, W] uint8, bool, where OpenCV's Canny with thresholds below 1 (3x3 Sobel, L1 norm) has them.

    Such thresholds count as 0, so every local maximum of the gradient across its own direction is an edge.
    """
    pixels = _shifts(labels.astype(jnp.int32), 'edge')
    gx = sum(weight * (pixels(row, 1) - pixels(row, -1)) for row, weight in ((-1, 1), (0, 2), (1, 1)))
    gy = sum(weight * (pixels(1, column) - pixels(-1, column)) for column, weight in ((-1, 1), (0, 2), (1, 1)))
    norm = jnp.abs(gx) + jnp.abs(gy)
    at = _shifts(norm, 'constant')

    # tan(67.5 degrees) = tan(22.5 degrees) + 2
    steepness, flat = jnp.abs(gy) << 15, jnp.abs(gx) * _TANGENT
    is_flat, is_steep = steepness < flat, steepness > flat + (jnp.abs(gx) << 16)
    across = (norm > at(0, -1)) & (norm >= at(0, 1))
    along = (norm > at(-1, 0)) & (norm >= at(1, 0))
    falling = (norm > at(-1, -1)) & (norm > at(1, 1))
    rising = (norm > at(-1, 1)) & (norm > at(1, -1))
    diagonal = jnp.where((gx ^ gy) < 0, rising, falling)
    return (norm > 0) & jnp.where(is_flat, across, jnp.where(is_steep, along, diagonal))


def boundary_weights(labels: jax.Array, distances: Sequence[int], weights: Sequence[float]) -> jax.Array:
    """Weights by the Euclidean distance to the nearest pixel of another label, [B, H, W] uint8 -> float32.

    Args:
        labels: any values; what lies beyond the map's border is no pixel.
        distances: in pixels, ascending.
        weights: weights[i] of pixels that are nearer than distances[i], and not nearer than distances[i - 1]; the last
            one of those at distances[-1] or farther, or without another label in the map.
    """
    squared = _squared_distances(labels, distances[-1])
    result = jnp.full(labels.shape, weights[-1], jnp.float32)
    for distance, weight in reversed(list(zip(distances, weights[:-1], strict=True))):
        result = jnp.where(squared < distance**2, weight, result)
    return result


def _squared_distances(labels: jax.Array, limit: int) -> jax.Array:
    """[B, H, W] int32: squared distance to the nearest pixel of another label where it is below `limit` ** 2.

    First along columns. Then every other column in reach: its pixel in the same row is of another label, or the
    nearest other label of that column is known.
    """
    height, width = labels.shape[1:]
    far = np.int32(2 * limit**2)
    rows = jnp.arange(height, dtype=jnp.int32)[:, None]
    changes = labels[:, 1:] != labels[:, :-1]
    run_starts = jnp.pad(jnp.where(changes, rows[1:], 0), ((0, 0), (1, 0), (0, 0)))
    run_stops = jnp.pad(jnp.where(changes, rows[1:], height), ((0, 0), (0, 1), (0, 0)), constant_values=height)
    starts, stops = jax.lax.cummax(run_starts, axis=1), jax.lax.cummin(run_stops, axis=1, reverse=True)
    above = jnp.where(starts > 0, rows - starts + 1, limit)
    below = jnp.where(stops < height, stops - rows, limit)
    vertical = jnp.minimum(jnp.minimum(above, below), limit) ** 2

    reach = min(limit, width) - 1
    sides = (0, 0), (0, 0), (reach, reach)
    padded = jnp.pad(vertical, sides, constant_values=far)
    ids = labels.astype(jnp.int32)
    padded_ids = jnp.pad(ids, sides, constant_values=-1)

    def take_columns(offset, nearest):
        for start in (reach - offset, reach + offset):
            there, ids_there = (jax.lax.dynamic_slice_in_dim(x, start, width, 2) for x in (padded, padded_ids))
            is_same = (ids_there == ids) | (ids_there < 0)
            nearest = jnp.minimum(nearest, offset**2 + jnp.where(is_same, there, 0))
        return nearest

    return jax.lax.fori_loop(1, reach + 1, take_columns, vertical)


def _shifts(x: jax.Array, mode: str):
    """A function of (rows, columns) in -1 .. 1: the map [B, H, W] in which pixel p holds `x` at p + (rows, columns)."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1)), mode=mode)
    height, width = x.shape[1:]
    return lambda rows, columns: padded[:, 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]


def _dilate(edges: jax.Array, width: int, axis: int) -> jax.Array:
    """bool, true at p where any of p - width // 2 .. p - width // 2 + width - 1 along `axis` is."""
    sides = [(0, 0)] * edges.ndim
    sides[axis] = (width // 2, width - 1 - width // 2)
    padded = jnp.pad(edges, sides)
    length = edges.shape[axis]
    slices = (jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i in range(width))
    return functools.reduce(jnp.logical_or, slices)
