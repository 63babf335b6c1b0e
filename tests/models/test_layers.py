"""Pooling, resizing and normalisation follow torch's rules, which published weights were trained under."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atonet_jax.models.layers import (
    ConvNorm,
    _max_pool_by_slices,
    _max_pool_by_window,
    adaptive_avg_pool,
    enlarged_phases,
    max_pool,
    resize_align_corners,
    resize_bilinear,
)

SIZE_PAIRS = [
    ((4, 6), (16, 24)),  # integer factors
    ((3, 5), (9, 20)),  # odd and even ones
    ((4, 6), (7, 11)),
    ((5, 8), (5, 13)),  # one axis alone
    ((7, 9), (3, 4)),  # reduced
    ((1, 1), (5, 3)),
    ((6, 4), (1, 1)),
]


def feature_map(height, width):
    return np.random.default_rng(height * width).normal(size=(2, height, width, 3)).astype(np.float32)


def resize_by_loop(x, size, source_position):
    """Bilinear interpolation pixel by pixel; `source_position(i, old, new)` says where output pixel i lies."""

    def taps(i, old, new):
        position = min(max(source_position(i, old, new), 0), old - 1)
        lower = int(position)
        return (lower, 1 - (position - lower)), (min(lower + 1, old - 1), position - lower)

    resized = np.zeros((x.shape[0], *size, x.shape[3]))
    for i in range(size[0]):
        for j in range(size[1]):
            for row, row_weight in taps(i, x.shape[1], size[0]):
                for column, column_weight in taps(j, x.shape[2], size[1]):
                    resized[:, i, j] += row_weight * column_weight * x[:, row, column]
    return resized


@pytest.mark.parametrize(('old', 'new'), SIZE_PAIRS)
def test_resize_bilinear_samples_at_pixel_centres(old, new):
    x = feature_map(*old)
    expected = resize_by_loop(x, new, lambda i, old, new: (i + 0.5) * old / new - 0.5)
    np.testing.assert_allclose(jax.jit(resize_bilinear, static_argnums=1)(x, new), expected, atol=1e-5)


@pytest.mark.parametrize(('old', 'new'), SIZE_PAIRS)
def test_resize_align_corners_keeps_corners(old, new):
    x = feature_map(*old)
    expected = resize_by_loop(x, new, lambda i, old, new: i * (old - 1) / (new - 1) if new > 1 else 0)
    np.testing.assert_allclose(jax.jit(resize_align_corners, static_argnums=1)(x, new), expected, atol=1e-5)


@pytest.mark.parametrize('factor', [1, 2, 3, 4])
@pytest.mark.parametrize('axis', [1, 2])
def test_interleaved_phases_are_the_enlargement(factor, axis):
    x = feature_map(3, 4)
    size = [3, 4]
    size[axis - 1] *= factor
    enlarged = resize_bilinear(x, tuple(size))
    phases = enlarged_phases(x, factor, axis)
    assert len(phases) == factor
    for p, phase in enumerate(phases):
        every_factor_th = jax.lax.slice_in_dim(enlarged, p, None, factor, axis)
        np.testing.assert_allclose(phase, every_factor_th, atol=1e-6)


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        ((8, 8), (4, 2)),
        ((7, 11), (4, 6)),  # overlapping cells
        ((3, 4), (8, 11)),  # more cells than pixels
        ((1, 2), (8, 16)),
        ((5, 6), (1, 1)),
    ],
)
def test_adaptive_avg_pool_averages_torchs_cells(old, new):
    x = feature_map(*old)
    expected = np.zeros((2, *new, 3))
    for i in range(new[0]):
        for j in range(new[1]):
            rows = slice(i * old[0] // new[0], int(np.ceil((i + 1) * old[0] / new[0])))
            columns = slice(j * old[1] // new[1], int(np.ceil((j + 1) * old[1] / new[1])))
            expected[:, i, j] = x[:, rows, columns].mean((1, 2))
    np.testing.assert_allclose(jax.jit(adaptive_avg_pool, static_argnums=1)(x, new), expected, atol=1e-5)


@pytest.mark.parametrize('size', [(6, 8), (7, 5), (1, 2)])
def test_max_pool_is_one_function_on_every_platform(size):
    """CPU takes slices, accelerators a window: equal in value and gradient where no two inputs are."""
    count = 2 * size[0] * size[1] * 3
    x = np.random.default_rng(0).permutation(count).astype(np.float32).reshape(2, *size, 3) - count
    cotangent_shape = (2, -(-size[0] // 2), -(-size[1] // 2), 3)
    cotangent = np.random.default_rng(1).normal(size=cotangent_shape).astype(np.float32)

    def value_and_gradient(pool):
        def fn(x):
            pooled, gradient = jax.vjp(pool, x)
            return pooled, *gradient(cotangent)

        return jax.jit(fn)(x)

    expected, expected_gradient = value_and_gradient(_max_pool_by_window)
    for pool in (_max_pool_by_slices, max_pool):
        pooled, gradient = value_and_gradient(pool)
        np.testing.assert_array_equal(pooled, expected)
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


def conv_norm_of_ones(running_variance):
    """A 3x3 convolution of stride 2 whose kernel is 1 everywhere, without ReLU, and its variables."""
    layer = ConvNorm(1, 3, stride=2, relu=False)
    variables = {
        'params': {'conv': {'kernel': jnp.ones((3, 3, 1, 1))}, 'bn': {'scale': jnp.ones(1), 'bias': jnp.zeros(1)}},
        'batch_stats': {'bn': {'mean': jnp.zeros(1), 'var': jnp.full(1, running_variance)}},
    }
    return layer, variables


def test_strided_convolution_pads_both_sides_alike():
    """A padding of 'SAME' would sit at the lower right alone where stride 2 meets an even size."""
    layer, variables = conv_norm_of_ones(running_variance=1 - 1e-5)
    pixels_seen = layer.apply(variables, jnp.ones((1, 6, 6, 1)), train=False)
    np.testing.assert_allclose(pixels_seen[0, :, :, 0], [[4, 6, 6], [6, 9, 9], [6, 9, 9]], rtol=1e-5)


def test_batch_norm_has_torchs_epsilon():
    layer, variables = conv_norm_of_ones(running_variance=1e-5)
    normalized = layer.apply(variables, jnp.ones((1, 1, 1, 1)), train=False)
    np.testing.assert_allclose(normalized.item(), 1 / np.sqrt(2e-5), rtol=1e-5)


def test_batch_norm_moves_its_statistics_by_a_tenth():
    layer, variables = conv_norm_of_ones(running_variance=4.0)
    x = feature_map(6, 6)[..., :1]
    convolved = layer.apply(variables, x, train=False) * np.sqrt(4 + 1e-5)
    _, updates = layer.apply(variables, x, train=True, mutable=['batch_stats'])
    statistics = updates['batch_stats']['bn']
    np.testing.assert_allclose(statistics['mean'], 0.1 * np.mean(convolved), rtol=1e-4)
    np.testing.assert_allclose(statistics['var'], 0.9 * 4 + 0.1 * np.var(convolved), rtol=1e-4)
