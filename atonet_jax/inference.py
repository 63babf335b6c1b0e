"""From images to label maps."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from atonet_jax.augment import normalize
from atonet_jax.models.layers import enlarged_phases, phase_factors, resize_bilinear


def label_map(logits: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The most likely class of each pixel: [B, h, w, C] logits enlarged bilinearly to `size` -> [B, *size] uint8.

    Where the enlargement goes by phases each is reduced to labels before they are interleaved, so that full-resolution
    logits are never written.
    """
    factors = phase_factors(logits.shape[1:3], size)
    if factors is None:
        return _argmax(resize_bilinear(logits, size))
    labels = [
        jnp.stack([_argmax(phase) for phase in enlarged_phases(row_phase, factors[1], axis=2)], axis=3)
        for row_phase in enlarged_phases(logits, factors[0], axis=1)
    ]
    return jnp.stack(labels, axis=2).reshape(-1, *size)


def _argmax(logits: jax.Array) -> jax.Array:
    return jnp.argmax(logits, axis=-1).astype(jnp.uint8)


def predict_labels(
    model: nn.Module,
    variables: dict,
    images: jax.Array,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window: tuple[int, int] | None = None,
    window_stride: tuple[int, int] | None = None,
) -> jax.Array:
    """Label maps of whole images, [B, H, W, 3] uint8 RGB -> [B, H, W] uint8 train ids.

    With more than one view of an image (scales, its mirror image, windows) the views' class probabilities are averaged.

    Args:
        model: the network.
        variables: of the network.
        images: at their own size.
        scales: factors to which the images are resized, bilinearly.
        flip: also looks at the mirrored images.
        window: (height, width) of windows that slide over each scaled image, clipped to its size; None: all at once.
        window_stride: (rows, columns) from one window to the next; None: two thirds of the window.
    """
    size = images.shape[1:3]
    images = normalize(images)

    def logits(images):
        return model.apply(variables, images, train=False)['logits']

    if window is None and not flip and tuple(scales) == (1.0,):
        return label_map(logits(images), size)

    def probabilities(images):
        size = images.shape[1:3]
        if window is None:
            return jax.nn.softmax(resize_bilinear(logits(images), size))
        summed = jnp.zeros(())
        for top, left, height, width in _windows(size, window, window_stride):
            part = images[:, top : top + height, left : left + width]
            part = jax.nn.softmax(resize_bilinear(logits(part), (height, width)))
            bottom, right = size[0] - top - height, size[1] - left - width
            summed += jnp.pad(part, ((0, 0), (top, bottom), (left, right), (0, 0)))
        return summed / jnp.sum(summed, axis=-1, keepdims=True)

    summed = jnp.zeros(())
    for scale in scales:
        scaled = resize_bilinear(images, tuple(max(1, round(length * scale)) for length in size))
        summed += resize_bilinear(probabilities(scaled), size)
        if flip:
            summed += resize_bilinear(probabilities(scaled[:, :, ::-1])[:, :, ::-1], size)
    return _argmax(summed)


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
