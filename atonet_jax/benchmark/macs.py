"""Counts a traced program's convolutions; nothing is computed."""

import math
from collections.abc import Iterator

import jax
from jax.extend.core import jaxprs_in_params

from atonet_jax.ops import cpu


def convolutions(jaxpr: jax.extend.core.Jaxpr) -> Iterator[jax.extend.core.JaxprEqn]:
    """Every convolution of a traced program and of the functions that it calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'conv_general_dilated':
            yield equation
        for called in jaxprs_in_params(equation.params):
            yield from convolutions(called)


def count_conv_macs(fn, *args) -> int:
    """Multiply-accumulates of all convolutions in the program that `fn(*args)` traces to.

    Zeros of the padding count like pixels, as usual. Zeros between the pixels of a transposed convolution do not.
    Pooling and resizing are matrix products and are not counted.
    """
    with cpu.fast_paths(False):  # the plain program has each convolution once
        jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
    macs = 0
    for equation in convolutions(jaxpr):
        numbers = equation.params['dimension_numbers']
        image, kernel = (variable.aval for variable in equation.invars)
        is_transposed = math.prod(equation.params['lhs_dilation']) > 1
        if is_transposed:  # each input pixel meets each tap
            macs += image.size * (kernel.size // image.shape[numbers.lhs_spec[1]])
        else:
            macs += equation.outvars[0].aval.size * (kernel.size // kernel.shape[numbers.rhs_spec[0]])
    return macs
