"""Each kind of JAX operation computes in ONNX Runtime what it does in JAX, in few nodes and transposes."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from jax import lax

from atonet_jax.errors import InputError
from atonet_jax.export.onnx import to_onnx
from atonet_jax.ops import adaptive_avg_pool, resize_align_corners, resize_bilinear

SHAPE = (2, 9, 12, 6)
RNG = np.random.default_rng(0)


def kernel(height, width, inputs, outputs):
    return RNG.normal(size=(height, width, inputs, outputs)).astype(np.float32)


def conv(outputs=4, size=(3, 3), groups=1, **options):
    weights = kernel(*size, SHAPE[-1] // groups, outputs)
    options = {'window_strides': (1, 1), 'padding': 'SAME', 'feature_group_count': groups} | options
    return lambda x: lax.conv_general_dilated(x, weights, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **options)


def pool(reducer, start, window=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1))):
    options = (1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0))
    return lambda x: lax.reduce_window(x, start, reducer, *options)


def batch_norm_after(convolution):
    mean, scale, bias = (RNG.normal(size=4).astype(np.float32) for _ in range(3))
    return lambda x: jax.nn.relu((convolution(x) - mean) * scale + bias)


def dense(outputs):
    weights = kernel(1, 1, 6, outputs)[0, 0]
    return lambda x: x @ weights


def squeeze_attention(layer):
    return lambda x: x * jax.nn.sigmoid(layer(jnp.mean(x, (1, 2), keepdims=True)))


def after(function, first):
    return lambda x: function(first(x))


def prelu(x):
    slope = np.linspace(-1, 1, 6, dtype=np.float32)
    return jnp.where(x > 0, x, slope * x)


def prelu_of_one_slope(x):
    return jnp.where(x > 0, x, jnp.full(6, 0.25, jnp.float32) * x)


def first_largest(x):
    """2x2 windows: the largest and its place, by comparing slices."""
    parts = [x[:, top:8:2, left::2] for top in (0, 1) for left in (0, 1)]
    largest, places = parts[0], jnp.zeros(parts[0].shape, jnp.uint8)
    for place, values in enumerate(parts[1:], 1):
        places = jnp.where(values > largest, jnp.uint8(place), places)
        largest = jnp.maximum(values, largest)
    return largest, places


def pool_and_unpool(x):
    largest, places = first_largest(x)
    rows = [jnp.stack([jnp.where(places == 2 * i + j, largest, 0) for j in (0, 1)], 3) for i in (0, 1)]
    return jnp.stack(rows, 2).reshape(x.shape[0], 8, 12, 6)


def scatter_by_index(x):
    largest, places = first_largest(x)
    places = places.astype(jnp.int32)
    rows = 2 * np.arange(4)[:, None, None] + places // 2
    columns = 2 * np.arange(6)[:, None] + places % 2
    images, channels = np.arange(x.shape[0])[:, None, None, None], np.arange(6)
    return jnp.zeros((x.shape[0], 8, 12, 6)).at[images, rows, columns, channels].set(largest)


def bottlenecks():
    """As ENet has them: asymmetric and dilated convolutions, PReLU, pooling beside a convolution, and unpooling."""
    asymmetric, dilated, halved_conv = conv(6, (1, 5)), conv(6, rhs_dilation=(2, 2)), conv(6, window_strides=(2, 2))
    doubled_conv = conv(6, lhs_dilation=(2, 2), padding=((1, 2), (1, 2)))
    scale = RNG.normal(size=12).astype(np.float32)

    def function(x):
        x = prelu(prelu(asymmetric(x)) + dilated(x))[:, :8]
        largest, places = first_largest(x)
        joined = jnp.maximum(jnp.concatenate([halved_conv(x), largest], -1) * scale + 1, 0)
        rows = [jnp.stack([jnp.where(places == 2 * i + j, joined[..., :6], 0) for j in (0, 1)], 3) for i in (0, 1)]
        return jnp.stack(rows, 2).reshape(x.shape) + doubled_conv(joined[..., 6:])

    return function


def scan_over_classes(x):
    def turn(carry, row):
        return jnp.maximum(carry, row), carry.sum()

    best, sums = lax.scan(turn, jnp.zeros(x.shape[:3]), jnp.moveaxis(x, -1, 0))
    return best + sums[-1]


def attention(x):
    tokens = x.reshape(x.shape[0], -1, 6)
    return jax.nn.softmax(jnp.einsum('bnc,bmc->bnm', tokens, tokens), -1) @ tokens


@jax.custom_jvp
def doubled(x):
    return 2 * x


@jax.custom_vjp
def halved(x):
    return x / 2


FUNCTIONS = {
    'conv': conv(),
    'conv of stride 2': conv(window_strides=(2, 2), padding=((1, 1), (1, 1))),
    'dilated conv': conv(rhs_dilation=(2, 2)),
    'depthwise conv': conv(6, groups=6),
    'grouped conv': conv(8, groups=2),
    'asymmetric conv': conv(size=(1, 5)),
    'asymmetric padding': conv(padding=((0, 2), (1, 3))),
    'negative padding': conv(padding=((-1, 2), (0, -2))),
    'transposed conv': conv(padding=((1, 2), (1, 2)), lhs_dilation=(2, 2)),
    'grouped transposed conv': conv(4, (4, 4), groups=2, padding=((2, 2), (2, 2)), lhs_dilation=(2, 2)),
    'transposed conv without padding': conv(4, (2, 2), padding=((1, 1), (1, 1)), lhs_dilation=(2, 2)),
    'computed kernel': lambda x: lax.conv_general_dilated(
        x, x[0, :3, :3, :, None], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')),
    'batch norm': batch_norm_after(conv()),
    'batch norm after transposed conv': batch_norm_after(conv(padding=((1, 2), (1, 2)), lhs_dilation=(2, 2))),
    'scale before conv': after(conv(), lambda x: (x - 1) / np.arange(1, 7, dtype=np.float32)),
    'dense': after(lambda x: x + np.arange(3, dtype=np.float32), dense(3)),
    'max pool': pool(lax.max, -jnp.inf),
    'max pool rounded up': pool(lax.max, -jnp.inf, (2, 2), padding=((0, 1), (0, 0))),
    'max pool of one axis': pool(lax.max, -jnp.inf, (1, 3), (1, 1), ((0, 0), (1, 1))),
    'min pool': pool(lax.min, jnp.inf),
    'wide padding of a pool': pool(lax.max, -jnp.inf, (2, 2), padding=((0, 3), (2, 0))),
    'average pool': lambda x: pool(lax.add, 0.0)(x) / 9,
    'average pool, zeros beyond': lambda x: pool(lax.add, 0.0, (2, 2), padding=((0, 1), (1, 0)))(x) / 4,
    'average pool, zeros not counted': lambda x: pool(lax.add, 0.0)(x) / pool(lax.add, 0.0)(jnp.ones_like(x)),
    'sums of windows': pool(lax.add, 0.0),
    'global mean': lambda x: jnp.mean(x, (1, 2)),
    'squeeze attention': squeeze_attention(dense(6)),
    'adaptive average pool': lambda x: adaptive_avg_pool(x, (5, 7)),
    'adaptive average pool to more': lambda x: adaptive_avg_pool(x, (12, 5)),
    'align corners': lambda x: resize_align_corners(x, (17, 6)),
    'align corners of a long axis': lambda x: resize_align_corners(x, (70, 90)),
    'bilinear by 4': lambda x: resize_bilinear(x, (36, 48)),
    'bilinear': lambda x: resize_bilinear(x, (13, 7)),
    'jax.image': lambda x: jax.image.resize(x, (x.shape[0], 18, 30, 6), 'bilinear'),
    'nearest': lambda x: jnp.repeat(jnp.repeat(x, 2, 1), 3, 2),
    'nearest by index': lambda x: jnp.take(x, np.arange(20) * 12 // 20, 2),
    'prelu': prelu,
    'prelu of one slope': prelu_of_one_slope,
    'elu': jax.nn.elu,
    'silu': jax.nn.silu,
    'gelu': jax.nn.gelu,
    'hard swish': jax.nn.hard_swish,
    'leaky relu': jax.nn.leaky_relu,
    'relu6': jax.nn.relu6,
    'softmax': jax.nn.softmax,
    'layer norm': lambda x: jax.nn.standardize(x, -1),
    'argmax': lambda x: jnp.argmax(x, -1).astype(jnp.uint8),
    'concat': lambda x: jnp.concatenate([x, 2 * x, jnp.ones_like(x)], -1),
    'concat of rows': lambda x: jnp.concatenate([x[:, :1], x, x[:, -1:]], 1),
    'stack and interleave': lambda x: jnp.stack([x, -x], 2).reshape(x.shape[0], 18, 12, 6),
    'tile': lambda x: jnp.tile(x, (1, 2, 1, 3)),
    'space to depth': lambda x: x[:, :8].reshape(-1, 4, 2, 6, 2, 6).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4, 6, 24),
    'channel shuffle': lambda x: x.reshape(*x.shape[:3], 2, 3).swapaxes(3, 4).reshape(x.shape),
    'flatten': lambda x: x.reshape(x.shape[0], -1),
    'pad': lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0)), constant_values=2.0),
    'pad between and cut': lambda x: lax.pad(x, 1.0, ((0, 0, 0), (1, -2, 1), (-1, 0, 2), (0, 0, 0))),
    'reflect': lambda x: jnp.pad(x, ((0, 0), (2, 2), (1, 1), (0, 0)), mode='reflect'),
    'slice with steps': lambda x: x[:, 1:8:2, ::3, 1:],
    'mirror': lambda x: x[:, :, ::-1],
    'dynamic slice': lambda x: lax.dynamic_slice_in_dim(x, jnp.argmax(x[0, 0, :, 0]), 3, 2),
    'dynamic update': lambda x: x.at[:, 2:4].set(1.0),
    'rows by computed numbers': lambda x: jnp.take(x, jnp.argmax(x[0, :, :, 0], 1), 2, mode='clip'),
    'take along axis': lambda x: jnp.take_along_axis(x, jnp.argmax(x, -1, keepdims=True), -1),
    'select': lambda x: jnp.where((x > 0) & ~(x > 1) | (x == 2), x, -1.0),
    'select of three': lambda x: lax.select_n((x > 0).astype(jnp.int32) + (x > 1), x, 2 * x, 3 * x),
    'iota': lambda x: x * lax.broadcasted_iota(jnp.float32, x.shape, 1),
    'cumsum': lambda x: jnp.cumsum(x, 2),
    'whole numbers': lambda x: (jnp.round(10 * x).astype(jnp.int32) // 3 % 5).astype(jnp.uint8) + jnp.uint8(250),
    'rounding': lambda x: jnp.round(3 * x) + jnp.floor(x) + lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO),
    'powers': lambda x: x**2 + x**3 + jnp.sqrt(jnp.abs(x)) + lax.rsqrt(x * x + 1) + jnp.exp2(x) + jnp.log1p(x * x),
    'clamp': lambda x: jnp.clip(x, -0.5, 0.5) + lax.clamp(-1.0, x, 1.0),
    'any': lambda x: jnp.any(x > 2, -1),
    'pool and unpool': pool_and_unpool,
    'scatter': scatter_by_index,
    'bottlenecks': bottlenecks(),
    'scan': scan_over_classes,
    'attention': attention,
    'platforms': lambda x: lax.platform_dependent(x, cpu=lambda x: x + 1, default=lambda x: 1 + x),
    'custom derivatives': lambda x: doubled(x) + halved(x) + jax.checkpoint(jnp.sin)(x),
    'bfloat16': lambda x: (x.astype(jnp.bfloat16) * 3 + 1).astype(jnp.float32),
    'constant': lambda x: jnp.zeros((x.shape[0], 3)),
}  # fmt: skip
doubled.defjvps(lambda tangent, result, x: 2 * tangent)
halved.defvjp(lambda x: (x / 2, None), lambda saved, cotangent: (cotangent / 2,))


def run(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    return session.run(None, {'images': x})[0]


def draw(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def nodes(function, shape=SHAPE):
    return collections.Counter(node.op_type for node in to_onnx(function, shape).graph.node)


@pytest.mark.parametrize('name', FUNCTIONS)
def test_computes_what_jax_does_for_any_batch(name):
    function, x = FUNCTIONS[name], draw(3, *SHAPE[1:])
    expected = np.asarray(jax.jit(function)(x))
    result = run(to_onnx(function, (None, *SHAPE[1:])), x)
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    tolerance = 1e-2 if name == 'bfloat16' else 2e-5
    span = max(1, np.ptp(expected[np.isfinite(expected)])) if expected.dtype.kind == 'f' else 0
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance * span)


@pytest.mark.parametrize(
    'name', ['conv', 'transposed conv', 'max pool', 'bilinear', 'squeeze attention', 'bottlenecks']
)
def test_maps_are_transposed_at_the_borders_alone(name):
    assert nodes(FUNCTIONS[name])['Transpose'] <= 2


def test_batch_norm_bias_and_scale_go_into_the_convolution():
    counted = nodes(FUNCTIONS['batch norm'])
    assert {op: counted[op] for op in ('Conv', 'Relu', 'Mul', 'Add', 'Sub', 'Div')} == {
        'Conv': 1, 'Relu': 1, 'Mul': 0, 'Add': 0, 'Sub': 0, 'Div': 0}  # fmt: skip
    assert nodes(FUNCTIONS['scale before conv'])['Div'] == 0


def test_sums_of_resized_convolutions_have_one_bias_on_the_smallest_map():
    large, small = (after(lambda x, bias=bias: x + bias, conv()) for bias in draw(2, 4))

    def function(x):
        return large(x) + resize_bilinear(small(x[:, ::3, ::3]), x.shape[1:3])

    model = to_onnx(function, SHAPE)
    assert sorted(len(node.input) for node in model.graph.node if node.op_type == 'Conv') == [2, 3]
    (biased,) = (node for node in model.graph.node if node.op_type == 'Conv' and len(node.input) == 3)
    assert [node.op_type for node in model.graph.node if biased.output[0] in node.input] == ['Resize']
    np.testing.assert_allclose(run(model, draw(*SHAPE)), np.asarray(function(draw(*SHAPE))), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ('name', 'op'),
    [
        ('transposed conv', 'ConvTranspose'),
        ('prelu', 'PRelu'),
        ('prelu of one slope', 'LeakyRelu'),
        ('elu', 'Elu'),
        ('average pool', 'AveragePool'),
        ('global mean', 'ReduceMean'),
        ('bilinear by 4', 'Resize'),
        ('bilinear', 'Resize'),
    ],
)
def test_many_steps_are_one_node(name, op):
    counted = nodes(FUNCTIONS[name])
    assert counted[op] == 1
    assert set(counted) <= {op, 'Transpose', 'Identity'}


def test_an_unknown_primitive_is_named_with_its_layer_and_line():
    def function(x):
        with jax.named_scope('encoder'):
            return lax.sort(x, dimension=1)

    with pytest.raises(InputError, match=r"ONNX: no rule for the primitive 'sort' \(layer encoder, .*primitives.py:"):
        to_onnx(function, SHAPE)


def test_a_branch_on_computed_values_is_refused():
    with pytest.raises(InputError, match='a cond on computed values'):
        to_onnx(lambda x: lax.cond(x.sum() > 0, lambda: x, lambda: -x), SHAPE)


def test_a_program_that_depends_on_the_batch_is_refused():
    with pytest.raises(InputError, match='other steps for images of .*batch_size'):
        to_onnx(lambda x: sum(x[i] for i in range(x.shape[0])), (None, *SHAPE[1:]))


OF_ANY_SIZE = {
    'conv': conv(window_strides=(2, 2), padding=((1, 1), (1, 1))),
    'SAME': conv(window_strides=(2, 2)),
    'max pool rounded up': lambda x: pool(
        lax.max, -jnp.inf, (2, 2), padding=((0, x.shape[1] % 2), (0, x.shape[2] % 2)))(x),
    'bilinear': lambda x: resize_bilinear(x[:, ::4, ::4], x.shape[1:3]),
    'global mean': lambda x: jnp.mean(x, (1, 2)),
    'adaptive average pool': lambda x: adaptive_avg_pool(x, (4, 5)),
    'adaptive average pool of square cells': lambda x: adaptive_avg_pool(
        x, (8, max(1, round(8 * x.shape[2] / x.shape[1])))),
    'align corners': lambda x: resize_align_corners(x[:, :6, :7], x.shape[1:3]),
    'flatten': lambda x: x.reshape(x.shape[0], -1, 6),
    'pad': lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0))),
    'slice': lambda x: x[:, 1:-1, ::2],
    'row and column': lambda x: x + (np.arange(x.shape[1])[:, None] * x.shape[2] + np.arange(x.shape[2]))[..., None],
    'zeros': lambda x: jnp.concatenate([x, jnp.zeros((*x.shape[:3], 2))], -1),
}  # fmt: skip


@pytest.mark.parametrize('name', OF_ANY_SIZE)
def test_computes_what_jax_does_for_any_size(name):
    function = OF_ANY_SIZE[name]
    model = to_onnx(function, (None, None, None, 6))
    for size in ((33, 50), (41, 37)):
        x = draw(2, *size, 6)
        expected = np.asarray(function(x))
        result = run(model, x)
        assert result.shape == expected.shape
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=2e-5)


def test_a_constant_that_no_size_explains_is_refused():
    def function(x):
        return x * np.random.default_rng(x.shape[1]).normal(size=(x.shape[1], 1, 1)).astype(np.float32)

    with pytest.raises(InputError, match="'mul': a constant that depends on the size of the images"):
        to_onnx(function, (1, None, None, 6))


@pytest.mark.parametrize(('factor', 'classes'), [(1, 11), (4, 19), (3, 2), (8, 33)])
def test_packed_labels_are_those_of_the_enlarged_logits_but_for_near_ties(factor, classes):
    logits = RNG.normal(size=(2, 6, 7, classes)).astype(np.float32)
    logits[0, 0, 0] = logits[0, 0, 1] = 5  # of equal ones the first
    enlarged = np.asarray(resize_bilinear(logits, (6 * factor, 7 * factor)))

    def labels(x):
        return jnp.argmax(resize_bilinear(x, (6 * factor, 7 * factor)), -1).astype(jnp.uint8)

    model = to_onnx(labels, logits.shape, packed_labels=True)
    assert 'ArgMax' not in {node.op_type for node in model.graph.node}
    enlargements = {node.output[0] for node in model.graph.node if node.op_type == 'Resize'}
    users = {node.op_type for node in model.graph.node if enlargements & set(node.input)}
    assert users <= {'Round'}  # what is before may be computed in bfloat16, which would lose the class
    (result,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {'images': logits})
    chosen = np.take_along_axis(enlarged, result[..., None].astype(int), -1)[..., 0]
    assert result.dtype == np.uint8 and result[0, 0, 0] == 0
    assert np.all(enlarged.max(-1) - chosen <= 2 * np.abs(logits).max() / 2**16)
    assert np.mean(result == enlarged.argmax(-1)) > 0.99
