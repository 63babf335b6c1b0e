"""Training augmentation on the device: scale, crop, flip, normalise as the published runs did.

The host (data/pipeline.py) sends of each image only the window that its crop shows, as bytes, and the numbers that
place it. The result is that of scaling the whole image, cropping it and flipping the crop.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atonet_jax.data.labels import IGNORE_LABEL

# Of ImageNet, in units of pixel values 0..255: what backbone weights in the usual PyTorch file expect.
MEAN_RGB = 255 * np.array([0.485, 0.456, 0.406], np.float32)
STDDEV_RGB = 255 * np.array([0.229, 0.224, 0.225], np.float32)


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


def normalize(images: jax.Array) -> jax.Array:
    """RGB images of pixel values 0..255, [..., 3] of any dtype, to the network's input: float32, normalised."""
    return (images.astype(jnp.float32) - MEAN_RGB) / STDDEV_RGB


def augment(batch: dict[str, jax.Array], crop_size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Makes the crops of a batch of `data.pipeline.train_batches`.

    Images are scaled bilinearly without antialiasing and labels by nearest neighbour, both with half-pixel centres.
    Where the scaled image does not reach, a crop is 0 (the mean colour) and its label `IGNORE_LABEL`.

    Args:
        batch: 'image' [B, Wh, Ww, 3] uint8, 'label' [B, Wh, Ww] uint8, 'geometry' [B, len(Geometry._fields)] int32.
        crop_size: (height, width), as `train_batches` was given it.

    Returns:
        images [B, height, width, 3] float32, normalised, and labels [B, height, width] uint8 train ids.
    """
    crop = jax.vmap(lambda image, label, geometry: _crop(image, label, Geometry(*geometry), crop_size))
    return crop(batch['image'], batch['label'], batch['geometry'])


def _crop(window, labels, geometry, crop_size):
    """`augment` of one example."""
    rows, columns = jnp.arange(crop_size[0]), jnp.arange(crop_size[1])
    columns = jnp.where(geometry.flip, crop_size[1] - 1 - columns, columns)
    top, bottom, down, row, row_inside = _sample_points(
        rows + geometry.crop_top, geometry.scaled_height, geometry.image_height, geometry.window_top
    )
    left, right, along, column, column_inside = _sample_points(
        columns + geometry.crop_left, geometry.scaled_width, geometry.image_width, geometry.window_left
    )

    def pixels(rows, columns):
        return window[rows[:, None], columns].astype(jnp.float32)

    # Four gathers of bytes: faster on CPU than interpolating one axis after the other, or than matrix products.
    along, down = along[:, None], down[:, None, None]
    upper = (1 - along) * pixels(top, left) + along * pixels(top, right)
    lower = (1 - along) * pixels(bottom, left) + along * pixels(bottom, right)
    image = (1 - down) * upper + down * lower

    inside = row_inside[:, None] & column_inside
    image = jnp.where(inside[..., None], normalize(image), 0)
    return image, jnp.where(inside, labels[row[:, None], column], jnp.uint8(IGNORE_LABEL))


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
