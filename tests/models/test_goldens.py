"""Every network gives what other code gives for its definition, at one small size.

Most sizes are such that no stride divides them. What training gives is compared in each network's own file.
"""

import pytest

from atonet_jax.models import distinct_networks
from tests.models import golden

# test_atonet.py compares more of ATONet, and test_erfnet.py the encoder, whose outputs are in ERFNet's golden. The
# ensemble of SwiftNets is the mean of two networks that have goldens. No other code defines the rest.
WITHOUT = {'atonet', 'erfnet_encoder', 'swiftnet_ens', 'bisenet_coincheung', 'segnet_basic', 'sparse_two_column',
           'table3_encoder_decoder_b', 'table3_multi_pathway_b', 'table3_multi_pathway_c'}  # fmt: skip


@pytest.mark.parametrize('name', [name for name in distinct_networks() if name not in WITHOUT])
def test_logits_are_those_of_the_golden(name):
    expected, _, variables = golden.with_weights(name)
    found = golden.logits_errors(expected, variables)
    assert found
    assert max(found.values()) <= golden.ALLOWED, found


def test_every_golden_is_compared():
    ours = {'images', 'torch_files', 'atonet', 'atonet_settled'}
    names = {path.stem for path in golden.FOLDER.glob('*.npz')} - ours
    assert names == set(distinct_networks()) - WITHOUT
