"""Caches give what decoding gives, say their size first, and a bad example is an error or a counted gap."""

import collections
import dataclasses
import logging
import os
import shutil

import numpy as np
import PIL.Image
import psutil
import pytest

from atonet_jax.data import examples as module
from atonet_jax.data.dataset import DataError, SegmentationDataset
from atonet_jax.data.decode import read_example
from atonet_jax.data.examples import Examples, decoded_bytes
from atonet_jax.data.labels import CITYSCAPES
from atonet_jax.data.verify import verify
from atonet_jax.errors import InputError

SIZES = [(5, 7), (4, 6), (5, 7)]


@pytest.fixture
def dataset(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for i, size in enumerate(SIZES):
        paths.append((str(tmp_path / f'image{i}.png'), str(tmp_path / f'label{i}.png')))
        PIL.Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(paths[-1][0])
        PIL.Image.fromarray(rng.integers(0, 34, size, dtype=np.uint8)).save(paths[-1][1])
    return verify(SegmentationDataset('tiny', 'train', CITYSCAPES, *zip(*paths)))


@pytest.fixture
def decoded(monkeypatch):
    """Which examples were decoded."""
    seen = []
    monkeypatch.setattr(module, 'read_example', lambda dataset, i: seen.append(i) or read_example(dataset, i))
    return seen


def assert_reads_all(examples, dataset):
    for i in range(len(dataset)):
        for array, expected in zip(examples.read(i), read_example(dataset, i), strict=True):
            assert array.dtype == np.uint8
            np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize('cache', ['none', 'memory', 'disk'])
def test_each_example_is_decoded_once_where_there_is_a_cache(dataset, decoded, tmp_path, cache):
    examples = Examples(dataset, cache=cache, cache_dir=str(tmp_path / 'cache'))
    for _ in range(2):
        assert_reads_all(examples, dataset)
    assert decoded == [0, 1, 2] * (2 if cache == 'none' else 1)


def test_a_cache_on_disk_takes_names_that_are_no_text(dataset, tmp_path):
    """File systems take any bytes; Python stands in for those that are not UTF-8."""
    for kind in ('image', 'label'):
        os.rename(tmp_path / f'{kind}0.png', os.fsencode(tmp_path) + b'/%s\xe9.png' % kind.encode())
    paths = [
        (f'{tmp_path}/{kind}\udce9.png', *known[1:])
        for kind, known in (('image', dataset.image_paths), ('label', dataset.label_paths))
    ]
    dataset = verify(SegmentationDataset('tiny', 'train', CITYSCAPES, *paths))
    assert_reads_all(Examples(dataset, cache='disk', cache_dir=str(tmp_path / 'cache')), dataset)
    assert len(os.listdir(tmp_path / 'cache')) == 3


def test_a_cache_on_disk_serves_another_run_until_the_files_change(dataset, decoded, tmp_path):
    assert_reads_all(Examples(dataset, cache='disk', cache_dir=str(tmp_path / 'cache')), dataset)
    assert_reads_all(Examples(dataset, cache='disk', cache_dir=str(tmp_path / 'cache')), dataset)
    assert decoded == [0, 1, 2]

    PIL.Image.new('RGB', SIZES[1][::-1], (1, 2, 3)).save(dataset.image_paths[1])
    assert_reads_all(Examples(dataset, cache='disk', cache_dir=str(tmp_path / 'cache')), dataset)
    assert decoded == [0, 1, 2, 1]


def test_a_half_written_file_in_the_cache_is_not_used(dataset, tmp_path):
    folder = tmp_path / 'cache'
    assert_reads_all(Examples(dataset, cache='disk', cache_dir=str(folder)), dataset)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert_reads_all(Examples(dataset, cache='disk', cache_dir=str(folder)), dataset)


@pytest.mark.parametrize('cache', ['memory', 'disk'])
def test_size_is_said_up_front(dataset, tmp_path, caplog, cache):
    assert decoded_bytes(dataset) == 4 * sum(height * width for height, width in SIZES)
    with caplog.at_level(logging.INFO):
        Examples(dataset, cache=cache, cache_dir=str(tmp_path / 'cache'))
    assert 'tiny train: decoded 0.00 GB in' in caplog.text and 'free' in caplog.text


def test_cache_that_does_not_fit_is_refused(dataset, tmp_path, monkeypatch):
    Free = collections.namedtuple('Free', ['available', 'free'])
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: Free(300, 300))
    monkeypatch.setattr(module.shutil, 'disk_usage', lambda folder: Free(300, 300))
    monkeypatch.setattr(module, '_LEFT_FREE', 0)
    with pytest.raises(InputError, match='config.data.cache=memory: tiny train takes 0.00 GB decoded.*choose disk'):
        Examples(dataset, cache='memory')
    with pytest.raises(InputError, match='config.data.cache=disk: tiny train takes 0.00 GB more in .*choose none'):
        Examples(dataset, cache='disk', cache_dir=str(tmp_path / 'cache'))


