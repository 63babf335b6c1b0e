"""Joins steps of a program that are one node of a graph, or cheaper as one."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from atonet_jax.export.onnx.program import Constant, Program, Ref, Step, Varied, combine


def fuse(program: Program) -> Program:
    """The same program in fewer steps.

    Adds steps that no primitive has: 'reduce_mean', 'avg_pool', 'prelu' (x, slope), 'resize_argmax'; gives
    'conv_general_dilated' a third input, the bias [O], and the parameter 'relu'.
    """
    uses = collections.Counter(x for step in program.steps for x in step.inputs)
    uses[program.result] += 1
    producers = {}
    renamed = {}  # outputs of steps that do nothing -> their input
    for step in program.steps:
        step = dataclasses.replace(step, inputs=tuple(renamed.get(x, x) for x in step.inputs))
        kept = _does_nothing(step)
        if kept is not None:
            uses[kept] += uses[step.outputs[0]] - 1
            renamed[step.outputs[0]] = kept
            continue

        def made_by(x, *ops, step=step):
            """The step that computes `x` for `step` alone, if it is one of `ops`."""
            producer = producers.get(x)
            alone = uses[x] == sum(x is y for y in step.inputs)
            return producer if producer is not None and producer.op in ops and alone else None

        for rule in _RULES.get(step.op, ()):
            joined = rule(step, made_by)
            if joined is not None:
                step = joined
                break
        producers |= dict.fromkeys(step.outputs, step)

    result = renamed.get(program.result, program.result)
    for step in list(producers.values()):
        if step.op in ('add', 'add_any'):
            _bias_to_smallest_map(step, producers, uses)
    return Program(program.given, _ordered(result, producers), result)


def _ordered(result: Ref | Constant, producers: Mapping[Ref, Step]) -> list[Step]:
    """The steps that the result needs, each after its inputs."""
    steps, wanted = [], [result]
    done = set()
    while wanted:
        ref = wanted[-1]
        step = producers.get(ref)
        missing = [x for x in step.inputs if x in producers and x not in done] if step and ref not in done else []
        if missing:
            wanted += missing[::-1]
            continue
        wanted.pop()
        if step and ref not in done:
            steps.append(step)
            done.update(step.outputs)
    return steps


def _bias_to_smallest_map(add: Step, producers: dict[Ref, Step], uses: Mapping[Ref, int]) -> None:
    """Of convolutions that are summed, some of them resized, the one of the smallest map takes the biases of all.

    Resizing keeps what is constant over a map.
    """

    def summed(x, shape) -> list[Step]:
        step = producers.get(x)
        if step is None or uses[x] != 1 or len(x.shape) != 4 or x.shape[::3] != shape[::3]:
            return []
        if step.op in ('named_resize_bilinear', 'named_resize_nearest'):
            return summed(step.inputs[0], shape)
        if step.op in ('add', 'add_any'):
            return [conv for y in step.inputs if y in producers for conv in summed(y, shape)]
        is_plain = step.op == 'conv_general_dilated' and not step.params.get('relu')
        return [step] if is_plain and step.params['dimension_numbers'].out_spec[1] == 3 else []

    def work(conv):
        return [
            np.prod([length[0] if isinstance(length, Varied) else length for length in of.shape])
            for of in (conv.outputs[0], conv.inputs[1])
        ]

    convs = [conv for x in add.inputs if x in producers for conv in summed(x, add.outputs[0].shape)]
    biases = [conv.inputs[2].array for conv in convs if len(conv.inputs) > 2]
    if len(convs) < 2 or not biases:
        return
    smallest = min(convs, key=work)
    for conv in convs:
        producers[conv.outputs[0]] = dataclasses.replace(conv, inputs=conv.inputs[:2])
    bias = sum(biases).astype(np.float32)
    inputs = (*smallest.inputs[:2], Constant((bias,), bias.shape))
    producers[smallest.outputs[0]] = dataclasses.replace(smallest, inputs=inputs)


def _does_nothing(step: Step):
    """The input that the step's output equals."""
    neutral = {'add': 0, 'add_any': 0, 'sub': 0, 'mul': 1, 'div': 1}.get(step.op)
    if neutral is None:
        return None
    x, y = step.inputs
    output = step.outputs[0]
    candidates = [(x, y), (y, x)] if step.op in ('add', 'add_any', 'mul') else [(x, y)]
    for kept, other in candidates:
        same = isinstance(kept, Ref) and kept.shape == output.shape and kept.dtype == output.dtype
        if same and isinstance(other, Constant) and other.is_all(neutral):
            return kept
    return None


