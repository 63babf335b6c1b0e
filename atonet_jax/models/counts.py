"""How large a network is, and what it computes. Programs are traced for that; nothing is computed."""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import jaxprs_in_params

from atonet_jax.models import abstract_variables, apply
from atonet_jax.ops import cpu


def count_parameters(model: nn.Module) -> dict[str, int]:
    """{'parameters', 'file_bytes'} for inference. file_bytes counts parameters and BN statistics in float32."""
    variables = abstract_variables(model, train=False)
    parameters, numbers = (
        sum(array.size for array in jax.tree.leaves(tree)) for tree in (variables['params'], variables)
    )
    return {'parameters': parameters, 'file_bytes': 4 * numbers}


def count_macs(model: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-accumulates of the convolutions for one image of `size`, (height, width)."""
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return count_conv_macs(
        lambda variables, images: apply(model, variables, images), abstract_variables(model, train=False), images
    )


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
