"""Training augmentation on the device: scale, crop, flip, normalise as the published runs did, and more if asked.

The host (data/sampling.py, data/pipeline.py) sends of each image only the window that its crop shows, as bytes, and the
numbers that place it. The result is that of scaling the whole image, turning it about the crop's centre, cropping it
and flipping the crop. What else changes, colours and the like (photometric.py), is drawn here.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.training import photometric

# Of ImageNet, in units of pixel values 0..255: what backbone weights in the usual PyTorch file expect.
MEAN_RGB = 255 * np.array([0.485, 0.456, 0.406], np.float32)
STDDEV_RGB = 255 * np.array([0.229, 0.224, 0.225], np.float32)

_LARGEST_ASPECT = 3  # of an erased rectangle, and its inverse the smallest


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is drawn for each training sample; hashable, so that it can shape a jitted program.

    The defaults are what the published runs did beside their scale range; whatever is 0 is left out of the program.

    Attributes:
        crop_size: (height, width) of the crops in pixels.
        scale_range: (lowest, highest) factor by which images are scaled, drawn uniformly.
        flip: whether half of the crops are mirrored.
        rotation: largest angle in degrees; drawn uniformly, to either side.
        class_aware_crops: probability that a crop is placed so that it shows a pixel of a class, which is drawn
            uniformly among those that the image has.
        brightness: the factor is drawn uniformly in [1 - brightness, 1 + brightness], and not below 0.
        contrast: as brightness.
        saturation: as brightness.
        hue: the shift is drawn uniformly in [-hue, hue], in turns; at most 0.5.
        blur: probability that a crop is blurred.
        blur_sigma: (lowest, highest) standard deviation of that in pixels, drawn uniformly; greater than 0.
        erasing: probability that a rectangle of the crop becomes the mean colour, and its labels `IGNORE_LABEL`.
        erasing_area: (smallest, largest) share of the crop that the rectangle takes, drawn uniformly.
    """

    crop_size: tuple[int, int]
    scale_range: tuple[float, float] = (1.0, 1.0)
    flip: bool = True
    rotation: float = 0.0
    class_aware_crops: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    erasing: float = 0.0
    erasing_area: tuple[float, float] = (0.02, 0.2)

    @property
    def needs_key(self) -> bool:
        """Whether `augment` draws random numbers; those of the geometry come from the host."""
        return any((self.brightness, self.contrast, self.saturation, self.hue, self.blur, self.erasing))


class Geometry(NamedTuple):
    """How a crop comes from its image; integers, so that host and device agree exactly.

    Attributes:
        image_height: of the image on disk.
        image_width: of the image on disk.
        scaled_height: of the image after scaling.
        scaled_width: of the image after scaling.
        crop_top: row of the scaled image at the crop's top; negative where the crop begins above the image.
        crop_left: column of the scaled image at the crop's left; negative where it begins left of the image.
        window_top: row of the image on disk at the window's top.
        window_left: column of the image on disk at the window's left.
        flip: 1 where the crop is mirrored left to right, else 0.
        rotation: in 1/1000 degree, by which the scaled image is turned about the crop's centre before it is cropped;
            positive is counterclockwise, as one sees the picture. 0 where `Augmentation.rotation` is.
    """

    image_height: int
    image_width: int
    scaled_height: int
    scaled_width: int
    crop_top: int
    crop_left: int
    window_top: int
    window_left: int
    flip: int
    rotation: int = 0


class _Draws(NamedTuple):
    """Of one example, each uniform in [0, 1). All are drawn in any case: an effect's do not depend on the others."""

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


def normalize(images: jax.Array) -> jax.Array:
    """RGB images of pixel values 0..255, [..., 3] of any dtype, to the network's input: float32, normalised."""
    return (images.astype(jnp.float32) - MEAN_RGB) / STDDEV_RGB


def augment(
    batch: dict[str, jax.Array], augmentation: Augmentation, key: jax.Array | None = None
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

    Returns:
        images [B, height, width, 3] float32, normalised, and labels [B, height, width] uint8 train ids.

    Raises:
        ValueError: there is no key where one is needed.
    """
    if augmentation.needs_key and key is None:
        raise ValueError(f'augment needs a random key for {augmentation}')
    examples = batch['image'], batch['label'], batch['geometry']
    keys = jax.random.split(key, len(batch['image'])) if augmentation.needs_key else None
    return jax.vmap(lambda example, key: _augment_example(*example, augmentation, key))(examples, keys)


def _augment_example(window, labels, geometry, augmentation, key):
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
        blurred = photometric.gaussian_blur(jnp.where(inside[..., None], image, MEAN_RGB), sigma, radius)
        image = jnp.where(draws.blur < augmentation.blur, blurred, image)

    image = jnp.where(inside[..., None], normalize(image), 0)
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
