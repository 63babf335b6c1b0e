"""Files are whole or absent, and on the disk before they count."""

import os
import pathlib

import pytest

from atonet_jax.errors import InputError
from atonet_jax.process.files import reading_json, replacing, sync_tree
from tests.disks import full_disk


def test_a_file_is_replaced_as_a_whole_and_keeps_its_ending(tmp_path):
    path = tmp_path / 'picture.png'
    path.write_text('before')
    with replacing(str(path)) as temporary:
        assert temporary.endswith('.png')
        pathlib.Path(temporary).write_text('after')
        assert path.read_text() == 'before'
    assert path.read_text() == 'after' and os.listdir(tmp_path) == ['picture.png']


def test_a_full_disk_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path):
    path = tmp_path / 'figures.json'
    path.write_text('before')
    with full_disk(100), pytest.raises(OSError, match='File too large'), replacing(str(path)) as temporary:
        pathlib.Path(temporary).write_text(1000 * 'x')
    assert path.read_text() == 'before' and os.listdir(tmp_path) == ['figures.json']


def test_content_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    path, synced = tmp_path / 'a', []

    def fsync(descriptor):
        synced.append((os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}')), path.exists()))

    monkeypatch.setattr(os, 'fsync', fsync)
    with replacing(str(path)) as temporary:
        pathlib.Path(temporary).touch()
    assert synced == [(os.path.basename(temporary), False), (tmp_path.name, True)]

    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'b').touch()
    synced.clear()
    sync_tree(str(tmp_path))
    assert [name for name, _ in synced] == ['b', 'folder', 'a', tmp_path.name]


def test_a_file_that_can_be_made_again_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'fsync', None)
    with replacing(str(tmp_path / 'a'), durable=False) as temporary:
        pathlib.Path(temporary).write_text('made')
    assert (tmp_path / 'a').read_text() == 'made' and os.listdir(tmp_path) == ['a']


@pytest.mark.parametrize('content', ['{"step": 1', '[]', '{"other": 1}'])
def test_damaged_json_is_one_line(tmp_path, content):
    path = tmp_path / 'figures.json'
    path.write_text(content)
    damaged = pytest.raises(InputError, match=r'figures\.json: damaged \(.*\); delete it$')
    with damaged as raised, reading_json(str(path), 'delete it') as stored:
        assert stored['step']
    assert '\n' not in str(raised.value)
