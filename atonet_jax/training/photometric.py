"""Changes of one image beyond where its pixels lie: colours, blur, and the rectangle that erasing takes.

Colour changes are torchvision's `ColorJitter`: on float32 pixel values 0..255, unrounded, clipped after each change.
Factors are float32 scalars, traced or not, so that programs are the same whatever is drawn.
"""

import jax
import jax.numpy as jnp
import numpy as np


def adjust_brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Image [H, W, 3] of pixel values times `factor`: 0 is black, 1 changes nothing."""
    return jnp.clip(image * factor, 0, 255)


def adjust_contrast(image: jax.Array, factor: jax.Array, inside: jax.Array) -> jax.Array:
    """Image [H, W, 3] of pixel values, drawn to its mean grey (factor 0) or away from it (beyond 1).

    The mean is that of the pixels where `inside`, [H, W] bool, holds; it is 0 where there are none.
    """
    mean = jnp.sum(_grey(image), where=inside) / jnp.maximum(jnp.sum(inside), 1)
    return _blend(mean, image, factor)


def adjust_saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Image [H, W, 3] of pixel values, each drawn to its own grey (factor 0) or away from it (beyond 1)."""
    return _blend(_grey(image)[..., None], image, factor)


def adjust_hue(image: jax.Array, shift: jax.Array) -> jax.Array:
    """Image [H, W, 3] of pixel values with its hue in HSV moved by `shift` turns: red to green to blue to red."""
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value = image.max(-1)
    chroma = value - image.min(-1)
    divisor = jnp.where(chroma > 0, chroma, 1)  # grey has no hue, and needs none
    # Channels are compared with each other, not with `value`: a compiler may compute a channel twice and round it
    # differently, and then no channel equals `value`.
    sextant = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / divisor,
        jnp.where(green >= blue, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    # A channel lacks none of the value within a sixth of a turn of its own hue, all the chroma beyond a third.
    distance = (sextant[..., None] + 6 * shift - np.array([0, 2, 4], np.float32)) % 6
    lack = jnp.clip(jnp.minimum(distance, 6 - distance) - 1, 0, 1)
    return jnp.clip(value[..., None] - chroma[..., None] * lack, 0, 255)


def gaussian_blur(image: jax.Array, sigma: jax.Array, radius: int) -> jax.Array:
    """Image [H, W, C] float32, convolved with a Gaussian that is cut off beyond `radius` pixels and sums to 1.

    The outermost pixels repeat beyond the image.

    Args:
        image: of any unit.
        sigma: standard deviation in pixels, greater than 0.
        radius: in whole pixels; static, as it shapes the program.
    """
    steps = np.arange(radius + 1)
    weights = jnp.exp(-0.5 * (steps / sigma) ** 2)
    weights /= weights[0] + 2 * weights[1:].sum()
    for axis in range(2):
        length = image.shape[axis]
        padded = jnp.pad(image, [(radius, radius) if axis == a else (0, 0) for a in range(3)], mode='edge')

        def shifted(step):
            return jax.lax.slice_in_dim(padded, radius + step, radius + step + length, axis=axis)

        image = weights[0] * image + sum(weights[k] * (shifted(k) + shifted(-k)) for k in range(1, radius + 1))
    return image


def rectangle(
    size: tuple[int, int], area: jax.Array, aspect: jax.Array, down: jax.Array, right: jax.Array
) -> jax.Array:
    """Where a rectangle lies in an image.

    Args:
        size: (height, width) of the image in pixels.
        area: of the rectangle, as a share of the image's.
        aspect: its height by its width; moved no more than it takes to fit the rectangle into the image.
        down: its place, from 0 at the image's top to just below 1 at the bottom.
        right: its place, from 0 at the image's left to just below 1 at the right.

    Returns:
        [H, W] bool: a rectangle of whole pixels, and of at least one.
    """
    area = area * (size[0] * size[1])
    aspect = jnp.clip(aspect, area / size[1] ** 2, size[0] ** 2 / area)

    def covered(length, extent, place):
        extent = jnp.clip(jnp.round(extent), 1, length)
        start = jnp.floor(place * (length - extent + 1))
        index = jnp.arange(length)
        return (index >= start) & (index < start + extent)

    rows = covered(size[0], jnp.sqrt(area * aspect), down)
    columns = covered(size[1], jnp.sqrt(area / aspect), right)
    return rows[:, None] & columns


def _grey(image):
    """Luma of ITU-R BT.601, [H, W] of [H, W, 3]; by channels, which is faster than a sum over the last axis."""
    return 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]


def _blend(start, image, factor):
    return jnp.clip(start + factor * (image - start), 0, 255)
