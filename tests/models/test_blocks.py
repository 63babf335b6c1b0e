"""Convolution and normalisation follow torch's rules, which published weights were trained under."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atonet_jax.errors import InputError
from atonet_jax.models.blocks import BatchNorm, ConvNorm, ConvTranspose


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
    rng, eps, momentum = np.random.default_rng(0), 1e-5, 0.1
    mean, var = rng.normal(size=3), rng.uniform(0.5, 1.5, 3)
    variables = {
        'params': {'scale': np.ones(3, np.float32), 'bias': np.zeros(3, np.float32)},
        'batch_stats': {'mean': mean.astype(np.float32), 'var': var.astype(np.float32)},
    }
    x = feature_map(1, 2) * np.array([1, 1e-2, 1e-3], np.float32)
    if train:
        used_mean, used_var = x.mean((0, 1, 2), np.float64), x.var((0, 1, 2), np.float64)
        unbiased = x.var((0, 1, 2), np.float64, ddof=1)
        mean, var = (1 - momentum) * mean + momentum * used_mean, (1 - momentum) * var + momentum * unbiased
    else:
        used_mean, used_var = mean, var
    actual, state = BatchNorm().apply(variables, x, train=train, mutable=['batch_stats'])
    np.testing.assert_allclose(actual, (x - used_mean) / np.sqrt(used_var + eps), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state['batch_stats']['mean'], mean, rtol=1e-5)
    np.testing.assert_allclose(state['batch_stats']['var'], var, rtol=1e-5)


def test_a_batch_of_one_value_a_channel_is_refused():
    """Its variance is 0: inference would divide by it."""
    variables = BatchNorm().init(jax.random.key(0), jnp.ones((1, 1, 1, 3)), train=True)
    with pytest.raises(InputError, match='config.train.batch_size: .* give two images or more at once'):
        BatchNorm().apply(variables, jnp.ones((1, 1, 1, 3)), train=True, mutable=['batch_stats'])
    BatchNorm().apply(variables, jnp.ones((2, 1, 1, 3)), train=True, mutable=['batch_stats'])


@pytest.mark.parametrize(('options', 'channels'), [({}, 64), ({'fan': 'input'}, 4)], ids=['PyTorch', 'Torch7'])
def test_kernel_and_bias_of_a_transposed_convolution_start_within_one_bound(options, channels):
    """A weight is [input, output, k, k]. PyTorch takes its second axis for the input, Torch7 knows the first one is."""
    layer = ConvTranspose(64, use_bias=True, **options)
    params = layer.init(jax.random.key(0), jnp.ones((1, 1, 1, 4)))['params']
    bound = (3 * 3 * channels) ** -0.5
    for name, array in params.items():
        assert 0.9 * bound < np.abs(array).max() <= bound, name
