"""Where a result was obtained: processor, devices, versions, revision of the code."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess

import jax

from atonet_jax import __version__


def cpu_name() -> str:
    """The processor's name, as the system reports it."""
    try:
        with open('/proc/cpuinfo') as file:
            return next(line.partition(':')[2].strip() for line in file if line.startswith('model name'))
    except (OSError, StopIteration):  # not Linux on x86
        return platform.processor() or platform.machine()


def device_names() -> str:
    """All devices that JAX computes on: '8 x NVIDIA H100', 'AMD EPYC, 2 cores'."""
    device = jax.devices()[0]
    name = f'{cpu_name()}, {os.cpu_count()} cores' if device.platform == 'cpu' else device.device_kind
    return name if jax.device_count() == 1 else f'{jax.device_count()} x {name}'


def versions(*packages: str) -> str:
    """Versions of packages and of Python: 'jax 0.10.2, flax 0.12.8, Python 3.11.9'."""
    installed = [f'{package} {importlib.metadata.version(package)}' for package in packages]
    return ', '.join([*installed, f'Python {platform.python_version()}'])


def git_revision() -> str | None:
    """Git revision of the code, 12 digits, with '+changes' if files differ from it. None outside of a checkout."""
    folder = pathlib.Path(__file__).resolve().parents[1]

    def git(*arguments):
        done = subprocess.run(['git', *arguments], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if pathlib.Path(git('rev-parse', '--show-toplevel'), 'atonet_jax').resolve() != folder:
            return None  # installed inside a checkout of another project
        changes = git('status', '--porcelain', '--untracked-files=no')
        return git('rev-parse', '--short=12', 'HEAD') + ('+changes' if changes else '')
    except (OSError, subprocess.CalledProcessError):
        return None


def now() -> str:
    """'2026-01-31 12:00:00 UTC'."""
    return datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M:%S UTC')


def describe() -> dict[str, str | None]:
    """All of this and the time, ready for JSON: {'time', 'revision', 'devices', 'versions'}."""
    return {
        'time': now(),
        'revision': git_revision(),
        'devices': device_names(),
        'versions': f'atonet_jax {__version__}, {versions("jax", "flax", "numpy")}',
    }
