"""Pools equal plain NumPy forms of torch's rules, in value, index and gradient."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atonet_jax.errors import InputError
from atonet_jax.ops import (
    adaptive_avg_pool,
    avg_pool,
    cpu,
    max_pool,
    max_pool_with_indices,
    max_unpool,
    pooling_for_quantizers,
)

# (window, stride, padding, ceil)
CASES = [
    (3, 2, 1, False),
    (2, 2, 0, False),
    (2, 2, 0, True),
    (3, 2, 0, True),
    (3, 2, 1, True),
    (3, 1, 1, False),
    ((1, 3), (1, 2), (0, 1), False),
    ((2, 3), 3, ((0, 1), (1, 0)), False),
]


def pixels(size, ties=False, seed=0):
    """Negative ones, so that zeros in the padding would show."""
    rng, shape = np.random.default_rng(seed), (2, *size, 3)
    values = rng.integers(-3, 0, shape) if ties else rng.permutation(np.prod(shape)).reshape(shape) - np.prod(shape)
    return values.astype(np.float32)


def windows_along(length, window, stride, before, after, ceil):
    """(first, last + 1) of each window's pixels along an axis, by torch's rule."""
    count = (length + before + after - window + (stride - 1 if ceil else 0)) // stride + 1
    if (count - 1) * stride >= length + before:
        count -= 1
    starts = np.arange(count) * stride - before
    return [(max(start, 0), min(start + window, length)) for start in starts.tolist()]


def windows(size, window, stride, padding, ceil):
    """Every window's place in the result, and its rows and columns."""
    sides = np.broadcast_to(np.asarray(padding).reshape(-1, 1) if np.ndim(padding) == 1 else padding, (2, 2)).tolist()
    axes = zip(size, np.broadcast_to(window, 2).tolist(), np.broadcast_to(stride, 2).tolist(), sides, strict=True)
    rows, columns = (enumerate(windows_along(*axis, *side, ceil)) for *axis, side in axes)
    return [((i, j), slice(*of_rows), slice(*of_columns)) for (i, of_rows), (j, of_columns) in product(rows, columns)]


def plain_max_pool(x, *options):
    """Values and indices."""
    found = windows(x.shape[1:3], *options)
    shape = (len(x), *(1 + max(place[axis] for place, *_ in found) for axis in (0, 1)), x.shape[3])
    values, indices = np.zeros(shape, x.dtype), np.zeros(shape, np.int32)
    for image, channel in np.ndindex(len(x), x.shape[3]):
        for place, rows, columns in found:
            part = x[image, rows, columns, channel]
            row, column = np.unravel_index(part.argmax(), part.shape)
            values[image, *place, channel] = part[row, column]
            indices[image, *place, channel] = (rows.start + row) * x.shape[2] + columns.start + column
    return values, indices


def plain_scatter(values, indices, size, add):
    result = np.zeros((len(values), size[0] * size[1], values.shape[3]), values.dtype)
    for image, row, column, channel in np.ndindex(values.shape):
        index, value = indices[image, row, column, channel], values[image, row, column, channel]
        result[image, index, channel] = value + (result[image, index, channel] if add else 0)
    return result.reshape(len(values), *size, -1)


