"""Every number that training depends on is that of PyTorch: torch_reference.py, torch's optimiser and schedule.

`pytest tests/parity/test_network.py -rP | grep parity` prints the largest errors.
"""

import functools

import pytest

from tests import golden_files
from tests.parity import torch_side
from tests.parity_cases import NetworkParity, golden_network, golden_settled


@functools.cache
def computed(case):
    return torch_side.CASES[case]()


class TestLive(NetworkParity):
    def expected(self, case):
        return computed(case)

    def settled(self):
        return torch_side.settled()


@pytest.mark.parametrize('case', [case for case in torch_side.CASES if not case.startswith('steps')])
def test_the_golden_numbers_are_those_of_this_pytorch(case):
    """Up to rounding, which differs between releases and processors."""
    assert_golden(case, computed(case), 1e-4)


def test_the_golden_steps_are_those_of_this_pytorch():
    """From the weights that are kept: on the way to them, rounding grows to per cents."""
    figures, ended = torch_side.steps_from(golden_settled())
    assert_golden('steps_figures', figures, 1e-3)
    assert_golden('steps', ended, 1e-3)


def assert_golden(case, arrays, bound):
    digests = golden_network()[0][case]
    assert set(digests) == set(arrays)
    for name, array in arrays.items():
        golden_files.assert_close(name, array, digests[name], bound)
