"""Every number that training depends on is that of PyTorch, as tests/golden/ holds it.

`pytest tests/test_parity.py -rP | grep parity` prints the largest errors. `make parity` compares with PyTorch itself.
"""

import functools

import numpy as np

from tests import golden_files
from tests.parity_cases import NetworkParity


@functools.cache
def golden():
    return golden_files.read('atonet')


class TestGolden(NetworkParity):
    def expected(self, case):
        return golden()[0][case]

    def settled(self):
        """Float16 in one array, in the order of the names."""
        with np.load(golden_files.FOLDER / 'atonet_settled.npz') as file:
            flat, state = file['weights'].astype(np.float32), {}
        for name, shape in golden()[1]['names']['tiny']:
            if name in self.expected('steps'):
                size = int(np.prod(shape))
                state[name], flat = flat[:size].reshape(shape), flat[size:]
        assert not flat.size
        return state
