"""Where the first number that is not finite comes from: `--config.debug.nans=true`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

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
        One clause, such as "first in the output of layer3_0/conv1 (17 of 4096 values)".
    """
    objective = objective._replace(remat=False)  # which puts layers into programs of their own
    names = []

    def parts_of(state, batch, numbers):
        """(images, labels, dropout's key) of each part, as the step takes them, and `part` of `gradient_of`."""
        images, labels, key = step_inputs(objective, state, batch, augmentation, numbers.seed)
        if accumulation == 1:
            return [(images, labels, key)], {}
        images, labels, part = in_parts(objective, state.variables, images, labels, numbers.class_weights, accumulation)
        return [(images[i], labels[i], key_of_part(key, i)) for i in range(accumulation)], part

    def count(variables, images, labels, key, part):
        """Bad values in each stage of a part, and the collections after it."""
        layers = []

        def note(next_fun, args, kwargs, context):
            outputs = next_fun(*args, **kwargs)
            arrays = [array for array in jax.tree.leaves(outputs) if isinstance(array, jax.Array)]
            layers.append(('/'.join(context.module.path) or 'network', [_count(array) for array in arrays]))
            return outputs

        with nn.intercept_methods(note):
            loss, terms, collections, gradients = gradient_of(
                objective, variables, images, labels, key, numbers.class_weights, **part
            )
        stages = [('the images', [_count(images)])]
        stages += [(f'{kind}/{path}', [_count(leaf)]) for kind, path, leaf in _leaves(variables)]
        # A layer is noted as it ends, before those that it is part of; autodiff may trace it more than once.
        stages += [(f'the output of {path}', counts) for path, counts in dict(layers).items()]
        stages += [(f'the loss term {name}', [_count(term)]) for name, term in terms.items()]
        stages += [('the loss', [_count(loss)])]
        # Gradients are computed from the loss back.
        backwards = reversed([path for path, _ in dict(layers).items()])
        by_layer = {}
        for _, path, leaf in _leaves({'': gradients}):
            by_layer.setdefault(path.rpartition('/')[0], []).append((path, leaf))
        for layer in backwards:
            stages += [(f'the gradient of {path}', [_count(leaf)]) for path, leaf in by_layer.pop(layer, ())]
        for leaves in by_layer.values():
            stages += [(f'the gradient of {path}', [_count(leaf)]) for path, leaf in leaves]
        names[:] = [name for name, _ in stages]
        return [counts for _, counts in stages], collections

    parts, part = jax.jit(parts_of)(state, batch, numbers)
    variables, counted = state.variables, jax.jit(count)
    for inputs in parts:
        counts, collections = counted(variables, *inputs, part)
        for name, of_stage in zip(names, jax.device_get(counts), strict=True):
            bad, size = sum(int(bad) for bad, _ in of_stage), sum(int(size) for _, size in of_stage)
            if bad:
                return f'first in {name} ({bad} of {size} values)'
        variables = {**variables, **collections}
    return 'all is finite when the step is taken again'


def _count(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.sum(~jnp.isfinite(array)), jnp.asarray(array.size)


def _leaves(tree: Mapping[str, Any]):
    """(kind, 'layer/array', leaf) of {kind: {layer: {array: leaf}}}."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        kind, *names = (key.key for key in path)
        yield kind, '/'.join(names), leaf
