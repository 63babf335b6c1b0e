"""Label maps of images of many sizes by few programs: each image lies at the upper left of a larger canvas."""

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from atonet_jax import ops
from atonet_jax.inference.label_map import argmax, label_map_on_canvas
from atonet_jax.inference.views import Views, resized_size
from atonet_jax.models import network

STEPS = ops.canvas.STEP, 128, 256, 512  # of canvases; the first one wastes the fewest pixels
Size = tuple[int, int]  # (height, width)


class _Costs(NamedTuple):
    """What compiling costs, in pixels whose labels take as long (`benchmarks.program_costs`, ATONet).

    Attributes:
        own: of a program for one size.
        shared: of a program for a canvas.
    """

    own: float
    shared: float


_ON_CPUS = _Costs(own=2e6, shared=4e6)
_ON_ACCELERATORS = _Costs(own=2e9, shared=4e9)  # an estimate: thousands of label maps


class Canvases(NamedTuple):
    """What images that share a program have in common.

    Attributes:
        image: the canvas of the images.
        seen: that of what the network sees, which differs where images are resized to a height.
        step: their sides are the least multiples of it that hold the images.
    """

    image: Size
    seen: Size
    step: int


def canvases(size: Size, height: int = 0, step: int = STEPS[0]) -> Canvases:
    """Of images of `size` that are resized to `height` (`views.resize_to_height`)."""
    image, seen = (tuple(-(-length // step) * step for length in each) for each in (size, resized_size(size, height)))
    return Canvases(image, seen, step)


def takes_canvases(model: nn.Module, height: int = 0) -> bool:
    """Whether images of other sizes can share a program of the network."""
    contract = network(model)
    # Where images are resized and then padded, outputs may be enlarged twice (`contract.cut_back`).
    return contract.on_canvas and not (height and contract.multiple_of > 1)


def programs_of(sizes: Mapping[Size, float], model: nn.Module, views: Views) -> Callable[[Size], Size | Canvases]:
    """Which images share a program: a function of their size, which gives that size or their `Canvases`.

    It is what takes the least time in all, compiling and computing. Sizes that are not in `sizes` share a program where
    any of these does.

    Args:
        sizes: {(height, width): number of images}.
        model: the network.
        views: of the images. Windows of all sizes have one program; scaled and mirrored images share none.
    """
    if views.window:
        return lambda size: views.window
    if not views.is_one or not takes_canvases(model, views.height):
        return lambda size: size
    _, step, own = min((_plan(sizes, views.height, step) for step in STEPS), key=lambda plan: plan[0])
    if own == set(sizes):
        return lambda size: size
    return lambda size: size if size in own else canvases(size, views.height, step)


def _plan(sizes: Mapping[Size, float], height: int, step: int) -> tuple[float, int, set[Size]]:
    """What all images cost with canvases of a step; the step; the sizes that cost less with programs of their own."""
    costs = _ON_CPUS if jax.default_backend() == 'cpu' else _ON_ACCELERATORS
    total, own, groups = 0.0, set(), defaultdict(list)
    for size, number in sizes.items():
        canvas = canvases(size, height, step)
        alone = costs.own + number * math.prod(resized_size(size, height))
        together = number * math.prod(canvas.seen)
        if alone < together:
            own.add(size)
            total += alone
        else:
            groups[canvas].append((size, alone, together))
    for group in groups.values():
        of_group, *sums = zip(*group, strict=True)
        alone, together = map(sum, sums)
        if alone <= costs.shared + together:
            own.update(of_group)
        total += min(alone, costs.shared + together)
    return total, step, own


def placed(images: Sequence[np.ndarray], canvas: Size) -> tuple[np.ndarray, np.ndarray]:
    """Images, [H, W, 3] uint8 each, on canvases: [B, *canvas, 3] uint8, and their sizes, [B, 2] int32."""
    on_canvases = np.zeros((len(images), *canvas, 3), np.uint8)
    for on_canvas, image in zip(on_canvases, images, strict=True):
        on_canvas[: image.shape[0], : image.shape[1]] = image
    return on_canvases, np.array([image.shape[:2] for image in images], np.int32)


def labels_on_canvas(
    model: nn.Module, height: int, canvas: Canvases, variables: Mapping[str, Any], images: jax.Array, sizes: jax.Array
) -> jax.Array:
    """The label map of each image as it is by itself, at the upper left of its canvas.

    Args:
        model: the network; `takes_canvases` must hold.
        height: to which images are resized.
        canvas: of all images.
        variables: of the network, prepared or of training.
        images: [B, H, W, 3] uint8, as `placed` gives them.
        sizes: [B, 2] int32.

    Returns:
        [B, H, W] uint8. Beyond an image they mean nothing.
    """
    return jax.vmap(functools.partial(_labels, model, height, canvas, variables))(images, sizes)


def _labels(model, height, canvas, variables, image, size):
    contract = network(model)
    images, size = contract.normalization(image[None]), tuple(size)
    shown = size
    if height:
        shown = height, jnp.maximum(1, ops.canvas.rounded_ratio(size[1] * height, size[0]))
        for axis in (1, 2):
            old, new = size[axis - 1], shown[axis - 1]
            images = ops.canvas.resize_part(images, old, new, canvas.seen[axis - 1], axis, 'half_pixel')
    padded = tuple(-(-length // contract.multiple_of) * contract.multiple_of for length in shown)
    with ops.canvas.on_canvas(canvas.seen, shown):
        images = ops.canvas.masked(images)
    with ops.canvas.on_canvas(canvas.seen, padded, contract.multiple_of, canvas.step):
        logits = model.apply(variables, images, train=False)['logits']
        part = ops.canvas.image_size(logits.shape[1:3])
    if logits.shape[1:3] == canvas.image and not height:
        return argmax(logits)[0]
    if contract.multiple_of > 1:  # as `contract.cut_back`
        ends = [length * new % old == 0 for length, new, old in zip(part, shown, padded, strict=True)]
        cut = [length * new // old for length, new, old in zip(part, shown, padded, strict=True)]
        part = [jnp.where(ends[0] & ends[1], few, all_) for few, all_ in zip(cut, part, strict=True)]
        size = [jnp.where(ends[0] & ends[1], few, all_) for few, all_ in zip(size, padded, strict=True)]
    return label_map_on_canvas(logits, part, size, canvas.image, contract.upsampling)[0]
