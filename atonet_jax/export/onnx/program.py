"""A traced function as a flat list of steps: calls inlined, constants folded, several traces laid over each other."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from atonet_jax.errors import InputError

NAMED = ('named_resize_bilinear', 'named_resize_nearest')  # jitted functions that stay one step
_CALLS = {  # primitive -> the parameter that holds the called jaxpr
    'jit': 'jaxpr', 'pjit': 'jaxpr', 'closed_call': 'call_jaxpr', 'core_call': 'call_jaxpr', 'remat': 'jaxpr',
    'checkpoint': 'jaxpr', 'custom_jvp_call': 'call_jaxpr', 'custom_vjp_call': 'call_jaxpr',
    'custom_vjp_call_jaxpr': 'fun_jaxpr', 'remat2': 'jaxpr',
}  # fmt: skip
_IDENTITIES = ('stop_gradient', 'copy', 'copy_p', 'optimization_barrier', 'sharding_constraint', 'reduce_precision',
               'name', 'device_put')  # fmt: skip
_ELEMENTWISE = {
    'abs', 'add', 'add_any', 'and', 'ceil', 'clamp', 'convert_element_type', 'cos', 'div', 'eq', 'erf', 'erfc', 'exp',
    'exp2', 'expm1', 'floor', 'ge', 'gt', 'integer_pow', 'is_finite', 'le', 'log', 'log1p', 'logistic', 'lt', 'max',
    'min', 'mul', 'ne', 'neg', 'not', 'or', 'pow', 'rem', 'round', 'rsqrt', 'select_n', 'sign', 'sin', 'sqrt',
    'square', 'sub', 'tan', 'tanh', 'xor',
}  # fmt: skip
_MOST_UNROLLED = 64  # turns of a scan
_LARGEST_FOLDED = 2**24  # elements of a constant


class Varied(tuple):
    """A number that differs between the traces: its value in each."""


Size = int | Varied


FIXED_SIZE = 'export it with a fixed size and batch size (config.export.dynamic_size=False, config.export.batch_size=N)'


class VariesError(NotImplementedError):
    """What differs with the size of the images, and no rule can put into a graph."""


def merge(values: Sequence[Any]) -> Any:
    """The one value that all traces have; tuples element by element; numbers that differ as `Varied`."""
    first = values[0]
    if all(value is first for value in values):
        return first
    if isinstance(first, (bool, int, float, np.number)):
        return first if all(value == first for value in values) else Varied(values)
    if isinstance(first, (tuple, list)):
        if len({len(value) for value in values}) > 1:
            raise ValueError('the number of axes differs')
        merged = [merge(elements) for elements in zip(*values, strict=True)]
        return type(first)(*merged) if hasattr(first, '_fields') else tuple(merged)
    return first


def combine(function: Callable, *sizes: Size) -> Size:
    """`function` of sizes, in each trace."""
    count = max((len(size) for size in sizes if isinstance(size, Varied)), default=0)
    if not count:
        return function(*sizes)
    return merge([function(*(s[i] if isinstance(s, Varied) else s for s in sizes)) for i in range(count)])


@dataclasses.dataclass(frozen=True, eq=False)
class Ref:
    """A value that the graph computes."""

    shape: tuple[Size, ...]
    dtype: np.dtype


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """A value known now.

    Attributes:
        arrays: one, or one a trace where they differ. An axis along which all is equal may have length 1.
        shape: the whole shape.
    """

    arrays: tuple[np.ndarray, ...]
    shape: tuple[Size, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.arrays[0].dtype

    @property
    def array(self) -> np.ndarray | None:
        """None where it differs between the traces."""
        return self.arrays[0] if len(self.arrays) == 1 else None

    @property
    def scalar(self):
        """Its one number, `Varied` where it differs between the traces; None where it has several."""
        if any(array.size != 1 for array in self.arrays):
            return None
        return merge([array.item() for array in self.arrays])

    @property
    def whole(self) -> list[np.ndarray]:
        """With all elements, in each trace that differs."""
        shapes = [
            tuple(size[i] if isinstance(size, Varied) else size for size in self.shape)
            for i in range(max([1, *(len(size) for size in self.shape if isinstance(size, Varied))]))
        ]
        arrays = self.arrays * len(shapes) if len(self.arrays) == 1 else self.arrays
        shapes = shapes * len(arrays) if len(shapes) == 1 else shapes
        return [np.broadcast_to(array, shape) for array, shape in zip(arrays, shapes, strict=True)]

    def is_all(self, number: float) -> bool:
        return self.scalar == number


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One primitive, or what `fusion` made of several.

    Attributes:
        op: name of the primitive.
        params: of the primitive.
        inputs: `Ref` or `Constant` each.
        outputs: `Ref` each.
        place: the layer and source line that it comes from, for messages.
    """

    op: str
    params: Mapping[str, Any]
    inputs: tuple
    outputs: tuple[Ref, ...]
    place: str


