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

    def enlarge(of_class):
        return ops.resize(of_class, size, upsampling)

    def by_class(logits):
        return _best_class(logits, size, enlarge)[0]

    def by_rows(logits):
        wide = ops.resize(logits, (logits.shape[1], size[1]), upsampling)
        matrix = ops.align_corners_matrix if upsampling == 'align_corners' else ops.half_pixel_matrix
        rows = matrix(logits.shape[1], size[0])
        return _best_of_rows(wide, lambda of_class: ops.map_axis(of_class, rows, 1))

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

    if logits.shape[-1] > _MOST_CLASSES:
        return _best_class(logits, size, lambda of_class: enlarge(enlarge(of_class, 2), 1))[0]
    return _best_of_rows(enlarge(logits, 2), lambda of_class: enlarge(of_class, 1))


def _best_of_rows(wide: jax.Array, enlarge: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Labels of logits whose columns are enlarged, [B, h, W, C]. enlarge: [B, h, W, 1] -> [B, H, W, 1]."""
    best, labels = -jnp.inf, jnp.uint8(0)
    for index, of_class in enumerate(jnp.moveaxis(wide, -1, 0)):  # XLA makes one loop of it all
        enlarged = enlarge(of_class[..., None])[..., 0]
        labels = jnp.where(enlarged > best, jnp.uint8(index), labels)
        best = jnp.maximum(enlarged, best)
    return labels


def label_map_with_confidence(
    logits: jax.Array, size: tuple[int, int], upsampling: str = 'half_pixel'
) -> tuple[jax.Array, jax.Array]:
    """`label_map`, and the softmax probability of each pixel's label: [B, *size] uint8 and [B, *size] float32."""

    def enlarge(of_class):
        return ops.resize(of_class, size, upsampling)

    labels, best = _best_class(logits, size, enlarge)

    def add(total, of_class):
        return total + jnp.exp(enlarge(of_class[..., None])[..., 0] - best), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(best), jnp.moveaxis(logits, -1, 0))
    return labels, 1 / total


def _best_class(
    logits: jax.Array, size: tuple[int, int], enlarge: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """The most likely class of each pixel and its enlarged logit. enlarge: [B, h, w, 1] -> [B, *size, 1]."""

    def compare(carry, of_class):
        index, labels, best = carry
        enlarged = enlarge(of_class[..., None])[..., 0]
        labels = jnp.where(enlarged > best, index, labels)
        return (index + jnp.uint8(1), labels, jnp.maximum(enlarged, best)), None

    shape = (logits.shape[0], *size)
    start = jnp.uint8(0), jnp.zeros(shape, jnp.uint8), jnp.full(shape, -jnp.inf)
    (_, labels, best), _ = jax.lax.scan(compare, start, jnp.moveaxis(logits, -1, 0))
    return labels, best


def argmax(logits: jax.Array) -> jax.Array:
    """[..., C] -> [...] uint8: the most likely class."""
    return jnp.argmax(logits, axis=-1).astype(jnp.uint8)
