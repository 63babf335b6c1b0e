"""Commands that several tests run: in this process, which takes a tenth of the time, or in one of their own."""

import contextlib
import io
import logging
import os
import sys
from typing import NamedTuple

import pytest
from absl import flags

import main


def main_command(config, workdir, *arguments):
    """Trains configs/tiny.py with the network, the scenes and the averages of `config`, in a process of its own."""
    return [
        sys.executable,
        'main.py',
        f'--config=configs/tiny.py:{config.model.name}',
        f'--workdir={workdir}',
        f'--config.data.root={config.data.root}',
        f'--config.optimizer.ema_decay={config.optimizer.ema_decay}',
        *arguments,
    ]


class Finished(NamedTuple):
    """What `subprocess.run` would give of a command."""

    returncode: int
    stdout: str
    stderr: str


def run_command(*arguments, cwd) -> Finished:
    """`python main.py` with these arguments, in the folder `cwd`, but in this process.

    What it changes of the process goes with it. Only real processes show that nothing else writes on the screen, and
    what a signal does: see `main_command`.
    """
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        fresh_flags(),
        fresh_logging(),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        patch.chdir(cwd)
        patch.setattr(sys, 'argv', ['main.py', *map(str, arguments)])
        # What would change this process for good.
        patch.setattr('atonet_jax.process.devices.keep_freed_memory', lambda: None)
        patch.setattr('gc.set_threshold', lambda *_: None)
        for name in ('TF_CPP_MIN_LOG_LEVEL', 'TF_ENABLE_ONEDNN_OPTS'):
            patch.setenv(name, os.environ.get(name, '2'))
        code = main.command()
    return Finished(code, stdout.getvalue(), stderr.getvalue())


@contextlib.contextmanager
def fresh_flags():
    """absl's flags are the process's: the values that a command gives go with it."""
    try:
        yield
    finally:
        for name in flags.FLAGS:
            flags.FLAGS[name].unparse()
        flags.FLAGS.unparse_flags()


@contextlib.contextmanager
def fresh_logging():
    """Loggers as in a process that has just begun: what a command sets of them goes with it."""
    root = logging.getLogger()
    loggers = [root, *map(logging.getLogger, ('atonet_jax', 'asyncio', 'absl'))]
    handlers, levels = root.handlers, [logger.level for logger in loggers]
    root.handlers = []
    root.setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.handlers = handlers
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
