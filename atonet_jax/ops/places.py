"""The gradient of max-pooling where the place of each window's largest pixel is known."""

import jax
import jax.numpy as jnp

from atonet_jax.ops.window import PoolWindow


def place_gradient(
    cotangent: jax.Array, places: jax.Array, window: PoolWindow, shape: tuple[int, int, int, int]
) -> jax.Array:
    """Gradient of [B, H, W, C] = `shape`: each [B, H', W', C] cotangent goes to the place of its window."""
    by_place = [jnp.where(places == place, cotangent, 0) for place in range(window.size[0] * window.size[1])]
    size, stride, ((top, _), (left, _)) = window
    if (size, stride, top, left) == ((2, 2), (2, 2), 0, 0):
        gradient = _interleave(by_place)
    elif (size, stride, top, left) == ((3, 3), (2, 2), 1, 1):
        gradient = _interleave(_sum_of_overlapping(by_place))
    else:
        zeros = jax.ShapeDtypeStruct(shape, cotangent.dtype)
        return jax.linear_transpose(window.parts, zeros)(by_place)[0]
    below, right = (max(old - new, 0) for old, new in zip(shape[1:3], gradient.shape[1:3], strict=True))
    return jnp.pad(gradient[:, : shape[1], : shape[2]], ((0, 0), (0, below), (0, right), (0, 0)))


def _sum_of_overlapping(by_place: list[jax.Array]) -> list[jax.Array]:
    """What the pixels of even and odd rows and columns take. One of even row and column lies in one window alone."""
    top, middle, bottom = by_place[:3], by_place[3:6], by_place[6:]

    def both(one, next_one, axis):
        """Sums what a pixel takes as the last of a window and as the first of the next."""
        length = next_one.shape[axis]
        following = jax.lax.slice_in_dim(next_one, 1, length, axis=axis)
        return one + jnp.concatenate([following, jnp.zeros_like(jax.lax.slice_in_dim(next_one, 0, 1, axis=axis))], axis)

    return [
        middle[1],
        both(middle[2], middle[0], 2),
        both(bottom[1], top[1], 1),
        both(both(bottom[2], top[2], 1), both(bottom[0], top[0], 1), 2),
    ]


def _interleave(parts: list[jax.Array]) -> jax.Array:
    """Four [B, h, w, C], of even rows' even and odd columns, then of odd rows' -> [B, 2 * h, 2 * w, C]."""
    batch, height, width, channels = parts[0].shape
    rows = [jnp.stack(columns, 3).reshape(batch, height, 2 * width, channels) for columns in (parts[:2], parts[2:])]
    return jnp.stack(rows, 2).reshape(batch, 2 * height, 2 * width, channels)
