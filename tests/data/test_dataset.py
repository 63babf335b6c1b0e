"""A split is read as the config says, and its files are named after it."""

import os

import pytest

from atonet_jax.data.dataset import split_file_name
from atonet_jax.data.sources import load_dataset


def test_a_split_is_read_as_the_config_says(tiny_config):
    data = tiny_config.data.copy_and_resolve_references()
    data.update(max_pixels=10_000, sample_range=(0, 1023), label_orientation='stored', unknown_as_void=0.25)
    dataset = load_dataset(data, 'val')
    assert dataset.max_pixels == 10_000
    assert dataset.sample_range == (0, 1023)
    assert dataset.label_orientation == 'stored'
    assert dataset.unknown_as_void == 0.25


def test_a_file_of_a_split_is_named_after_it():
    assert split_file_name('verified', 'train+val') == 'verified_train+val.json'
    assert split_file_name('skipped', 'train/a') == 'skipped_train/a.json'


@pytest.mark.parametrize('part', ['ride', '写真', '\udcff'])
def test_a_file_of_a_split_of_many_parts_has_a_short_name_of_its_own(part):
    split = '+'.join(f'{part}{i}' for i in range(300))
    names = [split_file_name('verified', split), split_file_name('verified', f'{split}+more')]
    assert len(set(names)) == 2
    assert all(name.startswith(f'verified_{part}0+{part}1') for name in names)
    assert max(len(os.fsencode(name)) for name in names) <= 255
