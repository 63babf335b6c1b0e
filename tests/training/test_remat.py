"""Rematerialisation changes what is kept for the gradient, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from atonet_jax.models import abstract_variables, create_model
from atonet_jax.ops import cpu
from atonet_jax.training.step import Objective


def test_remat_gives_the_same_outputs_gradients_and_running_statistics(tiny_model, tiny_variables):
    """With dropout of half of the feature maps, so that masks which were drawn anew would show."""
    generator = np.random.default_rng(0)
    images = generator.normal(size=(2, 48, 64, 3)).astype(np.float32)
    weights = generator.normal(size=(2, 12, 16, 5)).astype(np.float32)
    model = tiny_model.clone(dropout_rate=0.5, aux_levels=())

    def step(remat):
        def loss_fn(params):
            variables = {'params': params, 'batch_stats': tiny_variables['batch_stats']}
            outputs, updates = Objective.of(model, remat=remat).outputs(variables, images, jax.random.key(1))
            return jnp.mean(weights * outputs['logits']), (outputs['logits'], updates['batch_stats'])

        # On CPUs XLA would find the recomputed values equal to the first ones, and compute them once.
        options = {'xla_disable_hlo_passes': 'cse_barrier_expander'} if jax.default_backend() == 'cpu' else None
        with cpu.fast_paths(False):  # whose products of small maps would not count
            program = jax.jit(jax.value_and_grad(loss_fn, has_aux=True)).lower(tiny_variables['params'])
        program = program.compile(compiler_options=options)
        (_, (logits, batch_stats)), gradients = program(tiny_variables['params'])
        return program.as_text().count(' convolution('), {'logits': logits}, gradients, batch_stats

    convolutions, *plain = step(remat=False)
    more_convolutions, *recomputed = step(remat=True)

    assert more_convolutions >= convolutions + 1 + 19 + 5 + 2  # of stem, layers, up1 .. up5, final and seg
    for expected, actual in zip(plain, recomputed, strict=True):
        expected, actual = (flatten_dict(tree, sep='/') for tree in (expected, actual))
        assert list(actual) == list(expected)
        for path, array in expected.items():
            np.testing.assert_allclose(actual[path], array, rtol=1e-4, atol=1e-5 * abs(array).max(), err_msg=path)


def test_remat_keeps_few_of_the_activations_for_the_gradient():
    model = create_model('atonet', 19)
    variables = abstract_variables(model)

    def kept_bytes(remat):
        def backward(variables, images):
            def outputs(params):
                return Objective.of(model, remat=remat).outputs({**variables, 'params': params}, images, key)[0]

            key = jax.random.key(1)
            return jax.vjp(outputs, variables['params'])[1]

        arrays = jax.tree.leaves(
            jax.eval_shape(backward, variables, jax.ShapeDtypeStruct((1, 512, 1024, 3), jnp.float32))
        )
        parameters = {array.shape for array in jax.tree.leaves(variables['params'])}
        return sum(array.size * array.dtype.itemsize for array in arrays if array.shape not in parameters)

    assert kept_bytes(remat=True) < 75e6
    assert kept_bytes(remat=False) < 540e6
