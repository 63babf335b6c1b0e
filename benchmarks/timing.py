"""Calls that are timed in turns, and the rate of matrix products to hold them against."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PAUSE = 0.1  # seconds, in which threads that spin while they wait for work fall asleep


def in_turns(
    calls: Mapping[Any, Callable[[], Any]], rounds: int, warmup: int = 1, pause: float = 0.0
) -> dict[Any, np.ndarray]:
    """{name: [rounds, 2] float64}: seconds of each call by the clock, and of CPU time on all cores.

    A round makes each call once, so that what else the machine does disturbs all alike.

    Args:
        calls: by name; each returns when it is done.
        rounds: that count.
        warmup: rounds before them.
        pause: seconds before each call; `PAUSE` where the calls are of several libraries.
    """
    times = {name: np.zeros((rounds, 2)) for name in calls}
    for i in range(-warmup, rounds):
        for name, call in calls.items():
            time.sleep(pause)
            start = np.array([time.perf_counter(), time.process_time()])
            call()
            taken = np.array([time.perf_counter(), time.process_time()]) - start
            if i >= 0:
                times[name][i] = taken
    return times


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
