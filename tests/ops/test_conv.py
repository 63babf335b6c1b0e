"""Convolutions equal `jax.lax`'s own, in value and in every gradient, whatever program computes them."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atonet_jax.ops import conv
from atonet_jax.ops.cpu import convolution as cpu_convolution

CHANNELS, FEATURES = 4, 8
DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')
# (stride, dilation, groups); 4 groups are a depthwise convolution
CASES = [(1, 1, 1), (2, 1, 1), ((1, 2), 1, 1), (1, 2, 1), (2, (3, 1), 1), (2, 2, 1), (1, 1, 2), (2, 2, 2), (1, 2, 4), (2, 1, 4)]  # fmt: skip
DTYPES = (jnp.float32, jnp.bfloat16)


@pytest.fixture
def many_strips(monkeypatch):
    """Tiny maps are taken in as many strips as large ones."""
    monkeypatch.setattr(cpu_convolution, '_STRIP_PIXELS', 60)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def bfloat16_noise(*shape, seed=0):
    """float32, of numbers that bfloat16 has too."""
    return jnp.asarray(noise(*shape, seed=seed), jnp.bfloat16).astype(jnp.float32)


def with_gradients(fn, x, kernel, dtype):
    """Value, and gradients of x and kernel for a cotangent of noise; all computed in `dtype`, given in float32."""
    value, transposed = jax.vjp(fn, x.astype(dtype), kernel.astype(dtype))
    gradients = transposed(jnp.asarray(noise(*value.shape, seed=2), dtype))
    assert all(array.dtype == dtype for array in (value, *gradients))
    return [array.astype(jnp.float32) for array in (value, *gradients)]


def assert_equal_but_for_rounding(actual, expected, dtype, what):
    """bfloat16 has 8 bits: 0.17 % as the root of mean squares, where each number is rounded once."""
    for name, ours, theirs in zip(('value', 'x', 'kernel'), actual, expected, strict=True):
        if dtype == jnp.float32:
            np.testing.assert_allclose(ours, theirs, atol=3e-6 * np.abs(theirs).max(), err_msg=f'{what}, {name}')
        else:
            assert np.linalg.norm(ours - theirs) <= 4e-3 * np.linalg.norm(theirs), f'{what}, {name}'


@pytest.mark.parametrize('kernel_size', [(1, 1), (3, 3), (5, 1), (1, 5), (7, 7), (2, 2)])
def test_values_and_gradients_are_the_plain_ones(kernel_size, many_strips):
    """What is computed in bfloat16 is compared with the plain program in float32."""
    x = bfloat16_noise(2, 13, 11, CHANNELS)
    kernels = [bfloat16_noise(*kernel_size, CHANNELS // groups, FEATURES, seed=1) for *_, groups in CASES]

    def ours(stride, dilation, groups):
        return lambda x, kernel: conv(x, kernel, stride, None, dilation, groups)

    def plain(stride, dilation, groups):
        dilations = [int(step) for step in np.broadcast_to(dilation, 2)]
        pads = [2 * (size // 2 * step,) for size, step in zip(kernel_size, dilations, strict=True)]
        return lambda x, kernel: jax.lax.conv_general_dilated(
            x,
            kernel,
            np.broadcast_to(stride, 2),
            pads,
            rhs_dilation=dilations,
            dimension_numbers=DIMENSIONS,
            feature_group_count=groups,
        )

    assert_all_equal(x, kernels, {str(case): (ours(*case), plain(*case)) for case in CASES})


def assert_all_equal(x, kernels, cases):
    """cases: {what: (function, plain function) of x and a kernel}. One program computes them all."""

    @jax.jit
    def compute(x, kernels):
        return [
            ([with_gradients(ours, x, kernel, dtype) for dtype in DTYPES], with_gradients(plain, x, kernel, jnp.float32))
            for kernel, (ours, plain) in zip(kernels, cases.values(), strict=True)
        ]

    for what, (by_dtype, expected) in zip(cases, compute(x, kernels), strict=True):
        for dtype, actual in zip(DTYPES, by_dtype, strict=True):
            assert_equal_but_for_rounding(actual, expected, dtype, f'{what}, {dtype.__name__}')