def _split(step: Step) -> tuple[Ref | None, Constant | None]:
    """Its computed and its constant input, where it has one of each."""
    refs = [x for x in step.inputs if isinstance(x, Ref)]
    constants = [x for x in step.inputs if isinstance(x, Constant)]
    return (refs[0], constants[0]) if len(refs) == len(constants) == 1 else (None, None)


def _along(constant: Constant, axis: int, rank: int, length) -> np.ndarray | None:
    """[length] where the constant differs along one axis alone (or nowhere)."""
    array = constant.array
    if array is None or isinstance(length, Varied):
        return None
    if array.ndim and (array.ndim != rank or any(n > 1 for i, n in enumerate(array.shape) if i != axis)):
        return None
    return np.broadcast_to(array.reshape(-1), length)


def _affine_after_convolution(step: Step, made_by) -> Step | None:
    """conv + b, conv - b, conv * a, conv / a, a and b one number an output channel."""
    x, constant = _split(step)
    conv = made_by(x, 'conv_general_dilated')
    if conv is None or conv.params.get('relu') or step.outputs[0].shape != x.shape:
        return None
    if step.op in ('sub', 'div') and step.inputs[0] is not x:
        return None
    numbers = conv.params['dimension_numbers']
    axis = numbers.out_spec[1]
    values = _along(constant, axis, len(x.shape), x.shape[axis])
    kernel, bias = _kernel(conv), conv.inputs[2].array if len(conv.inputs) > 2 else 0
    if values is None or kernel is None:
        return None
    if step.op in ('mul', 'div'):
        scale = values if step.op == 'mul' else 1 / values
        shape = [1] * kernel.ndim
        shape[numbers.rhs_spec[0]] = -1
        kernel, bias = kernel * scale.reshape(shape), bias * scale
    else:
        bias = bias + values if step.op != 'sub' else bias - values
    return _convolution(step, conv, conv.inputs[0], kernel, np.broadcast_to(bias, values.shape))


def _scale_before_convolution(step: Step, made_by) -> Step | None:
    """conv(x * a), conv(x / a), a one number an input channel."""
    scaled = made_by(step.inputs[0], 'mul', 'div')
    kernel = _kernel(step)
    if scaled is None or kernel is None or step.params['feature_group_count'] > 1:
        return None
    x, constant = _split(scaled)
    if x is None or (scaled.op == 'div' and scaled.inputs[0] is not x) or x.shape != scaled.outputs[0].shape:
        return None
    numbers = step.params['dimension_numbers']
    axis = numbers.lhs_spec[1]
    values = _along(constant, axis, len(x.shape), x.shape[axis])
    if values is None:
        return None
    shape = [1] * kernel.ndim
    shape[numbers.rhs_spec[1]] = -1
    scale = values if scaled.op == 'mul' else 1 / values
    return _convolution(step, step, x, kernel * scale.reshape(shape), None)


def _kernel(conv: Step) -> np.ndarray | None:
    kernel = conv.inputs[1]
    return np.broadcast_to(kernel.array, kernel.shape) if isinstance(kernel, Constant) and len(
        kernel.arrays) == 1 else None  # fmt: skip


def _convolution(step: Step, conv: Step, x: Ref, kernel: np.ndarray, bias: np.ndarray | None) -> Step:
    arrays = (kernel,) if bias is None else (kernel, bias)
    constants = (Constant((array.astype(np.float32),), array.shape) for array in arrays)
    return dataclasses.replace(conv, inputs=(x, *constants), outputs=step.outputs)


def _relu(step: Step, made_by) -> Step | None:
    """max(conv, 0)."""
    x, constant = _split(step)
    conv = made_by(x, 'conv_general_dilated')
    if conv is None or not constant.is_all(0) or step.outputs[0].shape != x.shape:
        return None
    return dataclasses.replace(conv, params=dict(conv.params) | {'relu': True}, outputs=step.outputs)