@dataclasses.dataclass
class Program:
    """Steps from one input to one result."""

    given: Ref
    steps: list[Step]
    result: Ref | Constant


def trace(function: Callable, shapes: Sequence[tuple[int, ...]], dtype: np.dtype) -> Program:
    """The program of `function`, traced with each of `shapes`.

    Raises:
        InputError: the traces do not have the same steps.
    """
    programs = []
    for shape in shapes:
        closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, dtype))
        if len(closed.jaxpr.outvars) != 1:
            raise InputError(f'an ONNX export is of one output; the function has {len(closed.jaxpr.outvars)}')
        given = Ref(shape, np.dtype(dtype))
        steps = []
        (result,) = _Flattener(steps).inline(closed.jaxpr, closed.consts, [given])
        programs.append(_without_unused(Program(given, steps, result)))
    return programs[0] if len(programs) == 1 else _merged(programs)


class _Flattener:
    """Appends the steps of a jaxpr and of all that it calls."""

    def __init__(self, steps: list[Step]):
        self._steps = steps
        self._outer = '', ''  # layer and line of the call that is being inlined

    def inline(self, jaxpr: Jaxpr, consts: Sequence, inputs: Sequence) -> list:
        """Returns the outputs: `Ref`, or `Constant` where nothing is to be computed."""
        values = dict(zip(jaxpr.constvars, map(_constant, consts), strict=True))
        values |= zip(jaxpr.invars, inputs, strict=True)

        def read(variable):
            if isinstance(variable, Literal):
                return _constant(np.asarray(variable.val, variable.aval.dtype))
            return values[variable]

        for equation in jaxpr.eqns:
            outputs = self._equation(equation, [read(variable) for variable in equation.invars])
            values |= zip(equation.outvars, outputs, strict=True)
        return [read(variable) for variable in jaxpr.outvars]

    def _equation(self, equation, inputs) -> Sequence:
        op, params = equation.primitive.name, equation.params
        if op in _IDENTITIES:
            return inputs
        place = self._place(equation)
        if op in _CALLS and not _is_named(equation):
            return self._call(params[_CALLS[op]], inputs, equation)
        if op == 'platform_index':
            return [Constant((np.zeros((), np.int32),), ())]  # the branch is chosen where it is used
        if op == 'cond':
            return self._cond(equation, inputs)
        if op == 'scan':
            return self._scan(equation, inputs)
        shapes = [tuple(variable.aval.shape) for variable in equation.outvars]
        if all(isinstance(x, Constant) for x in inputs) and sum(map(np.prod, shapes)) <= _LARGEST_FOLDED:
            return _folded(equation, inputs, shapes[0])
        if op == 'stack':
            return [self._stacked(inputs, params['axis'], shapes[0], place)]
        outputs = tuple(
            Ref(shape, _computed(variable.aval.dtype)) for shape, variable in zip(shapes, equation.outvars, strict=True)
        )
        if op in _CALLS:
            op, params = params['name'], {}
        self._steps.append(Step(op, params, tuple(inputs), outputs, place))
        return outputs

    def _call(self, called: ClosedJaxpr | Jaxpr, inputs, equation) -> list:
        outer, self._outer = self._outer, self._layer_and_line(equation)
        jaxpr, consts = (called.jaxpr, called.consts) if isinstance(called, ClosedJaxpr) else (called, [])
        outputs = self.inline(jaxpr, consts, inputs)
        self._outer = outer
        return outputs

    def _layer_and_line(self, equation) -> tuple[str, str]:
        layer, line = self._outer
        info = equation.source_info
        layers = [part for part in (layer, str(info.name_stack)) if part]
        return '/'.join(layers), source_info_util.summarize(info) or line

    def _place(self, equation) -> str:
        """The layer and the source line, as far as they are known."""
        layer, line = self._layer_and_line(equation)
        return f'layer {layer}, {line}' if layer else line or 'of an unknown line'

    def _cond(self, equation, inputs) -> list:
        """The plain branch of `platform_dependent`, or the branch of a constant."""
        branches = equation.params['branches']
        platforms = equation.params.get('branches_platforms')
        if platforms is not None:
            index = next((i for i, names in enumerate(platforms) if names is None), None)
            if index is None:
                index = next((i for i, names in enumerate(platforms) if 'cpu' in names), 0)
        elif isinstance(inputs[0], Constant):
            index = int(np.clip(int(inputs[0].array), 0, len(branches) - 1))
        else:
            place = self._place(equation)
            raise InputError(f'ONNX: a cond on computed values cannot be exported ({place}); use jnp.where')
        return self._call(branches[index], inputs[1:], equation)

    def _scan(self, equation, inputs) -> list:
        """Unrolled."""
        params = equation.params
        length, body = params['length'], params['jaxpr']
        turn_jaxpr = body.jaxpr if isinstance(body, ClosedJaxpr) else body

        def unsliced(outer, inner):  # what a turn takes or gives whole; JAX's parameters for that change
            return sum(a.aval.ndim == b.aval.ndim for a, b in zip(outer, inner, strict=True))

        carries = unsliced(equation.outvars, turn_jaxpr.outvars)
        consts = unsliced(equation.invars, turn_jaxpr.invars) - carries
        if length > _MOST_UNROLLED:
            place = self._place(equation)
            raise InputError(f'ONNX: a scan of {length} turns; at most {_MOST_UNROLLED} are unrolled ({place})')
        fixed, carry, xs = inputs[:consts], inputs[consts : consts + carries], inputs[consts + carries :]
        place = self._place(equation)
        collected = [[None] * length for _ in equation.outvars[carries:]]
        turns = range(length)
        for turn in reversed(turns) if params['reverse'] else turns:
            elements = [self._element(x, turn, place) for x in xs]
            outputs = self._call(body, [*fixed, *carry, *elements], equation)
            carry = outputs[:carries]
            for column, output in zip(collected, outputs[carries:], strict=True):
                column[turn] = output
        stacked = [
            self._stacked(column, 0, tuple(variable.aval.shape), place)
            for column, variable in zip(collected, equation.outvars[carries:], strict=True)
        ]
        return [*carry, *stacked]

    def _element(self, x, index: int, place: str):
        if isinstance(x, Constant):
            return _constant(np.broadcast_to(x.array, x.shape)[index])
        row = Ref((1, *x.shape[1:]), x.dtype)
        limits = {'start_indices': (index,) + (0,) * len(x.shape[1:]), 'limit_indices': (index + 1, *x.shape[1:]),
                  'strides': None}  # fmt: skip
        self._steps.append(Step('slice', limits, (x,), (row,), place))
        element = Ref(x.shape[1:], x.dtype)
        self._steps.append(Step('squeeze', {'dimensions': (0,)}, (row,), (element,), place))
        return element

    def _stacked(self, parts: Sequence, axis: int, shape: tuple, place: str):
        """Arrays side by side along a new axis."""
        if all(isinstance(x, Constant) for x in parts):
            return _constant(np.stack([np.broadcast_to(x.array, x.shape) for x in parts], axis))
        row_shape = (*shape[:axis], 1, *shape[axis + 1 :])
        others = tuple(i for i in range(len(shape)) if i != axis)
        rows = []
        for x in parts:
            rows.append(Ref(row_shape, x.dtype))
            params = {'shape': row_shape, 'broadcast_dimensions': others}
            self._steps.append(Step('broadcast_in_dim', params, (x,), (rows[-1],), place))
        stacked = Ref(shape, rows[0].dtype)
        self._steps.append(Step('concatenate', {'dimension': axis}, tuple(rows), (stacked,), place))
        return stacked


