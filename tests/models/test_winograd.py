"""Winograd's convolution is the direct one, on maps of any size."""

import jax
import numpy as np
import pytest

from atonet_jax.models.winograd import convolve, transform_kernel


@pytest.mark.parametrize('size', [(4, 8), (5, 7), (1, 1), (6, 3)])
def test_winograd_is_the_direct_convolution(size):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2, *size, 3)).astype(np.float32)
    kernel = generator.normal(size=(3, 3, 3, 5)).astype(np.float32)
    dimensions = ('NHWC', 'HWIO', 'NHWC')
    expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=dimensions)
    np.testing.assert_allclose(jax.jit(convolve)(x, transform_kernel(kernel)), expected, atol=1e-4)
