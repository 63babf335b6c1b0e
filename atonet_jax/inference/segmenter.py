"""`Segmenter`: from images to label maps, for programs."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding

from atonet_jax import ops
from atonet_jax.data.labels import ClassTable
from atonet_jax.errors import InputError
from atonet_jax.inference.canvases import STEPS, canvases, labels_on_canvas, placed, takes_canvases
from atonet_jax.inference.label_map import label_map, label_map_with_confidence
from atonet_jax.inference.programs import MOST_PROGRAMS, Programs
from atonet_jax.inference.views import resize_to_height, resized_size
from atonet_jax.models import apply, check_size, network, prepare
from atonet_jax.process.devices import create_mesh, replicated, split_by_batch


class Segmenter:
    """The fastest way from images to label maps: one compiled program a shape of the images, or one for many shapes.

    Normalising, the prepared network (`models.prepare`) and the argmax over enlarged logits are one program. The batch
    is split over all devices where they divide it, else each device computes all of it. The programs of the last 32
    shapes are kept. Threads may share a segmenter.

    Attributes:
        model: the network; its `dtype` is what is computed in.
        class_table: of the classes, where they are known.
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Mapping[str, Any],
        class_table: ClassTable | None = None,
        shapes: Sequence[tuple[int, int, int]] = (),
        height: int = 0,
        winograd: bool = True,
    ):
        """
        Args:
            model: the network.
            variables: of the network; what training alone reads is passed over.
            class_table: kept as the attribute.
            shapes: (batch, height, width) of images to compile `__call__` for at once; others at their first call.
            height: to which images are resized for the network (`resize_to_height`). Labels have the images' own size.
            winograd: on CPUs in float32, convolve by Winograd's algorithm where that is faster. A label map then takes
                about four fifths of the time, and compiling three times as long. See `views.winograd_pays`.
        """
        self.model = model
        self.class_table = class_table
        self._height = height
        self._mesh = create_mesh()
        self._variables = prepared_variables(model, variables, self._mesh, winograd)
        self._programs = Programs(self._compile, max(MOST_PROGRAMS, len(shapes)))
        for shape in shapes:
            self.compile('__call__', shape)

    @classmethod
    def of(cls, trained, **options) -> 'Segmenter':
        """Of a `runs.network.TrainedNetwork`, at its height. options: of `Segmenter`."""
        return cls(trained.model, trained.variables, trained.class_table, height=trained.height, **options)

    @classmethod
    def from_workdir(cls, workdir: str, dtype: str | None = None, **options) -> 'Segmenter':
        """Of a run's checkpoint, the one that `config.eval.checkpoint` of the run names, or of exported weights.

        Args:
            workdir: of a run, or the folder that `--mode=export --config.export.format=weights` wrote.
            dtype: 'float32' or 'bfloat16'; None: that of the run.
            options: of `Segmenter`.

        Raises:
            InputError: `workdir` holds no checkpoint.
        """
        from atonet_jax.runs.network import trained_network  # which needs more than computing does
        from atonet_jax.runs.workdir import load_config

        workdir = os.path.expanduser(workdir)
        config = load_config(workdir)
        if dtype is not None:
            config.model.dtype = dtype
        return cls.of(trained_network(config, workdir, create_mesh()), **options)

    def __call__(self, images: jax.Array | np.ndarray) -> jax.Array:
        """[B, H, W, 3] uint8 RGB -> [B, H, W] uint8 train ids, on the devices.

        Raises:
            InputError: the images have another type or shape.
        """
        return self._run(_labels, images)

    def with_confidence(self, images: jax.Array | np.ndarray) -> tuple[jax.Array, jax.Array]:
        """Label maps as `__call__` gives them, and the softmax probability of each label, [B, H, W] float32."""
        return self._run(_labels_with_confidence, images)

    def logits(self, images: jax.Array | np.ndarray) -> jax.Array:
        """[B, H, W, 3] uint8 RGB -> [B, H, W, num_classes] float32 logits at the images' resolution."""
        return self._run(_full_logits, images)

    def coarse_logits(self, images: jax.Array | np.ndarray) -> jax.Array:
        """[B, H, W, 3] uint8 RGB -> [B, h, w, num_classes] float32, as the network gives them."""
        return self._run(_coarse_logits, images)

    def of_any_size(self, image: np.ndarray) -> np.ndarray:
        """One image, [H, W, 3] uint8 RGB -> [H, W] uint8 train ids. Sizes share programs, where the network allows it.

        Labels are those of `__call__`, except for rounding. Sides up to the same multiple of 64 have one program.
        """
        if not self.shares_programs:
            return np.asarray(self(image[None]))[0]
        return np.asarray(self.on_canvas([image]))[0, : image.shape[0], : image.shape[1]]

    @property
    def shares_programs(self) -> bool:
        """Whether `on_canvas` works: see `models.contract.Network.on_canvas`."""
        return takes_canvases(self.model, self._height)

    def on_canvas(self, images: Sequence[np.ndarray], step: int = STEPS[0]) -> jax.Array:
        """Label maps of images of several sizes, by one program.

        Args:
            images: [H, W, 3] uint8 RGB each, all of the same `canvases.canvases`.
            step: of these. A larger one has fewer programs and computes more pixels.

        Raises:
            InputError: they are no images, on different canvases, or smaller than the network takes.

        Returns:
            [B, H', W'] uint8 train ids, on the devices. Each label map is at the upper left.
        """
        for image in images:
            _check(image[None])
            check_size(self.model, resized_size(image.shape[:2], self._height))
        canvas, *others = {canvases(image.shape[:2], self._height, step) for image in images}
        if others:
            raise InputError(f'images on canvases of {canvas.image} and {others[0].image}: give those of one at a time')
        images, sizes = placed(images, canvas.image)
        return self._programs((labels_on_canvas, images.shape, canvas))(self._variables, images, sizes)

    def compile(self, method: str, shape: tuple[int, int, int], step: int = STEPS[0]) -> jax.stages.Compiled:
        """Compiles a method for images of a shape; its calls then take this program.

        Args:
            method: '__call__', 'logits', 'coarse_logits' or 'on_canvas'.
            shape: (batch, height, width).
            step: as in `on_canvas`.

        Returns:
            The program: (variables, images), for 'on_canvas' also sizes as `canvases.placed` gives them -> what the
            method gives. It tells what memory and arithmetic it needs.
        """
        if method == 'on_canvas':
            canvas = canvases(shape[1:], self._height, step)
            return self._programs((labels_on_canvas, (shape[0], *canvas.image, 3), canvas))
        function = {'__call__': _labels, 'logits': _full_logits, 'coarse_logits': _coarse_logits}[method]
        return self._programs((function, (*shape, 3), None))

    def _run(self, function, images):
        _check(images)
        program = self._programs((function, images.shape, None))
        if isinstance(images, jax.Array) and self._mesh.size > 1:  # which may lie on one of them
            images = jax.device_put(images, self._split(images.shape))
        return program(self._variables, images)

    def _split(self, shape) -> NamedSharding:
        return split_by_batch(self._mesh) if shape[0] % self._mesh.size == 0 else replicated(self._mesh)

    def _compile(self, key):
        function, shape, canvas = key
        whole, split = replicated(self._mesh), self._split(shape)
        inputs = [jax.ShapeDtypeStruct(shape, jnp.uint8)]
        function = functools.partial(function, self.model, self._height)
        if canvas is not None:
            inputs.append(jax.ShapeDtypeStruct((shape[0], 2), jnp.int32))
            function = functools.partial(function, canvas)
        return _jitted(function, whole, len(inputs) * [split]).lower(self._variables, *inputs).compile()


