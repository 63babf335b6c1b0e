"""Files that are written completely or not at all, and lie on the disk before they count as written."""

import contextlib
import errno
import os
from collections.abc import Iterator

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # numbers of OSError: disk, quota and largest file
_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP)  # by file systems that cannot sync a file or a folder


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """Yields the path of a temporary file beside `path`, of the same ending. What the body writes there then replaces
    `path`.

    Raises:
        OSError: the disk does not take it. `path` is as before, and nothing half-written is left.
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f'.{os.getpid()}.{name}')
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # not there, or the disk is at fault already
            os.remove(temporary)
        raise
    sync(folder)


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
