"""Progress: a bar on a terminal, elsewhere a line a minute. Nothing is shown in the first two seconds."""

import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import tqdm

_log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 60
_DELAY = 2


class Progress:
    """Shows the count, the rate and the time left. A context manager."""

    def __init__(self, what: str, total: int | None, unit: str, *, done: int = 0, quiet: bool = False):
        """
        Args:
            what: 'evaluating'.
            total: number to be done; None if unknown.
            unit: 'image'.
            done: number that was done before.
            quiet: shows nothing; for all processes but the main one.
        """
        self._bar = tqdm.tqdm(
            desc=what,
            total=total,
            unit=unit,
            initial=done,
            disable=True if quiet else None,
            delay=_DELAY,
            leave=False,
            ncols=_columns(),
        )
        self._what, self._total, self._unit, self._quiet = what, total, unit, quiet
        self._first = self._done = done
        self._started = self._shown = time.monotonic()

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def update(self, count: int = 1, figures: str = '') -> None:
        """Adds `count` to what is done. `figures` are shown at the end of the line."""
        self._done += count
        if not self._bar.disable:
            self._bar.set_postfix_str(figures, refresh=False)
            self._bar.update(count)
        elif not self._quiet and time.monotonic() - self._shown > _SECONDS_BETWEEN_LINES:
            self._shown = time.monotonic()
            _log.info('%s', self._line(figures))

    def _line(self, figures: str) -> str:
        seconds = time.monotonic() - self._started
        rate = (self._done - self._first) / seconds
        of_total = '' if self._total is None else f' of {self._total}'
        parts = [f'{self._what}: {self._unit} {self._done}{of_total}', f'{rate:.3g} a second']
        if self._total is not None and rate > 0:
            parts.append(f'{_duration((self._total - self._done) / rate)} left')
        return ', '.join([*parts, *([figures] if figures else [])])


def watched(things: Iterable[Any], what: str, total: int, unit: str) -> Iterator[Any]:
    """`things`, with their progress shown."""
    with Progress(what, total, unit) as progress:
        for thing in things:
            yield thing
            progress.update()


def say(line: str) -> None:
    """Prints a line without disturbing a bar. A screen that is gone does not end the run."""
    with contextlib.suppress(OSError):
        tqdm.tqdm.write(line)


def _columns() -> int | None:
    """Columns for a terminal that does not report its width; None lets the bar decide."""
    try:
        known = os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError, AttributeError):  # no terminal, which has no bar either
        return None
    return None if known else shutil.get_terminal_size().columns


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f'{minutes // 60} h {minutes % 60:02} min' if minutes >= 60 else f'{minutes} min'