def noise(shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('size', [(6, 8), (7, 5), (3, 4)])
@pytest.mark.parametrize('ties', [False, True])
def test_max_pool_values_indices_and_gradients(size, ties):
    """With and without the fast paths; among equal pixels the first one takes the gradient."""
    x = pixels(size, ties)
    expected = [plain_max_pool(x, *case) for case in CASES]

    @jax.jit
    def compute(x, cotangents):
        def both(pool, cotangent):
            values, gradient = jax.vjp(pool, x)
            return values, gradient(cotangent)[0]

        results = []
        for case, cotangent in zip(CASES, cotangents, strict=True):
            fast = both(lambda x: max_pool(x, *case), cotangent)
            with cpu.fast_paths(False):
                plain = both(lambda x: max_pool(x, *case), cotangent)
            with_indices = both(lambda x: max_pool_with_indices(x, *case)[0], cotangent)
            results.append(((fast, plain, with_indices), max_pool_with_indices(x, *case)[1]))
        return results

    cotangents = [noise(values.shape) for values, _ in expected]
    for case, cotangent, (values, indices), (ways, our_indices) in zip(
        CASES, cotangents, expected, compute(x, cotangents), strict=True
    ):
        np.testing.assert_array_equal(our_indices, indices, err_msg=str(case))
        gradient = plain_scatter(cotangent, indices, size, add=True)
        for our_values, our_gradient in ways:
            np.testing.assert_array_equal(our_values, values, err_msg=str(case))
            np.testing.assert_allclose(our_gradient, gradient, atol=1e-6, err_msg=str(case))


def test_max_pool_keeps_nan_and_finds_pixels_of_minus_infinity():
    x = pixels((8, 8))
    x[0, 3, 3], x[1] = np.nan, -np.inf

    @jax.jit
    def compute(x):
        return max_pool(x), jax.vjp(max_pool, x)[0], *max_pool_with_indices(x)

    *pooled, indices = compute(x)
    for values in pooled:
        assert np.isnan(values[0]).sum() == 4 * 3
        assert np.all(values[1] == -np.inf)
    np.testing.assert_array_equal(indices[0, 1:3, 1:3], 3 * 8 + 3)
    np.testing.assert_array_equal(indices[1, :2, :2, 0], [[0, 1], [8, 9]])  # first ones in the map, not in the padding


def test_bfloat16_stays():
    x = jnp.asarray(pixels((5, 5)), jnp.bfloat16)
    values, gradient = jax.vjp(max_pool, x)
    assert values.dtype == gradient(values)[0].dtype == avg_pool(x, 2, 2).dtype == jnp.bfloat16


@pytest.mark.parametrize('size', [(6, 8), (7, 5)])
def test_unpooling_puts_values_back_and_takes_gradients_from_there(size):
    """Windows that do not overlap go another way than the rest; so do sizes that they do not divide."""
    cases = [((2, 2, 0, False), 2), ((2, 2, 0, True), 2), ((3, 3, 0, True), 3)]
    x = pixels(size)
    pooled = [plain_max_pool(x, *case) for case, _ in cases]
    values = [noise(indices.shape) for _, indices in pooled]
    cotangent = noise(x.shape)

    @jax.jit
    def compute(values, all_indices):
        results = []
        for (_, window), value, indices in zip(cases, values, all_indices, strict=True):
            unpooled, gradient = jax.vjp(lambda value: max_unpool(value, indices, size, window), value)
            results.append((unpooled, gradient(cotangent)[0]))
        return results

    results = compute(values, [indices for _, indices in pooled])
    for value, (_, indices), (unpooled, gradient) in zip(values, pooled, results, strict=True):
        np.testing.assert_array_equal(unpooled, plain_scatter(value, indices, size, add=False))
        flat = cotangent.reshape(2, -1, 3)
        expected = np.take_along_axis(flat, indices.reshape(2, -1, 3), 1).reshape(indices.shape)
        np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize('case', [(3, 2, 1, False), (3, 2, 0, True), (3, 1, 1, False), ((2, 3), (2, 1), 0, False)])
def test_unpooling_overlapping_windows_sets_the_last_value_and_gives_each_its_gradient(case):
    x, cotangent = pixels((7, 8)), noise((2, 7, 8, 3))
    _, indices = plain_max_pool(x, *case)
    assert len(np.unique(indices[0, :, :, 0])) < indices[0, :, :, 0].size, 'no two windows have the same largest pixel'
    values = noise(indices.shape)  # unlike a pool's, values with the same index differ

    @jax.jit
    def compute(values, indices):
        unpooled, gradient = jax.vjp(lambda values: max_unpool(values, indices, (7, 8), *case[:3]), values)
        return unpooled, gradient(cotangent)[0]

    of_each = np.take_along_axis(cotangent.reshape(2, -1, 3), indices.reshape(2, -1, 3), 1).reshape(indices.shape)
    unpooled, gradient = compute(values, indices)
    np.testing.assert_array_equal(unpooled, plain_scatter(values, indices, (7, 8), add=False))
    np.testing.assert_array_equal(gradient, of_each)


def test_avg_pool_counts_the_zeros_of_its_padding():
    cases = [(2, 2, 0), (3, 2, 1), (3, 1, 1), ((5, 3), (4, 2), (2, 1))]
    x = pixels((9, 7))
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))

    @jax.jit
    def compute(x):
        results = []
        for case in cases:
            pooled, gradient = jax.vjp(lambda x: avg_pool(x, *case), x)
            results.append((pooled, gradient(jnp.ones_like(pooled))[0]))
        return results

    for (window, stride, padding), (pooled, gradient) in zip(cases, compute(x), strict=True):
        size, (row_stride, column_stride), (top, left) = (
            np.broadcast_to(value, 2).tolist() for value in (window, stride, padding)
        )
        counted = np.zeros((13, 11))
        for i, j in np.ndindex(*pooled.shape[1:3]):
            rows = slice(i * row_stride + 2 - top, i * row_stride + 2 - top + size[0])
            columns = slice(j * column_stride + 2 - left, j * column_stride + 2 - left + size[1])
            np.testing.assert_allclose(pooled[:, i, j], padded[:, rows, columns].mean((1, 2)), rtol=1e-5)
            counted[rows, columns] += 1 / (size[0] * size[1])
        np.testing.assert_allclose(gradient[0, :, :, 0], counted[2:-2, 2:-2], rtol=1e-5)
        with pooling_for_quantizers():
            np.testing.assert_allclose(avg_pool(x, window, stride, padding), pooled, rtol=1e-5)


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
def test_adaptive_avg_pool_averages_cells_that_may_overlap(old, new):
    x = pixels(old)
    pooled = jax.jit(adaptive_avg_pool, static_argnums=1)(x, new)
    assert pooled.shape == (2, *new, 3)
    for i, j in np.ndindex(*new):
        rows = slice(int(np.floor(i * old[0] / new[0])), int(np.ceil((i + 1) * old[0] / new[0])))
        columns = slice(int(np.floor(j * old[1] / new[1])), int(np.ceil((j + 1) * old[1] / new[1])))
        np.testing.assert_allclose(pooled[:, i, j], x[:, rows, columns].mean((1, 2)), rtol=1e-5)


def test_bad_shapes_are_said_in_one_line():
    with pytest.raises(InputError, match='a map of 1x5 is smaller than a window of 2x2'):
        max_pool(jnp.zeros((1, 1, 5, 1)), 2, 2, 0)
    with pytest.raises(InputError, match='both must be the same'):
        max_unpool(jnp.zeros((1, 2, 2, 1)), jnp.zeros((1, 2, 3, 1), jnp.int32), (4, 4), 2)


@pytest.mark.parametrize(('window', 'padding'), [(2, 0), (3, 1)])
def test_the_fast_gradient_stays_on_cpus(window, padding):
    """Accelerators take the one scatter that XLA has for it, and keep no places."""
    x = jnp.ones((1, 8, 8, 4))
    traced = jax.jit(jax.grad(lambda x: jnp.sum(jnp.square(max_pool(x, window, 2, padding))))).trace(x)
    texts = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ('cpu', 'cuda', 'tpu')}
    scatters = {name: text.count('"stablehlo.select_and_scatter"') for name, text in texts.items()}
    assert scatters == {'cpu': 0, 'cuda': 1, 'tpu': 1}
