"""Cityscapes folders become pairs, labels become train ids, and whatever is wrong with the files is named."""

import errno
import functools
import os

import numpy as np
import PIL.Image
import pytest

from atonet_jax.data.cityscapes import load_cityscapes
from atonet_jax.data.dataset import DataError, SegmentationDataset
from atonet_jax.data.decode import read_example
from atonet_jax.data.labels import IGNORE_LABEL
from atonet_jax.data.verify import verify
from tests.data.cityscapes_folder import FRAMES, SIZE, image_path, label_path, write_folder, write_png


@pytest.fixture
def root(tmp_path):
    write_folder(tmp_path)
    return tmp_path


def test_pairs_are_in_sorted_order(root):
    dataset = load_cityscapes(str(root), 'train')
    assert isinstance(dataset, SegmentationDataset) and len(dataset) == 3
    assert dataset.image_paths == tuple(str(image_path(root, 'train', frame)) for frame in FRAMES)
    assert dataset.label_paths == tuple(str(label_path(root, 'train', frame)) for frame in FRAMES)
    verify(dataset)


def test_joined_parts_follow_each_other(root):
    parts = [load_cityscapes(str(root), split) for split in ('train', 'val', 'train+val')]
    assert parts[2].image_paths == parts[0].image_paths + parts[1].image_paths
    assert parts[2].label_paths == parts[0].label_paths + parts[1].label_paths


def test_test_split_needs_no_labels(root):
    dataset = load_cityscapes(str(root), 'test')
    verify(dataset)
    assert dataset.label_paths is None and len(dataset) == 3
    assert (read_example(dataset, 0)[1] == IGNORE_LABEL).all()


def test_published_blank_test_labels_pass(root):
    for frame in FRAMES:
        write_png(label_path(root, 'test', frame), np.zeros(SIZE))
    verify(load_cityscapes(str(root), 'test'))


