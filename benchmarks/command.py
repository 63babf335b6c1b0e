"""How scripts read sizes, and how they end."""

import re
import sys
from collections.abc import Callable

from atonet_jax.errors import InputError


def size(text: str) -> tuple[int, int]:
    """'HEIGHTxWIDTH' of an argument -> its numbers.

    Raises:
        InputError: it is no such text.
    """
    match = re.fullmatch(r'(\d+)x(\d+)', text)
    if not match or '0' in match.groups():
        raise InputError(f'{text}: must be a size, HxW, such as 512x1024')
    return int(match[1]), int(match[2])


def run(main: Callable[[], int | None]) -> None:
    """Ends the process with what `main` returns; bad input is one line, and exit code 1."""
    try:
        sys.exit(main())
    except InputError as failure:
        sys.exit(f'error: {failure}')
