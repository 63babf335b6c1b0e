"""The parameters and multiply-accumulates of every network are those that its record tells."""

import pytest

from atonet_jax.models import distinct_networks, network
from tests.models import golden


@pytest.mark.parametrize('name', distinct_networks())
def test_counts_are_those_that_the_record_tells(name):
    published = network(name).published
    size, macs = published.macs
    golden.assert_counts(name, 19, size, published.parameters, macs)
