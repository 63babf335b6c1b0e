"""From images to label maps. `Segmenter` is the way for programs; evaluation takes `predict_labels`."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from atonet_jax.data.labels import ClassTable
from atonet_jax.errors import InputError
from atonet_jax.models.layers import fold_batch_norms, winograd_kernels
from atonet_jax.ops import enlarged_phases, phase_factors, resize_bilinear
from atonet_jax.process.devices import create_mesh, replicated, split_by_batch
from atonet_jax.training.augment import normalize

_MOST_PHASES = 16  # of an enlargement that is spelt out phase by phase, which programs grow with


class Segmenter:
    """The fastest way from images to label maps: one compiled program a shape of the images.

    Normalising, the network with each BN folded into its convolution, and the argmax over enlarged logits are one
    program. The batch is split over all devices where they divide it, else each device computes all of it.

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
    ):
        """
        Args:
            model: the network.
            variables: {'params', 'batch_stats'} of the network; auxiliary heads are passed over.
            class_table: kept as the attribute.
            shapes: (batch, height, width) of images to compile `__call__` for at once; others at their first call.
        """
        self.model = model
        self.class_table = class_table
        self._mesh = create_mesh()
        params = inference_params(model, variables)
        if jax.default_backend() == 'cpu' and model.dtype == jnp.float32:
            params |= winograd_kernels(model, params)
        self._variables = jax.device_put(params, replicated(self._mesh))
        self._programs = {}
        for shape in shapes:
            self.compile('__call__', shape)

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

        config = load_config(workdir)
        if dtype is not None:
            config.model.dtype = dtype
        network = trained_network(config, workdir, create_mesh())
        return cls(network.model, network.variables, network.class_table, **options)

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
        """[B, H, W, 3] uint8 RGB -> [B, ceil(H / 4), ceil(W / 4), num_classes] float32: the network's own stride."""
        return self._run(_coarse_logits, images)

    def compile(self, method: str, shape: tuple[int, int, int]) -> jax.stages.Compiled:
        """Compiles '__call__', 'logits' or 'coarse_logits' for images of a shape; its calls then take this program.

        Args:
            method: the name of one of these.
            shape: (batch, height, width).

        Returns:
            The program: (parameters, images) -> what the method gives. It tells what memory and arithmetic it needs.
        """
        function = {'__call__': _labels, 'logits': _full_logits, 'coarse_logits': _coarse_logits}[method]
        return self._compile(function, (*shape, 3))

    def _run(self, function, images):
        _check(images)
        program = self._programs.get((function, images.shape)) or self._compile(function, images.shape)
        return program(self._variables, images)

    def _compile(self, function, shape):
        whole = replicated(self._mesh)
        split = split_by_batch(self._mesh) if shape[0] % self._mesh.size == 0 else whole
        jitted = jax.jit(
            lambda params, images: function(self.model, params, images),
            in_shardings=(whole, split),
            out_shardings=split,
        )
        images = jax.ShapeDtypeStruct(shape, jnp.uint8)
        self._programs[function, shape] = program = jitted.lower(self._variables, images).compile()
        return program


def inference_params(model: nn.Module, variables: Mapping[str, Any]) -> dict[str, Any]:
    """{'params'} to compute with: each BN within its convolution, no auxiliary heads, kernels of `model.dtype`."""
    params = {name: child for name, child in variables['params'].items() if not name.startswith('aux')}
    fold = jax.jit(partial(fold_batch_norms, dtype=model.dtype))
    return fold({'params': params, 'batch_stats': variables['batch_stats']})


def _coarse_logits(model, params, images):
    return model.apply(params, normalize(images), train=False)['logits']


def _full_logits(model, params, images):
    return resize_bilinear(_coarse_logits(model, params, images), images.shape[1:3])


def _labels(model, params, images):
    return label_map(_coarse_logits(model, params, images), images.shape[1:3])


def _labels_with_confidence(model, params, images):
    return label_map_with_confidence(_coarse_logits(model, params, images), images.shape[1:3])


def _check(images) -> None:
    shape, dtype = getattr(images, 'shape', None), getattr(images, 'dtype', None)
    wanted = 'images must be [B, H, W, 3] uint8 RGB'
    if shape is None or dtype != np.uint8:
        raise InputError(f'{wanted}, not {dtype or type(images).__name__}')
    if len(shape) != 4 or shape[3] != 3 or 0 in shape:
        hint = '; for a single image give image[None]' if len(shape) == 3 else ''
        raise InputError(f'{wanted}, not of shape {tuple(shape)}{hint}')


def label_map(logits: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The most likely class of each pixel: [B, h, w, C] logits enlarged bilinearly to `size` -> [B, *size] uint8.

    Full-resolution logits are never written: on CPU one class after the other is enlarged and compared with the best so
    far, elsewhere one phase after the other is reduced to labels, where the enlargement goes by phases.
    """

    def by_class(logits):
        return _best_class(logits, size)[0]

    factors = phase_factors(logits.shape[1:3], size, _MOST_PHASES)
    if factors is None:
        return by_class(logits)

    def by_phases(logits):
        labels = [
            jnp.stack([_argmax(phase) for phase in enlarged_phases(row_phase, factors[1], axis=2)], axis=3)
            for row_phase in enlarged_phases(logits, factors[0], axis=1)
        ]
        return jnp.stack(labels, axis=2).reshape(-1, *size)

    return jax.lax.platform_dependent(logits, cpu=by_class, default=by_phases)


def label_map_with_confidence(logits: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """`label_map`, and the softmax probability of each pixel's label: [B, *size] uint8 and [B, *size] float32."""
    labels, best = _best_class(logits, size)

    def add(total, class_logits):
        return total + jnp.exp(_enlarge_class(class_logits, size) - best), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(best), jnp.moveaxis(logits, -1, 0))
    return labels, 1 / total


def _best_class(logits: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """The most likely class of each pixel and its enlarged logit."""

    def compare(carry, class_logits):
        index, labels, best = carry
        enlarged = _enlarge_class(class_logits, size)
        labels = jnp.where(enlarged > best, index, labels)
        return (index + jnp.uint8(1), labels, jnp.maximum(enlarged, best)), None

    shape = (logits.shape[0], *size)
    start = jnp.uint8(0), jnp.zeros(shape, jnp.uint8), jnp.full(shape, -jnp.inf)
    (_, labels, best), _ = jax.lax.scan(compare, start, jnp.moveaxis(logits, -1, 0))
    return labels, best


def _enlarge_class(class_logits: jax.Array, size: tuple[int, int]) -> jax.Array:
    """[B, h, w] -> [B, *size]."""
    return resize_bilinear(class_logits[..., None], size)[..., 0]


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
