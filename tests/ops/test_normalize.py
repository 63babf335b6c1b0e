"""Batch normalisation in training has the gradient that autodiff finds through the batch's own statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atonet_jax.ops import batch_normalize, batch_statistics, normalize_by_batch

EPSILON = 1e-2


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_statistics_are_the_mean_and_the_biased_variance():
    x = noise(2, 3, 5, 4) * 3 + 1
    mean, var = batch_statistics(x)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(var, x.var((0, 1, 2)), rtol=1e-5)


def test_statistics_of_pooled_maps_are_right_where_the_few_values_lie_close():
    x = 1 + np.float32(1e-3) * noise(2, 1, 1, 4)
    _, var = batch_statistics(x)
    np.testing.assert_allclose(var, x.var((0, 1, 2), np.float64), rtol=1e-3)


def test_normalisation_takes_the_statistics_it_is_given():
    x, scale, bias, mean = noise(2, 3, 5, 4), noise(4, seed=1), noise(4, seed=2), noise(4, seed=3)
    var = np.square(noise(4, seed=4))
    expected = (x - mean) / np.sqrt(var + EPSILON) * scale + bias
    np.testing.assert_allclose(batch_normalize(x, scale, bias, mean, var, EPSILON), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 1e-5), ('bfloat16', 1e-2)])
def test_the_gradient_in_training_is_what_autodiff_finds(dtype, tolerance):
    x, scale, bias = jnp.asarray(noise(2, 3, 5, 4) * 3 + 1, dtype), noise(4, seed=1), noise(4, seed=2)
    cotangent = jnp.asarray(noise(*x.shape, seed=5), dtype)

    def ours(x, scale, bias):
        return normalize_by_batch(x, scale, bias, *batch_statistics(x), EPSILON)

    def plain(x, scale, bias):
        mean = x.mean((0, 1, 2))
        return (x - mean) / jnp.sqrt(jnp.square(x - mean).mean((0, 1, 2)) + EPSILON) * scale + bias

    def value_and_gradients(function, x, cotangent):
        value, transposed = jax.vjp(function, x, scale, bias)
        return value, *transposed(cotangent)

    actual = value_and_gradients(ours, x, cotangent)
    assert actual[0].dtype == actual[1].dtype == dtype
    expected = value_and_gradients(plain, x.astype(jnp.float32), cotangent.astype(jnp.float32))
    for ours_, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours_.astype(jnp.float32), theirs, atol=tolerance * np.abs(theirs).max())
