"""An export takes its place when it is whole and checked, and an earlier one stays until then."""

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Iterator

import psutil

from atonet_jax.errors import InputError

_EARLIER = '.earlier'  # in the folder of the new export: what it is about to replace


@contextlib.contextmanager
def replacing_export(path: str) -> Iterator[str]:
    """Yields another path. What the body writes there, and its card at `.json` more, then replace those of `path`.

    Whatever ends the body, nothing but whole exports is left. Only a process that is killed leaves a hidden folder
    beside `path`, which `clear_up_after_killed` removes.

    Args:
        path: absolute, of a file or a folder.

    Raises:
        InputError: the body's, with `path` for the path that it was given.
        OSError: the disk does not take it.
    """
    parent, name = os.path.split(path)
    folder = os.path.join(parent, f'.unchecked.{socket.gethostname()}.{os.getpid()}.{name}')
    unchecked = os.path.join(folder, name)  # the ending stays what it is
    os.makedirs(folder)
    try:
        yield unchecked
        if os.path.isdir(path) or os.path.isdir(unchecked):  # files replace each other at one stroke
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, os.path.join(folder, _EARLIER))
        os.replace(unchecked, path)
        os.replace(f'{unchecked}.json', f'{path}.json')
    except InputError as error:
        raise InputError(str(error).replace(unchecked, path)) from error
    finally:
        _clear_up(folder, path)


def clear_up_after_killed(path: str) -> None:
    """Removes what exports to `path` have left whose processes were killed; an earlier export returns to `path`.

    Only those of this host, as nothing is known of the processes of others.
    """
    parent, name = os.path.split(path)
    with contextlib.suppress(OSError):  # there is no such folder, or it is not ours to change
        for entry in os.listdir(parent):
            match = re.fullmatch(rf'\.unchecked\.{re.escape(socket.gethostname())}\.(\d+)\.{re.escape(name)}', entry)
            if match and (int(match[1]) == os.getpid() or not psutil.pid_exists(int(match[1]))):
                _clear_up(os.path.join(parent, entry), path)


def _clear_up(folder: str, path: str) -> None:
    earlier = os.path.join(folder, _EARLIER)
    if os.path.lexists(earlier) and not os.path.lexists(path):
        os.replace(earlier, path)
    shutil.rmtree(folder)
