"""Images on a larger canvas: one program for images of many sizes, with the results that each has by itself.

Within `on_canvas` a map is the upper left part of an array that is as large as the map of the canvas would be. Where
that part ends is known when the program runs, not when it is compiled. The operations of `ops` that look at
neighbouring pixels take what lies beyond it for padding, or refuse.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from atonet_jax.errors import InputError
from atonet_jax.ops.window import Pair, TransposedWindow

Length = int | jax.Array  # of one side: known when a program is traced, or when it runs
STEP = 64  # pixels; sides of a canvas are multiples of it, so that its maps of all strides are of whole pixels


class NotOnCanvasError(InputError):
    """An operation that depends on the size of the image in a way that a canvas cannot follow."""


@dataclasses.dataclass(frozen=True)
class _Canvas:
    """Where the image lies. Attributes as in `on_canvas`."""

    size: Pair
    image: tuple[jax.Array, jax.Array]
    multiple_of: int
    step: int

    def stride(self, axis: int, length: int) -> int:
        """Of a map whose canvas has `length` rows (axis 0) or columns (axis 1): a power of two."""
        stride = 1
        while -(-self.size[axis] // stride) > length:
            stride *= 2
        if -(-self.size[axis] // stride) != length:
            raise NotOnCanvasError(f'a map of {length} pixels on a canvas of {self.size[axis]}: no power of two')
        return stride

    def length(self, axis: int, length: int) -> jax.Array:
        """Rows or columns of the image's map, within `length` of the canvas."""
        return -(-self.image[axis] // self.stride(axis, length))

    def least(self, axis: int, length: int) -> int:
        """What `length` gives at least."""
        return -(-(self.size[axis] - self.step + 1) // self.stride(axis, length))


_current = contextvars.ContextVar('canvas', default=None)


@contextlib.contextmanager
def on_canvas(size: Pair, image: tuple[jax.Array, jax.Array], multiple_of: int = 1, step: int = STEP) -> Iterator[None]:
    """Traces a program for images of any size up to `size`, which lie at the upper left. Needs no gradients.

    Args:
        size: (height, width) of the canvas, multiples of `STEP`.
        image: height and width of the image, int32 scalars. The height is above that of the canvas - `step`.
        multiple_of: divides them.
        step: see `image`.
    """
    token = _current.set(_Canvas(size, image, multiple_of, step))
    try:
        yield
    finally:
        _current.reset(token)


def is_used() -> bool:
    """Whether the program that is being traced is for a canvas."""
    return _current.get() is not None


def refuse(operation: str) -> None:
    """Raises NotOnCanvasError: on a canvas, where the operation would give other values."""
    if is_used():
        raise NotOnCanvasError(f'{operation} depends on the size of the image; it needs a program for each size')


def least_rows(rows: int) -> int:
    """The fewest rows that the image's map may have, of `rows` on the canvas."""
    return _current.get().least(0, rows)


def image_size(size: Sequence[int]) -> tuple[Length, Length]:
    """(height, width) of the image's map, of `size` on the canvas; without a canvas `size`."""
    canvas = _current.get()
    if canvas is None:
        return tuple(size)
    rows, columns = (canvas.length(axis, length) for axis, length in enumerate(size))
    return rows, columns


def masked(x: jax.Array, value: float = 0.0) -> jax.Array:
    """[B, H, W, C] with `value` beyond the image; without a canvas as it is."""
    if not is_used() or x.shape[1:3] == (1, 1):
        return x
    rows, columns = image_size(x.shape[1:3])
    is_inside = (jnp.arange(x.shape[1]) < rows)[:, None] & (jnp.arange(x.shape[2]) < columns)
    return jnp.where(is_inside[:, :, None], x, jnp.asarray(value, x.dtype))


def check_window(x: jax.Array, extent: Pair, stride: Pair, padding: tuple[Pair, Pair], operation: str) -> None:
    """Checks that windows over `x` give the map of the next stride, whatever the size of the image.

    Of n pixels they must give n / stride, rounded up, and the stride must be a power of two. Without a canvas nothing
    is checked.

    Args:
        x: [B, H, W, C].
        extent: rows and columns from the first pixel of a window to its last, both included.
        stride: from one window to the next.
        padding: ((top, bottom), (left, right)).
        operation: for the error.

    Raises:
        NotOnCanvasError: they give another number.
    """
    canvas = _current.get()
    if canvas is None:
        return
    for axis, (length, reach, step, sides) in enumerate(zip(x.shape[1:3], extent, stride, padding, strict=True)):
        beyond = reach - sum(sides)  # n pixels give (n - beyond) // step + 1
        always = beyond == 1 and step.bit_count() == 1
        if not always and (not 1 <= beyond <= step or canvas.multiple_of % (canvas.stride(axis, length) * step)):
            refuse(f'{operation} of extent {reach}, stride {step} and padding {sides}')


def rounded_ratio(a: Length, b: Length) -> jax.Array:
    """a / b as a whole number, as Python's `round` gives it: halves to the even one."""
    whole, rest = jnp.divmod(a, b)
    return whole + ((2 * rest > b) | ((2 * rest == b) & (whole % 2 == 1)))


def check_transposed(x: jax.Array, taps: Pair, window: TransposedWindow) -> None:
    """Checks that a transposed convolution of `x` gives the map of the next finer stride, whatever the image's size.

    Raises:
        NotOnCanvasError: it gives another number of pixels.
    """
    canvas = _current.get()
    for axis, (length, count, step, cut, more) in enumerate(
        zip(x.shape[1:3], taps, window.stride, window.padding, window.output_padding, strict=True)
    ):
        if count - 2 * cut + more != step or canvas.multiple_of % canvas.stride(axis, length):
            refuse(f'transposed convolution of {count} taps, stride {step} and padding {cut}')


def resize(x: jax.Array, size: Pair, upsampling: str) -> jax.Array:
    """`ops.resize` of the image's map; `size` is of the result's canvas."""
    sides = zip(image_size(x.shape[1:3]), image_size(size), size, strict=True)
    for axis, (old, new, length) in reversed(list(enumerate(sides, start=1))):  # on wider maps whole rows are moved
        if x.shape[axis] != length:
            x = resize_part(x, old, new, length, axis, upsampling)
    return x


def resize_part(x: jax.Array, old: Length, new: Length, length: int, axis: int, upsampling: str) -> jax.Array:
    """Bilinear resize along `axis`, 1 or 2, of the first `old` pixels of [B, H, W, C].

    `length` pixels result, of which the first `new` mean something. `upsampling` is as in `ops.resize`.
    """
    lower, upper, weights = _taps(old, new, length, upsampling)
    weights = weights.astype(x.dtype).reshape(-1, *(1, 1)[axis - 1 :])
    return _take(x, lower, axis) * (1 - weights) + _take(x, upper, axis) * weights


def _take(x: jax.Array, taps: jax.Array, axis: int) -> jax.Array:
    pixels = x.at[:, taps] if axis == 1 else x.at[:, :, taps]
    return pixels.get(mode='promise_in_bounds')


def _taps(old: Length, new: Length, count: int, upsampling: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What `half_pixel_matrix` or `align_corners_matrix` take for the first `count` pixels, by whole numbers."""
    pixels = jnp.arange(count)
    if upsampling == 'align_corners':
        positions, unit = pixels * (old - 1), jnp.maximum(new - 1, 1)
    else:
        positions, unit = (2 * pixels + 1) * old - new, 2 * new
    positions = jnp.clip(positions, 0, (old - 1) * unit)
    lower = positions // unit
    return lower, jnp.minimum(lower + 1, old - 1), (positions - lower * unit) / unit


def resize_nearest(x: jax.Array, size: Pair) -> jax.Array:
    """`ops.resize_nearest` of the image's map; `size` is of the result's canvas."""
    sides = zip(image_size(x.shape[1:3]), image_size(size), size, strict=True)
    for axis, (old, new, count) in reversed(list(enumerate(sides, start=1))):
        x = _take(x, jnp.minimum(jnp.arange(count) * old // new, old - 1), axis)
    return x


def adaptive_pool_matrix(old: Length, new: Length, size: tuple[int, int]) -> jax.Array:
    """`ops.adaptive_pool_matrix`, [new, old], at the upper left of a matrix of `size`. Other rows mean nothing."""
    cells, pixels = jnp.arange(size[0])[:, None], jnp.arange(size[1])
    start, stop = cells * old // new, -(-(cells + 1) * old // new)
    is_of_cell = (start <= pixels) & (pixels < jnp.minimum(stop, old))
    return is_of_cell / jnp.maximum(stop - start, 1).astype(jnp.float32)
