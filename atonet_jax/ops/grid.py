"""Averages of a map over a grid of square cells, as spatial pyramid pooling takes them, and back to the map's size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from atonet_jax.ops import canvas, plain
from atonet_jax.ops.canvas import Length
from atonet_jax.ops.pooling import adaptive_avg_pool
from atonet_jax.ops.resize import resize_align_corners, resize_bilinear


class Grid(NamedTuple):
    """Cells of a grid; on a canvas (`ops.canvas`) the array has more columns."""

    rows: int
    columns: Length


def _square_grid(rows: int, size: tuple[int, int]) -> Grid:
    """So many rows over a map of (height, width), and columns that make cells as square as can be."""
    return Grid(rows, max(1, round(rows * size[1] / size[0])))


def pool_to_grid(x: jax.Array, rows: int) -> tuple[jax.Array, Grid]:
    """Averages of [B, H, W, C] over the cells of its square grid: [B, rows, columns, C], and the grid."""
    if not canvas.is_used():
        grid = _square_grid(rows, x.shape[1:3])
        return adaptive_avg_pool(x, grid), grid
    height, width = canvas.image_size(x.shape[1:3])
    grid = Grid(rows, jnp.maximum(1, canvas.rounded_ratio(rows * width, height)))
    x = canvas.masked(x)
    most = rows, max(1, -(-rows * x.shape[2] // canvas.least_rows(x.shape[1])))
    for axis, (old, new, cells) in enumerate(zip((height, width), grid, most, strict=True), start=1):
        x = plain.map_axis(x, canvas.adaptive_pool_matrix(old, new, (cells, x.shape[axis])), axis)
    return x, grid


def enlarge_grid(pooled: jax.Array, grid: Grid, size: tuple[int, int], upsampling: str) -> jax.Array:
    """What became of `pool_to_grid`'s averages, [B, rows, columns, C], enlarged bilinearly to [B, *size, C]."""
    if not canvas.is_used():
        return (resize_align_corners if upsampling == 'align_corners' else resize_bilinear)(pooled, size)
    for axis, (cells, pixels, length) in enumerate(zip(grid, canvas.image_size(size), size, strict=True), start=1):
        pooled = canvas.resize_part(pooled, cells, pixels, length, axis, upsampling)
    return pooled
