"""Compiled programs, one for each size of the images."""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any

MOST_PROGRAMS = 32  # that are kept: one takes 15 to 100 MB


class Programs:
    """Makes each program once, when it is first asked for, and keeps those that were used last.

    Threads may share it. Those that ask for a program that another one is making wait for it.
    """

    def __init__(self, make: Callable[[Hashable], Any], most: int = MOST_PROGRAMS):
        """
        Args:
            make: key -> program. It must jit a function of its own each time: JAX frees what it has traced and compiled
                only together with the function.
            most: programs that are kept.
        """
        self._make = make
        self._most = most
        self._programs = {}  # futures by key, the one that was used last at the end
        self._lock = threading.Lock()

    def __call__(self, key: Hashable) -> Any:
        """The program of a key. Raises what `make` raises; the next call then tries again."""
        with self._lock:
            program = self._programs.pop(key, None)
            is_new = program is None
            self._programs[key] = program = program or Future()
            while len(self._programs) > self._most:
                del self._programs[next(iter(self._programs))]
        if is_new:
            try:
                program.set_result(self._make(key))
            except BaseException as error:
                with self._lock:
                    self._programs.pop(key, None)
                program.set_exception(error)
        return program.result()
