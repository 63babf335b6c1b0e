"""Counts a traced program's convolutions; nothing is computed."""

import math
from collections.abc import Iterator

import jax
from jax.extend.core import jaxprs_in_params

from atonet_jax.ops.cpu import fast_paths


def convolutions(jaxpr: jax.extend.core.Jaxpr) -> Iterator[jax.extend.core.JaxprEqn]:
    """Every convolution of a traced program, those of the functions that it calls included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'conv_general_dilated':
            yield equation
        for called in jaxprs_in_params(equation.params):
            yield from convolutions(called)


def count_conv_macs(fn, *args) -> int:
    """Multiply-accumulates of all convolutions in the program that `fn(*args)` traces to.

    Padding's zeros count as pixels do, as is usual. Pooling and resizing are matrix products and count nothing.
    """
    macs = 0
    with fast_paths(False):  # which would stand beside the plain programs, to be counted twice
        jaxpr = jax.make_jaxpr(lambda *args: fn(*args))(*args).jaxpr
    for equation in convolutions(jaxpr):
        numbers = equation.params['dimension_numbers']
        kernel = equation.invars[1].aval.shape
        output_channels = kernel[numbers.rhs_spec[0]]
        macs += equation.outvars[0].aval.size * (math.prod(kernel) // output_channels)
    return macs