def _jitted(function: Callable, variables: NamedSharding, inputs: list[NamedSharding]) -> Callable:
    return jax.jit(function, in_shardings=(variables, *inputs), out_shardings=inputs[0])


def prepared_variables(
    model: nn.Module, variables: Mapping[str, Any], mesh: Mesh, winograd: bool = True
) -> dict[str, Any]:
    """What inference computes with on the devices of the mesh: `models.prepare`, with what suits their kind.

    winograd: as in `Segmenter`.
    """
    by_winograd = winograd and jax.default_backend() == 'cpu' and model.dtype == jnp.float32
    return jax.device_put(prepare(model, variables, transform_kernels=by_winograd), replicated(mesh))


def _coarse_logits(model, height, variables, images):
    images = resize_to_height(network(model).normalization(images), height)
    return apply(model, variables, images)['logits']


def _full_logits(model, height, variables, images):
    return ops.resize(_coarse_logits(model, height, variables, images), images.shape[1:3], network(model).upsampling)


def _labels(model, height, variables, images):
    return label_map(_coarse_logits(model, height, variables, images), images.shape[1:3], network(model).upsampling)


def _labels_with_confidence(model, height, variables, images):
    logits = _coarse_logits(model, height, variables, images)
    return label_map_with_confidence(logits, images.shape[1:3], network(model).upsampling)


def _check(images) -> None:
    shape, dtype = getattr(images, 'shape', None), getattr(images, 'dtype', None)
    wanted = 'images must be [B, H, W, 3] uint8 RGB'
    if shape is None or dtype != np.uint8:
        raise InputError(f'{wanted}, not {dtype or type(images).__name__}')
    if len(shape) != 4 or shape[3] != 3 or 0 in shape:
        hint = '; for a single image give image[None]' if len(shape) == 3 else ''
        raise InputError(f'{wanted}, not of shape {tuple(shape)}{hint}')