def _mean(step: Step, made_by) -> Step | None:
    """A sum over axes, or over windows, divided by the number of what is summed."""
    x, constant = _split(step)
    summed = made_by(x, 'reduce_sum', 'reduce_window_sum')
    divisor = constant.scalar if constant is not None else None
    if summed is None or divisor is None or (step.op == 'div' and step.inputs[0] is not x):
        return None
    if summed.op == 'reduce_sum':
        lengths = [summed.inputs[0].shape[axis] for axis in summed.params['axes']]
    else:
        lengths = summed.params['window_dimensions']
    count = combine(lambda *lengths: int(np.prod(lengths)), *lengths)
    wanted = combine(lambda n: 1 / n, count) if step.op == 'mul' else count
    close = combine(lambda a, b: bool(abs(a - b) <= 1e-6 * abs(b)), divisor, wanted)
    if close is not True or step.outputs[0].shape != x.shape or not np.issubdtype(x.dtype, np.floating):
        return None
    return dataclasses.replace(summed, op={'reduce_sum': 'reduce_mean', 'reduce_window_sum': 'avg_pool'}[summed.op],
                    outputs=step.outputs)  # fmt: skip


def _prelu(step: Step, made_by) -> Step | None:
    """where(x > 0, x, slope * x)."""
    if len(step.inputs) != 3:
        return None
    predicate, negative, x = step.inputs
    compared, product = made_by(predicate, 'gt', 'ge'), made_by(negative, 'mul')
    if compared is None or product is None or compared.inputs[0] is not x or not isinstance(x, Ref):
        return None
    slopes = [y for y in product.inputs if y is not x]
    zero = compared.inputs[1]
    if len(slopes) != 1 or not isinstance(zero, Constant) or not zero.is_all(0) or not isinstance(slopes[0], Constant):
        return None
    if step.outputs[0].shape != x.shape:
        return None
    return Step('prelu', {}, (x, slopes[0]), step.outputs, step.place)


def _elu(step: Step, made_by) -> Step | None:
    """where(x > 0, x, alpha * expm1(where(x > 0, 0, x)))."""
    if len(step.inputs) != 3 or made_by(step.inputs[0], 'gt') is None:
        return None
    predicate, negative, x = step.inputs
    compared, scaled, alpha = made_by(predicate, 'gt'), made_by(negative, 'mul'), 1.0
    exponential = made_by(negative, 'expm1')
    if scaled is not None:
        part, constant = _split(scaled)
        exponential, alpha = made_by(part, 'expm1', step=scaled), constant.scalar if constant is not None else None
    if exponential is None or not isinstance(alpha, float) or compared.inputs[0] is not x:
        return None
    inner = made_by(exponential.inputs[0], 'select_n', step=exponential)
    zeros = [y for y in (inner.inputs[2:] if inner else ()) if isinstance(y, Constant) and y.is_all(0)]
    if not zeros or inner.inputs[1] is not x or not compared.inputs[1].is_all(0):
        return None
    return Step('elu', {'alpha': alpha}, (x,), step.outputs, step.place)


def _labels(step: Step, made_by) -> Step | None:
    """argmax over the classes of enlarged logits."""
    resize = made_by(step.inputs[0], 'named_resize_bilinear')
    if resize is None or tuple(step.params['axes']) != (3,):
        return None
    params = {'size': resize.outputs[0].shape[1:3]}
    return Step('resize_argmax', params, resize.inputs, step.outputs, step.place)


def _cast_labels(step: Step, made_by) -> Step | None:
    """A place of the largest, as another type."""
    argmax = made_by(step.inputs[0], 'argmax', 'argmin', 'resize_argmax')
    return None if argmax is None else dataclasses.replace(argmax, outputs=step.outputs)


_RULES: dict[str, Sequence] = {
    'add': (_affine_after_convolution,),
    'sub': (_affine_after_convolution,),
    'mul': (_affine_after_convolution, _mean),
    'div': (_affine_after_convolution, _mean),
    'max': (_relu,),
    'select_n': (_prelu, _elu),
    'argmax': (_labels,),
    'convert_element_type': (_cast_labels,),
    'conv_general_dilated': (_scale_before_convolution,),
}
