"""Winograd's F(4x4, 3x3) convolution: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks".

Along each axis a tile of 4 output pixels, which sees 6 input pixels, takes 6 products instead of 12: pixels, taps and
outputs are polynomials, known by their values at five points and at infinity. Between the transforms, which move the
data, stand matrix products over channels, 36 a tile. CPUs gain from it where there are many channels.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

TILE, INPUT_TILE = 4, 6
LEAST_CHANNELS = 128  # with fewer on both sides, XLA's CPU convolution is as fast
_POINTS = np.array([0, 5 / 8, -5 / 8, 3 / 2, -3 / 2])  # the usual 0, 1, -1, 2, -2 have twice the rounding errors


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[6, 6], [6, 3], [4, 6] float64: outputs = to_pixels @ ((from_taps @ taps) * (from_pixels @ pixels))."""
    infinity = np.eye(1, INPUT_TILE, INPUT_TILE - 1)
    from_pixels = np.zeros((INPUT_TILE, INPUT_TILE))
    from_taps = np.vander(_POINTS, 3, increasing=True)
    for i, point in enumerate(_POINTS):
        others = np.delete(_POINTS, i)
        from_pixels[i, :-1] = np.poly(others)[::-1]
        from_taps[i] /= np.prod(point - others)
    from_pixels[-1] = np.poly(_POINTS)[::-1]
    to_pixels = np.vstack([np.vander(_POINTS, TILE, increasing=True), infinity[:, -TILE:]]).T
    return from_pixels, np.vstack([from_taps, infinity[:, -3:]]), to_pixels


FROM_PIXELS, FROM_TAPS, TO_PIXELS = _matrices()


def transform_kernel(kernel: jax.Array) -> list[jax.Array]:
    """[3, 3, C, O] float32 -> six of [6, C, O], one a row of the transformed tile: what `convolve` takes."""
    return [jnp.stack([*_combine(FROM_TAPS, row)]) for row in _combine(FROM_TAPS, kernel)]


@jax.jit
def convolve(x: jax.Array, kernel: Sequence[jax.Array]) -> jax.Array:
    """3x3 convolution of stride 1, zero-padded: [B, H, W, C], a transformed kernel -> [B, H, W, O]."""
    return _multiply(x, kernel, 'ntc,nco->nto')


def input_gradient(cotangent: jax.Array, kernel: jax.Array) -> jax.Array:
    """`convolve` transposed: a cotangent [B, H, W, O], a kernel [3, 3, C, O] -> [B, H, W, C]."""
    return _multiply(cotangent, transform_kernel(kernel[::-1, ::-1]), 'nto,nco->ntc')


def kernel_gradient(x: jax.Array, cotangent: jax.Array) -> jax.Array:
    """`convolve` transposed in its kernel: [B, H, W, C], a cotangent [B, H, W, O] -> [3, 3, C, O]."""
    bottom, right = (-length % TILE for length in cotangent.shape[1:3])
    cotangent = jnp.pad(cotangent, ((0, 0), (0, bottom), (0, right), (0, 0)))
    products = [
        jnp.einsum('ntc,nto->nco', seen, outputs)
        for seen, outputs in zip(_transform_pixels(x), _transform(cotangent, TO_PIXELS.T), strict=True)
    ]
    return jnp.stack([jnp.stack([*_combine(FROM_TAPS.T, row)]) for row in _combine(FROM_TAPS.T, products)])


def _multiply(x: jax.Array, kernel: Sequence[jax.Array], subscripts: str) -> jax.Array:
    batch, height, width, _ = x.shape
    rows, columns = -(-height // TILE), -(-width // TILE)
    by_row = []
    for seen, weights in zip(_transform_pixels(x), kernel, strict=True):
        products = jnp.einsum(subscripts, seen, weights).reshape(INPUT_TILE, batch, rows, columns, -1)
        pixels = jnp.stack([*_combine(TO_PIXELS, products)], 3)
        by_row.append(pixels.reshape(batch, rows, TILE * columns, -1))
    pixels = jnp.stack([*_combine(TO_PIXELS, by_row)], 2)
    return pixels.reshape(batch, TILE * rows, TILE * columns, -1)[:, :height, :width]


def _transform_pixels(x: jax.Array) -> Iterator[jax.Array]:
    """`_transform` of the 6x6 pixels that each tile sees."""
    bottom, right = (1 + -length % TILE for length in x.shape[1:3])
    return _transform(jnp.pad(x, ((0, 0), (1, bottom), (1, right), (0, 0))), FROM_PIXELS)


def _transform(x: jax.Array, matrix: np.ndarray) -> Iterator[jax.Array]:
    """Both axes of each tile of [B, H, W, C] through a matrix: six of [6, tiles, C], one a row of numbers.

    As many pixels along an axis belong to a tile as the matrix has columns; tiles begin every fourth pixel.
    """
    size = matrix.shape[1]

    def pixels_of_tiles(x, axis):
        length = x.shape[axis] - size + 1
        return [jax.lax.slice_in_dim(x, first, first + length, TILE, axis) for first in range(size)]

    for row in _combine(matrix, pixels_of_tiles(x, 1)):
        columns = _combine(matrix, pixels_of_tiles(row, 2))
        yield jnp.stack([column.reshape(-1, x.shape[-1]) for column in columns])


def _combine(matrix: np.ndarray, parts: Iterable[jax.Array]) -> Iterator[jax.Array]:
    """For each row of the matrix the sum of factor * part, term by term: many factors are 0.

    In operations of `jax.lax`, of which a convolution has hundreds: operators take three times as long to trace.
    """
    parts = list(parts)

    def combined(row):
        pairs = [(factor, part) for factor, part in zip(row.tolist(), parts, strict=True) if factor]
        terms = [part if factor == 1 else jax.lax.mul(part, part.dtype.type(factor)) for factor, part in pairs]
        return functools.reduce(jax.lax.add, terms)

    return map(combined, matrix)
