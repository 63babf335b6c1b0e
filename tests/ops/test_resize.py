"""Resizing equals plain NumPy forms, pixel by pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atonet_jax.ops import (
    cpu,
    enlarged_phases,
    phase_factors,
    resize_align_corners,
    resize_bicubic,
    resize_bilinear,
    resize_nearest,
)

SIZE_PAIRS = [
    ((4, 6), (16, 24)),  # whole factors
    ((3, 5), (9, 20)),  # odd and even ones
    ((4, 6), (7, 11)),
    ((5, 8), (5, 13)),  # one axis alone
    ((7, 9), (3, 4)),  # reduced
    ((1, 1), (5, 3)),
    ((6, 4), (1, 1)),
]


def feature_map(height, width):
    return np.random.default_rng(height * width).normal(size=(2, height, width, 3)).astype(np.float32)


def half_pixel_positions(old, new):
    return [(i + 0.5) * old / new - 0.5 for i in range(new)]


def aligned_positions(old, new):
    return [i * (old - 1) / (new - 1) if new > 1 else 0.0 for i in range(new)]


def linear(distance):
    return max(0.0, 1 - abs(distance))


def keys_cubic(distance, a=-0.75):
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def blend(x, axis, positions, weigh):
    """Each new pixel is a sum of those within two of its position; beyond the border stands the border's pixel."""
    x = np.moveaxis(x, axis, 0).astype(np.float64)
    result = []
    for position in positions:
        taps = range(int(np.floor(position)) - 1, int(np.floor(position)) + 3)
        result.append(sum(weigh(position - tap) * x[min(max(tap, 0), len(x) - 1)] for tap in taps))
    return np.moveaxis(np.stack(result), 0, axis)


@pytest.mark.parametrize(
    ('resize', 'place', 'weigh'),
    [
        (resize_bilinear, half_pixel_positions, linear),
        (resize_align_corners, aligned_positions, linear),
        (resize_bicubic, half_pixel_positions, keys_cubic),
    ],
)
def test_resizing_blends_neighbours(resize, place, weigh):
    """Without antialiasing, which jax.image.resize has by default."""
    maps = [feature_map(*old) for old, _ in SIZE_PAIRS]
    resized = jax.jit(lambda maps: [resize(x, new) for x, (_, new) in zip(maps, SIZE_PAIRS, strict=True)])(maps)
    for x, (old, new), actual in zip(maps, SIZE_PAIRS, resized, strict=True):
        expected = blend(blend(x, 1, place(old[0], new[0]), weigh), 2, place(old[1], new[1]), weigh)
        np.testing.assert_allclose(actual, expected, atol=1e-5, err_msg=f'{old} -> {new}')


def test_resize_nearest_takes_the_pixel_at_the_floor():
    maps = [feature_map(*old) for old, _ in SIZE_PAIRS]
    resized = jax.jit(lambda maps: [resize_nearest(x, new) for x, (_, new) in zip(maps, SIZE_PAIRS, strict=True)])(maps)
    for x, (old, new), actual in zip(maps, SIZE_PAIRS, resized, strict=True):
        rows, columns = ([i * before // after for i in range(after)] for before, after in zip(old, new, strict=True))
        np.testing.assert_array_equal(actual, x[:, rows][:, :, columns])


@pytest.mark.parametrize('factor', [1, 2, 3, 4, 8])
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


def test_phase_factors_are_whole_and_limited_by_the_caller_alone():
    assert phase_factors((4, 6), (32, 96)) == (8, 16)
    assert phase_factors((4, 6), (32, 96), most=128) == (8, 16)
    assert phase_factors((4, 6), (32, 96), most=127) is None
    assert phase_factors((4, 6), (33, 96)) is None
    assert phase_factors((4, 6), (2, 6)) is None


def test_resizing_stays_in_bfloat16():
    x = jax.numpy.asarray(feature_map(4, 6), 'bfloat16')
    for resize in (resize_bilinear, resize_align_corners, resize_bicubic, resize_nearest):
        assert jax.eval_shape(lambda x, resize=resize: resize(x, (7, 12)), x).dtype == 'bfloat16'


@pytest.mark.parametrize('size', [(40, 50), (5, 4)])
@pytest.mark.parametrize('resize', [resize_align_corners, resize_bicubic])
def test_cpus_resize_without_products_and_with_the_same_gradients(resize, size):
    x = feature_map(12, 16)

    def value_and_gradient(fast):
        with cpu.fast_paths(fast):
            lowered = jax.jit(jax.value_and_grad(lambda x: jnp.square(resize(x, size)).sum())).lower(x)
        return lowered.as_text().count('dot_general'), *lowered.compile()(x)

    products, *actual = value_and_gradient(True)
    plain_products, *expected = value_and_gradient(False)
    assert products == 0 < plain_products
    for of_fast, of_plain in zip(actual, expected, strict=True):
        np.testing.assert_allclose(of_fast, of_plain, atol=1e-5 * np.abs(of_plain).max())
