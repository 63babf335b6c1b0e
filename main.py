"""The command line from a checkout: `python main.py`. The installed package's `atonet` runs the same function."""

import sys

from atonet_jax.main import command, main  # noqa: F401  `main` is what programs call

if __name__ == '__main__':
    sys.exit(command())
