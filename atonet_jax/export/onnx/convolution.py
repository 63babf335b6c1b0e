"""The rule for convolutions."""

import numpy as np

from atonet_jax.export.onnx import winograd
from atonet_jax.export.onnx.lowering import rule
from atonet_jax.export.onnx.program import Constant, Varied, VariesError, combine


@rule('conv_general_dilated')
def _convolution(lowering, step, x, kernel, bias=None):
    """`Conv`, or `ConvTranspose` where the input is dilated."""
    params = step.params
    numbers = params['dimension_numbers']
    if params['batch_group_count'] > 1:
        raise NotImplementedError('batch_group_count')
    x = lowering.whole(x)
    strides, dilations = params['window_strides'], params['rhs_dilation']
    groups, input_dilation, pads = params['feature_group_count'], params['lhs_dilation'], params['padding']
    array = None
    if isinstance(kernel, Constant):
        if kernel.array is None:
            raise VariesError('a kernel')
        array = np.broadcast_to(kernel.array, kernel.shape).transpose(numbers.rhs_spec)
    bias = None if bias is None else bias.array
    relu = params.get('relu', False)

    if array is not None and winograd.suits(lowering, x, array, params):
        return winograd.convolution(lowering, step, x, array, bias, relu)
    channels_last = (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1])
    if (
        array is not None
        and x.order == channels_last == tuple(range(len(x.shape)))
        and numbers.out_spec == numbers.lhs_spec
        and groups == 1
        and set(array.shape[2:]) == set(strides) == set(input_dilation) == {1}
        and all(pad == (0, 0) for pad in pads)
    ):  # 1x1, of a map that lies as NHWC
        name = lowering.graph('MatMul', x.name, lowering.graph.constant(array[:, :, 0, 0].T))
        if bias is not None:
            name = lowering.graph('Add', name, lowering.graph.constant(bias))
        return lowering.new(lowering.graph('Relu', name) if relu else name, step.outputs[0], x.order)

    lengths = [kernel.shape[axis] for axis in numbers.rhs_spec[2:]]
    order = numbers.lhs_spec
    attributes = {'dilations': list(dilations), 'group': groups, 'kernel_shape': lengths}
    constants = [] if bias is None else [lowering.graph.constant(bias)]
    if set(input_dilation) != {1}:
        if array is None or set(strides) != {1}:
            raise NotImplementedError('a dilated input with strides or a computed kernel')
        name = _transposed(lowering, x, order, array, constants, attributes, input_dilation, pads)
    else:
        weights = lowering.graph.constant(array) if array is not None else lowering.in_order(
            lowering.whole(kernel), numbers.rhs_spec)  # fmt: skip
        sizes = [x.shape[axis] for axis in order[2:]]
        results = [step.outputs[0].shape[axis] for axis in numbers.out_spec[2:]]
        if any(isinstance(n, Varied) for pad in pads for n in pad):
            if not is_same(sizes, results, strides, lengths, dilations, pads):
                raise VariesError('padding')
            attributes['auto_pad'] = 'SAME_UPPER'
            name = lowering.in_order(x, order)
        else:
            name, pads = _cut(lowering, lowering.in_order(x, order), pads)
            attributes['pads'] = [pad[0] for pad in pads] + [pad[1] for pad in pads]
        name = lowering.graph('Conv', name, weights, *constants, strides=list(strides), **attributes)
    name = lowering.graph('Relu', name) if relu else name
    return lowering.new(name, step.outputs[0], numbers.out_spec)


def _cut(lowering, name: str, pads) -> tuple[str, list[tuple[int, int]]]:
    """Cuts pixels off where padding is negative; returns the rest of the padding."""
    for i, (before, after) in enumerate(pads):
        if before < 0 or after < 0:
            name = lowering.graph.slice(name, i + 2, max(-before, 0), after if after < 0 else None)
    return name, [(max(before, 0), max(after, 0)) for before, after in pads]


def is_same(sizes, results, strides, lengths, dilations, pads) -> bool:
    """Whether the padding is that of 'SAME': results of ceil(size / stride), what is odd at the end."""
    for size, result, stride, length, dilation, pad in zip(
        sizes, results, strides, lengths, dilations, pads, strict=True
    ):
        if result != combine(lambda n, s=stride: -(-n // s), size):
            return False
        total = combine(lambda n, s=stride, k=(length - 1) * dilation + 1: max((-(-n // s) - 1) * s + k - n, 0), size)
        wanted = (combine(lambda n: n // 2, total), combine(lambda n: n - n // 2, total))
        if tuple(pad) != wanted:
            return False
    return True


def _transposed(lowering, x, order, kernel, constants, attributes, input_dilation, pads):
    """A convolution over an input with zeros in between: the transpose of a strided one with the mirrored kernel."""
    groups = attributes['group']
    outputs, inputs, *size = kernel.shape
    flipped = kernel[(slice(None), slice(None), *(slice(None, None, -1) for _ in size))]
    weights = flipped.reshape(groups, outputs // groups, inputs, *size).swapaxes(1, 2)
    weights = weights.reshape(groups * inputs, outputs // groups, *size)
    reach = [(length - 1) * dilation for length, dilation in zip(size, attributes['dilations'], strict=True)]
    begins = [r - before for r, (before, _) in zip(reach, pads, strict=True)]
    ends = [r - after for r, (_, after) in zip(reach, pads, strict=True)]
    more = [max(-end, 0) for end in ends]
    if any(begin < 0 for begin in begins) or any(m >= s for m, s in zip(more, input_dilation, strict=True) if m):
        raise NotImplementedError('padding of a transposed convolution that is wider than the kernel')
    return lowering.graph(
        'ConvTranspose', lowering.in_order(x, order), lowering.graph.constant(weights), *constants,
        strides=list(input_dilation), pads=begins + [max(end, 0) for end in ends], output_padding=more, **attributes,
    )  # fmt: skip