def test_what_the_disk_holds_already_needs_no_room(dataset, tmp_path, monkeypatch):
    assert_reads_all(Examples(dataset, cache='disk', cache_dir=str(tmp_path / 'cache')), dataset)
    monkeypatch.setattr(module.shutil, 'disk_usage', lambda folder: shutil._ntuple_diskusage(0, 0, 0))
    assert_reads_all(Examples(dataset, cache='disk', cache_dir=str(tmp_path / 'cache')), dataset)


def test_caches_on_one_disk_share_what_is_free_and_leave_some(dataset, tmp_path, monkeypatch, caplog):
    needed, left = decoded_bytes(dataset), module._LEFT_FREE
    free = collections.namedtuple('_', 'free')
    monkeypatch.setattr(module.shutil, 'disk_usage', lambda folder: free(left + needed + 1))
    first = Examples(dataset, cache='disk', cache_dir=str(tmp_path / 'first'))
    with pytest.raises(InputError, match='GB are free; give another config.data.cache_dir'):
        Examples(dataset, cache='disk', cache_dir=str(tmp_path / 'second'))
    assert_reads_all(first, dataset)
    second = Examples(dataset, cache='disk', cache_dir=str(tmp_path / 'second'))
    monkeypatch.setattr(module.shutil, 'disk_usage', lambda folder: free(left - 1))
    assert_reads_all(second, dataset)
    assert not os.listdir(tmp_path / 'second') and 'the cache cannot grow (No space left on device)' in caplog.text


def test_a_full_disk_is_told_with_what_the_cache_holds_of_other_settings(dataset, tmp_path, monkeypatch):
    folder = tmp_path / 'cache'
    assert_reads_all(Examples(dataset, cache='disk', cache_dir=str(folder)), dataset)
    (folder / 'notes.txt').write_text('not of the cache')
    monkeypatch.setattr(module.shutil, 'disk_usage', lambda folder: collections.namedtuple('_', 'free')(0))
    others = dataclasses.replace(dataset, unknown_as_void=0.1)
    with pytest.raises(
        InputError, match='free; 3 other files there take 0.00 GB: delete those that no run needs; give'
    ):
        Examples(others, cache='disk', cache_dir=str(folder))


def test_what_two_splits_share_needs_room_on_the_disk_once(dataset, tmp_path, monkeypatch):
    """As val and train+val do."""
    needed, left = decoded_bytes(dataset), module._LEFT_FREE
    monkeypatch.setattr(module.shutil, 'disk_usage', lambda folder: collections.namedtuple('_', 'free')(left + needed))
    last = dataclasses.replace(
        dataset,
        image_paths=dataset.image_paths[2:],
        label_paths=dataset.label_paths[2:],
        sizes=dataset.sizes[2:],
    )
    whole, part = (Examples(split, cache='disk', cache_dir=str(tmp_path / 'cache')) for split in (dataset, last))
    assert_reads_all(whole, dataset)
    assert_reads_all(part, last)
    assert len(os.listdir(tmp_path / 'cache')) == 3


