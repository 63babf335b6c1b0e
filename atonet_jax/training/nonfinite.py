"""Where the first number that is not finite comes from: `--config.debug.nans=true`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from atonet_jax.data.augmentation import Augmentation
from atonet_jax.runs.state import TrainState
from atonet_jax.training.step import Objective, StepNumbers, gradient_of, in_parts, key_of_part, step_inputs


def first_nonfinite(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    numbers: StepNumbers,
    *,
    objective: Objective,
    augmentation: Augmentation,
    accumulation: int = 1,
) -> str:
    """Repeats a step's forward and backward pass, and names the first value that is NaN or infinite.

    Compiles the step anew with a count of bad values of every layer, so it is for the step that went wrong alone.

    Args:
        state: before the step.
        batch, numbers: of the step.
        objective, augmentation, accumulation: as in `train_step`.

    Returns:
        One clause, such as "first in the output of layer3/block0/conv1 (17 of 4096 values)".
    """
    objective = objective._replace(remat=False)  # which puts layers into programs of their own
    stages_of_part = []  # name, and how many values it has; known when a part is traced

    def parts_of(state, batch, numbers):
        """(images, labels, dropout's key) of each part, as the step takes them, and `part` of `gradient_of`."""
        images, labels, key = step_inputs(objective, state, batch, augmentation, numbers.seed)
        if accumulation == 1:
            return [(images, labels, key)], {}
        images, labels, part = in_parts(objective, state.variables, images, labels, numbers.class_weights, accumulation)
        return [(images[i], labels[i], key_of_part(key, i)) for i in range(accumulation)], part

    def count(variables, images, labels, key, part):
        """How many values of each stage of a part are bad, and the collections after it."""
        layers = {}  # each is noted as it ends, before those that it is part of; autodiff may trace it more than once

        def note(next_fun, args, kwargs, context):
            outputs = next_fun(*args, **kwargs)
            layers['/'.join(context.module.path) or 'network'] = _count(outputs)
            return outputs

        with nn.intercept_methods(note):
            loss, terms, collections, gradients = gradient_of(
                objective, variables, images, labels, key, numbers.class_weights, **part
            )
        # Gradients are computed from the loss back.
        places = {layer: place for place, layer in enumerate(reversed(layers))}
        flat_gradients = sorted(
            flatten_dict(gradients, sep='/').items(),
            key=lambda item: places.get(item[0].rpartition('/')[0], len(places)),
        )
        counts = {
            'the images': _count(images),
            **{path: _count(array) for path, array in flatten_dict(variables, sep='/').items()},
            **{f'the output of {path}': count for path, count in layers.items()},
            **{f'the loss term {name}': _count(term) for name, term in terms.items()},
            'the loss': _count(loss),
            **{f'the gradient of {path}': _count(array) for path, array in flat_gradients},
        }
        stages_of_part[:] = [(stage, size) for stage, (_, size) in counts.items()]
        return [bad for bad, _ in counts.values()], collections

    parts, part = jax.jit(parts_of)(state, batch, numbers)
    variables, counted = state.variables, jax.jit(count)
    for inputs in parts:
        counts, collections = counted(variables, *inputs, part)
        for (stage, size), bad in zip(stages_of_part, jax.device_get(counts), strict=True):
            if bad:
                return f'first in {stage} ({bad} of {size} values)'
        variables = {**variables, **collections}
    return 'all is finite when the step is taken again'


def _count(tree: Any) -> tuple[jax.Array, int]:
    """How many values of the arrays in a tree are not finite, and how many there are."""
    arrays = [array for array in jax.tree.leaves(tree) if isinstance(array, jax.Array)]
    bad = sum((jnp.sum(~jnp.isfinite(array)) for array in arrays), jnp.zeros((), jnp.int32))
    return bad, sum(array.size for array in arrays)
