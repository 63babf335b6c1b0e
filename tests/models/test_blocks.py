"""Convolution and normalisation follow torch's rules, which published weights were trained under."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from atonet_jax.models.blocks import BatchNorm, ConvNorm


def feature_map(height, width):
    return np.random.default_rng(height * width).normal(size=(2, height, width, 3)).astype(np.float32)


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
