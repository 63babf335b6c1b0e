"""How much of the training crops lies beyond the images, known from the sizes of the images alone."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from atonet_jax.data.augmentation import SMALLEST_CROP, Augmentation
from atonet_jax.data.sampling import draw_geometry

MUCH = 0.2  # share of a crop above which another crop size is named
_SAMPLES = 500
_POINTS = 40  # of a crop along each side that are looked at
_SMALL_IMAGES = 0.1  # share of the images that may be smaller than a crop size that fits


def mean_padding(sizes: Mapping[tuple[int, int], int], augmentation: Augmentation) -> float:
    """Share of a crop that is padding, on average over images, scales, places and rotations.

    Args:
        sizes: {(height, width): number of images}.
        augmentation: of the crops. Where it shows classes on purpose, crops are counted as if placed at random.
    """
    augmentation = dataclasses.replace(augmentation, class_aware_crops=0.0)
    kinds, ends = list(sizes), np.cumsum(list(sizes.values()))
    # As many samples of each size as its share of the images says.
    drawn = np.searchsorted(ends, (np.arange(_SAMPLES) + 0.5) * ends[-1] / _SAMPLES)
    down, right = (((np.arange(_POINTS) + 0.5) / _POINTS - 0.5) * length for length in augmentation.crop_size)
    down, right = down[:, None], right[None, :]
    outside = 0.0
    for g, kind in enumerate(drawn):
        crop = draw_geometry(0, g, kinds[kind], augmentation)
        angle = math.radians(crop.rotation / 1000)
        y = crop.crop_top + augmentation.crop_size[0] / 2 + math.cos(angle) * down + math.sin(angle) * right
        x = crop.crop_left + augmentation.crop_size[1] / 2 + math.cos(angle) * right - math.sin(angle) * down
        outside += 1 - np.mean((y >= 0) & (y < crop.scaled_height) & (x >= 0) & (x < crop.scaled_width))
    return outside / _SAMPLES


def fitting_crop(sizes: Mapping[tuple[int, int], int], augmentation: Augmentation) -> tuple[int, int]:
    """(height, width) of a crop that nearly all images fill at the lowest scale; no larger than the present one."""
    counts = np.array(list(sizes.values()))
    lowest, _ = augmentation.scale_range
    fitting = []
    for lengths, crop in zip(np.array(list(sizes)).T, augmentation.crop_size):
        order = np.argsort(lengths)
        reached = np.cumsum(counts[order]) >= _SMALL_IMAGES * counts.sum()
        fitting.append(max(SMALLEST_CROP, min(crop, math.floor(lowest * lengths[order][reached.argmax()]))))
    return tuple(fitting)


def padding_text(sizes: Mapping[tuple[int, int], int], augmentation: Augmentation) -> tuple[str, bool]:
    """One line about the padding of the crops, and whether there is much."""
    share = mean_padding(sizes, augmentation)
    height, width = augmentation.crop_size
    line = f'crops of {height}x{width} (height x width): {100 * share:.0f}% is padding on average'
    if share <= MUCH:
        return line, False
    lowest, highest = augmentation.scale_range
    (image_height, image_width), _ = max(sizes.items(), key=lambda item: item[1])
    line += f', as most images have {image_height}x{image_width} and are scaled by {lowest:g} to {highest:g}'
    fitting = fitting_crop(sizes, augmentation)
    if fitting != (height, width):
        left = mean_padding(sizes, dataclasses.replace(augmentation, crop_size=fitting))
        line += f'; with config.data.crop_size="({fitting[0]},{fitting[1]})" it would be {100 * left:.0f}%'
    return line, True
