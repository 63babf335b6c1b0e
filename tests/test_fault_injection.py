"""The short form of `python -m benchmarks.fault_injection`: real processes, killed at random moments."""

import random

from benchmarks.fault_injection import disturbed_run, final_variables


def test_a_run_whose_processes_are_killed_ends_as_one_that_nobody_disturbed(tiny_config, finished, tmp_path):
    outcome = disturbed_run(
        tiny_config,
        str(tmp_path / 'killed'),
        final_variables(tiny_config, finished),
        max_kills=4,
        longest_life=9.0,
        rng=random.Random(0),
    )
    assert outcome.kills > 0
    assert outcome.equal
