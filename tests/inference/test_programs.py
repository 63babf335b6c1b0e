"""Each program is made once, and no more of them are kept than is said."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from atonet_jax.inference import segmenter
from atonet_jax.inference.programs import Programs
from atonet_jax.models import create_model, init_variables


class Program:
    pass


def test_threads_that_want_one_program_wait_for_the_one_that_makes_it():
    made, may_end = [], threading.Event()

    def make(key):
        made.append(key)
        may_end.wait(10)
        return Program()

    programs = Programs(make)
    with ThreadPoolExecutor(4) as threads:
        of_one = [threads.submit(programs, 'a') for _ in range(3)]
        other = threads.submit(programs, 'b')
        while len(made) < 2:
            assert not any(future.done() for future in (*of_one, other))
        may_end.set()
        assert len({future.result() for future in of_one}) == 1
        assert other.result() is not of_one[0].result()
    assert sorted(made) == ['a', 'b']


def test_the_programs_that_were_used_last_are_kept_and_others_freed():
    programs = Programs(lambda key: Program(), most=2)
    first, second = programs('first'), programs('second')
    assert programs('first') is first
    programs('third')
    freed = weakref.ref(second)
    del second
    gc.collect()
    assert freed() is None
    assert programs('first') is first


def test_after_a_failure_the_next_call_tries_again():
    outcomes = [ValueError('no memory'), 'program']

    def make(key):
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    programs = Programs(make)
    with pytest.raises(ValueError, match='no memory'):
        programs('a')
    assert programs('a') == 'program'


def test_a_segmenter_keeps_programs_without_what_they_were_traced_from(monkeypatch):
    """Which is most of their memory: JAX keeps it as long as the jitted function."""
    model = create_model('segnet_basic', 5, width=4)
    jitted = []
    jit = segmenter.jax.jit

    def remembered(function, **options):
        jitted.append(weakref.ref(function))
        return jit(function, **options)

    segment = segmenter.Segmenter(model, init_variables(model, 0))
    monkeypatch.setattr(segmenter.jax, 'jit', remembered)
    for height in (32, 48):
        segment(np.zeros((1, height, 32, 3), np.uint8))
    gc.collect()
    assert [reference() for reference in jitted] == [None, None]
