"""The rate of matrix products, which the rates of networks are held against."""

import jax
import jax.numpy as jnp

from atonet_jax.process.timing import in_turns


def matrix_rate(dtype: str, length: int, products: int) -> float:
    """FLOP/s of the fastest of five runs of so many square matrix products in JAX."""
    matrix = jax.random.normal(jax.random.key(0), (length, length), jnp.dtype(dtype)) * length**-0.5
    multiply = jax.jit(jnp.matmul)

    def run():
        x = matrix
        for _ in range(products):
            x = multiply(matrix, x)
        jax.block_until_ready(x)

    seconds = in_turns({'products': run}, rounds=5)['products'][:, 0]
    return products * 2 * length**3 / seconds.min()
