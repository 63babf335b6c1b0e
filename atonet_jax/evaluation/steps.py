"""The jitted step of an evaluation: label maps of a batch, and the confusion matrix of each image."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.evaluation.metrics import confusion_matrices
from atonet_jax.inference.canvases import Canvases, Size, labels_on_canvas
from atonet_jax.inference.programs import Programs
from atonet_jax.inference.views import Views, predict_labels
from atonet_jax.inference.windows import SlidingWindows
from atonet_jax.process.devices import replicated, split_by_batch


def eval_step(
    model: nn.Module,
    shape: tuple[int, int],
    views: Views,
    mesh: Mesh,
    batch_size: int,
    program_of: Callable[[Size], Size | Canvases],
) -> Callable:
    """(variables, images, labels, index) -> (confusion matrix of each image, index, predictions), jitted.

    The batch is split over the devices, and so are the predictions. Every process gets all other results. Where images
    share a program (`canvases.programs_of`), predictions are those of the canvas, each image at the upper left.

    Args:
        model: the network.
        shape: of a confusion matrix.
        views: of the images.
        mesh: of all devices.
        batch_size: of windows.
        program_of: which images share a program.
    """
    if views.window:
        whole, split = replicated(mesh), split_by_batch(mesh)
        windows = SlidingWindows(model, mesh, views, batch_size)
        score = jax.jit(
            functools.partial(_scored, shape), in_shardings=(split, split, split), out_shardings=(whole, whole, split)
        )
        return lambda variables, images, labels, index: score(labels, index, windows(variables, images))

    def step(variables, images, labels, index):
        program = program_of(images.shape[1:3])
        if not isinstance(program, Canvases):
            return _own_programs(model, shape, views, mesh)(images.shape)(variables, images, labels, index)
        inputs = _placing(program.image, mesh)(images, labels)
        run = _shared_programs(model, shape, views.height, mesh)((images.shape[0], program))
        return run(variables, *inputs, index)

    return step


@functools.cache  # evaluations of one process share the programs
def _own_programs(model: nn.Module, shape: tuple[int, int], views: Views, mesh: Mesh) -> Programs:
    """By shape of the images."""

    def step(variables, images, labels, index):
        return _scored(shape, labels, index, predict_labels(model, variables, images, views))

    return Programs(lambda _: _jitted(functools.partial(step), mesh, inputs=3))


@functools.cache
def _shared_programs(model: nn.Module, shape: tuple[int, int], height: int, mesh: Mesh) -> Programs:
    """By (number of images, `Canvases`)."""

    def step(canvas, variables, images, labels, sizes, index):
        return _scored(shape, labels, index, labels_on_canvas(model, height, canvas, variables, images, sizes))

    return Programs(lambda key: _jitted(functools.partial(step, key[1]), mesh, inputs=4))


def _jitted(step: Callable, mesh: Mesh, inputs: int) -> Callable:
    whole, split = replicated(mesh), split_by_batch(mesh)
    return jax.jit(step, in_shardings=(whole, *inputs * [split]), out_shardings=(whole, whole, split))


@functools.cache
def _placing(canvas: Size, mesh: Mesh) -> Callable:
    """(images, labels) of one size -> these on a canvas, without labels beyond, and the sizes, [B, 2] int32."""

    def place(images, labels):
        batch, *size = labels.shape
        edges = (0, 0), *((0, all_ - length) for all_, length in zip(canvas, size, strict=True))
        images = jnp.pad(images, (*edges, (0, 0)))
        labels = jnp.pad(labels, edges, constant_values=IGNORE_LABEL)
        return images, labels, jnp.full((batch, 2), jnp.array(size, jnp.int32))

    split = split_by_batch(mesh)
    return jax.jit(place, in_shardings=split, out_shardings=split)


def _scored(shape: tuple[int, int], labels: jax.Array, index: jax.Array, predictions: jax.Array) -> tuple:
    return confusion_matrices(labels, predictions, *shape), index, predictions