def _is_named(equation) -> bool:
    """Whether it calls a function of `NAMED`, of one array [B, H, W, C]."""
    if equation.params.get('name') not in NAMED or len(equation.outvars) != 1:
        return False
    arrays = [variable.aval for variable in equation.invars if variable.aval.ndim]
    result = equation.outvars[0].aval
    return (
        len(arrays) == len(equation.invars) == 1
        and arrays[0].ndim == result.ndim == 4
        and (arrays[0].shape[0], arrays[0].shape[3]) == (result.shape[0], result.shape[3])
    )


def _computed(dtype) -> np.dtype:
    """The type that the graph computes in: float32 for the 16-bit floats."""
    dtype = np.dtype(dtype)
    return np.dtype(np.float32) if dtype in (np.float16, ml_dtypes.bfloat16) else dtype


def _constant(value) -> Constant:
    array = np.asarray(value)
    return Constant((array.astype(_computed(array.dtype), copy=False),), array.shape)


def _folded(equation, inputs, shape) -> list[Constant]:
    """The equation's outputs, computed now. What is broadcast stays one element along that axis."""
    op, params = equation.primitive.name, equation.params
    arrays = [x.array for x in inputs]
    if op == 'broadcast_in_dim':
        array = arrays[0]
        lengths = [1] * len(shape)
        for length, axis in zip(array.shape, params['broadcast_dimensions'], strict=True):
            lengths[axis] = length
        return [Constant((array.reshape(lengths),), shape)]
    elementwise = op in _ELEMENTWISE
    if not elementwise:
        arrays = [np.broadcast_to(array, x.shape) for array, x in zip(arrays, inputs, strict=True)]
    elif op == 'select_n' and arrays[0].ndim:
        arrays = np.broadcast_arrays(*arrays)
    elif op == 'select_n':
        arrays = [arrays[0], *np.broadcast_arrays(*arrays[1:])]
    dtypes = [variable.aval.dtype for variable in equation.invars]
    arrays = [jax.numpy.asarray(array, dtype) for array, dtype in zip(arrays, dtypes, strict=True)]
    if op in _CALLS:
        called = params[_CALLS[op]]
        results = jaxpr_as_fun(called)(*arrays)
    else:
        results = equation.primitive.bind(*arrays, **params)
        results = results if equation.primitive.multiple_results else [results]
    results = [_constant(result) for result in results]
    return [Constant(results[0].arrays, shape)] if elementwise else results


