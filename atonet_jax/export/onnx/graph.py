"""Nodes and constants of an ONNX graph, and numbers that are known only when it runs."""

import itertools
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from atonet_jax.errors import InputError
from atonet_jax.export.onnx.program import Size, Varied, combine

_OPSET = 18
_IR_VERSION = 10  # read by runtimes since 2024
_LARGEST_SHARED = 2**16  # bytes of constants that are compared with those that are there
TO_THE_END = 2**62  # of a `Slice`
_DIVISORS = (2, 3, 4, 8, 16, 32, 64)


class Graph:
    """An ONNX graph in the making. Equal nodes and equal small constants are made once."""

    def __init__(self):
        self._nodes = []
        self._made = {}  # what a node computes -> the name of its output
        self._constants = {}  # name -> array
        self._known = {}  # small constant -> name
        self._sizes = {}  # Varied -> (value, axis) that has it

    def __call__(self, op: str, *inputs: str, **attributes) -> str:
        """Adds a node of one output, unless it is there; returns the output's name."""
        key = (op, inputs, repr(sorted(attributes.items())))
        if key not in self._made:
            name = f'{op}_{len(self._nodes)}'
            self._nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
            self._made[key] = name
        return self._made[key]

    def constant(self, values, dtype=None) -> str:
        array = np.ascontiguousarray(values, dtype).reshape(np.shape(values))
        key = (array.dtype, array.shape, array.tobytes()) if array.nbytes <= _LARGEST_SHARED else id(array)
        if key not in self._known:
            self._known[key] = f'constant_{len(self._constants)}'
            self._constants[self._known[key]] = array
        return self._known[key]

    def integers(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def register(self, name: str, physical_shape: Sequence[Size]) -> None:
        """Tells of which value a size can be read."""
        for axis, size in enumerate(physical_shape):
            if isinstance(size, Varied):
                self._sizes.setdefault(size, (name, axis))

    def forget(self, name: str) -> None:
        """Sizes are no longer read of this value, which is replaced by another."""
        self._sizes = {size: place for size, place in self._sizes.items() if place[0] != name}

    def size(self, size: Size) -> str:
        """An int64 vector of one element: a size as it is when the graph runs.

        Raises:
            KeyError: no value has it, and it follows simply from none.
        """
        if not isinstance(size, Varied):
            return self.integers(size)
        if size in self._sizes:
            name, axis = self._sizes[size]
            return self('Shape', name, start=axis, end=axis + 1)
        for known in list(self._sizes):
            name = self._simple(size, known)
            if name is not None:
                return name
        latest = list(self._sizes)[::-1]  # of maps that are near
        for a, b in itertools.permutations(latest, 2):
            if size == combine(lambda a, b: a - b, a, b):
                return self('Sub', self.size(a), self.size(b))
        for a, b in itertools.permutations(latest, 2):
            if self._sizes[a][0] == self._sizes[b][0]:
                for factor in range(1, 33):
                    if size == combine(lambda a, b, n=factor: max(1, round(n * a / b)), a, b):
                        return self._ratio(factor, a, b)
        raise KeyError(size)

    def _simple(self, size: Varied, known: Varied) -> str | None:
        """`size` where it is a sum, a product or a quotient of a known size."""
        difference = combine(lambda a, b: a - b, size, known)
        if not isinstance(difference, Varied):
            return self('Add', self.size(known), self.integers(difference))
        if all(k and s % k == 0 for s, k in zip(size, known, strict=True)):
            factor = combine(lambda a, b: a // b, size, known)
            if not isinstance(factor, Varied) or factor in self._sizes:
                return self('Mul', self.size(known), self.size(factor))
        for divisor in _DIVISORS:
            if size == combine(lambda n: n // divisor, known):
                return self('Div', self.size(known), self.integers(divisor))
            if size == combine(lambda n: -(-n // divisor), known):
                raised = self('Add', self.size(known), self.integers(divisor - 1))
                return self('Div', raised, self.integers(divisor))
        return None

    def _ratio(self, factor: int, a: Size, b: Size) -> str:
        """max(1, round(factor * a / b)): the other side of a grid of square cells."""
        a, b = (self('Cast', self.size(size), to=TensorProto.DOUBLE) for size in (a, b))
        a = self('Mul', a, self.constant(np.array([factor], np.float64)))
        rounded = self('Cast', self('Round', self('Div', a, b)), to=TensorProto.INT64)
        return self('Max', rounded, self.integers(1))

    def size_vector(self, sizes: Sequence[Size]) -> str:
        """An int64 vector of sizes."""
        if not any(isinstance(size, Varied) for size in sizes):
            return self.integers(*sizes)
        parts = [self.size(size) for size in sizes]
        return parts[0] if len(parts) == 1 else self('Concat', *parts, axis=0)

    def reshape(self, x: str, old: Sequence[Size], new: Sequence[Size]) -> str:
        """`x` of physical shape `old` in the shape `new`."""
        if tuple(old) == tuple(new):
            return x
        target = [
            0 if isinstance(size, Varied) and i < len(old) and old[i] == size else size for i, size in enumerate(new)
        ]
        unknown = [i for i, size in enumerate(target) if isinstance(size, Varied)]
        if unknown:
            target[unknown[0]] = -1
        return self('Reshape', x, self.size_vector(target))

    def transpose(self, x: str, permutation: Sequence[int]) -> str:
        if tuple(permutation) == tuple(range(len(permutation))):
            return x
        return self('Transpose', x, perm=list(permutation))

    def slice(self, x: str, axis: int, start: Size, stop: Size | None) -> str:
        """Along one axis; stop None: to the end."""
        stop = TO_THE_END if stop is None else stop
        return self('Slice', x, self.size_vector([start]), self.size_vector([stop]), self.integers(axis))

    def finish(self, result: str, given: tuple, output: tuple) -> onnx.ModelProto:
        """The checked model, whose output is `result`; `given` and `output` are (name, type, shape)."""
        self._nodes.append(helper.make_node('Identity', [result], [output[0]]))
        nodes, used = [], {output[0]}
        for node in reversed(self._nodes):
            if used.intersection(node.output):
                used.update(node.input)
                nodes.append(node)
        constants = [numpy_helper.from_array(array, name) for name, array in self._constants.items() if name in used]
        graph = helper.make_graph(
            nodes[::-1],
            'network',
            [helper.make_tensor_value_info(*given)],
            [helper.make_tensor_value_info(*output)],
            constants,
        )
        opset = helper.make_opsetid('', _OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION, producer_name='atonet_jax')
        onnx.checker.check_model(model)
        return model


def refuse(text: str, place: str, remedy: str = '') -> InputError:
    return InputError(f'ONNX: {text} ({place})' + (f'; {remedy}' if remedy else ''))
