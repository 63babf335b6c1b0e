"""Label maps of whole images, from one view or several: scales, the mirror image."""

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from atonet_jax import ops
from atonet_jax.inference.label_map import argmax, label_map
from atonet_jax.models import apply, check_size, network

_FEW_SIZES = 3
_WINDOWS = 256, 512  # the smallest and the largest that are advised
# Pixels of one program from which on Winograd's algorithm saves more time than it takes to compile
# (`benchmarks.program_costs`).
_WORTH_WINOGRAD = 32e6


class Views(NamedTuple):
    """How the network looks at an image. Probabilities of several views are averaged.

    Attributes:
        height: to which images are resized, bilinearly, with their width in proportion; 0: as they are.
        scales: factors on that size. Each view is resized from the image itself, at one stroke.
        flip: also looks at the mirrored images.
        window: (height, width) of windows that slide over each scaled image, clipped to its size; (): whole images.
        stride: (rows, columns) from one window to the next; (): two thirds of the window.
    """

    height: int = 0
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()

    @classmethod
    def of(cls, options: ConfigDict) -> 'Views':
        """As the config's section `eval` says."""
        window, stride = tuple(options.window), tuple(options.window_stride)
        return cls(options.height, tuple(options.scales), options.flip, window, stride)

    @property
    def is_one(self) -> bool:
        """Whether the network sees the image once and whole, at whatever height."""
        return not (self.flip or self.window) and self.scales == (1.0,)

    def images_at_once(self, batch_size: int) -> int:
        """Images of a batch: so many whole ones, or one whose windows make up batches."""
        return 1 if self.window else batch_size

    def check_size(self, model: nn.Module, size: tuple[int, int]) -> None:
        """Checks that the network takes images of `size`, (height, width), in these views.

        Raises:
            InputError: at some scale, or through the windows, they are too small.
        """
        height, width = resized_size(size, self.height)
        for scale in self.scales:
            seen = round(height * scale), round(width * scale)
            check_size(model, [min(lengths) for lengths in zip(seen, self.window or seen, strict=True)])


WHOLE_IMAGE = Views()


def resize_to_height(images: jax.Array, height: int) -> jax.Array:
    """[B, H, W, 3] -> [B, height, w, 3], bilinearly, the width in proportion; with height 0 as they are."""
    size = resized_size(images.shape[1:3], height)
    return images if size == images.shape[1:3] else ops.resize_bilinear(images, size)


def resized_size(size: tuple[int, int], height: int) -> tuple[int, int]:
    """(height, width) that images of `size` are resized to, the width in proportion; `size` for height 0."""
    return (height, max(1, round(size[1] * height / size[0]))) if height else tuple(size)


def many_sizes_text(what: str, sizes: Collection[tuple[int, int]], programs: int, views: Views) -> str:
    """One line if images have so many sizes that compiling their programs is worth a word; '' if not.

    Args:
        what: the images, such as '12 pictures'.
        sizes: (height, width) of them, each once.
        programs: how many they need.
        views: of them.
    """
    if programs <= _FEW_SIZES or views.window:
        return ''
    resized = (resized_size(size, views.height) for size in sizes)
    sides = (round(scale * length) for size in resized for length in size for scale in views.scales)
    side = min(_WINDOWS[1], max(_WINDOWS[0], min(sides)))  # smaller images clip it, and take programs of their own
    return (
        f'{what} have {len(sizes)} sizes: {programs} programs are compiled, each once; '
        f'--config.eval.window="({side},{side})" needs one, and looks at them window by window'
    )


def winograd_pays(sizes: Mapping[tuple[int, int], float], programs: int, views: Views) -> bool:
    """Whether programs for these images should convolve by Winograd's algorithm (`segmenter.Segmenter`).

    Args:
        sizes: {(height, width): number of images}; {} if unknown, which counts as many.
        programs: how many they need.
        views: of them.
    """
    pixels = sum(number * math.prod(resized_size(size, views.height)) for size, number in sizes.items())
    pixels *= sum(scale**2 for scale in views.scales) * (1 + views.flip)
    return not sizes or pixels >= programs * _WORTH_WINOGRAD


def predict_labels(model: nn.Module, variables: dict, images: jax.Array, views: Views = WHOLE_IMAGE) -> jax.Array:
    """Label maps of whole images, [B, H, W, 3] uint8 RGB -> [B, H, W] uint8 train ids.

    Args:
        model: the network.
        variables: of the network, prepared or of training.
        images: at their own size.
        views: without windows; `SlidingWindows` takes images that are too large to look at whole.
    """
    size = images.shape[1:3]
    contract = network(model)
    images = contract.normalization(images)

    if views.is_one:
        logits = apply(model, variables, resize_to_height(images, views.height))['logits']
        return label_map(logits, size, contract.upsampling)

    resized, summed = resized_size(size, views.height), jnp.zeros(())
    for scale in views.scales:
        scaled = ops.resize_bilinear(images, tuple(max(1, round(length * scale)) for length in resized))
        summed += ops.resize_bilinear(probabilities(model, variables, scaled), size)
        if views.flip:
            mirrored = probabilities(model, variables, scaled[:, :, ::-1])
            summed += ops.resize_bilinear(mirrored[:, :, ::-1], size)
    return argmax(summed)


def probabilities(model: nn.Module, variables: dict, images: jax.Array) -> jax.Array:
    """Of each class at each pixel: normalised images, [B, H, W, 3] -> [B, H, W, C] float32."""
    logits = apply(model, variables, images)['logits']
    return jax.nn.softmax(ops.resize(logits, images.shape[1:3], network(model).upsampling))
