"""How scripts end."""

import sys
from collections.abc import Callable

from atonet_jax.errors import InputError


def run(main: Callable[[], int | None]) -> None:
    """Ends the process with what `main` returns; bad input is one line, and exit code 1."""
    try:
        sys.exit(main())
    except InputError as failure:
        sys.exit(f'error: {failure}')
