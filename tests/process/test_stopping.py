"""The first signal is recorded, and what is still done is said; the second one ends the process."""

import os
import signal

from atonet_jax.process.stopping import StopSignals


def test_the_first_signal_is_recorded_and_says_what_is_still_done(capfd):
    before = signal.getsignal(signal.SIGINT)
    with StopSignals('ends after this picture') as signals:
        assert signals.received(0) is None
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received(0) == signal.SIGINT
    assert capfd.readouterr().err == '\nends after this picture\n'
    assert signal.getsignal(signal.SIGINT) is before
