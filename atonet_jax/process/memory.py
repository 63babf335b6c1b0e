"""How much memory of the host a process may still take."""

import os
import pathlib
from collections.abc import Iterator

import psutil

_GROUPS = '/proc/self/cgroup'
_MOUNT = '/sys/fs/cgroup'
# Of control groups of version 2 and of version 1: where they lie, and the files of their limit and use. The use holds
# pages of files that can be dropped; memory.stat says how many.
_VERSIONS = {
    '': ('', 'memory.max', 'memory.current', 'inactive_file'),
    'memory': ('memory', 'memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file'),
}


def free_memory() -> int:
    """Bytes that are free on this host, or fewer where the limit of a container or of a batch job leaves less."""
    return max(0, min([psutil.virtual_memory().available, *_left_in_groups()]))


def _left_in_groups() -> Iterator[int]:
    """What the control groups that hold this process leave. Those without a limit, or unreadable, are passed over."""
    try:
        lines = pathlib.Path(_GROUPS).read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controller, name = line.split(':', 2)
        if controller not in _VERSIONS:
            continue
        folder, limit, use, cached = _VERSIONS[controller]
        group = pathlib.PurePosixPath(name)
        for holder in (group, *group.parents):
            path = os.path.join(_MOUNT, folder, str(holder).lstrip('/'))
            try:
                most = int(pathlib.Path(path, limit).read_text())
                used = int(pathlib.Path(path, use).read_text())
                stat = dict(line.split() for line in pathlib.Path(path, 'memory.stat').read_text().splitlines())
            except (OSError, ValueError):
                continue
            yield most - used + int(stat.get(cached, 0))
