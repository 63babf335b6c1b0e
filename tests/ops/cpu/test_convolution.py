"""CPUs run other programs for the gradients of convolutions; accelerators run the plain ones."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atonet_jax.ops import conv, cpu


def value_and_gradients(fn, *args):
    """Value, and gradients for a cotangent of noise, in one program."""
    cotangent = np.random.default_rng(1).normal(size=jax.eval_shape(fn, *args).shape).astype(np.float32)

    def both(*args):
        value, gradient = jax.vjp(fn, *args)
        return value, *gradient(cotangent.astype(value.dtype))

    return jax.jit(both)(*args)


def assert_fast_is_plain(x, kernel, share):
    """Value and gradients of `conv`, within a share of the largest number."""
    fast = value_and_gradients(conv, x, kernel)
    with cpu.fast_paths(False):
        plain = value_and_gradients(conv, x, kernel)
    for actual, expected in zip(fast, plain, strict=True):
        np.testing.assert_allclose(actual, expected, atol=share * np.abs(expected).max())


def test_convolutions_of_many_channels_go_by_winograd():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 13, 10, 8)).astype(np.float32), rng.normal(size=(3, 3, 8, 128)).astype(np.float32)
    assert_fast_is_plain(x, kernel, 5e-6)

    def convolutions(*arguments):
        gradients = jax.jit(jax.grad(lambda *arguments: conv(*arguments).sum(), argnums=(0, 1)))
        return gradients.lower(*arguments).as_text().count('stablehlo.convolution')

    assert convolutions(x, kernel) == 0
    assert convolutions(x[:, :4], kernel) > 0  # the kernel's transformation would be most of the work


def test_output_channels_that_leave_vectors_half_empty_are_padded():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 6, 5, 3)).astype(np.float32), rng.normal(size=(3, 3, 3, 19)).astype(np.float32)
    assert_fast_is_plain(x, kernel, 2e-6)
    assert 'x32xf32' in jax.jit(lambda *arguments: conv(*arguments)).lower(x, kernel).as_text()
    assert 'x32xf32' not in jax.jit(lambda *arguments: conv(*arguments)).lower(x, kernel[..., :16]).as_text()


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
@pytest.mark.parametrize(
    ('size', 'features', 'on_cpu'),
    [
        ((128, 64), 4, 'stablehlo.while'),
        ((128, 64), 128, 'stablehlo.dot_general'),
        ((2, 4), 128, 'stablehlo.dot_general'),
    ],
)
def test_accelerators_get_the_plain_program(platform, size, features, on_cpu):
    """Three convolutions: forward, and a gradient each of image and kernel; no loop over strips, no product."""
    x, kernel = jnp.ones((2, *size, 64)), jnp.ones((3, 3, 64, features))

    def loss(x, kernel):
        return jnp.sum(jnp.square(conv(x, kernel)))

    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(x, kernel)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert program.count('stablehlo.convolution') == 3
    assert on_cpu not in program
    assert on_cpu in traced.lower(lowering_platforms=('cpu',)).as_text()


def test_a_batch_split_over_devices_stays_where_it_is():
    """Each device sums its part of a kernel's gradient; no activation goes to another."""
    code = """
import jax
from jax.sharding import NamedSharding, PartitionSpec as P
from atonet_jax.ops import conv
mesh = jax.make_mesh((2,), ('batch',))
split, whole = NamedSharding(mesh, P('batch')), NamedSharding(mesh, P())
def loss(kernels, x):
    for kernel, stride in zip(kernels, (2, 2, 1)):
        x = conv(x, kernel, stride)
    return (x * x).sum()
kernels = [jax.ShapeDtypeStruct((size, size, 8, features), 'float32') for size, features in ((3, 8), (1, 8), (3, 128))]
shapes = kernels, jax.ShapeDtypeStruct((4, 64, 128, 8), 'float32')
gradient = jax.jit(jax.grad(loss), in_shardings=(whole, split), out_shardings=whole)
text = gradient.lower(*shapes).compile().as_text()
assert 'all-reduce' in text and 'all-gather' not in text and 'all-to-all' not in text, text
"""
    flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=2'
    subprocess.run([sys.executable, '-c', code], check=True, env=os.environ | {'XLA_FLAGS': flags})
