"""Convolutions equal `jax.lax`'s own, in value and in every gradient, whatever program computes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atonet_jax.errors import InputError
from atonet_jax.ops import conv, conv_prepared, conv_transpose, cpu, prepare_kernel
from atonet_jax.ops.cpu import patches, strips
from atonet_jax.ops.window import ConvWindow

CHANNELS, FEATURES = 4, 8
DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')
# (stride, dilation, groups); 4 groups are a depthwise convolution
CASES = [
    (1, 1, 1),
    (2, 1, 1),
    ((1, 2), 1, 1),
    (1, 2, 1),
    (2, (3, 1), 1),
    (2, 2, 1),
    (1, 1, 2),
    (2, 2, 2),
    (1, 2, 4),
    (2, 1, 4),
]
DTYPES = (jnp.float32, jnp.bfloat16)


@pytest.fixture
def many_strips(monkeypatch):
    """Maps of few pixels and channels are taken in as many strips as large ones."""
    monkeypatch.setattr(strips, 'LEAST_CHANNELS', 1)
    monkeypatch.setattr(strips, '_PIXELS', 60)


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


def test_few_pixels_are_products_of_patches():
    x, cases, kernels = bfloat16_noise(2, 3, 4, CHANNELS), {}, []

    def case(size, stride, dilation, padding):
        def plain(x, kernel):
            return jax.lax.conv_general_dilated(
                x, kernel, stride, padding, rhs_dilation=dilation, dimension_numbers=DIMENSIONS
            )

        cases[f'{size}, {stride}, {dilation}, {padding}'] = (
            lambda x, kernel: conv(x, kernel, stride, padding, dilation),
            plain,
        )
        kernels.append(bfloat16_noise(*size, CHANNELS, 96, seed=1))

    case((3, 3), (1, 1), (1, 1), [(1, 1), (1, 1)])
    case((5, 2), (1, 1), (1, 1), [(3, 2), (1, 0)])
    case((3, 3), (2, 1), (1, 2), [(1, 1), (2, 2)])
    case((2, 3), (1, 1), (1, 1), [(0, 0), (0, 0)])
    case((3, 4), (1, 1), (1, 1), [(0, 0), (0, 0)])
    suited = [
        patches.suits(x, kernel, ConvWindow((1, 1), ((1, 1), (1, 1)), (1, 1), 1))
        for kernel in (kernels[0], kernels[0][..., :40], kernels[0][:1, :1])
    ]
    assert suited == [True, False, False]
    for groups in (1, CHANNELS):  # the kernel lies nowhere within the map
        nowhere = jnp.ones((5, 6, CHANNELS // groups, 96))
        assert not jax.grad(lambda kernel, g=groups: conv(x, kernel, padding=0, groups=g).sum())(nowhere).any()
    assert_all_equal(x, kernels, cases)


@pytest.mark.parametrize(
    ('kernel_shape', 'stride', 'dilation'), [((3, 3, 16, 19), 2, 1), ((5, 1, 33, 40), 1, 2), ((1, 1, 24, 17), 1, 1)]
)
def test_channels_that_fill_no_vector_are_made_up(kernel_shape, stride, dilation):
    x, kernel = bfloat16_noise(2, 13, 11, kernel_shape[2]), bfloat16_noise(*kernel_shape, seed=1)
    pads = [2 * (size // 2 * dilation,) for size in kernel_shape[:2]]

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride,) * 2, pads, rhs_dilation=(dilation,) * 2, dimension_numbers=DIMENSIONS
        )

    assert_all_equal(x, [kernel], {'conv': (lambda x, kernel: conv(x, kernel, stride, None, dilation), plain)})


def assert_all_equal(x, kernels, cases):
    """cases: {what: (function, plain function) of x and a kernel}. One program computes them all."""

    @jax.jit
    def compute(x, kernels):
        return [
            (
                [with_gradients(ours, x, kernel, dtype) for dtype in DTYPES],
                with_gradients(plain, x, kernel, jnp.float32),
            )
            for kernel, (ours, plain) in zip(kernels, cases.values(), strict=True)
        ]

    for what, (by_dtype, expected) in zip(cases, compute(x, kernels), strict=True):
        for dtype, actual in zip(DTYPES, by_dtype, strict=True):
            assert_equal_but_for_rounding(actual, expected, dtype, f'{what}, {dtype.__name__}')


def test_every_form_of_padding(many_strips):
    x, forms = bfloat16_noise(2, 9, 7, CHANNELS), [None, 0, 2, (0, 3), ((0, 2), (1, 0)), ((3, 0), (0, 0))]
    sides = [(1, 1, 1, 1), (0, 0, 0, 0), (2, 2, 2, 2), (0, 0, 3, 3), (0, 2, 1, 0), (3, 0, 0, 0)]

    def case(form, top, bottom, left, right, stride):
        def plain(x, kernel):
            x = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
            return jax.lax.conv_general_dilated(x, kernel, stride, 'VALID', dimension_numbers=DIMENSIONS)

        return (lambda x, kernel: conv(x, kernel, stride, form)), plain

    cases = {
        f'{form}, stride {stride}': case(form, *of_sides, stride)
        for stride in ((1, 1), (3, 2))
        for form, of_sides in zip(forms, sides, strict=True)
    }
    assert_all_equal(x, [bfloat16_noise(3, 3, CHANNELS, FEATURES, seed=1)] * len(cases), cases)
    forms = ((1, 1), (0, 0)), ((0, 3), (0, 0)), ((0, 0), (0, 2))
    pointwise = {str(form): case(form, *form[0], *form[1], (2, 1)) for form in forms}
    assert_all_equal(x, [bfloat16_noise(1, 1, CHANNELS, FEATURES, seed=1)] * 3, pointwise)


def test_depthwise_convolution_with_any_padding():
    x, sides = (
        bfloat16_noise(2, 9, 7, CHANNELS),
        [((1, 1), (1, 1)), ((0, 2), (1, 0)), ((3, 0), (0, 0)), ((4, 4), (5, 4))],
    )

    def case(padding, stride):
        def plain(x, kernel):
            return jax.lax.conv_general_dilated(
                x, kernel, stride, padding, dimension_numbers=DIMENSIONS, feature_group_count=CHANNELS
            )

        return (lambda x, kernel: conv(x, kernel, stride, padding, groups=CHANNELS)), plain

    cases = {f'{form}, stride {stride}': case(form, stride) for stride in ((1, 1), (3, 2)) for form in sides}
    assert_all_equal(x, [bfloat16_noise(3, 3, 1, CHANNELS, seed=1)] * len(cases), cases)


@pytest.mark.parametrize('kernel_size', [(3, 3), (2, 2), (4, 3)])
def test_transposed_convolution_is_a_convolution_transposed(kernel_size, many_strips):
    """Of a map of torch's size; the convolution's kernel has its channels swapped."""
    height, width = 5, 4
    x = bfloat16_noise(2, height, width, CHANNELS)
    # (stride, padding, output padding, groups)
    cases = [(2, 1, 1, 1), (2, 0, 0, 1), (1, 1, 0, 1), ((2, 3), (1, 0), (0, 2), 1), ((2, 3), (1, 0), (0, 2), 2)]
    cases += [(2, 1, 1, CHANNELS), ((3, 1), 0, (2, 0), CHANNELS)]

    def plain(stride, padding, output_padding, groups):
        strides, pads, more = (np.broadcast_to(value, 2).tolist() for value in (stride, padding, output_padding))
        sides = zip((height, width), kernel_size, strides, pads, more, strict=True)
        size = [(old - 1) * stride - 2 * pad + kernel + extra for old, kernel, stride, pad, extra in sides]

        def transposed(x, kernel):
            shape = jax.ShapeDtypeStruct((2, *size, kernel.shape[3] * groups), x.dtype)
            return jax.linear_transpose(
                lambda y: jax.lax.conv_general_dilated(
                    y,
                    kernel.swapaxes(2, 3),
                    strides,
                    [(pad, pad) for pad in pads],
                    dimension_numbers=DIMENSIONS,
                    feature_group_count=groups,
                ),
                shape,
            )(x)[0]

        return transposed

    def ours(*options):
        return lambda x, kernel: conv_transpose(x, kernel, *options)

    features = [1 if groups == CHANNELS else FEATURES // groups for *_, groups in cases]
    kernels = [bfloat16_noise(*kernel_size, CHANNELS, number, seed=1) for number in features]
    assert_all_equal(x, kernels, {str(case): (ours(*case), plain(*case)) for case in cases})


def test_bfloat16_kernel_gradients_are_summed_in_float32(monkeypatch):
    """Over 64 strips, sums in bfloat16 would be off by 2 %."""
    monkeypatch.setattr(strips, 'LEAST_CHANNELS', 1)
    monkeypatch.setattr(strips, '_PIXELS', 1)
    x, cotangent, kernel = noise(1, 64, 8, 3), noise(1, 64, 8, 5, seed=2), noise(3, 3, 3, 5)

    @jax.jit
    def compute(*arrays):
        def gradient(function, *arrays):
            x, kernel, cotangent = arrays
            return jax.vjp(lambda kernel: function(x, kernel), kernel)[1](cotangent)[0].astype(jnp.float32)

        halves = [array.astype(jnp.bfloat16) for array in arrays]

        def plain(x, kernel):
            return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=DIMENSIONS)

        return gradient(conv, *halves), gradient(plain, *(half.astype(jnp.float32) for half in halves))

    actual, expected = compute(x, kernel, cotangent)
    assert np.linalg.norm(actual - expected) <= 2.5e-3 * np.linalg.norm(expected)


def test_a_prepared_kernel_convolves_as_before():
    x, kernel = noise(2, 9, 10, 128), noise(3, 3, 128, FEATURES)

    @jax.jit
    def compute(x, kernel):
        return conv_prepared(x, prepare_kernel(kernel)), conv(x, kernel)

    actual, expected = compute(x, kernel)
    np.testing.assert_allclose(actual, expected, atol=3e-6 * np.abs(expected).max())


def test_kernels_are_prepared_by_their_shapes_where_it_pays():
    def is_prepared(shape, *options, dtype=jnp.float32):
        return jax.eval_shape(lambda: prepare_kernel(jnp.zeros(shape, dtype), *options)) is not None

    assert is_prepared((3, 3, 128, 8))
    assert is_prepared((3, 3, 128, 8), (1, 1), ((1, 1), (1, 1)), 1, 1)
    assert not is_prepared((3, 3, 64, 256))
    assert not is_prepared((3, 1, 128, 8))
    assert not is_prepared((3, 3, 128, 8), 2)
    assert not is_prepared((3, 3, 128, 8), 1, 0)
    assert not is_prepared((3, 3, 128, 8), 1, 2, 2)
    assert not is_prepared((3, 3, 128, 8), 1, 1, 1, 2)
    assert not is_prepared((3, 3, 128, 8), dtype=jnp.bfloat16)
    with cpu.fast_paths(False):
        assert not is_prepared((3, 3, 128, 8))


def test_one_switch_turns_the_fast_paths_off(monkeypatch):
    def has_loop_over_strips():
        x, kernel = jnp.ones((1, 8, 8, 64)), jnp.ones((3, 3, 64, 4))
        gradient = jax.jit(jax.grad(lambda kernel: jnp.sum(conv(x, kernel))))
        return 'stablehlo.while' in gradient.lower(kernel).as_text()

    assert has_loop_over_strips()
    with cpu.fast_paths(False):
        assert not has_loop_over_strips()
        with cpu.fast_paths(True):
            assert has_loop_over_strips()
    monkeypatch.setenv('ATONET_JAX_CPU_FAST_PATHS', '0')
    assert not has_loop_over_strips()
    with cpu.fast_paths(True):
        assert has_loop_over_strips()


def test_a_jitted_function_is_traced_anew_when_the_switch_is_turned():
    traced = jax.jit(lambda x: x + cpu.has_fast_paths())
    assert traced(0) == 1
    with cpu.fast_paths(False):
        assert traced(0) == 0
    assert traced(0) == 1


def test_without_fast_paths_there_is_a_forward_mode_gradient():
    x, kernel = jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 3, 4))
    with cpu.fast_paths(False):
        _, tangent = jax.jvp(conv, (x, kernel), (x, kernel))
    np.testing.assert_allclose(tangent, 2 * conv(x, kernel))


def test_channels_that_do_not_go_together_are_said_in_one_line():
    x = jnp.zeros((1, 4, 4, 6))
    with pytest.raises(InputError, match=r'x has 6 channels, .* is \(3, 3, 4, 8\) and groups is 1; C must be 4'):
        conv(x, jnp.zeros((3, 3, 4, 8)))
    with pytest.raises(InputError, match='groups divide O'):
        conv(x, jnp.zeros((3, 3, 2, 8)), groups=3)
    with pytest.raises(InputError, match='C must be 4 and groups divide it'):
        conv_transpose(x, jnp.zeros((3, 3, 4, 8)), 2, 1)
