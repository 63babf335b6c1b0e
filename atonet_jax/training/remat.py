"""Rematerialisation: activations are computed again for the gradient instead of being kept."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import jax
from flax import linen as nn


def rematerialized() -> AbstractContextManager:
    """Inside this context a network keeps only the inputs of each unit, and computes the rest again for the gradient.

    A unit is each outermost module below the network; a module that is a sequence of others (`is_sequence = True`) is
    looked into. Saves memory on accelerators; XLA undoes it on CPUs (benchmarks/training_memory.py).
    """
    entered = set()  # paths of the units that are being computed: they are called once more, within `nn.remat`

    def intercept(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext):
        is_map = bool(args) and isinstance(args[0], jax.Array) and args[0].ndim == 4
        if context.method_name != '__call__' or not is_map:
            return next_fun(*args, **kwargs)
        module, path = context.module, context.module.path
        is_whole = not path or getattr(module, 'is_sequence', False)
        if is_whole or any(path[: len(unit)] == unit for unit in entered):
            return next_fun(*args, **kwargs)
        entered.add(path)
        try:
            return nn.remat(lambda module, x: module(x, *args[1:], **kwargs))(module, args[0])
        finally:
            entered.remove(path)

    return nn.intercept_methods(intercept)
