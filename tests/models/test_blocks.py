"""Pooling, resizing and normalisation follow torch's rules, which published weights were trained under."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from atonet_jax.models.blocks import BatchNorm, ConvNorm
from atonet_jax.ops import adaptive_avg_pool, enlarged_phases, resize_align_corners, resize_bilinear

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


def assert_as_torch(ours, theirs, old, new):
    x = feature_map(*old)
    expected = theirs(torch.from_numpy(x).permute(0, 3, 1, 2), new).permute(0, 2, 3, 1)
    np.testing.assert_allclose(jax.jit(ours, static_argnums=1)(x, new), expected, atol=1e-5)


@pytest.mark.parametrize(('old', 'new'), SIZE_PAIRS)
@pytest.mark.parametrize(('resize', 'align_corners'), [(resize_bilinear, False), (resize_align_corners, True)])
def test_resizing_is_torchs(resize, align_corners, old, new):
    """Without antialiasing, which jax.image.resize has by default."""
    assert_as_torch(resize, partial(interpolate, mode='bilinear', align_corners=align_corners), old, new)


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
def test_adaptive_avg_pool_is_torchs(old, new):
    assert_as_torch(adaptive_avg_pool, adaptive_avg_pool2d, old, new)


def test_strided_convolution_pads_both_sides_alike():
    """A padding of 'SAME' would sit at the lower right alone where stride 2 meets an even size."""
    layer = ConvNorm(1, 3, stride=2, activation=None)
    variables = {
        'params': {'conv': {'kernel': jnp.ones((3, 3, 1, 1))}, 'bn': {'scale': jnp.ones(1), 'bias': jnp.zeros(1)}},
        'batch_stats': {'bn': {'mean': jnp.zeros(1), 'var': jnp.full(1, 1 - 1e-5)}},
    }
    pixels_seen = layer.apply(variables, jnp.ones((1, 6, 6, 1)), train=False)
    np.testing.assert_allclose(pixels_seen[0, :, :, 0], [[4, 6, 6], [6, 9, 9], [6, 9, 9]], rtol=1e-5)


@pytest.mark.parametrize('train', [True, False])
def test_batch_norm_is_torchs(train):
    """Epsilon shows where a channel hardly varies, the unbiased running variance where a batch has few values."""
    theirs = torch.nn.BatchNorm2d(3).train(train)
    theirs.running_mean.normal_()
    theirs.running_var.uniform_(0.5, 1.5)
    variables = {
        'params': {'scale': np.ones(3, np.float32), 'bias': np.zeros(3, np.float32)},
        'batch_stats': {'mean': theirs.running_mean.numpy().copy(), 'var': theirs.running_var.numpy().copy()},
    }
    x = feature_map(1, 2) * np.array([1, 1e-2, 1e-3], np.float32)
    expected = theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    actual, state = BatchNorm().apply(variables, x, train=train, mutable=['batch_stats'])
    np.testing.assert_allclose(actual, expected.detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state['batch_stats']['mean'], theirs.running_mean, rtol=1e-5)
    np.testing.assert_allclose(state['batch_stats']['var'], theirs.running_var, rtol=1e-5)
