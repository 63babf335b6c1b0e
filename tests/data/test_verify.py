"""Every file is looked at once before a run, and whatever is wrong is named in one line."""

import dataclasses
import json
import logging
import os

import numpy as np
import PIL.Image
import pytest

from atonet_jax.check_data.inspection import inspect_split
from atonet_jax.data.cityscapes import load_cityscapes
from atonet_jax.data.dataset import DataError, SegmentationDataset
from atonet_jax.data.decode import read_example
from atonet_jax.data.labels import CITYSCAPES
from atonet_jax.data.verify import verify
from tests.data.cityscapes_folder import FRAMES, SIZE, image_path, label_path, write_folder, write_png


@pytest.fixture
def root(tmp_path):
    write_folder(tmp_path)
    return tmp_path


def verify_error(root, split='train', cache_path=None):
    with pytest.raises(DataError) as raised:
        verify(load_cityscapes(str(root), split), cache_path=cache_path)
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


def test_sizes_are_those_of_the_upright_images(root):
    path, exif = image_path(root, 'train', FRAMES[0]), PIL.Image.Exif()
    exif[0x112] = 8
    PIL.Image.fromarray(np.zeros((*SIZE[::-1], 3), np.uint8)).save(path, exif=exif)
    dataset = verify(load_cityscapes(str(root), 'train'))
    assert dataset.sizes[0] == SIZE == read_example(dataset, 0)[0].shape[:2]


def test_floats_of_an_unknown_range_are_refused(root):
    PIL.Image.fromarray(np.full(SIZE, -1, np.float32)).save(image_path(root, 'train', FRAMES[0]), 'TIFF')
    assert '--config.data.sample_range' in verify_error(root)


def test_images_that_exif_turns_are_counted_also_from_the_cache(root, tmp_path, caplog):
    path, exif = image_path(root, 'train', FRAMES[0]), PIL.Image.Exif()
    exif[0x112] = 3
    with PIL.Image.open(path) as image:
        image.save(path, exif=exif)
    for _ in range(2):
        caplog.clear()
        verify(load_cityscapes(str(root), 'train'), cache_path=str(tmp_path / 'verified.json'))
        assert '1 images are turned upright' in caplog.text and 'label_orientation=stored' in caplog.text
    (warning,) = (text for text in inspect_split(load_cityscapes(str(root), 'train')).warnings if 'upright' in text)
    assert warning.startswith('1 images are turned upright')


def test_color_label_in_place_of_an_index_label_is_refused(root):
    write_png(label_path(root, 'train', FRAMES[0]), np.full((*SIZE, 3), (128, 64, 128)))
    assert 'label file holds colours such as (128, 64, 128), but class ids are expected' in verify_error(root)


def test_split_whose_labels_are_all_ignored_is_refused(root):
    for frame in FRAMES:
        write_png(label_path(root, 'val', frame), np.zeros(SIZE))
    assert 'all pixels of all 3 label files are ignored' in verify_error(root, 'val')


def test_three_problems_are_told_and_the_others_counted(tmp_path):
    for i in range(5):
        write_png(image_path(tmp_path, 'train', f'city/city_{i}'), np.zeros((*SIZE, 3)))
        write_png(label_path(tmp_path, 'train', f'city/city_{i}'), np.full(SIZE, 77))
    message = verify_error(tmp_path)
    assert message.count('label value 77') == 3 and message.endswith(
        '; and 2 more such problems in the 5 examples of cityscapes train: --mode=check_data lists them all'
    )


def test_verified_files_are_not_read_again_until_they_change(root, tmp_path, monkeypatch):
    dataset, cache = load_cityscapes(str(root), 'train'), str(tmp_path / 'workdir' / 'verified.json')
    verify(dataset, cache_path=cache)

    with monkeypatch.context() as patched:
        patched.setattr(PIL.Image, 'open', lambda path: pytest.fail(f'read {path} again'))
        verify(dataset, cache_path=cache)

    write_png(label_path(root, 'train', FRAMES[1]), np.full(SIZE, 77))
    assert 'label value 77' in verify_error(root, cache_path=cache)


def test_cache_does_not_hide_another_meaning_of_the_labels(root, tmp_path):
    dataset, cache = load_cityscapes(str(root), 'train'), str(tmp_path / 'verified.json')
    verify(dataset, cache_path=cache)
    stricter = SegmentationDataset(
        'cityscapes', 'train', CITYSCAPES, dataset.image_paths, dataset.label_paths,
        raw_to_train=np.where(np.arange(256) == 7, 254, 0).astype(np.uint8),
    )  # fmt: skip
    with pytest.raises(DataError, match='label value 7'):
        verify(stricter, cache_path=cache)


