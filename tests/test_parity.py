"""Every number that training depends on is that of PyTorch, as tests/golden/ holds it.

`pytest tests/test_parity.py -rP | grep parity` prints the largest errors. `make parity` compares with PyTorch itself.
"""

from tests.parity_cases import NetworkParity, golden_network, golden_settled


class TestGolden(NetworkParity):
    def expected(self, case):
        return golden_network()[0][case]

    def settled(self):
        return golden_settled()
