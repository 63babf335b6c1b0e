"""Any traced JAX function of images as an ONNX graph: `to_onnx`.

The jaxpr is lowered here because no maintained converter served: jax2onnx 0.17.1 pins an Orbax older than ours,
replaces Flax functions while it traces and fails on a positional argument of `nn.max_pool`, and leaves 24 transposes
and pooling that ONNX Runtime refuses in ATONet's graph. tf2onnx reads TensorFlow operations, and jax2tf gives it one
opaque `XlaCallModule`.

How it works, a module a step:

- `program.py` traces the function, at several sizes where the batch (or height and width) may be any number. Nested
  calls are inlined, constants are folded, and the traces become one list of steps; a number that differs between the
  traces is a `Varied`.
- `fusion.py` joins steps: a bias, a scale and a ReLU into their convolution, a sum and its division into a mean.
- `lowering.py` runs one rule for each step; `elementwise.py`, `shapes.py`, `indexing.py`, `reductions.py`,
  `products.py`, `convolution.py`, `pooling.py` and `resizing.py` have the rules. Their values may lie in memory in
  another order of axes than the program's: maps are NCHW from input to output, and a `transpose` costs nothing.
- `graph.py` holds the nodes. It finds a number that differs between the traces in the shape of a map that has it.
- `winograd.py` has the forms that ONNX Runtime computes faster on CPUs.

Functions that are jitted under the names `named_resize_bilinear` and `named_resize_nearest` ([B, H, W, C] to
[B, h, w, C]) are not looked into: each becomes one `Resize` node.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np
import onnx

from atonet_jax.export.onnx import (  # noqa: F401 - they register their rules
    convolution,
    elementwise,
    indexing,
    pooling,
    products,
    reductions,
    resizing,
    shapes,
)
from atonet_jax.export.onnx.fusion import fuse
from atonet_jax.export.onnx.lowering import lower
from atonet_jax.export.onnx.program import trace

# Heights and widths to trace with where they may be any, in units of the multiple. Remainders by 2 .. 32 differ,
# so that a size rounded up is told from one rounded down.
_HEIGHTS, _WIDTHS = (225, 272, 351, 416, 301, 506), (305, 384, 449, 543, 263, 486)
_HEIGHTS_OF_MULTIPLES, _WIDTHS_OF_MULTIPLES = (7, 9, 12, 13, 16, 11), (10, 11, 15, 18, 8, 19)
_BATCHES = (2, 3, 5, 7, 4, 6)


def to_onnx(
    function: Callable[[jax.Array], jax.Array],
    shape: Sequence[int | None],
    dtype: np.dtype = np.float32,
    *,
    size_axes: tuple[int, int] = (1, 2),
    size_multiple: int = 1,
    output_name: str = 'logits',
    winograd: bool = False,
    packed_labels: bool = False,
) -> onnx.ModelProto:
    """Traces a function of one array and lowers it to ONNX: opset 18, IR 10, computed in float32.

    Args:
        function: what to export, its parameters within. It must be pure and of static shapes.
        shape: of the array. None for the first axis: any batch size. None for both `size_axes`: any height and width.
        dtype: of the array.
        size_axes: axes of height and width.
        size_multiple: any height and width are multiples of it.
        output_name: of the graph; its input is 'images'.
        winograd: large 3x3 convolutions as matrix products, and labels by strips: faster in ONNX Runtime on CPUs,
            slower in OpenVINO. Only where height and width are fixed.
        packed_labels: the best class of logits by a maximum of numbers that hold the class: in OpenVINO several times
            as fast as `ArgMax`. Logits are rounded to 16384 levels or more, so near ties may go the other way.

    Returns:
        A checked model.

    Raises:
        InputError: the function uses a primitive that no rule knows, or depends on the size in a way that a graph of
            any size cannot express. The text names the primitive, the layer and the source line.
    """
    program = fuse(trace(function, _example_shapes(shape, size_axes, size_multiple), dtype))
    names = {0: 'batch', size_axes[0]: 'height', size_axes[1]: 'width'}
    symbols = {axis: names[axis] for axis, length in enumerate(shape) if length is None}
    winograd = winograd and shape[size_axes[0]] is not None
    return lower(program, output_name, symbols, winograd, packed_labels)


def _example_shapes(shape, size_axes, size_multiple) -> list[tuple[int, ...]]:
    """One shape where all axes are fixed, else several that differ in all axes that are not."""
    if None not in shape:
        return [tuple(shape)]
    heights, widths = _HEIGHTS, _WIDTHS
    if size_multiple > 1:
        heights, widths = ([size_multiple * n for n in numbers] for numbers in (
            _HEIGHTS_OF_MULTIPLES, _WIDTHS_OF_MULTIPLES))  # fmt: skip
    examples = {0: _BATCHES, size_axes[0]: heights, size_axes[1]: widths}
    count = len(_BATCHES) if shape[size_axes[0]] is None else 2
    return [
        tuple(examples[axis][i] if length is None else length for axis, length in enumerate(shape))
        for i in range(count)
    ]
