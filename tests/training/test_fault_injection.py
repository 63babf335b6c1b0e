"""The short form of `python -m benchmarks.fault_injection`: real processes, killed at random moments."""

import random

from benchmarks.fault_injection import disturbed_run, undisturbed_run


def test_a_run_whose_processes_are_killed_ends_as_one_that_nobody_disturbed(tiny_config, finished, tmp_path):
    # `finished` has made the scenes, and left the compiled steps in the cache.
    undisturbed = undisturbed_run(tiny_config, str(tmp_path / 'undisturbed'))
    rng = random.Random(3)  # the first process lives for a quarter of the run, so that at least one is killed
    outcome = disturbed_run(tiny_config, str(tmp_path / 'killed'), undisturbed, max_kills=4, rng=rng)
    assert outcome.kills > 0
    assert outcome.equal
