"""Files that are written completely or not at all, and lie on the disk before they count as written; folders below."""

import contextlib
import errno
import json
import os
import pathlib
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from atonet_jax.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # numbers of OSError: disk, quota and largest file
# What the names of files and folders begin with that systems make: zips of macOS, thumbnails of a NAS, disks.
_HIDDEN = ('.', '__MACOSX', '@eaDir', 'lost+found')
_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP)  # by file systems that cannot sync a file or a folder


@contextlib.contextmanager
def replacing(path: str, *, durable: bool = True) -> Iterator[str]:
    """Yields `temporary_path(path)`. What the body writes there then replaces `path`.

    Args:
        path: of the file.
        durable: it survives a power failure. Files that can be made again need not wait for the disk.

    Raises:
        OSError: the disk does not take it. `path` is as before, and nothing half-written is left.
    """
    temporary = temporary_path(path)
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # not there, or the disk is at fault already
            os.remove(temporary)
        raise
    if durable:
        sync(os.path.dirname(path) or '.')


def temporary_path(path: str) -> str:
    """A file beside `path`, of the same ending, that no other process or thread uses.

    Its name is short, however long that of `path` is.
    """
    stem = f'.{os.getpid()}-{threading.get_ident()}-{zlib.crc32(os.fsencode(path)):08x}'
    return os.path.join(os.path.dirname(path), stem + os.path.splitext(path)[1])


@contextlib.contextmanager
def reading_json(path: str, remedy: str) -> Iterator[Any]:
    """Yields the content of a JSON file. An error in the body means that the content is not what it should be.

    Args:
        path: of the file.
        remedy: what to do where the file is damaged.

    Raises:
        FileNotFoundError: the file is not there.
        InputError: it cannot be read or is damaged.
    """
    try:
        with open(path, encoding='utf-8') as file:
            yield json.load(file)
    except (FileNotFoundError, NotADirectoryError, InputError):
        raise
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror}); check its permissions') from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f'{path}: damaged ({error!r}); {remedy}') from error


def make_folder(path: str, setting: str = '--workdir') -> None:
    """Makes a folder and its parents. Errors name `setting`, which gives the folder.

    Raises:
        InputError: nothing can be written there.
    """
    with writing(path, setting):
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass


@contextlib.contextmanager
def writing(folder: str, setting: str = '--workdir') -> Iterator[None]:
    """What the body writes lies in `folder`, which `setting` gives.

    Raises:
        InputError: the disk does not take it.
    """
    try:
        yield
    except OSError as error:
        way_on = 'free space or ' if error.errno in FULL else ''
        raise InputError(f'{folder}: cannot be written ({error.strerror}); {way_on}choose another {setting}') from error


def walk(folder: str, onerror: Callable[[OSError], None]) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of its files) of a folder and all below it, also through links, except those that lead back.

    Hidden files and folders are passed over.

    Args:
        folder: where it begins.
        onerror: is called for a folder that cannot be listed.
    """
    above = {folder: frozenset()}  # {folder: the real paths of those that it was reached through}
    for parent, folders, files in os.walk(folder, onerror=onerror, followlinks=True):
        real, way = os.path.realpath(parent), above.pop(parent)
        if real in way:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(_HIDDEN)]
        above |= {os.path.join(parent, name): way | {real} for name in folders}
        yield parent, [name for name in files if not name.startswith(_HIDDEN)]


def write_text(path: str, text: str) -> None:
    """Writes a text file completely or not at all."""
    with replacing(path) as temporary:
        # Paths may be of any bytes.
        pathlib.Path(temporary).write_text(text, encoding='utf-8', errors='backslashreplace')


def write_json(path: str, values: dict) -> None:
    """Writes a JSON file completely or not at all."""
    write_text(path, json.dumps(values, indent=1) + '\n')


def sync(path: str) -> None:
    """Returns when the content of a file, or the names in a folder, would survive a power failure.

    Raises:
        OSError: the disk does not take it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: str) -> None:
    """`sync` of all files and folders in `folder`, and of itself.

    Raises:
        OSError: the disk does not take it.
    """
    for parent, _, files in os.walk(folder, topdown=False):
        for file in files:
            sync(os.path.join(parent, file))
        sync(parent)
