"""Batch normalisation: Ioffe and Szegedy, "Batch Normalization". Computed in float32 whatever the maps are."""

import jax
import jax.numpy as jnp


def batch_statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of each channel of [B, H, W, C], over the whole batch: [C] float32 each."""
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, (0, 1, 2))
    # Of pooled maps there are few values. Where these are nearly equal, their squares' rounding exceeds the variance.
    if x.shape[1:3] == (1, 1):
        return mean, jnp.mean(jnp.square(x - mean), (0, 1, 2))
    return mean, jnp.maximum(jnp.mean(jnp.square(x), (0, 1, 2)) - jnp.square(mean), 0.0)


def batch_normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, mean: jax.Array, var: jax.Array, epsilon: float
) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias.

    Args:
        x: [B, H, W, C].
        scale, bias, mean, var: [C] float32.
        epsilon: is added to the variance.

    Returns:
        [B, H, W, C] in x's dtype.
    """
    normalized = (x.astype(jnp.float32) - mean) * (scale * jax.lax.rsqrt(var + epsilon)) + bias
    return normalized.astype(x.dtype)


def normalize_by_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array, mean: jax.Array, var: jax.Array, epsilon: float
) -> jax.Array:
    """`batch_normalize` in training, where `mean` and `var` are `batch_statistics(x)`.

    The gradient of x contains what flows through mean and var. These themselves get none. It equals what autodiff
    gives, with two reductions over the map instead of four.
    """
    return _normalize(x, scale, bias, *jax.lax.stop_gradient((mean, var)), epsilon)


_normalize = jax.custom_vjp(batch_normalize, nondiff_argnums=(5,))


def _forward(x, scale, bias, mean, var, epsilon):
    return batch_normalize(x, scale, bias, mean, var, epsilon), (x, scale, mean, var)


def _backward(epsilon, saved, cotangent):
    x, scale, mean, var = saved
    dtype, x, cotangent = x.dtype, x.astype(jnp.float32), cotangent.astype(jnp.float32)
    inverse = jax.lax.rsqrt(var + epsilon)
    count = x.size // x.shape[-1]
    bias_gradient = jnp.sum(cotangent, (0, 1, 2))
    scale_gradient = (jnp.sum(cotangent * x, (0, 1, 2)) - mean * bias_gradient) * inverse
    x_gradient = scale * inverse * (cotangent - bias_gradient / count - (x - mean) * (inverse * scale_gradient / count))
    return x_gradient.astype(dtype), scale_gradient, bias_gradient, None, None


_normalize.defvjp(_forward, _backward)
