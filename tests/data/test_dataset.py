"""What is said of a split by its name."""

import os

import pytest

from atonet_jax.data.dataset import split_file_name


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
