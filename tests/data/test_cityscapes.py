"""Cityscapes folders become pairs, labels become train ids, and whatever is wrong with the files is named."""

import json
import os

import numpy as np
import PIL.Image
import pytest

from atonet_jax.data.cityscapes import load_cityscapes
from atonet_jax.data.dataset import DataError, SegmentationDataset, read_example, verify
from atonet_jax.data.labels import CITYSCAPES, IGNORE_LABEL

SIZE = (6, 8)
FRAMES = ['aachen/aachen_000000_000019', 'aachen/aachen_000001_000019', 'bochum/bochum_000000_000313']


def write_png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.asarray(array, np.uint8)).save(path)


def image_path(root, split, frame):
    return root / 'leftImg8bit' / split / f'{frame}_leftImg8bit.png'


def label_path(root, split, frame, kind='labelIds'):
    return root / 'gtFine' / split / f'{frame}_gtFine_{kind}.png'


@pytest.fixture
def root(tmp_path):
    """Three frames in each of train and val, all of road (raw id 7), and three in test without labels."""
    for split in ('train', 'val', 'test'):
        for frame in FRAMES:
            write_png(image_path(tmp_path, split, frame), np.zeros((*SIZE, 3)))
            if split != 'test':
                write_png(label_path(tmp_path, split, frame), np.full(SIZE, 7))
    return tmp_path


def test_pairs_are_in_sorted_order(root):
    dataset = load_cityscapes(str(root), 'train')
    assert isinstance(dataset, SegmentationDataset) and len(dataset) == 3
    assert dataset.image_paths == tuple(str(image_path(root, 'train', frame)) for frame in FRAMES)
    assert dataset.label_paths == tuple(str(label_path(root, 'train', frame)) for frame in FRAMES)
    verify(dataset)


def test_trainval_is_train_then_val(root):
    parts = [load_cityscapes(str(root), split) for split in ('train', 'val', 'trainval')]
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
    train_ids = np.append(np.arange(19), [255] * 29).reshape(SIZE)
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


def load_error(root, split):
    with pytest.raises(DataError) as raised:
        load_cityscapes(str(root), split)
    assert '\n' not in str(raised.value)
    return str(raised.value)


def test_unknown_split_lists_the_known(root):
    assert load_error(root, 'training') == "unknown split 'training'; known are train, val, test, trainval"


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


def test_image_without_label_is_named(root):
    label_path(root, 'train', FRAMES[1]).unlink()
    message = load_error(root, 'train')
    assert '1 images of Cityscapes split train have no label' in message and FRAMES[1] in message


def test_label_without_image_is_named(root):
    image_path(root, 'train', FRAMES[2]).unlink()
    message = load_error(root, 'train')
    assert '1 labels of Cityscapes split train have no image' in message and FRAMES[2] in message


def verify_error(root, split='train', cache_path=None):
    with pytest.raises(DataError) as raised:
        verify(load_cityscapes(str(root), split), cache_path)
    assert '\n' not in str(raised.value)
    return str(raised.value)


def test_unknown_label_value_is_named_with_its_count_and_the_known(root):
    labels = np.full(SIZE, 7)
    labels[0, :5], labels[1, :2] = 77, 100
    write_png(label_path(root, 'train', FRAMES[1]), labels)
    message = verify_error(root)
    assert str(label_path(root, 'train', FRAMES[1])) in message
    assert 'label value 77 (5 pixels) and 1 other unknown values, but known are 0..33, 255' in message


def test_sizes_that_differ_are_named(root):
    write_png(label_path(root, 'train', FRAMES[0]), np.full((3, 4), 7))
    message = verify_error(root)
    assert 'label is 3x4 (height x width) but its image' in message and '6x8' in message
    with pytest.raises(DataError, match='label is 3x4'):
        read_example(load_cityscapes(str(root), 'train'), 0)


@pytest.mark.parametrize('path', [image_path, label_path])
def test_undecodable_file_is_named(root, path):
    path(root, 'train', FRAMES[0]).write_bytes(b'not a png')
    assert str(path(root, 'train', FRAMES[0])) in verify_error(root)


def test_image_of_more_than_8_bits_is_refused(root):
    array = np.zeros(SIZE, np.uint16)
    PIL.Image.fromarray(array).save(image_path(root, 'train', FRAMES[0]))
    assert 'convert it to an 8-bit RGB PNG or JPEG' in verify_error(root)


def test_color_label_in_place_of_an_index_label_is_refused(root):
    write_png(label_path(root, 'train', FRAMES[0]), np.zeros((*SIZE, 3)))
    assert 'label is of mode RGB but should be one 8-bit channel of class ids' in verify_error(root)


def test_split_whose_labels_are_all_ignored_is_refused(root):
    for frame in FRAMES:
        write_png(label_path(root, 'val', frame), np.zeros(SIZE))
    assert 'all pixels of all 3 label files are ignored' in verify_error(root, 'val')


def test_three_problems_are_told_and_the_others_counted(tmp_path):
    for i in range(5):
        write_png(image_path(tmp_path, 'train', f'city/city_{i}'), np.zeros((*SIZE, 3)))
        write_png(label_path(tmp_path, 'train', f'city/city_{i}'), np.full(SIZE, 77))
    message = verify_error(tmp_path)
    assert message.count('label value 77') == 3 and message.endswith('; and 2 more such problems')


def test_verified_files_are_not_read_again_until_they_change(root, tmp_path, monkeypatch):
    dataset, cache = load_cityscapes(str(root), 'train'), str(tmp_path / 'workdir' / 'verified.json')
    verify(dataset, cache)

    with monkeypatch.context() as patched:
        patched.setattr(PIL.Image, 'open', lambda path: pytest.fail(f'read {path} again'))
        verify(dataset, cache)

    write_png(label_path(root, 'train', FRAMES[1]), np.full(SIZE, 77))
    assert 'label value 77' in verify_error(root, cache_path=cache)


def test_cache_does_not_hide_another_meaning_of_the_labels(root, tmp_path):
    dataset, cache = load_cityscapes(str(root), 'train'), str(tmp_path / 'verified.json')
    verify(dataset, cache)
    stricter = SegmentationDataset(
        'cityscapes', 'train', CITYSCAPES, dataset.image_paths, dataset.label_paths,
        raw_to_train=np.where(np.arange(256) == 7, 254, 0).astype(np.uint8),
    )  # fmt: skip
    with pytest.raises(DataError, match='label value 7'):
        verify(stricter, cache)


def test_failed_verification_is_not_remembered(root, tmp_path):
    cache = str(tmp_path / 'verified.json')
    label_path(root, 'train', FRAMES[0]).write_bytes(b'')
    verify_error(root, cache_path=cache)
    assert not os.path.exists(cache)


def test_damaged_cache_is_replaced(root, tmp_path):
    cache = tmp_path / 'verified.json'
    cache.write_text('{"half a fi')
    verify(load_cityscapes(str(root), 'train'), str(cache))
    assert len(json.loads(cache.read_text())) == 3