def test_folder_that_cannot_be_made_is_refused(dataset, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(InputError, match=r'config.data.cache_dir=.*cannot be used \(Not a directory\)'):
        Examples(dataset, cache='disk', cache_dir=str(tmp_path / 'file' / 'cache'))


def test_a_disk_that_fills_up_ends_the_cache_and_not_the_run(dataset, tmp_path, monkeypatch, caplog):
    examples = Examples(dataset, cache='disk', cache_dir=str(tmp_path / 'cache'))

    def full(*_):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patched:
        patched.setattr(module.os, 'replace', full)
        assert_reads_all(examples, dataset)
    assert caplog.text.count('the cache cannot grow (No space left on device)') == 1
    assert os.listdir(tmp_path / 'cache') == []


def test_a_bad_example_is_an_error_or_a_counted_gap(dataset, caplog):
    with open(dataset.image_paths[1], 'r+b') as file:
        file.truncate(60)
    strict, lenient = Examples(dataset), Examples(dataset, on_corrupt='skip')
    assert strict.read(1) is None and lenient.read(1) is None
    with pytest.raises(DataError, match='image1.png: cannot be decoded'):
        strict.check(1)
    for _ in range(2):
        lenient.check(1)
    assert list(lenient.skipped) == [1]
    assert caplog.text.count('skipped: ') == 1 and 'image1.png' in caplog.text


def test_what_other_processes_skip_can_be_gathered(dataset, monkeypatch):
    others = {2: DataError('another process cannot read it', 'missing file')}
    monkeypatch.setattr(module, 'gathered', lambda value: [value, others])
    strict, lenient = Examples(dataset), Examples(dataset, on_corrupt='skip')
    lenient.skipped[1] = DataError('damaged')
    for examples in (strict, lenient):
        examples.gather_skipped()
    assert strict.skipped == {}
    assert {i: str(reason) for i, reason in lenient.skipped.items()} == {1: 'damaged', 2: str(others[2])}


def test_caches_in_memory_share_what_is_free(dataset, monkeypatch):
    needed = decoded_bytes(dataset)
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: collections.namedtuple('_', 'available')(needed + 1))
    first = Examples(dataset, cache='memory')
    with pytest.raises(InputError, match='of memory are free'):
        Examples(dataset, cache='memory')
    assert_reads_all(first, dataset)  # what it has taken is no longer among what is free
    second = Examples(dataset, cache='memory')
    del first, second


def test_processes_of_a_host_share_what_is_free(dataset, monkeypatch):
    needed = decoded_bytes(dataset)
    for free, fits in ((3 * needed, True), (3 * needed - 1, False), (0, False)):
        monkeypatch.setattr(module, 'free_memory', lambda: free)
        if fits:
            Examples(dataset, cache='memory', processes=3)
            continue
        with pytest.raises(InputError, match='but 0.00 GB of memory are free for each of 3 processes; choose disk'):
            Examples(dataset, cache='memory', processes=3)


def test_less_than_nothing_is_never_free(dataset, monkeypatch, caplog):
    first = Examples(dataset, cache='memory')
    monkeypatch.setattr(module, 'free_memory', lambda: 0)
    with pytest.raises(InputError, match='but 0.00 GB of memory are free'):
        Examples(dataset, cache='memory')
    del first


def test_a_split_of_which_nothing_can_be_used_is_an_error(dataset):
    for path in dataset.image_paths:
        with open(path, 'rb+') as file:
            file.truncate(40)
    examples = Examples(dataset, on_corrupt='skip')
    assert [examples.read(i) for i in range(3)] == [None] * 3
    examples.check(0)
    examples.check(1)
    with pytest.raises(DataError, match='tiny train: none of the 3 examples can be used; the last: .*image2.png'):
        examples.check(2)
