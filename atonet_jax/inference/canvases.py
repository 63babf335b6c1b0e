"""Label maps of images of many sizes by few programs: each image lies at the upper left of a larger canvas."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.inference.label_map import argmax, label_map_on_canvas
from atonet_jax.inference.views import WORTH_A_PROGRAM, Views, resized_size
from atonet_jax.models import network

_MANY = 3  # sizes on one canvas, whose programs together take longer to compile than its own
Size = tuple[int, int]  # (height, width)


class Canvases(NamedTuple):
    """What images that share a program have in common.

    Attributes:
        image: the canvas of the images.
        seen: that of what the network sees, which differs where images are resized to a height.
    """

    image: Size
    seen: Size


def canvases(size: Size, height: int = 0) -> Canvases:
    """Of images of `size` that are resized to `height` (`views.resize_to_height`)."""
    step = ops.canvas.STEP
    image, seen = ([-(-length // step) * step for length in each] for each in (size, resized_size(size, height)))
    return Canvases(tuple(image), tuple(seen))


def takes_canvases(model: nn.Module, height: int = 0) -> bool:
    """Whether images of other sizes can share a program of the network."""
    contract = network(model)
    # Where images are resized and then padded, outputs may be enlarged twice (`contract.cut_back`).
    return contract.on_canvas and not (height and contract.multiple_of > 1)


def programs_of(sizes: Mapping[Size, float], model: nn.Module, views: Views) -> Callable[[Size], Size | Canvases]:
    """Which images share a program: a function of their size, which gives that size or their `Canvases`.

    A size has a program of its own if it has many pixels in all, or if few others have its canvas. Sizes that are not
    in `sizes` share one where any of these does.

    Args:
        sizes: {(height, width): number of images}.
        model: the network.
        views: of the images. Only a single view of whole images shares programs.
    """
    height = views.height
    if views.window:
        return lambda size: views.window
    on_canvas = Counter(canvases(size, height) for size in sizes)
    if not views.is_one or not takes_canvases(model, height) or max(on_canvas.values(), default=0) < _MANY:
        return lambda size: size

    def program_of(size):
        canvas, pixels = canvases(size, height), sizes.get(size, 0) * math.prod(resized_size(size, height))
        is_alone = size in sizes and on_canvas[canvas] < _MANY
        return size if is_alone or pixels >= WORTH_A_PROGRAM else canvas

    return program_of


def placed(images: Sequence[np.ndarray], canvas: Size) -> tuple[np.ndarray, np.ndarray]:
    """Images, [H, W, 3] uint8 each, on canvases: [B, *canvas, 3] uint8, and their sizes, [B, 2] int32."""
    on_canvases = np.zeros((len(images), *canvas, 3), np.uint8)
    for on_canvas, image in zip(on_canvases, images, strict=True):
        on_canvas[: image.shape[0], : image.shape[1]] = image
    return on_canvases, np.array([image.shape[:2] for image in images], np.int32)


def labels_on_canvas(
    model: nn.Module, height: int, seen: Size, variables: Mapping[str, Any], images: jax.Array, sizes: jax.Array
) -> jax.Array:
    """The label map of each image as it is by itself, at the upper left of its canvas.

    Args:
        model: the network; `takes_canvases` must hold.
        height: to which images are resized.
        seen: of the images' `canvases`.
        variables: of the network, prepared or of training.
        images: [B, H, W, 3] uint8, as `placed` gives them.
        sizes: [B, 2] int32.

    Returns:
        [B, H, W] uint8. Beyond an image they mean nothing.
    """
    return jax.vmap(functools.partial(_labels, model, height, seen, variables))(images, sizes)


def _labels(model, height, seen, variables, image, size):
    contract, canvas = network(model), image.shape[:2]
    images, size = contract.normalization(image[None]), tuple(size)
    shown = size
    if height:
        shown = height, jnp.maximum(1, ops.canvas.rounded_ratio(size[1] * height, size[0]))
        for axis in (1, 2):
            old, new = size[axis - 1], shown[axis - 1]
            images = ops.canvas.resize_part(images, old, new, seen[axis - 1], axis, 'half_pixel')
    padded = tuple(-(-length // contract.multiple_of) * contract.multiple_of for length in shown)
    with ops.canvas.on_canvas(seen, shown):
        images = ops.canvas.masked(images)
    with ops.canvas.on_canvas(seen, padded, contract.multiple_of):
        logits = model.apply(variables, images, train=False)['logits']
        part = ops.canvas.image_size(logits.shape[1:3])
    if logits.shape[1:3] == canvas and not height:
        return argmax(logits)[0]
    if contract.multiple_of > 1:  # as `contract.cut_back`
        ends = [length * new % old == 0 for length, new, old in zip(part, shown, padded, strict=True)]
        cut = [length * new // old for length, new, old in zip(part, shown, padded, strict=True)]
        part = [jnp.where(ends[0] & ends[1], few, all_) for few, all_ in zip(cut, part, strict=True)]
        size = [jnp.where(ends[0] & ends[1], few, all_) for few, all_ in zip(size, padded, strict=True)]
    return label_map_on_canvas(logits, part, size, canvas, contract.upsampling)[0]
