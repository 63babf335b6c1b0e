"""What CPUs compute faster: convolutions by Winograd's algorithm, with groups or transposed, and gradients.

The functions of `atonet_jax.ops` choose these programs; nothing else should call them. Other devices always run
`ops.plain` (`jax.lax.platform_dependent`), so one traced program can be lowered for several platforms. The loss and the
label map, which are no operations, choose for CPUs in the same way, under the same switch.

The fast paths have reverse-mode gradients alone (`jax.custom_vjp`). Turn them off for `jax.jvp` and `jax.hessian` of
convolutions; and to trace a program for export, so that it holds the plain operations.
"""

import contextlib
import os
from collections.abc import Iterator

import jax

VARIABLE = 'ATONET_JAX_CPU_FAST_PATHS'  # of the environment: 0 turns all fast paths off
_choice = jax.make_user_context(None)


@contextlib.contextmanager
def fast_paths(enabled: bool) -> Iterator[None]:
    """Turns all fast paths on or off within the context, whatever the environment says.

    The switch acts when a program is traced; `jax.jit` traces a function anew for each choice. Other threads keep
    their own.
    """
    with _choice(enabled):
        yield


def has_fast_paths() -> bool:
    """Whether a program that is traced now may take them."""
    choice = _choice.value
    return os.environ.get(VARIABLE, '1') != '0' if choice is None else choice
