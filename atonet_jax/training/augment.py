"""Training augmentation on the device: scale, crop, flip, normalise as the published runs did, and more if asked.

The host (data/sampling.py, data/pipeline.py) sends of each image only the window that its crop shows, as bytes, and the
numbers that place it. The result is that of scaling the whole image, turning it about the crop's centre, cropping it
and flipping the crop. What else changes, colours and the like (photometric.py), is drawn here.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atonet_jax.data.augmentation import Augmentation, Geometry
from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.models.contract import IMAGENET, Normalization
from atonet_jax.training import photometric

_LARGEST_ASPECT = 3  # of an erased rectangle, and its inverse the smallest


class _Draws(NamedTuple):
    """Random numbers of one example, each uniform in [0, 1).

    All are drawn, whichever effects are on. So the numbers of one effect do not depend on the other effects.
    """

    brightness: jax.Array
    contrast: jax.Array
    saturation: jax.Array
    hue: jax.Array
    blur: jax.Array
    blur_sigma: jax.Array
    erasing: jax.Array
    erasing_area: jax.Array
    erasing_aspect: jax.Array
    erasing_down: jax.Array
    erasing_right: jax.Array


def too_long_text(sizes: Iterable[tuple[int, int]], augmentation: Augmentation) -> str:
    """One line if there are images too long for the whole numbers that `_sample_points` counts in; '' if not.

    sizes: (height, width) of the images.
    """
    _, highest = augmentation.scale_range
    longest = max(sizes, key=max, default=(0, 0))
    if 2 * max(longest) * round(max(longest) * highest) < 2**31:
        return ''
    return (
        f'an image of {longest[0]}x{longest[1]} is too long to be scaled by up to {highest:g}; cut such images, or '
        'lower config.data.scale_range'
    )


def augment(
    batch: dict[str, jax.Array],
    augmentation: Augmentation,
    key: jax.Array | None = None,
    normalization: Normalization = IMAGENET,
) -> tuple[jax.Array, jax.Array]:
    """Makes the crops of a batch of `data.pipeline.train_batches`.

    Images are scaled bilinearly without antialiasing and labels by nearest neighbour, both with half-pixel centres; a
    rotation is part of the same single interpolation. Then come colours, blur, normalisation and erasing. Where the
    image does not reach, a crop is 0 (the mean colour) and its label `IGNORE_LABEL`.

    Args:
        batch: 'image' [B, Wh, Ww, 3] uint8, 'label' [B, Wh, Ww] uint8, 'geometry' [B, len(Geometry._fields)] int32.
        augmentation: as `train_batches` was given it; static.
        key: of JAX's default generator; not used, and may be None, unless `augmentation.needs_key`. Example i follows
            `jax.random.split(key, B)[i]` alone, on whichever device it lies.
        normalization: what the network expects of its images.

    Returns:
        images [B, height, width, 3] float32, normalised, and labels [B, height, width] uint8 train ids.

    Raises:
        ValueError: there is no key where one is needed.
    """
    if augmentation.needs_key and key is None:
        raise ValueError(f'augment needs a random key for {augmentation}')
    examples = batch['image'], batch['label'], batch['geometry']
    keys = jax.random.split(key, len(batch['image'])) if augmentation.needs_key else None
    return jax.vmap(lambda example, key: _augment_example(*example, augmentation, key, normalization))(examples, keys)


def _augment_example(window, labels, geometry, augmentation, key, normalization):
    """`augment` of one example; key is None where nothing is drawn."""
    crop = _rotated_crop if augmentation.rotation else _crop
    image, labels, inside = crop(window, labels, Geometry(*geometry), augmentation.crop_size)
    draws = None if key is None else _Draws(*jax.random.uniform(key, (len(_Draws._fields),)))

    def factor(strength, draw):
        return _between((max(0, 1 - strength), 1 + strength), draw)

    if augmentation.brightness:
        image = photometric.adjust_brightness(image, factor(augmentation.brightness, draws.brightness))
    if augmentation.contrast:
        image = photometric.adjust_contrast(image, factor(augmentation.contrast, draws.contrast), inside)
    if augmentation.saturation:
        image = photometric.adjust_saturation(image, factor(augmentation.saturation, draws.saturation))
    if augmentation.hue:
        image = photometric.adjust_hue(image, _between((-augmentation.hue, augmentation.hue), draws.hue))
    if augmentation.blur:
        sigma = _between(augmentation.blur_sigma, draws.blur_sigma)
        radius = math.ceil(3 * augmentation.blur_sigma[1])
        padded = jnp.where(inside[..., None], image, normalization.mean_color())
        blurred = photometric.gaussian_blur(padded, sigma, radius)
        image = jnp.where(draws.blur < augmentation.blur, blurred, image)

    image = jnp.where(inside[..., None], normalization(image), 0)
    labels = jnp.where(inside, labels, jnp.uint8(IGNORE_LABEL))

    if augmentation.erasing:
        area = _between(augmentation.erasing_area, draws.erasing_area)
        aspect = _LARGEST_ASPECT ** _between((-1, 1), draws.erasing_aspect)
        rectangle = photometric.rectangle(augmentation.crop_size, area, aspect, draws.erasing_down, draws.erasing_right)
        erased = rectangle & (draws.erasing < augmentation.erasing)
        image = jnp.where(erased[..., None], 0, image)
        labels = jnp.where(erased, jnp.uint8(IGNORE_LABEL), labels)
    return image, labels


def _between(bounds, draw):
    lowest, highest = bounds
    return lowest + (highest - lowest) * draw


def _crop(window, labels, geometry, crop_size):
    """Pixel values [h, w, 3] float32, labels [h, w], and where both are the image's: [h, w] bool."""
    rows, columns = jnp.arange(crop_size[0]), jnp.arange(crop_size[1])
    columns = jnp.where(geometry.flip, crop_size[1] - 1 - columns, columns)
    top, bottom, down, row, row_inside = _sample_points(
        rows + geometry.crop_top, geometry.scaled_height, geometry.image_height, geometry.window_top
    )
    left, right, along, column, column_inside = _sample_points(
        columns + geometry.crop_left, geometry.scaled_width, geometry.image_width, geometry.window_left
    )
    image = _bilinear(window, (top[:, None], bottom[:, None], down[:, None]), (left, right, along))
    return image, labels[row[:, None], column], row_inside[:, None] & column_inside