def _without_unused(program: Program) -> Program:
    used = {program.result}
    kept = []
    for step in reversed(program.steps):
        if used.intersection(step.outputs):
            used.update(step.inputs)
            kept.append(step)
    return Program(program.given, kept[::-1], program.result)


def _merged(programs: Sequence[Program]) -> Program:
    """One program of several traces."""
    if len({len(program.steps) for program in programs}) > 1:
        _refuse_traces(programs)
    refs = [{} for _ in programs]  # of each trace: its Ref -> the merged one

    def merged_ref(versions):
        ref = Ref(merge([version.shape for version in versions]), versions[0].dtype)
        for known, version in zip(refs, versions, strict=True):
            known[version] = ref
        return ref

    def merged_input(versions):
        if all(isinstance(version, Ref) for version in versions):
            found = {known[version] for known, version in zip(refs, versions, strict=True)}
            if len(found) == 1:
                return found.pop()
        elif all(isinstance(version, Constant) for version in versions):
            arrays = tuple(version.array for version in versions)
            if not all(array is arrays[0] for array in arrays):
                arrays = tuple(map(_compact, arrays))
            same = all(array is arrays[0] or _equal(array, arrays[0]) for array in arrays)
            return Constant(arrays[:1] if same else arrays, merge([version.shape for version in versions]))
        raise ValueError('different inputs')

    given = merged_ref([program.given for program in programs])
    steps = []
    for versions in zip(*(program.steps for program in programs), strict=True):
        try:
            if len({step.op for step in versions}) > 1 or len({len(step.inputs) for step in versions}) > 1:
                raise ValueError('different steps')
            inputs = tuple(map(merged_input, zip(*(step.inputs for step in versions), strict=True)))
            params = {key: merge([step.params[key] for step in versions]) for key in versions[0].params}
            outputs = tuple(map(merged_ref, zip(*(step.outputs for step in versions), strict=True)))
        except ValueError:
            _refuse_traces(programs)
        steps.append(Step(versions[0].op, params, inputs, outputs, versions[0].place))
    return Program(given, steps, merged_input([program.result for program in programs]))


def _compact(array: np.ndarray) -> np.ndarray:
    """One element along each axis along which all is equal."""
    for axis in range(array.ndim):
        first = array.take([0], axis)
        if array.shape[axis] and (array == first).all():
            array = first
    return array


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def _refuse_traces(programs: Sequence[Program]):
    ops = zip(*(program.steps for program in programs), strict=False)
    place = next((f' first in {versions[0].place}' for versions in ops if len({step.op for step in versions}) > 1), '')
    shapes = ' and '.join(str(list(program.given.shape)) for program in programs[:2])
    raise InputError(f'ONNX: the network computes other steps for images of {shapes}{place}; {FIXED_SIZE}')
