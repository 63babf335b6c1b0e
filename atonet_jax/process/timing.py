"""Calls that are timed in turns."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from atonet_jax.process.progress import watched

PAUSE = 0.1  # seconds, in which threads that spin while they wait for work fall asleep


def in_turns(
    calls: Mapping[Any, Callable[[], Any]],
    rounds: int,
    warmup: int = 1,
    pause: float = 0.0,
    limit: float = math.inf,
) -> dict[Any, np.ndarray]:
    """{name: [rounds, 2] float64}: seconds of each call by the clock, and of CPU time on all cores.

    A round makes each call once, so that what else the machine does disturbs all alike.

    Args:
        calls: by name; each returns when it is done.
        rounds: that count.
        warmup: rounds before them.
        pause: seconds before each call; `PAUSE` where the calls are of several libraries.
        limit: seconds after which no further round starts, but for warmup and the first one that counts.
    """
    times = {name: [] for name in calls}
    end = time.perf_counter() + limit
    for i in watched(range(-warmup, rounds), 'timing', warmup + rounds, 'round'):
        for name, call in calls.items():
            time.sleep(pause)
            start = time.perf_counter(), time.process_time()
            call()
            taken = time.perf_counter() - start[0], time.process_time() - start[1]
            if i >= 0:
                times[name].append(taken)
        if i >= 0 and time.perf_counter() >= end:
            break
    return {name: np.reshape(taken, (-1, 2)) for name, taken in times.items()}
