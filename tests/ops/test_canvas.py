"""On a canvas each operation gives an image what it gives it by itself; operations that cannot, say so."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atonet_jax import ops
from atonet_jax.ops.canvas import NotOnCanvasError, on_canvas, rounded_ratio

CANVAS = (64, 128)
SIZES = [(64, 128), (1, 65), (33, 97), (50, 126)]
EVEN_SIZES = [(64, 128), (8, 72), (40, 104)]


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def conv(kernel_size, channels=3, features=4, **options):
    kernel = draw(*kernel_size, channels // options.get('groups', 1), features)
    return lambda x: ops.conv(x, kernel, **options)


def at_stride_4(function):
    """Of a map that is coarser than the image."""
    return lambda x: function(conv((1, 1), stride=4, padding=0, features=3)(x))


def between(resize, coarse=8, fine=2):
    """Enlarges a coarse map to the size of a finer one."""

    def enlarge(x):
        coarser = conv((3, 3), stride=coarse, padding=1)(x)
        return resize(coarser, conv((3, 3), stride=fine)(x).shape[1:3])

    return enlarge


def pyramid(upsampling):
    def function(x):
        pooled, grid = ops.pool_to_grid(x, 4)
        return ops.enlarge_grid(2 * pooled + 1, grid, x.shape[1:3], upsampling)

    return function


def unpool(window, padding, ceil=False):
    """Pools and puts back, with a shift of the values that shows where they went."""

    def function(x):
        values, indices = ops.max_pool_with_indices(x, window, 2, padding, ceil)
        return ops.max_unpool(values + 10, indices, x.shape[1:3], window, 2, padding)

    return function


OF_ANY_SIZE = {
    'convolution': conv((3, 3)),
    '1x1': conv((1, 1)),
    '1x5': conv((1, 5)),
    'stride 2': conv((3, 3), stride=2),
    '7x7 of stride 2': conv((7, 7), stride=2),
    'dilation': conv((3, 3), dilation=3),
    'depthwise': conv((3, 3), groups=3, features=3, stride=2),
    'padded above and on the left': conv((2, 2), padding=((1, 0), (1, 0))),
    'of a coarser map': at_stride_4(conv((3, 3))),
    'max pool': ops.max_pool,
    'max pool of 2x2, rounded up': lambda x: ops.max_pool(x, 2, 2, 0, ceil=True),
    'unpooling, rounded up': unpool(2, 0, ceil=True),
    'average pool': lambda x: ops.avg_pool(x, 5, 2, 2),
    'average pool of stride 8': at_stride_4(lambda x: ops.avg_pool(x, 17, 8, 8)),
    'global average': ops.global_avg_pool,
    'global average of a coarser map': at_stride_4(ops.global_avg_pool),
    'bilinear': between(ops.resize_bilinear),
    'corners aligned': between(ops.resize_align_corners),
    'nearest': between(ops.resize_nearest),
    'rows alone': lambda x: ops.resize_bilinear(conv((3, 3), stride=(4, 1))(x), x.shape[1:3]),
    'bilinear of an average': lambda x: ops.resize_bilinear(ops.global_avg_pool(x), x.shape[1:3]),
    'pyramid': at_stride_4(pyramid('half_pixel')),
    'pyramid with corners aligned': at_stride_4(pyramid('align_corners')),
}
OF_EVEN_SIZES = {
    '2x2': conv((2, 2), stride=2, padding=0),
    'max pool of 2x2': lambda x: ops.max_pool(x, 2, 2, 0),
    'average pool of 2x2': lambda x: ops.avg_pool(x, 2, 2),
    'unpooling': unpool(2, 0),
    'unpooling of overlapping windows': unpool(3, 1),
    'transposed': at_stride_4(lambda x: ops.conv_transpose(x, draw(3, 3, 3, 4), 2, 1, 1)),
    'transposed of 2x2': at_stride_4(lambda x: ops.conv_transpose(x, draw(2, 2, 3, 4), 2, 0)),
    'twice as large': at_stride_4(lambda x: ops.resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]))),
}
REFUSED = {
    'pooling of extent 2': lambda x: ops.max_pool(x, 2, 2, 0),
    'pooling of extent 3, stride 2': lambda x: ops.max_pool(x, 3, 2, 0, ceil=True),
    'convolution of extent 3, stride 1 and padding (0, 0)': conv((3, 3), padding=0),
    'convolution of extent 3, stride 3': conv((3, 3), stride=3, padding=1),
    'transposed convolution of 3 taps': at_stride_4(lambda x: ops.conv_transpose(x, draw(3, 3, 3, 4), 2, 1, 1)),
    'adaptive pooling': lambda x: ops.adaptive_avg_pool(x, (2, 2)),
    'bicubic resizing': lambda x: ops.resize_bicubic(x, (32, 64)),
}


def whole_and_part(function, size, program):
    """What `function` gives an image by itself, and at the upper left of a canvas that is full of NaN."""
    x = draw(2, *size, 3)
    expected = np.asarray(function(x))
    edges = [(0, 0), *((0, all_ - length) for all_, length in zip(CANVAS, size)), (0, 0)]
    result = np.asarray(program(np.pad(x, edges, constant_values=np.nan), size))
    return expected, result[:, : expected.shape[1], : expected.shape[2]]


@pytest.mark.parametrize(
    ('name', 'function', 'sizes', 'multiple_of'),
    [
        *((*case, SIZES, 1) for case in OF_ANY_SIZE.items()),
        *((*case, EVEN_SIZES, 8) for case in OF_EVEN_SIZES.items()),
    ],
    ids=[*OF_ANY_SIZE, *OF_EVEN_SIZES],
)
def test_one_program_gives_images_of_all_sizes_what_each_has_by_itself(name, function, sizes, multiple_of):
    @jax.jit
    def program(x, size):
        with on_canvas(CANVAS, size, multiple_of):
            return function(x)

    for size in sizes:
        expected, result = whole_and_part(function, size, program)
        np.testing.assert_allclose(result, expected, atol=2e-6 * np.ptp(expected), err_msg=str(size))
    assert program._cache_size() == 1


@pytest.mark.parametrize('name', REFUSED)
def test_what_depends_on_the_size_is_refused(name):
    def program(x, size):
        with on_canvas(CANVAS, size):
            return REFUSED[name](x)

    with pytest.raises(NotOnCanvasError) as refused:
        jax.eval_shape(program, draw(1, *CANVAS, 3), (33, 97))
    assert str(refused.value).startswith(name)


def test_a_map_of_no_power_of_two_is_refused():
    def program(x, size):
        with on_canvas(CANVAS, size):
            return ops.max_pool(x[:, :11])

    with pytest.raises(NotOnCanvasError, match='^a map of 11 pixels on a canvas of 64'):
        jax.eval_shape(program, draw(1, *CANVAS, 3), (33, 97))


def test_ratios_are_rounded_as_python_rounds_them():
    pairs = [(a, b) for a in range(40) for b in range(1, 13)]
    rounded = jax.vmap(rounded_ratio)(*map(jnp.array, zip(*pairs)))
    assert rounded.tolist() == [round(a / b) for a, b in pairs]


def test_convolution_that_was_prepared_sees_the_image_alone():
    kernel = draw(3, 3, 128, 128)
    prepared = ops.prepare_kernel(kernel)
    x = draw(1, 20, 40, 128)

    @jax.jit
    def program(x, size):
        with on_canvas(CANVAS, size):
            return ops.conv_prepared(x, prepared)

    on_canvases = np.pad(x, ((0, 0), (0, 44), (0, 88), (0, 0)), constant_values=np.nan)
    expected = np.asarray(ops.conv(x, kernel))
    np.testing.assert_allclose(program(on_canvases, (20, 40))[:, :20, :40], expected, atol=1e-5 * np.ptp(expected))


def test_nothing_is_left_of_the_canvas_afterwards():
    x = draw(1, 33, 97, 3)
    expected = np.asarray(functools.partial(ops.resize_bilinear, size=(40, 100))(x))
    with on_canvas(CANVAS, (33, 97)):
        assert ops.canvas.is_used()
    assert not ops.canvas.is_used()
    np.testing.assert_array_equal(ops.resize_bilinear(x, (40, 100)), expected)
