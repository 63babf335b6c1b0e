"""Ends a run cleanly on SIGTERM, which schedulers send before they take a machine away, on SIGINT, and on SIGHUP, which
comes when a terminal or its connection is lost."""

import contextlib
import os
import signal
import sys
import types
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils


class StopSignals:
    """A context manager. It records the first SIGTERM, SIGINT or SIGHUP; a second one ends the process at once.

    Under nohup, which ignores SIGHUP, it stays ignored.

    With several processes, JAX's own service receives SIGTERM and makes all processes agree on the last step.
    """

    def __init__(self, notice: str = ''):
        """notice: a line for the first signal, which says what is still done."""
        self._notice = notice
        self._received = None
        self._handlers = {}

    def __enter__(self) -> 'StopSignals':
        numbers = [signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        if jax.process_count() == 1:
            numbers.append(signal.SIGTERM)
        self._handlers = {number: signal.signal(number, self._remember) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def received(self, step: int) -> int | None:
        """The signal that ends the run after `step`, or None. Call this after every step."""
        if jax.process_count() == 1:
            return self._received
        if multihost_utils.reached_preemption_sync_point(step):
            return self._received or signal.SIGTERM
        return None

    def _remember(self, number: int, frame: types.FrameType | None) -> None:
        if self._received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._received = number
        if self._notice:
            with contextlib.suppress(OSError):  # the screen may be gone
                os.write(2, f'\n{self._notice}\n'.encode())  # print may be under way
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Within the context SIGTERM raises SystemExit, so that what the body has begun is cleared up as after Ctrl-C."""

    def leave(number: int, frame: types.FrameType | None) -> None:
        sys.exit(128 + number)

    handler = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