def test_raw_ids_become_train_ids(root):
    raw_ids = np.append(np.arange(34), [255] * 14).reshape(SIZE)
    write_png(label_path(root, 'train', FRAMES[0]), raw_ids)
    image, labels = read_example(load_cityscapes(str(root), 'train'), 0)
    assert image.shape == (*SIZE, 3) and labels.dtype == np.uint8
    expected = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12}
    expected |= {26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
    np.testing.assert_array_equal(labels, np.vectorize(lambda raw_id: expected.get(raw_id, 255))(raw_ids))


def test_train_id_files_serve_where_there_are_no_raw_ids(root):
    train_ids = np.append(np.arange(38) % 19, [255] * 10).reshape(SIZE)
    for frame in FRAMES:
        label_path(root, 'train', frame).unlink()
        write_png(label_path(root, 'train', frame, 'labelTrainIds'), train_ids)
    dataset = load_cityscapes(str(root), 'train')
    verify(dataset)
    np.testing.assert_array_equal(read_example(dataset, 0)[1], train_ids)

    write_png(label_path(root, 'train', FRAMES[0], 'labelTrainIds'), np.full(SIZE, 33))
    with pytest.raises(DataError, match=r'label value 33 \(48 pixels\), but known are 0..18, 255'):
        verify(dataset)


def test_palette_label_is_read_by_index(root):
    label = PIL.Image.fromarray(np.full(SIZE, 7, np.uint8)).convert('P')
    label.putpalette([5, 6, 7] * 256)
    label.save(label_path(root, 'train', FRAMES[0]))
    assert (read_example(load_cityscapes(str(root), 'train'), 0)[1] == 0).all()


def test_palette_of_greys_is_read_by_grey(root):
    """As optimisers make it of a file of one channel."""
    label = PIL.Image.fromarray(np.arange(48, dtype=np.uint8).reshape(SIZE) % 2, 'P')
    label.putpalette([7, 7, 7, 26, 26, 26])
    label.save(label_path(root, 'train', FRAMES[0]))
    labels = read_example(load_cityscapes(str(root), 'train'), 0)[1]
    np.testing.assert_array_equal(labels, np.where(np.arange(48).reshape(SIZE) % 2, 13, 0))


def load_error(root, split):
    with pytest.raises(DataError) as raised:
        load_cityscapes(str(root), split)
    assert '\n' not in str(raised.value)
    return str(raised.value)


def test_unknown_split_lists_the_known(root):
    known = 'train, val, test, train_extra, train_coarse, val_coarse'
    assert load_error(root, 'training') == f"unknown split 'training'; known are {known}, and several joined by '+'"
    assert "split 'val+val' names a part twice" in load_error(root, 'val+val')


def test_coarse_labels(root):
    for part, folder in (('train_extra', 'train_extra'), ('train_coarse', 'train')):
        for frame in FRAMES:
            write_png(image_path(root, folder, frame), np.zeros((*SIZE, 3)))
            write_png(root / 'gtCoarse' / folder / f'{frame}_gtCoarse_labelIds.png', np.full(SIZE, 8))
        dataset = load_cityscapes(str(root), part)
        verify(dataset)
        assert len(dataset) == 3 and (read_example(dataset, 2)[1] == 1).all()
    mixed = load_cityscapes(str(root), 'train+train_extra')
    assert [read_example(mixed, i)[1][0, 0] for i in (0, 5)] == [0, 1]


@pytest.mark.parametrize('kind', ['leftImg8bit', 'gtFine'])
def test_missing_folder_is_named_with_the_layout(root, kind):
    (root / kind).rename(root / 'elsewhere')
    message = load_error(root, 'val')
    assert str(root / kind / 'val') in message
    assert 'expected leftImg8bit/{train,val,test}/<city>/' in message


def test_empty_split_is_told(root):
    for frame in FRAMES:
        image_path(root, 'val', frame).unlink()
    assert 'no images in Cityscapes split val' in load_error(root, 'val')


@pytest.mark.parametrize('folder', ['leftImg8bit/train', 'leftImg8bit/train/aachen', 'gtFine/train/bochum'])
def test_a_folder_that_cannot_be_read_is_named(root, monkeypatch, folder):
    """Who runs the tests may read everything."""
    read = {'listdir': os.listdir, 'scandir': os.scandir}

    def refuse(name, path):
        if path == str(root / folder):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return read[name](path)

    for name in read:
        monkeypatch.setattr(os, name, functools.partial(refuse, name))
    assert load_error(root, 'train') == f'{root}/{folder}: cannot be read (Permission denied); check its permissions'


def test_files_beside_the_folders_of_cities_are_passed_over(root):
    (root / 'leftImg8bit/train/README.txt').touch()
    (root / 'leftImg8bit/train/.cache').mkdir()
    assert len(load_cityscapes(str(root), 'train')) == 3


@pytest.mark.parametrize('path', [image_path, label_path])
def test_file_without_partner_is_named(root, path):
    path(root, 'train', FRAMES[1]).unlink()
    dataset = load_cityscapes(str(root), 'train')
    assert len(dataset) == 3
    missing = path(root, 'train', FRAMES[1])
    with pytest.raises(DataError, match=f'^{missing}: no such file; every image needs its label'):
        verify(dataset)


def test_links_spaces_and_other_alphabets_in_paths(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp('Straßen bilder 街') / 'city scapes'
    root.rename(elsewhere)
    link = elsewhere.parent / 'link'
    link.symlink_to(elsewhere)
    frame = label_path(elsewhere, 'train', FRAMES[0])
    frame.rename(elsewhere / 'moved.png')
    frame.symlink_to(elsewhere / 'moved.png')
    dataset = load_cityscapes(str(link), 'train')
    verify(dataset)
    assert (read_example(dataset, 0)[1] == 0).all()

    (elsewhere / 'moved.png').unlink()
    with pytest.raises(DataError, match='labelIds.png: no such file'):
        verify(load_cityscapes(str(link), 'train'))
