"""Which example a training sample shows, and where its crop lies: pure functions of (seed, sample number)."""

import functools
import math

import numpy as np

from atonet_jax.data.augmentation import Augmentation, Geometry
from atonet_jax.data.labels import UNKNOWN_LABEL

_TRIES = 16  # at a crop that shows a class; the first succeeds, unless the crop is turned


def example_of_sample(seed: int, num_examples: int, g: int) -> int:
    """The example that sample number `g` shows. Each example occurs once an epoch, in a new order each epoch."""
    epoch, position = divmod(int(g), num_examples)
    return int(_epoch_order(seed, num_examples, epoch)[position])


def window_size(augmentation: Augmentation) -> tuple[int, int]:
    """(height, width) of a window that holds all source pixels of a crop at any scale and rotation."""
    lowest, _ = augmentation.scale_range
    # Beside the length itself: a row for the start between two pixels, and one for bilinear's second neighbour.
    return tuple(math.ceil(extent / lowest) + 2 for extent in _largest_extent(augmentation))


def nothing_of(augmentation: Augmentation) -> Geometry:
    """The geometry of a sample whose example cannot be used: a one-pixel image outside of the crop."""
    return Geometry(1, 1, 1, 1, -augmentation.crop_size[0], -augmentation.crop_size[1], 0, 0, flip=0, rotation=0)


def draw_geometry(
    seed: int, g: int, image_size: tuple[int, int], augmentation: Augmentation, labels: np.ndarray | None = None
) -> Geometry:
    """The geometry of sample number `g`: scale, place of the crop, whether it is mirrored, and how far turned.

    A scaled image that is smaller than the crop lies inside it, at a uniformly drawn place.

    Args:
        seed: not negative.
        g: not negative.
        image_size: (height, width) of the image on disk.
        augmentation: what to draw from. Switching one of flip, rotation, class_aware_crops on or off leaves what is
            drawn for the others.
        labels: [H, W] uint8 train ids of the image, which `augmentation.class_aware_crops` greater than 0 needs.
    """
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, g], np.uint64)))
    scale = rng.uniform(*augmentation.scale_range)
    scaled_size = [max(1, round(length * scale)) for length in image_size]
    rooms = [scaled - crop for scaled, crop in zip(scaled_size, augmentation.crop_size)]
    starts = [(min(room, 0), max(room, 0)) for room in rooms]
    crop_start = [int(rng.integers(*bounds, endpoint=True)) for bounds in starts]
    flip = rng.random() < 0.5
    rotation = round(1000 * augmentation.rotation * rng.uniform(-1, 1))
    if rng.random() < augmentation.class_aware_crops:
        pixels = _pixels_of_class(rng, labels, scaled_size)
        if pixels is not None:
            place = image_size, scaled_size, augmentation.crop_size, starts, rotation
            crop_start = _start_on_pixel(rng, pixels, *place) or crop_start
    window_start = _window_start(image_size, scaled_size, augmentation.crop_size, crop_start, rotation)
    return Geometry(
        *image_size, *scaled_size, *crop_start, *window_start, flip=int(augmentation.flip and flip), rotation=rotation
    )


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, num_examples: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


def _largest_extent(augmentation: Augmentation) -> tuple[float, float]:
    """(height, width) of the largest box around a crop, over all allowed angles."""
    largest = math.radians(augmentation.rotation)
    height, width = augmentation.crop_size

    def extent(length, other):
        angle = min(largest, math.atan2(other, length))  # where the diagonal stands upright
        return length * math.cos(angle) + other * math.sin(angle)

    return extent(height, width), extent(width, height)


def _window_start(image_size, scaled_size, crop_size, crop_start, rotation):
    """The image pixel above and left of the crop's first pixel, by half-pixel centres."""
    if not rotation:
        return [
            max(0, ((2 * max(start, 0) + 1) * length - scaled) // (2 * scaled))
            for length, scaled, start in zip(image_size, scaled_size, crop_start)
        ]
    cosine, sine = abs(math.cos(math.radians(rotation / 1000))), abs(math.sin(math.radians(rotation / 1000)))
    window_start = []
    for axis, (length, scaled, start) in enumerate(zip(image_size, scaled_size, crop_start)):
        extent = cosine * (crop_size[axis] - 1) + sine * (crop_size[1 - axis] - 1)  # between the outermost centres
        first = start + (crop_size[axis] - extent) / 2
        window_start.append(min(max(0, math.floor(first * length / scaled - 0.5)), length - 1))
    return window_start


def _pixels_of_class(rng, labels, scaled_size):
    """`_TRIES` pixels of a class that is drawn among those of the image.

    Returns:
        Their rows and their columns, [2, _TRIES] int, or None if the image has no labelled pixel.
    """
    # Only pixels that the scaled image shows: reducing passes over some.
    shown = [np.arange(length) for length in labels.shape]
    for axis, (length, scaled) in enumerate(zip(labels.shape, scaled_size)):
        if scaled < length:
            shown[axis] = (2 * np.arange(scaled) + 1) * length // (2 * scaled)
            labels = labels.take(shown[axis], axis)
    counts = np.bincount(labels.ravel(), minlength=UNKNOWN_LABEL)[:UNKNOWN_LABEL]
    if not counts.any():
        return None
    train_id = rng.choice(np.flatnonzero(counts))
    pixels = rng.choice(np.flatnonzero(labels.ravel() == train_id), _TRIES)
    rows, columns = np.unravel_index(pixels, labels.shape)
    return np.stack([shown[0][rows], shown[1][columns]])


def _start_on_pixel(rng, pixels, image_size, scaled_size, crop_size, starts, rotation):
    """(top, left) of a crop that shows one of the pixels: the first that is possible. Drawn uniformly among the
    positions that show it. Turned crops do not reach every corner of the image.

    Returns:
        None if all tries failed.
    """
    cosine, sine = math.cos(math.radians(rotation / 1000)), math.sin(math.radians(rotation / 1000))
    tries, offsets = [], []  # each of rows, then of columns
    for axis, (pixel, length, scaled, crop) in enumerate(zip(pixels, image_size, scaled_size, crop_size)):
        # The scaled image shows the pixel from `first` to before `last`.
        first, last = (-((length - 2 * edge * scaled) // (2 * length)) for edge in (pixel, pixel + 1))
        extent = abs(cosine) * crop + abs(sine) * crop_size[1 - axis]
        reach = max(0, math.ceil((extent - crop) / 2))  # of a turned crop beyond where it would be upright
        lowest = np.maximum(first - crop + 1 - reach, starts[axis][0])
        highest = np.minimum(last - 1 + reach, starts[axis][1])
        tries.append(rng.integers(lowest, highest, endpoint=True))
        offsets.append((pixel + 0.5) * scaled / length - tries[axis] - crop / 2)  # of the pixel from the crop's centre
    if rotation:
        down, right = offsets
        offsets = cosine * down - sine * right, cosine * right + sine * down  # in the picture that is turned
        shows = [np.abs(offset) <= (crop - 1) / 2 for offset, crop in zip(offsets, crop_size)]
        successes = np.flatnonzero(shows[0] & shows[1])
    else:
        successes = range(_TRIES)
    return (int(tries[0][successes[0]]), int(tries[1][successes[0]])) if len(successes) else None
