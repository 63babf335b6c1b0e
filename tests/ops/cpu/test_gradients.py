"""What CPUs take for convolution and max-pooling is what accelerators take, in value and gradient."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from atonet_jax.ops.cpu.gradients import conv_general_dilated, max_pool, max_pool_by_slices, max_pool_by_window

DIMENSIONS = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC')}


def value_and_gradients(fn, *args):
    """Value, and gradients for a cotangent of noise, in one program."""
    cotangent = np.random.default_rng(1).normal(size=jax.eval_shape(fn, *args).shape).astype(np.float32)

    def both(*args):
        value, gradient = jax.vjp(fn, *args)
        return value, *gradient(cotangent.astype(value.dtype))

    return jax.jit(both)(*args)


@pytest.mark.parametrize(
    ('size', 'kernel_size', 'stride'),
    [
        ((66, 65), 3, 1),  # in strips, of which no height is another's
        ((67, 70), 3, 2),
        ((130, 37), 7, 2),
        ((3, 1400), 7, 2),  # a strip a row
        ((12, 10), 3, 1),  # as a whole
        ((9, 8), 1, 2),
        ((8, 8), 1, 1),
    ],
)
def test_a_convolutions_gradients_are_the_plain_ones(size, kernel_size, stride):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, 3)).astype(np.float32)
    kernel = rng.normal(size=(kernel_size, kernel_size, 3, 4)).astype(np.float32)
    pads = 2 * ((kernel_size // 2, kernel_size // 2),)
    plain = partial(jax.lax.conv_general_dilated, window_strides=(stride, stride), padding=pads, **DIMENSIONS)
    ours = partial(conv_general_dilated, strides=(stride, stride), padding=pads, **DIMENSIONS)
    for actual, expected in zip(value_and_gradients(ours, x, kernel), value_and_gradients(plain, x, kernel)):
        np.testing.assert_allclose(actual, expected, atol=2e-6 * np.abs(expected).max())


def test_convolutions_of_many_channels_go_by_winograd():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 13, 10, 8)).astype(np.float32), rng.normal(size=(3, 3, 8, 128)).astype(np.float32)
    plain = partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding=((1, 1), (1, 1)), **DIMENSIONS)
    ours = partial(conv_general_dilated, strides=(1, 1), padding=((1, 1), (1, 1)), **DIMENSIONS)
    for actual, expected in zip(value_and_gradients(ours, x, kernel), value_and_gradients(plain, x, kernel)):
        np.testing.assert_allclose(actual, expected, atol=5e-6 * np.abs(expected).max())

    def convolutions(*arguments):
        gradients = jax.jit(jax.grad(lambda *arguments: ours(*arguments).sum(), argnums=(0, 1)))
        return gradients.lower(*arguments).as_text().count('stablehlo.convolution')

    assert convolutions(x, kernel) == 0
    assert convolutions(x[:, :1, :1], kernel) > 0  # the kernel's transformation would be most of the work


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
@pytest.mark.parametrize(('features', 'on_cpu'), [(4, 'stablehlo.while'), (128, 'stablehlo.dot_general')])
def test_accelerators_get_the_plain_program(platform, features, on_cpu):
    """Three convolutions: forward, and a gradient each of image and kernel; no loop over strips, no product."""
    x, kernel = jnp.ones((2, 128, 64, 3)), jnp.ones((3, 3, 3, features))

    def loss(x, kernel):
        return jnp.sum(jnp.square(conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), **DIMENSIONS)))

    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(x, kernel)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert program.count('stablehlo.convolution') == 3
    assert on_cpu not in program
    assert on_cpu in traced.lower(lowering_platforms=('cpu',)).as_text()


@pytest.mark.parametrize('size', [(6, 8), (7, 5), (1, 2)])
@pytest.mark.parametrize('ties', [False, True])
def test_max_pool_is_one_function_on_every_platform(size, ties):
    """CPU takes slices, accelerators a window, torch its own; among equal inputs the first one takes the gradient."""
    rng, shape = np.random.default_rng(0), (2, *size, 3)
    x = rng.integers(-3, 0, shape) if ties else rng.permutation(np.prod(shape)).reshape(shape) - np.prod(shape)
    x = x.astype(np.float32)
    expected = value_and_gradients(max_pool_by_window, x)
    for pool in (max_pool_by_slices, max_pool):
        pooled, gradient = value_and_gradients(pool, x)
        np.testing.assert_array_equal(pooled, expected[0])
        np.testing.assert_allclose(gradient, expected[1], atol=1e-6)

    theirs = torch.tensor(np.moveaxis(x, -1, 1), requires_grad=True)
    pooled = torch.nn.functional.max_pool2d(theirs, 3, 2, 1)
    cotangent = np.random.default_rng(1).normal(size=expected[0].shape).astype(np.float32)
    pooled.backward(torch.tensor(np.moveaxis(cotangent, -1, 1)))
    np.testing.assert_allclose(np.moveaxis(theirs.grad.numpy(), 1, -1), expected[1], atol=1e-6)


def test_max_pool_keeps_what_is_no_number():
    x = np.ones((1, 8, 8, 1), np.float32)
    x[0, 3, 3] = np.nan
    np.testing.assert_array_equal(jax.jit(max_pool_by_slices)(x), max_pool_by_window(x))
    assert np.isnan(max_pool_by_slices(x)).sum() == 4


def test_a_batch_split_over_devices_stays_where_it_is():
    """Each device sums its part of a kernel's gradient; no activation goes to another."""
    code = """
import functools, jax
from jax.sharding import NamedSharding, PartitionSpec as P
from atonet_jax.ops.cpu.gradients import conv_general_dilated
mesh = jax.make_mesh((2,), ('batch',))
split, whole = NamedSharding(mesh, P('batch')), NamedSharding(mesh, P())
def loss(kernels, x):
    for kernel, stride in zip(kernels, (2, 2, 1)):
        pads = 2 * ((kernel.shape[0] // 2,) * 2,)
        x = conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return (x * x).sum()
kernels = [jax.ShapeDtypeStruct((size, size, 8, features), 'float32') for size, features in ((3, 8), (1, 8), (3, 128))]
shapes = kernels, jax.ShapeDtypeStruct((4, 64, 128, 8), 'float32')
gradient = jax.jit(jax.grad(loss), in_shardings=(whole, split), out_shardings=whole)
text = gradient.lower(*shapes).compile().as_text()
assert 'all-reduce' in text and 'all-gather' not in text and 'all-to-all' not in text, text
"""
    flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=2'
    subprocess.run([sys.executable, '-c', code], check=True, env=os.environ | {'XLA_FLAGS': flags})
