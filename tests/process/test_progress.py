"""Quiet where stderr is no terminal, but for a line a minute."""

import contextlib
import fcntl
import logging
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from atonet_jax.process import progress
from atonet_jax.process.progress import Progress, watched


def test_elsewhere_than_on_a_terminal_a_line_a_minute_says_rate_and_what_is_left(monkeypatch, caplog, capfd):
    now = [0.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    with caplog.at_level(logging.INFO), Progress('evaluating', 3600, 'image', done=100) as bar:
        for i in range(15):
            now[0] = 10.0 * i
            bar.update(10, 'loss 0.5')
    assert caplog.messages == [
        'evaluating: image 180 of 3600, 1.14 a second, 50 min left, loss 0.5',
        'evaluating: image 250 of 3600, 1.07 a second, 52 min left, loss 0.5',
    ]
    assert capfd.readouterr().err == ''


def test_what_is_quick_or_quiet_shows_nothing(monkeypatch, caplog, capfd):
    with caplog.at_level(logging.INFO):
        assert list(watched('abc', 'reading', 3, 'letter')) == ['a', 'b', 'c']
        now = iter(range(0, 10_000, 100))
        monkeypatch.setattr(progress.time, 'monotonic', lambda: next(now))
        with Progress('training', None, 'step', quiet=True) as bar:
            bar.update()
    assert not caplog.messages
    assert capfd.readouterr().err == ''


def test_hours_and_unknown_totals(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    with caplog.at_level(logging.INFO):
        known, unknown = Progress('training', 8000, 'step'), Progress('reading', None, 'x')
        now[0] = 100.0
        known.update(100)
        unknown.update(100)
    assert caplog.messages == ['training: step 100 of 8000, 1 a second, 2 h 12 min left', 'reading: x 100, 1 a second']


@pytest.mark.parametrize('columns', [0, 100])
def test_a_terminal_has_a_bar_whether_it_knows_its_width_or_not(columns):
    code = (
        'import time\n'
        'from atonet_jax.process import progress\n'
        'progress._DELAY = 0\n'
        "with progress.Progress('training', 10, 'step') as bar:\n"
        '    time.sleep(0.3)\n'
        "    bar.update(4, 'loss 0.5')\n"
    )
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name != 'COLUMNS'}
    subprocess.run([sys.executable, '-c', code], stderr=theirs, check=True, env=env)
    os.close(theirs)
    shown = b''
    with contextlib.suppress(OSError):  # the end
        while part := os.read(ours, 1000):
            shown += part
    os.close(ours)
    assert b'training:  40%' in shown and b'4/10' in shown and b'loss 0.5' in shown
