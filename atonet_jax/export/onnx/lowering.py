"""From steps to nodes: values, and the rules that the modules beside this one register, one a primitive."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from atonet_jax.export.onnx.graph import Graph, refuse
from atonet_jax.export.onnx.program import FIXED_SIZE, Constant, Program, Ref, Size, Step, Varied, VariesError, combine

INPUT_NAME = 'images'
RULES: dict[str, Callable] = {}


@dataclasses.dataclass(frozen=True)
class Value:
    """An array in the graph.

    Attributes:
        name: of the node's output.
        shape: as the program has it.
        stored: the same with 1 for axes along which all is equal and that were not expanded.
        order: which axis lies where: the graph's axis i is the program's axis order[i].
        dtype: of the elements.
    """

    name: str
    shape: tuple[Size, ...]
    stored: tuple[Size, ...]
    order: tuple[int, ...]
    dtype: np.dtype

    @property
    def physical(self) -> tuple[Size, ...]:
        """The shape in the graph."""
        return tuple(self.stored[axis] for axis in self.order)

    @property
    def is_whole(self) -> bool:
        return self.stored == self.shape


def rule(*ops: str):
    """Registers a function (lowering, step, *inputs) -> Value or name for primitives."""

    def register(function):
        RULES.update(dict.fromkeys(ops, function))
        return function

    return register


def lower(
    program: Program,
    output_name: str,
    symbols: Mapping[int, str],
    winograd: bool,
    packed_labels: bool,
) -> onnx.ModelProto:
    """The graph of a program; `symbols` names the axes of the input that may have any length."""
    lowering = Lowering(winograd, packed_labels)
    graph, given = lowering.graph, program.given
    axes = tuple(range(len(given.shape)))
    lowering.values[given] = lowering.new(INPUT_NAME, given, axes)
    if _is_channels_last(program):
        order = (0, 3, 1, 2)
        name = graph.transpose(INPUT_NAME, order)
        lowering.values[given] = Value(name, given.shape, given.shape, order, given.dtype)
    for step in program.steps:
        lowering.run(step)

    result = program.result
    try:
        value = lowering.values[result] if isinstance(result, Ref) else result
        name = lowering.in_order(lowering.whole(value), tuple(range(len(result.shape))))
    except KeyError as error:
        raise refuse(f'the output has a size that does not follow from the input: {error}', 'output') from error
    shape = [symbols[axis] if isinstance(size, Varied) else size for axis, size in enumerate(given.shape)]
    sizes = dict(zip(given.shape, shape, strict=True))
    output_shape = [sizes.get(size) if isinstance(size, Varied) else size for size in result.shape]
    return graph.finish(
        name,
        (INPUT_NAME, onnx_type(given.dtype), shape),
        (output_name, onnx_type(result.dtype), output_shape),
    )


def _is_channels_last(program: Program) -> bool:
    """Whether the input is a map [B, H, W, C] that is not transposed at once."""
    shape = program.given.shape
    users = [step.op for step in program.steps if program.given in step.inputs]
    if len(shape) != 4 or 'transpose' in users or isinstance(shape[3], Varied):
        return False
    return all(isinstance(length, Varied) or length > shape[3] for length in shape[1:3])


class Lowering:
    """What the rules work with.

    Attributes:
        graph: the nodes so far.
        values: of the program's `Ref`s.
        winograd: whether forms are taken that are faster in ONNX Runtime on CPUs.
        packed_labels: whether the best class may come from rounded logits.
        resized: of the name of a resized map, what it was made of: (value, kind, sizes).
    """

    def __init__(self, winograd: bool, packed_labels: bool):
        self.graph = Graph()
        self.values: dict[Ref, Value] = {}
        self.winograd = winograd
        self.packed_labels = packed_labels
        self.resized: dict[str, tuple] = {}

    def run(self, step: Step) -> None:
        """Adds the nodes of a step.

        Raises:
            InputError: no rule knows the primitive, or a form of it.
        """
        if step.op not in RULES:
            raise refuse(f'no rule for the primitive {step.op!r}', step.place)
        inputs = [self.values[x] if isinstance(x, Ref) else x for x in step.inputs]
        try:
            results = RULES[step.op](self, step, *inputs)
        except VariesError as error:
            what = f'{step.op!r}: {error} that depends on the size of the images'
            raise refuse(what, step.place, FIXED_SIZE) from error
        except NotImplementedError as error:
            raise refuse(f'{step.op!r}: {error}', step.place) from error
        except KeyError as error:
            if not isinstance(error.args[0], Varied):
                raise
            sizes = list(map(int, error.args[0]))
            what = f'{step.op!r}: a size that the graph cannot derive, {sizes} in the traces'
            raise refuse(what, step.place, FIXED_SIZE) from error
        results = results if isinstance(results, tuple) else (results,)
        for output, value in zip(step.outputs, results, strict=True):
            self.values[output] = value

    def new(self, name: str, ref: Ref, order: Sequence[int], stored: Sequence[Size] | None = None) -> Value:
        """A value for a step's output, which lies in `order`."""
        value = Value(name, ref.shape, tuple(ref.shape if stored is None else stored), tuple(order), ref.dtype)
        self.graph.register(name, value.physical)
        return value

    def in_order(self, x: Value | Constant, order: Sequence[int]) -> str:
        """The name of `x` with its axes as `order` says."""
        if isinstance(x, Constant):
            return self.constant(x, order)
        order = tuple(order)
        if x.order == order:
            return x.name
        moved = [axis for axis in order if x.stored[axis] != 1]
        if moved == [axis for axis in x.order if x.stored[axis] != 1]:  # only axes of length 1 move
            return self.graph.reshape(x.name, x.physical, [x.stored[axis] for axis in order])
        return self.graph.transpose(x.name, [x.order.index(axis) for axis in order])

    def constant(self, x: Constant, order: Sequence[int]) -> str:
        if x.array is not None:
            array = x.array
            return self.graph.constant(array.transpose(order) if array.ndim else array)
        if x.scalar is not None:
            return self._varied_scalar(x)
        return self._ramp(x, order)

    def _ramp(self, x: Constant, order: Sequence[int]) -> str:
        """start + step * place along each axis, such as row * W + column: computed in the graph."""
        rank, dtype = len(order), x.dtype
        origin = (0,) * rank
        x = Constant(tuple(array.astype(np.result_type(array, np.int32)) for array in x.arrays), x.shape)
        ramps, steps = [array[origin] for array in x.arrays], {}
        for axis in range(rank):
            nexts = [(*origin[:axis], min(1, array.shape[axis] - 1), *origin[axis + 1 :]) for array in x.arrays]
            steps[axis] = [array[place] - array[origin] for array, place in zip(x.arrays, nexts, strict=True)]
            shape = [-1 if i == axis else 1 for i in range(rank)]
            ramps = [
                ramp + step * np.arange(array.shape[axis], dtype=x.dtype).reshape(shape)
                for ramp, step, array in zip(ramps, steps[axis], x.arrays, strict=True)
            ]
        starts = {array[origin] for array in x.arrays}
        if len(starts) > 1 or not all(map(np.array_equal, x.arrays, ramps)):
            raise VariesError('a constant')
        name = self.graph.constant(starts.pop())
        for axis, of_traces in steps.items():
            if any(of_traces):
                arrays = tuple(np.reshape(step, [1] * rank) for step in of_traces)
                step = Constant(arrays[:1] if len(set(of_traces)) == 1 else arrays, (1,) * rank)
                places = self.cast(self.range(x.shape[axis]), x.dtype)
                places = self.graph('Reshape', places, self.graph.integers(*(-1 if i == axis else 1 for i in order)))
                name = self.graph('Add', name, self.graph('Mul', places, self.constant(step, order)))
        return name if x.dtype == dtype else self.cast(name, dtype)

    def range(self, length: Size) -> str:
        """int64 0 .. length - 1."""
        zero, one = (self.graph.constant(np.int64(n)) for n in (0, 1))
        return self.graph('Range', zero, self.graph.reshape(self.graph.size(length), [1], []), one)

    def _varied_scalar(self, x: Constant) -> str:
        number = x.scalar
        rank = x.arrays[0].ndim
        whole = combine(lambda n: float(n).is_integer(), number)
        if whole is True:
            name = self.graph.size(combine(int, number))
            name = self.graph('Cast', name, to=onnx_type(x.dtype))
        else:
            inverse = combine(lambda n: round(1 / n), number)
            if combine(lambda n, i: abs(n * i - 1) < 1e-6, number, inverse) is not True:
                raise VariesError('a number')
            name = self.graph('Reciprocal', self.graph('Cast', self.graph.size(inverse), to=onnx_type(x.dtype)))
        return self.graph('Reshape', name, self.graph.constant(np.ones(rank, np.int64)))

    def in_graph(self, x: Value | Constant) -> Value:
        """`x`, as a constant of the graph where it is none yet."""
        if isinstance(x, Value):
            return x
        order = tuple(range(len(x.shape)))
        return Value(self.constant(x, order), x.shape, stored_shape(x), order, x.dtype)

    def whole(self, x: Value | Constant) -> Value:
        """`x` in the graph with all its elements."""
        x = self.in_graph(x)
        if x.is_whole:
            return x
        shape = [x.shape[axis] for axis in x.order]
        name = self.graph('Expand', x.name, self.graph.size_vector(shape))
        return dataclasses.replace(x, name=name, stored=x.shape)

    def elementwise(self, step: Step, inputs: Sequence[Value | Constant], compute: Callable[..., str]) -> Value:
        """Applies `compute`, of names, to inputs that are broadcast against each other."""
        output = step.outputs[0]
        rank = len(output.shape)
        full = [x for x in inputs if isinstance(x, Value) and len(x.shape) == rank]
        order = tuple(range(rank))
        if full:
            order = max(full, key=lambda x: sum(length != 1 for length in x.stored)).order
        stored = tuple(
            next((length for x in inputs if len(x.shape) == rank and (length := stored_shape(x)[axis]) != 1), 1)
            for axis in range(rank)
        )
        names = [self.in_order(x, order if len(x.shape) == rank else range(len(x.shape))) for x in inputs]
        return self.new(compute(*names), output, order, stored)

    def cast(self, name: str, dtype) -> str:
        return self.graph('Cast', name, to=onnx_type(dtype))


def stored_shape(x: Value | Constant) -> tuple[Size, ...]:
    if isinstance(x, Value):
        return x.stored
    return tuple(1 if all(array.shape[axis] == 1 for array in x.arrays) else size for axis, size in enumerate(x.shape))


def onnx_type(dtype) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