def test_cache_does_not_hide_that_images_are_too_large(root, tmp_path):
    dataset, cache = load_cityscapes(str(root), 'train'), str(tmp_path / 'verified.json')
    verify(dataset, cache_path=cache)
    pixels = SIZE[0] * SIZE[1]
    verify(dataclasses.replace(dataset, max_pixels=pixels), cache_path=cache)
    with pytest.raises(DataError, match='raise the limit config.data.max_pixels'):
        verify(dataclasses.replace(dataset, max_pixels=pixels - 1), cache_path=cache)


def test_failed_verification_is_not_remembered(root, tmp_path):
    cache = str(tmp_path / 'verified.json')
    label_path(root, 'train', FRAMES[0]).write_bytes(b'')
    verify_error(root, cache_path=cache)
    assert not os.path.exists(cache)


@pytest.mark.parametrize('content', [b'{"half a fi', b'[]', b'{"a": 3}', b'\xff'])
def test_damaged_cache_is_replaced(root, tmp_path, content):
    cache = tmp_path / 'verified.json'
    cache.write_bytes(content)
    verify(load_cityscapes(str(root), 'train'), cache_path=str(cache))
    assert len(json.loads(cache.read_text())) == 3


def truncate(path, length):
    with open(path, 'rb+') as file:
        file.truncate(length)


def test_truncated_jpeg_is_found_before_training(tmp_path):
    paths = str(tmp_path / 'image.jpg'), str(tmp_path / 'label.png')
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(paths[0])
    PIL.Image.fromarray(np.full((64, 64), 7, np.uint8)).save(paths[1])
    dataset = SegmentationDataset('mine', 'train', CITYSCAPES, *([path] for path in paths))
    verify(dataset)
    truncate(paths[0], os.path.getsize(paths[0]) // 2)
    with pytest.raises(DataError, match='image.jpg: cannot be decoded .*; replace the file'):
        verify(dataset)


def test_damage_within_an_image_is_found_by_decoding(root):
    path = image_path(root, 'train', FRAMES[1])
    write_png(path, np.random.default_rng(0).integers(0, 256, (*SIZE, 3)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    dataset = load_cityscapes(str(root), 'train')
    verify(dataset)
    with pytest.raises(DataError, match='cannot be decoded'):
        verify(dataset, decode_images=True)
    assert list(verify(dataset, decode_images=True, on_corrupt='skip').unusable) == [1]


@pytest.mark.parametrize('length', [0, 40, -30])
@pytest.mark.parametrize('path', [image_path, label_path])
def test_truncated_file_is_found_before_training(root, path, length):
    path = path(root, 'train', FRAMES[1])
    write_png(path, np.random.default_rng(0).integers(7, 34, (*SIZE, 3)[: 3 if 'leftImg8bit' in str(path) else 2]))
    truncate(path, length if length >= 0 else os.path.getsize(path) + length)
    message = verify_error(root)
    if 'no image that can be read' not in message:  # not even a header
        assert message.startswith(f'{path}: cannot be decoded (') and message.endswith('; replace the file')


def test_png_with_something_after_its_end_is_fine(root):
    with open(image_path(root, 'train', FRAMES[0]), 'ab') as file:
        file.write(b'a trailer')
    verify(load_cityscapes(str(root), 'train'))


def test_skipping_marks_and_tells_what_it_leaves_out(root, caplog):
    truncate(label_path(root, 'train', FRAMES[1]), 30)
    with caplog.at_level(logging.WARNING):
        dataset = verify(load_cityscapes(str(root), 'train'), on_corrupt='skip')
    assert dataset.sizes == (SIZE, None, SIZE) and list(dataset.unusable) == [1]
    assert f'skipped: {label_path(root, "train", FRAMES[1])}' in caplog.text

    for frame in FRAMES:
        truncate(label_path(root, 'train', frame), 30)
    with pytest.raises(DataError, match='cannot be decoded'):
        verify(load_cityscapes(str(root), 'train'), on_corrupt='skip')


def test_mostly_ignored_labels_are_refused_or_trusted(root, caplog):
    for frame in FRAMES:
        labels = np.zeros(SIZE)
        labels[0] = 7
        write_png(label_path(root, 'train', frame), labels)
    message = verify_error(root)
    assert 'cityscapes train: 83.3% of the pixels are ignored (such as 0 ignored: 120 pixels)' in message
    assert message.endswith('--config.data.trust_labels=True goes on with them')
    verify(load_cityscapes(str(root), 'train'), trust_labels=True)
    assert 'cityscapes train: 83.3% of the pixels are ignored' in caplog.text


def test_what_was_judged_is_remembered_with_the_files(root, tmp_path):
    """A second run does not read the labels again, and judges them all the same."""
    for frame in FRAMES:
        write_png(label_path(root, 'train', frame), np.append(np.zeros(30), np.full(18, 7)).reshape(SIZE))
    dataset, cache = load_cityscapes(str(root), 'train'), str(tmp_path / 'verified.json')
    verify(dataset, cache_path=cache, trust_labels=True)
    with pytest.raises(DataError, match='62.5% of the pixels are ignored'):
        verify(dataset, cache_path=cache)
