"""Label maps from several views of an image: scales, its mirror image, sliding windows."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.inference.label_map import argmax, enlarge, label_map
from atonet_jax.models import apply, network


def predict_labels(
    model: nn.Module,
    variables: dict,
    images: jax.Array,
    *,
    height: int = 0,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window: tuple[int, int] | None = None,
    window_stride: tuple[int, int] | None = None,
) -> jax.Array:
    """Label maps of whole images, [B, H, W, 3] uint8 RGB -> [B, H, W] uint8 train ids.

    With more than one view of an image (scales, its mirror image, windows) the views' class probabilities are averaged.

    Args:
        model: the network.
        variables: of the network, prepared or of training.
        images: at their own size.
        height: to which the images are resized first, bilinearly, with their width in proportion; 0: as they are.
        scales: factors by which they are resized then.
        flip: also looks at the mirrored images.
        window: (height, width) of windows that slide over each scaled image, clipped to its size; None: all at once.
        window_stride: (rows, columns) from one window to the next; None: two thirds of the window.
    """
    size = images.shape[1:3]
    contract = network(model)
    images = contract.normalization(images)
    if height and height != size[0]:
        images = ops.resize_bilinear(images, (height, max(1, round(size[1] * height / size[0]))))
    resized = images.shape[1:3]

    def logits(images):
        return apply(model, variables, images)['logits']

    if window is None and not flip and tuple(scales) == (1.0,):
        return label_map(logits(images), size, contract.upsampling)

    def probabilities(images):
        size = images.shape[1:3]
        if window is None:
            return jax.nn.softmax(enlarge(logits(images), size, contract.upsampling))
        summed = jnp.zeros(())
        for top, left, height, width in _windows(size, window, window_stride):
            part = images[:, top : top + height, left : left + width]
            part = jax.nn.softmax(enlarge(logits(part), (height, width), contract.upsampling))
            bottom, right = size[0] - top - height, size[1] - left - width
            summed += jnp.pad(part, ((0, 0), (top, bottom), (left, right), (0, 0)))
        return summed / jnp.sum(summed, axis=-1, keepdims=True)

    summed = jnp.zeros(())
    for scale in scales:
        scaled = ops.resize_bilinear(images, tuple(max(1, round(length * scale)) for length in resized))
        summed += ops.resize_bilinear(probabilities(scaled), size)
        if flip:
            summed += ops.resize_bilinear(probabilities(scaled[:, :, ::-1])[:, :, ::-1], size)
    return argmax(summed)


def _windows(
    size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int] | None
) -> list[tuple[int, int, int, int]]:
    """(top, left, height, width) of windows that cover `size`; the last of a row or column ends at the border."""
    height, width = (min(part, length) for part, length in zip(window, size, strict=True))
    rows, columns = stride or (max(1, 2 * height // 3), max(1, 2 * width // 3))
    rows, columns = min(rows, height), min(columns, width)  # no gaps where the image is smaller than the window
    tops, lefts = (
        sorted({min(start, length - part) for start in range(0, length - part + step, step)})
        for length, part, step in ((size[0], height, rows), (size[1], width, columns))
    )
    return [(top, left, height, width) for top in tops for left in lefts]
