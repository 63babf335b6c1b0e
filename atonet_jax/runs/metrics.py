"""`metrics.jsonl` of a workdir: a line of figures every few steps, and one for each evaluation."""

import json
import logging
import os

from atonet_jax.process.files import sync, write_text

_log = logging.getLogger(__name__)

METRICS_FILE = 'metrics.jsonl'


class MetricsLog:
    """Appends to `metrics.jsonl`. Lines after the step of a resumed run are removed."""

    def __init__(self, workdir: str, resumed_step: int):
        """Keeps only the lines up to `resumed_step`."""
        self._path = os.path.join(workdir, METRICS_FILE)
        kept = [line for line in read_metrics(workdir) if line['step'] <= resumed_step]
        write_text(self._path, ''.join(json.dumps(line) + '\n' for line in kept))
        self._file = open(self._path, 'a', buffering=1)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({'step': step} | values) + '\n')

    def sync(self) -> None:
        """Returns when all lines have reached the disk."""
        sync(self._path)

    def close(self) -> None:
        self._file.close()


def read_metrics(workdir: str) -> list[dict]:
    """The lines of `metrics.jsonl`, without a half-written last line of a killed run; empty if there is no file.

    Other damaged lines are left out and logged.
    """
    path, lines = os.path.join(workdir, METRICS_FILE), []
    try:
        with open(path, encoding='utf-8', errors='replace') as file:
            for number, text in enumerate(file, 1):
                try:
                    line = json.loads(text)
                    if 'step' not in line:
                        raise KeyError('step')
                    lines.append(line)
                except (ValueError, TypeError, KeyError):
                    if text.endswith('\n'):
                        _log.warning('%s: line %d is damaged and left out', path, number)
    except FileNotFoundError:
        pass
    return lines
