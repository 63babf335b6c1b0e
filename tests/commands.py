"""Commands that several tests start."""

import sys


def main_command(config, workdir, *arguments):
    """Trains configs/tiny.py on the scenes of `config`, in a process of its own."""
    return [
        sys.executable,
        'main.py',
        '--config=configs/tiny.py',
        f'--workdir={workdir}',
        f'--config.data.root={config.data.root}',
        *arguments,
    ]
