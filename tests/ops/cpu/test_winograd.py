"""Winograd's convolution and its gradients are the direct one's, on maps of any size."""

import jax
import numpy as np
import pytest

from atonet_jax.ops.cpu.winograd import convolve, input_gradient, kernel_gradient, transform_kernel


@pytest.mark.parametrize('size', [(4, 8), (5, 7), (1, 1), (6, 3)])
def test_winograd_is_the_direct_convolution(size):
    generator = np.random.default_rng(0)
    x, cotangent = (generator.normal(size=(2, *size, channels)).astype(np.float32) for channels in (3, 5))
    kernel = generator.normal(size=(3, 3, 3, 5)).astype(np.float32)

    @jax.jit
    def direct(x, kernel, cotangent):
        dimensions = ('NHWC', 'HWIO', 'NHWC')
        y, transposed = jax.vjp(
            lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=dimensions),
            x,
            kernel,
        )
        return y, *transposed(cotangent)

    @jax.jit
    def by_winograd(x, kernel, cotangent):
        y = convolve(x, transform_kernel(kernel))
        return y, input_gradient(cotangent, kernel), kernel_gradient(x, cotangent)

    for actual, expected in zip(by_winograd(x, kernel, cotangent), direct(x, kernel, cotangent), strict=True):
        np.testing.assert_allclose(actual, expected, atol=3e-6 * np.abs(expected).max())


def test_convolutions_of_one_shape_are_traced_once():
    """Tracing one takes longer than computing it."""
    x, kernel = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32), jax.ShapeDtypeStruct((3, 3, 3, 3), np.float32)
    transformed = jax.eval_shape(transform_kernel, kernel)
    program = jax.make_jaxpr(lambda x, kernel: convolve(convolve(x, kernel), kernel))(x, transformed)
    first, second = (equation.params['jaxpr'] for equation in program.eqns)
    assert first is second