def _rotated_crop(window, labels, geometry, crop_size):
    """`_crop` of a picture that is turned besides."""
    angle = geometry.rotation * (np.pi / 180_000)
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    # Of the crop's pixels from its centre, in half pixels.
    down, right = (2 * jnp.arange(length) + 1 - length for length in crop_size)
    down, right = down[:, None], jnp.where(geometry.flip, -right, right)
    top, bottom, down_weight, row, row_inside = _turned_points(
        ((cosine, down), (sine, right)),
        2 * geometry.crop_top + crop_size[0],
        geometry.scaled_height,
        geometry.image_height,
        geometry.window_top,
        window.shape[0],
    )
    left, right, right_weight, column, column_inside = _turned_points(
        ((cosine, right), (-sine, down)),
        2 * geometry.crop_left + crop_size[1],
        geometry.scaled_width,
        geometry.image_width,
        geometry.window_left,
        window.shape[1],
    )
    image = _bilinear(window, (top, bottom, down_weight), (left, right, right_weight))
    return image, labels[row, column], row_inside & column_inside


def _bilinear(window, vertical, horizontal):
    """Pixel values [h, w, 3] float32 of a window, between neighbours at weights as `_sample_points` gives them."""
    (top, bottom, down), (left, right, along) = vertical, horizontal

    def pixels(rows, columns):
        return window[rows, columns].astype(jnp.float32)

    # Four gathers of bytes: faster on CPU than interpolating one axis after the other, or than matrix products.
    along, down = along[..., None], down[..., None]
    upper = (1 - along) * pixels(top, left) + along * pixels(top, right)
    lower = (1 - along) * pixels(bottom, left) + along * pixels(bottom, right)
    return (1 - down) * upper + down * lower


def _sample_points(scaled_index, scaled_length, image_length, window_start):
    """Where pixels of the scaled image lie in the window, along one axis.

    The centre of scaled pixel i lies at (i + 0.5) * image_length / scaled_length - 0.5 between the image's pixels;
    whole numbers keep that exact.

    Returns:
        The lower and upper neighbour, the upper one's weight in [0, 1), the nearest pixel, and whether the scaled
        image has such a pixel at all: five arrays of the shape of scaled_index.
    """
    inside = (scaled_index >= 0) & (scaled_index < scaled_length)
    scaled_index = jnp.clip(scaled_index, 0, scaled_length - 1)
    centre = (2 * scaled_index + 1) * image_length  # in units of 1 / (2 * scaled_length), from the image's edge
    unit = 2 * scaled_length
    nearest = centre // unit
    position = jnp.clip(centre - scaled_length, 0, (image_length - 1) * unit)
    lower = position // unit
    weight = (position % unit).astype(jnp.float32) / unit
    upper = jnp.minimum(lower + 1, image_length - 1)
    return lower - window_start, upper - window_start, weight, nearest - window_start, inside


def _turned_points(offset, centre, scaled_length, image_length, window_start, window_length):
    """`_sample_points` of places that need not be those of whole pixels.

    They are counted in whole numbers all the same, as fine as 32 bits can: a compiler may compute a place twice, once
    for the neighbours and once for their weight, and floats that are rounded in two ways would not fit together.

    Args:
        offset: ((factor, half pixels), (factor, half pixels)), the sum of whose products leads from the crop's centre
            to the places, in the scaled image.
        centre: the crop's, in half pixels of the scaled image.
        scaled_length: of the image after scaling.
        image_length: of the image on disk.
        window_start: of the image on disk.
        window_length: static; places lie within twice as much of the window's start.
    """
    bits = 30 - window_length.bit_length()  # after the point
    numerator, unit = centre * image_length, 2 * scaled_length
    position = (numerator // unit - window_start) << bits  # from the window's edge
    position += jnp.floor((numerator % unit) / unit * 2**bits).astype(jnp.int32)
    for factor, half_pixels in offset:
        step = jnp.round(factor * (image_length / scaled_length) * 2 ** (bits - 1)).astype(jnp.int32)
        position += step * half_pixels
    nearest = position >> bits
    inside = (nearest >= -window_start) & (nearest < image_length - window_start)
    last = image_length - 1 - window_start
    position -= 1 << (bits - 1)  # from the first pixel's centre
    lower = position >> bits
    weight = (position & ((1 << bits) - 1)) / 2**bits
    return jnp.clip(lower, 0, last), jnp.clip(lower + 1, 0, last), weight, jnp.clip(nearest, 0, last), inside
