"""The short form of `python -m benchmarks.fault_injection`: real processes, killed at random moments."""

import random

import numpy as np

from atonet_jax.runs.metrics import read_metrics
from benchmarks.fault_injection import disturbed_run, final_variables, undisturbed_run


def test_a_run_whose_processes_are_killed_ends_as_one_that_nobody_disturbed(finished_basic, basic_config, tmp_path):
    undisturbed = undisturbed_run(basic_config, str(tmp_path / 'undisturbed'))
    for forked, here in zip(undisturbed.variables, final_variables(basic_config, finished_basic), strict=True):
        np.testing.assert_array_equal(forked, here)
    rng = random.Random(3)  # the first process lives for a quarter of the run, so that at least one is killed
    outcome = disturbed_run(basic_config, str(tmp_path / 'killed'), undisturbed, max_kills=2, rng=rng)
    assert outcome.kills > 0
    assert outcome.equal
    steps = [line['step'] for line in read_metrics(str(tmp_path / 'killed')) if 'train/loss' in line]
    assert steps == list(range(1, 7)), 'each step is logged once'
