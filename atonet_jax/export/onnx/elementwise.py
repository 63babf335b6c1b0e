"""Rules for elementwise primitives."""

import dataclasses

import numpy as np

from atonet_jax.export.onnx.lowering import rule
from atonet_jax.export.onnx.program import Constant

_BY_NAME = {
    'abs': 'Abs', 'ceil': 'Ceil', 'cos': 'Cos', 'erf': 'Erf', 'exp': 'Exp', 'floor': 'Floor', 'log': 'Log',
    'logistic': 'Sigmoid', 'neg': 'Neg', 'sign': 'Sign', 'sin': 'Sin', 'sqrt': 'Sqrt', 'tan': 'Tan', 'tanh': 'Tanh',
    'not': 'Not', 'add': 'Add', 'add_any': 'Add', 'sub': 'Sub', 'mul': 'Mul', 'div': 'Div', 'pow': 'Pow',
    'max': 'Max', 'min': 'Min', 'eq': 'Equal', 'lt': 'Less', 'le': 'LessOrEqual', 'gt': 'Greater',
    'ge': 'GreaterOrEqual', 'and': 'And', 'or': 'Or', 'xor': 'Xor',
}  # fmt: skip
_COMPUTED_DTYPES = (np.float32, np.float64, np.int32, np.int64)  # others, runtimes have no arithmetic for


def wide_type(dtype) -> np.dtype | None:
    """The type to compute in where runtimes cannot compute in `dtype`."""
    if dtype in _COMPUTED_DTYPES:
        return None
    return np.dtype(np.int64 if dtype in (np.uint32, np.uint64) else np.int32)


@rule(*_BY_NAME)
def _by_name(lowering, step, *inputs):
    op = _BY_NAME[step.op]
    dtype, result = inputs[0].dtype, step.outputs[0].dtype
    logical = step.op in ('not', 'and', 'or', 'xor')
    if logical and dtype.kind != 'b':
        op = {'not': 'BitwiseNot', 'and': 'BitwiseAnd', 'or': 'BitwiseOr', 'xor': 'BitwiseXor'}[step.op]
    if step.op == 'max' and dtype == np.float32:
        for x, other in (inputs, inputs[::-1]):
            if isinstance(other, Constant) and other.is_all(0) and len(x.shape) == len(step.outputs[0].shape):
                return lowering.elementwise(step, [x], lambda name: lowering.graph('Relu', name))
    wide = None if logical else wide_type(dtype)

    def compute(*names):
        if wide is not None:
            names = [lowering.cast(name, wide) for name in names]
        name = lowering.graph(op, *names)
        return lowering.cast(name, result) if wide is not None and result.kind != 'b' else name

    return lowering.elementwise(step, inputs, compute)


def _composed(op: str):
    """A rule for an elementwise primitive that is several nodes: (graph, number, *names) -> name."""

    def register(build):
        @rule(op)
        def lower_it(lowering, step, *inputs):
            dtype = step.outputs[0].dtype if step.outputs[0].dtype != bool else inputs[0].dtype

            def number(n):
                return lowering.graph.constant(np.array(n, dtype))

            return lowering.elementwise(step, inputs, lambda *names: build(lowering.graph, number, step.params, *names))

        return lower_it

    return register


_composed('rsqrt')(lambda g, n, params, x: g('Reciprocal', g('Sqrt', x)))
_composed('square')(lambda g, n, params, x: g('Mul', x, x))
_composed('exp2')(lambda g, n, params, x: g('Pow', n(2), x))
_composed('expm1')(lambda g, n, params, x: g('Sub', g('Exp', x), n(1)))
_composed('log1p')(lambda g, n, params, x: g('Log', g('Add', x, n(1))))
_composed('erfc')(lambda g, n, params, x: g('Sub', n(1), g('Erf', x)))
_composed('rem')(lambda g, n, params, x, y: g('Mod', x, y, fmod=1))
_composed('clamp')(lambda g, n, params, low, x, high: g('Min', g('Max', x, low), high))
_composed('is_finite')(lambda g, n, params, x: g('Not', g('Or', g('IsInf', x), g('IsNaN', x))))


@rule('ne')
def _not_equal(lowering, step, x, y):
    if x is y and x.dtype == np.float32:
        return lowering.elementwise(step, [x], lambda x: lowering.graph('IsNaN', x))
    return lowering.elementwise(step, [x, y], lambda *names: lowering.graph('Not', lowering.graph('Equal', *names)))


@_composed('integer_pow')
def _integer_pow(graph, number, params, x):
    return graph('Mul', x, x) if params['y'] == 2 else graph('Pow', x, number(params['y']))


@_composed('round')
def _round(graph, number, params, x):
    if int(params['rounding_method']) == 1:  # to even
        return graph('Round', x)
    return graph('Mul', graph('Sign', x), graph('Floor', graph('Add', graph('Abs', x), number(0.5))))


@rule('convert_element_type')
def _convert(lowering, step, x):
    output = step.outputs[0]
    if x.dtype == output.dtype:
        return dataclasses.replace(x, dtype=output.dtype)
    return lowering.elementwise(step, [x], lambda name: lowering.cast(name, output.dtype))


@rule('select_n')
def _select(lowering, step, which, *cases):
    wide = wide_type(cases[0].dtype)
    result = step.outputs[0].dtype

    def compute(which, *cases):
        if wide is not None and result != np.uint8:
            cases = [lowering.cast(name, wide) for name in cases]
        name = cases[0]
        if len(cases) == 2 and boolean:
            name = lowering.graph('Where', which, cases[1], cases[0])
        else:
            number = lowering.cast(which, np.int32)
            for i, case in enumerate(cases[1:], 1):
                chosen = lowering.graph('Equal', number, lowering.graph.constant(np.int32(i)))
                name = lowering.graph('Where', chosen, case, name)
        return lowering.cast(name, result) if wide is not None and result != np.uint8 else name

    boolean = which.dtype == bool
    return lowering.elementwise(step, [which, *cases], compute)


@rule('prelu')
def _prelu(lowering, step, x, slope):
    if slope.array is not None and slope.array.size and np.all(slope.array == slope.array.flat[0]):
        alpha = float(slope.array.flat[0])  # ONNX Runtime computes it several times as fast, and within convolutions
        return lowering.elementwise(step, [x], lambda x: lowering.graph('LeakyRelu', x, alpha=alpha))
    return lowering.elementwise(step, [x, slope], lambda *names: lowering.graph('PRelu', *names))


@rule('elu')
def _elu(lowering, step, x):
    return lowering.elementwise(step, [x], lambda x: lowering.graph('Elu', x, alpha=float(step.params['alpha'])))
