"""From logits to label maps, without full-resolution logits where it can be helped."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from atonet_jax import ops

_MOST_PHASES = 16  # more, and the unrolled program grows too large
_MOST_CLASSES = 64  # likewise


def label_map(logits: jax.Array, size: tuple[int, int], upsampling: str = 'half_pixel') -> jax.Array:
    """The most likely class of each pixel: [B, h, w, C] logits enlarged bilinearly to `size` -> [B, *size] uint8.

    Full-resolution logits are never written. CPUs widen the logits, and then find the labels of each row from the two
    rows that it lies between. Other devices reduce each phase to labels where the enlargement goes by few phases.
    Otherwise they enlarge one class at a time and compare it with the best so far.
    """
    if tuple(logits.shape[1:3]) == tuple(size):
        return argmax(logits)

    def by_class(logits):
        return _best_class(logits, size, upsampling)[0]

    def by_rows(logits):
        wide = ops.resize(logits, (logits.shape[1], size[1]), upsampling)
        matrix = ops.align_corners_matrix if upsampling == 'align_corners' else ops.half_pixel_matrix
        rows = matrix(logits.shape[1], size[0])
        return _best_of_rows(wide, lambda class_logits: ops.map_axis(class_logits, rows, 1))

    on_cpu = by_rows if ops.cpu.has_fast_paths() and logits.shape[3] <= _MOST_CLASSES else by_class
    factors = ops.phase_factors(logits.shape[1:3], size, most=_MOST_PHASES)

    def by_phases(logits):
        labels = [
            jnp.stack([argmax(phase) for phase in ops.enlarged_phases(row_phase, factors[1], axis=2)], axis=3)
            for row_phase in ops.enlarged_phases(logits, factors[0], axis=1)
        ]
        return jnp.stack(labels, axis=2).reshape(-1, *size)

    default = by_class if factors is None or upsampling != 'half_pixel' else by_phases
    return on_cpu(logits) if on_cpu is default else jax.lax.platform_dependent(logits, cpu=on_cpu, default=default)


def label_map_on_canvas(
    logits: jax.Array,
    part: tuple[ops.canvas.Length, ops.canvas.Length],
    image: tuple[ops.canvas.Length, ops.canvas.Length],
    size: tuple[int, int],
    upsampling: str,
) -> jax.Array:
    """`label_map` of the upper left `part` of [B, h, w, C] logits, which is enlarged to the size of `image`.

    Returns:
        [B, *size] uint8, of which the upper left part of the size of `image` means something.
    """

    def enlarge(x, axis):
        return ops.canvas.resize_part(x, part[axis - 1], image[axis - 1], size[axis - 1], axis, upsampling)

    return _best_of_rows(enlarge(logits, 2), lambda class_logits: enlarge(class_logits, 1))


def _best_of_rows(wide: jax.Array, enlarge_rows: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Labels of logits whose columns are enlarged, [B, h, W, C]. enlarge_rows: [B, h, W, 1] -> [B, H, W, 1]."""

    def compare(index, class_logits, labels, best):
        enlarged = enlarge_rows(class_logits[..., None])[..., 0]
        return jnp.where(enlarged > best, index, labels), jnp.maximum(enlarged, best)

    by_class = jnp.moveaxis(wide, -1, 0)
    labels, best = compare(jnp.uint8(0), by_class[0], jnp.uint8(0), -jnp.inf)
    if wide.shape[-1] <= _MOST_CLASSES:
        for index, class_logits in enumerate(by_class[1:], start=1):  # XLA makes one loop of it all
            labels, best = compare(jnp.uint8(index), class_logits, labels, best)
        return labels

    def step(carry, class_logits):
        index, labels, best = carry
        return (index + jnp.uint8(1), *compare(index, class_logits, labels, best)), None

    return jax.lax.scan(step, (jnp.uint8(1), labels, best), by_class[1:])[0][1]


def label_map_with_confidence(
    logits: jax.Array, size: tuple[int, int], upsampling: str = 'half_pixel'
) -> tuple[jax.Array, jax.Array]:
    """`label_map`, and the softmax probability of each pixel's label: [B, *size] uint8 and [B, *size] float32."""
    labels, best = _best_class(logits, size, upsampling)

    def add(total, class_logits):
        return total + jnp.exp(_enlarge_class(class_logits, size, upsampling) - best), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(best), jnp.moveaxis(logits, -1, 0))
    return labels, 1 / total


def _best_class(logits: jax.Array, size: tuple[int, int], upsampling: str) -> tuple[jax.Array, jax.Array]:
    """The most likely class of each pixel and its enlarged logit."""

    def compare(carry, class_logits):
        index, labels, best = carry
        enlarged = _enlarge_class(class_logits, size, upsampling)
        labels = jnp.where(enlarged > best, index, labels)
        return (index + jnp.uint8(1), labels, jnp.maximum(enlarged, best)), None

    shape = (logits.shape[0], *size)
    start = jnp.uint8(0), jnp.zeros(shape, jnp.uint8), jnp.full(shape, -jnp.inf)
    (_, labels, best), _ = jax.lax.scan(compare, start, jnp.moveaxis(logits, -1, 0))
    return labels, best


def _enlarge_class(class_logits: jax.Array, size: tuple[int, int], upsampling: str) -> jax.Array:
    """[B, h, w] -> [B, *size]."""
    return ops.resize(class_logits[..., None], size, upsampling)[..., 0]


def argmax(logits: jax.Array) -> jax.Array:
    """[..., C] -> [...] uint8: the most likely class."""
    return jnp.argmax(logits, axis=-1).astype(jnp.uint8)
