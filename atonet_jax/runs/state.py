"""What training carries from step to step, and checkpoints hold."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax


class TrainState(flax.struct.PyTreeNode):
    """All that changes from step to step.

    Attributes:
        step: int32 scalar, steps taken.
        variables: of the network, float32: 'params' and its other collections.
        opt_state: the optimiser's, an optax.OptState.
        averaged: an exponential moving average of `variables`, or None.
    """

    step: jax.Array
    variables: Mapping[str, Any]
    opt_state: Any
    averaged: Mapping[str, Any] | None
