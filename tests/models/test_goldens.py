"""Every network gives what other code gives for its definition: logits, names in files, statistics of training.

Logits are those of one small size, mostly one that no stride divides. Each network's own file compares what else its
training gives.
"""

import contextlib
import itertools
from unittest import mock

import numpy as np
import pytest

from atonet_jax.models import distinct_networks, segnet
from tests.models import golden

# test_atonet.py compares more of ATONet, and test_erfnet.py the encoder, whose outputs are in ERFNet's golden. The
# ensemble of SwiftNets is the mean of two networks that have goldens. No other code defines the rest.
WITHOUT = {'atonet', 'erfnet_encoder', 'swiftnet_ens', 'bisenet_coincheung', 'segnet_basic', 'sparse_two_column',
           'table3_encoder_decoder_b', 'table3_multi_pathway_b', 'table3_multi_pathway_c'}  # fmt: skip
NAMES = [name for name in distinct_networks() if name not in WITHOUT]
# How many running means and variances each network has.
STATISTICS = {
    'enet_paper': 168,
    'enet_davidtvs_2018_03': 176,
    'enet_davidtvs_head': 176,
    'erfnet': 78,
    'espnet': 42,
    'espnet_camvid': 42,
    'espnet_c': 32,
    'frrn_a': 96,
    'frrn_b': 112,
    'segnet': 50,
    'sqnet_zh320': 78,
    'swiftnet_ss_2019': 64,  # they alone show that SwiftNet's decoder takes levels behind their ReLU
    'swiftnet_ss_2020': 64,
    'swiftnet_pyr_2019': 58,  # where levels share a normalisation, those of the smallest level, which runs last
    'swiftnet_pyr_2020': 120,
    'table3_aggregation': 52,
    'table3_aggregation_final1x1': 52,
    'table3_encoder_decoder': 56,
    'table3_multi_pathway': 54,
    'table3_dilation': 44,
}
# In training, these normalise maps of few values, which magnifies rounding. Their own files compare what it gives, with
# bounds for that; of BiSeNet its outputs alone.
MAGNIFIED = {'bisenet_r18', 'bisenet_x39', 'ddrnet_23_slim', 'dfanet_a', 'dfanet_b', 'icnet', 'pidnet_s'}


@pytest.fixture(scope='module', params=NAMES)
def published(request):
    return golden.with_weights(request.param)


def test_logits_are_those_of_the_golden(published):
    expected, _, variables = published
    found = golden.logits_errors(expected, variables)
    assert found
    assert max(found.values()) <= golden.ALLOWED, found


def test_names_and_layouts_are_those_of_the_golden(published):
    golden.assert_names(*published)


@contextlib.contextmanager
def segnet_ties():
    """SegNet's pools find values where the golden's did, of those that differ by rounding alone.

    That is one in a thousand. tests/make_segnet_ties.py says why, and how they were found.
    """
    with np.load(golden.FOLDER / 'segnet_ties.npz') as file:
        level_of, *at, index = file['ties'].astype(np.int32)
    pool, levels = segnet._pool, itertools.count(1)

    def pool_as_golden(x):
        largest, indices = pool(x)
        here = level_of == next(levels)
        return largest, indices.at[tuple(axis[here] for axis in at)].set(index[here])

    with mock.patch.object(segnet, '_pool', pool_as_golden):
        yield
    assert next(levels) == 6  # each was asked for once


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=() if name.startswith('enet') else pytest.mark.networks) for name in STATISTICS]
)
def test_statistics_of_a_training_batch_are_those_of_the_golden(name):
    published = golden.with_weights(name)
    with segnet_ties() if name == 'segnet' else contextlib.nullcontext():
        errors = golden.statistics_errors(*published)
    assert len(errors) == STATISTICS[name]
    assert {entry: error for entry, error in errors.items() if not error <= 1e-4} == {}


def test_every_golden_is_compared():
    ours = {'images', 'torch_files', 'atonet', 'atonet_settled', 'segnet_ties'}
    assert {path.stem for path in golden.FOLDER.glob('*.npz')} - ours == set(NAMES)


def test_statistics_are_compared_wherever_there_are_any(published):
    expected, _, variables = published
    assert ('batch_stats' in variables) == bool(expected.statistics) == (expected.name in {*STATISTICS, *MAGNIFIED})
