"""Files of JSON objects, one a line, that survive a process which is killed while it adds one."""

import contextlib
import json
import os
from typing import Any


def read_lines(path: str) -> list[dict[str, Any]]:
    """The objects of a file, without half-written lines; none where there is no file."""
    rows = []
    with contextlib.suppress(FileNotFoundError), open(path, encoding='utf-8') as file:
        for line in file:
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    return rows


def add_line(path: str, row: dict[str, Any]) -> None:
    """Adds an object, behind the end of a half-written line; it is on the disk when this returns."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, 'a+b') as file:
        whole = file.tell() == 0
        if not whole:
            file.seek(-1, os.SEEK_END)
            whole = file.read(1) == b'\n'
        file.write(('' if whole else '\n').encode() + json.dumps(row).encode() + b'\n')
        file.flush()
        os.fsync(file.fileno())
