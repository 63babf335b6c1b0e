"""Variables of training -> those of inference."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
from flax import linen as nn
from flax.traverse_util import unflatten_dict
from jax.extend.core import Jaxpr

from atonet_jax.models.variables import blank_images


def prepare(model: nn.Module, variables: Mapping[str, Any], transform_kernels: bool = False) -> dict[str, Any]:
    """Variables for inference: `apply` computes with them what it does with `variables`, in less time.

    Each module prepares what it owns: a batch normalisation becomes scale and shift, within the convolution before it
    where one module owns both; kernels are cast to `model.dtype`. What inference does not read, as auxiliary heads, is
    left out.

    Args:
        model: the network.
        variables: of training.
        transform_kernels: also transforms kernels where CPUs convolve faster with that (`ops.prepare_kernel`): up to
            twice as fast, four times the memory of these kernels.
    """
    collections = ('prepared', 'transformed') if transform_kernels else ('prepared',)
    prepared = dict(_prepared(variables, model, collections))
    # While prepared variables are made, modules compute with zeros in their place (`blocks`). So the outputs of this
    # trace depend on those other variables alone that inference still reads.
    traced = _apply.trace(variables, model, collections)
    count = len(jax.tree.leaves(traced.out_info[0]))
    return prepared | _kept(variables, _inputs_of(traced.jaxpr.jaxpr, traced.jaxpr.jaxpr.outvars[:count]))


@partial(jax.jit, static_argnames=('model', 'collections'))
def _apply(variables, model, collections):
    return model.apply(variables, blank_images(model), train=False, mutable=collections)


@partial(jax.jit, static_argnames=('model', 'collections'))
def _prepared(variables, model, collections):
    return _apply(variables, model, collections)[1]  # the outputs are not compiled


def _inputs_of(jaxpr: Jaxpr, outputs: Iterable[Any]) -> list[bool]:
    """Of each input of a traced program, whether these outputs depend on it."""
    needed = {id(variable) for variable in outputs}
    for equation in reversed(jaxpr.eqns):
        if any(id(variable) in needed for variable in equation.outvars):
            needed |= {id(variable) for variable in equation.invars}
    return [id(variable) in needed for variable in jaxpr.invars]


def _kept(variables: Mapping[str, Any], kept: Sequence[bool]) -> dict[str, Any]:
    """Those leaves of nested dictionaries that `kept` says, in the order of `jax.tree.leaves`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(dict(variables))
    found = [(tuple(key.key for key in path), leaf) for path, leaf in leaves]
    return unflatten_dict({path: leaf for (path, leaf), is_kept in zip(found, kept, strict=True) if is_kept})
