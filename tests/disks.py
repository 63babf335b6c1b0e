"""A full disk, as far as a process can have one to itself, and what stands on it."""

import contextlib
import pathlib
import resource
import signal


@contextlib.contextmanager
def full_disk(size):
    """No file of this process may grow beyond so many bytes. Tests that print need capsys: pytest uses files else."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def contents(folder):
    """{name: text} of the files in a folder."""
    return {path.name: path.read_text() for path in pathlib.Path(folder).iterdir()}
