"""Sizes, strides and padding of windows, as convolutions and pools share them."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')  # of a convolution's arrays
Pair = tuple[int, int]
IntOrPair = int | Sequence[int]
Padding = int | Sequence[int] | Sequence[Sequence[int]]


def pair(value: IntOrPair) -> Pair:
    """(rows, columns) of an int, which stands for both, or of a pair."""
    if hasattr(value, '__len__'):
        rows, columns = value
        return int(rows), int(columns)
    return int(value), int(value)


def padding_pairs(padding: Padding) -> tuple[Pair, Pair]:
    """((top, bottom), (left, right)) of an int, of (rows, columns), or of that itself."""
    rows, columns = padding if hasattr(padding, '__len__') else (padding, padding)
    return pair(rows), pair(columns)


class ConvWindow(NamedTuple):
    """What the shapes of a convolution's arrays do not tell.

    Attributes:
        stride: of rows and columns.
        padding: ((top, bottom), (left, right)), zeros.
        dilation: of rows and columns.
        groups: of channels.
    """

    stride: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair
    groups: int

    def output_size(self, size: Pair, kernel_size: Pair) -> Pair:
        """(H', W') of a map of (H, W)."""
        sides = zip(size, kernel_size, self.stride, self.padding, self.dilation, strict=True)
        rows, columns = (
            (length + sum(padding) - dilation * (taps - 1) - 1) // stride + 1
            for length, taps, stride, padding, dilation in sides
        )
        return rows, columns


class TransposedWindow(NamedTuple):
    """What the shapes of a transposed convolution's arrays do not tell.

    Attributes:
        stride: factors by which rows and columns grow.
        padding: rows and columns cut from each side.
        output_padding: rows at the bottom and columns on the right beyond that.
        groups: of channels.
    """

    stride: Pair
    padding: Pair
    output_padding: Pair
    groups: int

    def output_size(self, size: Pair, kernel_size: Pair) -> Pair:
        """(H', W') of a map of (H, W)."""
        sides = zip(size, kernel_size, self.stride, self.padding, self.output_padding, strict=True)
        rows, columns = ((old - 1) * stride - 2 * cut + taps + more for old, taps, stride, cut, more in sides)
        return rows, columns

    def of_convolution(self) -> ConvWindow:
        """Of the convolution that this one is transposed of."""
        rows, columns = self.padding
        return ConvWindow(self.stride, ((rows, rows), (columns, columns)), (1, 1), self.groups)


class PoolWindow(NamedTuple):
    """Where the windows of a pool lie.

    Attributes:
        size: rows and columns of a window.
        stride: from one window to the next.
        padding: ((top, bottom), (left, right)).
    """

    size: Pair
    stride: Pair
    padding: tuple[Pair, Pair]

    def output_size(self, size: Pair) -> Pair:
        """(H', W') of a map of (H, W)."""
        rows, columns = (
            (length + before + after - window) // stride + 1
            for length, window, stride, (before, after) in zip(size, *self, strict=True)
        )
        return rows, columns

    def parts(self, x: jax.Array, padding_value: float = 0.0) -> list[jax.Array]:
        """[B, H, W, C] -> a [B, H', W', C] for each place in the window, row by row: the pixels that lie there."""
        height, width = self.output_size(x.shape[1:3])
        x = jnp.pad(x, ((0, 0), *self.padding, (0, 0)), constant_values=padding_value)
        rows, columns = self.stride
        return [
            x[:, top : top + rows * (height - 1) + 1 : rows, left : left + columns * (width - 1) + 1 : columns]
            for top, left in np.ndindex(*self.size)
        ]

    def first_largest(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of each window the largest pixel, and its place: the first of equal ones, the last that is NaN.

        Where all pixels are -infinity it may be a place in the padding.

        Returns:
            [B, H', W', C] of x's dtype; [B, H', W', C], int8 where the window has at most 128 places, else int32.
        """
        dtype = jnp.int8 if self.size[0] * self.size[1] <= 128 else jnp.int32  # TFLite cannot select among uint8
        largest, *others = self.parts(x, -jnp.inf)
        places = jnp.zeros(largest.shape, dtype)
        for place, values in enumerate(others, start=1):
            larger = (values > largest) | jnp.isnan(values)
            largest, places = jnp.where(larger, values, largest), jnp.where(larger, dtype(place), places)
        return largest, places

    def first_inside(self, output_size: Pair) -> np.ndarray:
        """[H', W'] int32: the place of each window's first pixel that is no padding."""
        rows, columns = (
            np.maximum(before - stride * np.arange(length), 0)
            for length, stride, (before, _) in zip(output_size, self.stride, self.padding, strict=True)
        )
        return (rows[:, None] * self.size[1] + columns).astype(np.int32)
