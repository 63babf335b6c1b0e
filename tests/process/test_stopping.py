"""The first signal is recorded, and what is still done is said; the second one ends the process."""

import errno
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from atonet_jax.process.progress import say
from atonet_jax.process.stopping import StopSignals


def test_the_first_signal_is_recorded_and_says_what_is_still_done(capfd):
    before = signal.getsignal(signal.SIGINT)
    with StopSignals('ends after this picture') as signals:
        assert signals.received(0) is None
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received(0) == signal.SIGINT
    assert capfd.readouterr().err == '\nends after this picture\n'
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize('ignored', [False, True], ids=['terminal', 'nohup'])
def test_a_lost_terminal_ends_the_run_in_good_order_unless_it_is_ignored(ignored):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received(0) == (None if ignored else signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_screen_that_is_gone_takes_nothing_with_it(monkeypatch):
    def write(text):
        raise OSError(errno.EIO, 'Input/output error')

    monkeypatch.setattr(sys, 'stdout', SimpleNamespace(write=write, flush=lambda: None))
    say('step 3: mIoU 40%')


def test_the_second_signal_ends_the_process(repository):
    program = (
        'import time\nfrom atonet_jax.process.stopping import StopSignals\n'
        'with StopSignals():\n    print("ready", flush=True)\n    while True:\n        time.sleep(0.01)'
    )
    with subprocess.Popen([sys.executable, '-c', program], cwd=repository, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b'ready\n'
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None, 'the first one is only recorded'
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT
