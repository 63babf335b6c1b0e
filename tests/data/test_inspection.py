"""What the files of a split hold is counted, and labels that are not meant as they are read are found out."""

import json

import numpy as np
import PIL.Image

from atonet_jax.data.cityscapes import load_cityscapes
from atonet_jax.data.class_file import read_class_file
from atonet_jax.data.dataset import SegmentationDataset
from atonet_jax.data.inspection import inspect_split

SIZE = (6, 10)
RAW_IDS = (7, 8, 11, 21, 23, 26)  # road, sidewalk, building, vegetation, sky, car


def write(root, i, labels, image=None, kind='labelIds', part='train'):
    for folder, name, array in (
        ('leftImg8bit', 'leftImg8bit', np.full((*SIZE, 3), i, np.uint8) if image is None else image),
        ('gtFine', f'gtFine_{kind}', labels),
    ):
        path = root / folder / part / 'town' / f'town_{i}_{name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.asarray(array, np.uint8)).save(path)


def raw_labels():
    labels = np.resize(RAW_IDS, SIZE)
    labels[0] = 0
    return labels


def inspect(root, split='train', **options):
    return inspect_split(load_cityscapes(str(root), split), **options)


def test_values_classes_and_sizes_are_counted(tmp_path):
    for i in range(3):
        write(tmp_path, i, raw_labels())
    write(tmp_path, 3, np.full((4, 4), 7), np.zeros((4, 4, 3), np.uint8))
    report = inspect(tmp_path)
    assert report.sizes == {'6x10': 3, '4x4': 1} and not report.failures
    assert report.pixels.sum() == 3 * 60 + 16
    assert report.pixels[-1] == 30 and report.images[-1] == 3  # ignored
    road = 3 * np.count_nonzero(raw_labels() == 7) + 16
    assert report.pixels[0] == road == report.values[7] and report.images[0] == 4
    assert report.images[10] == 3 and report.pixels[10] == report.values[23]  # sky
    assert report.to_dict()['pixels_of_value']['7 road'] == road
    assert any('no pixel of 13 classes: wall' in warning for warning in report.warnings)
    assert len(report.digests) == 4


def test_every_fault_of_every_file_is_listed(tmp_path):
    for i in range(5):
        write(tmp_path, i, raw_labels())
    (tmp_path / 'gtFine/train/town/town_0_gtFine_labelIds.png').unlink()
    (tmp_path / 'leftImg8bit/train/town/town_1_leftImg8bit.png').unlink()
    write(tmp_path, 2, np.full(SIZE, 99))
    path = tmp_path / 'leftImg8bit/train/town/town_2_leftImg8bit.png'
    path.write_bytes(path.read_bytes()[:45])
    write(tmp_path, 3, np.full((3, 3), 7))
    report = inspect(tmp_path)
    assert {kind: len(lines) for kind, lines in report.failures.items()} == {
        'missing file': 2,
        'file cannot be decoded': 1,
        'unknown label value': 1,  # of the same example as the one before
        'label and image differ in size': 1,
    }
    assert len(report.dataset.unusable) == 4
    assert report.values[99] == 60

    report = inspect(tmp_path, on_corrupt='skip')
    assert not report.failures
    assert 'config.data.on_corrupt=skip leaves out 2: missing file' in report.warnings


def failures(report):
    return ' | '.join(report.failures)


def test_train_ids_where_raw_ids_belong(tmp_path):
    """All values are known raw ids, so that nothing else would notice."""
    for i in range(3):
        write(tmp_path, i, np.resize([0, 1, 2, 8, 10, 13, 255], SIZE))
    report = inspect(tmp_path)
    assert 'labels should hold raw ids up to 33, but look like train ids, none above 19' in failures(report)
    assert len(report.failures[next(iter(report.failures))]) == 3


def test_some_files_of_train_ids_among_raw_ids_are_warned_of(tmp_path):
    for i in range(4):
        write(tmp_path, i, raw_labels() if i else np.resize([7, 8, 11], SIZE))
    report = inspect(tmp_path)
    assert not report.failures
    assert any('1 of 4 label files have no value above 19' in warning for warning in report.warnings)


def test_raw_ids_where_train_ids_belong(tmp_path):
    for i in range(2):
        write(tmp_path, i, raw_labels(), kind='labelTrainIds')
    assert 'labels should hold train ids 0..18, but look like raw ids' in failures(inspect(tmp_path))


def test_masks_of_0_and_255(tmp_path):
    for i in range(2):
        write(tmp_path, i, np.resize([0, 255], SIZE))
    assert 'labels hold only 0 and 255, as masks do' in failures(report := inspect(tmp_path))
    assert '100.0% of the pixels are ignored' in failures(report)
    assert 'train ids' not in failures(report)


def test_mostly_ignored_pixels(tmp_path):
    labels = raw_labels()
    labels[:4] = 3
    write(tmp_path, 0, labels)
    report = inspect(tmp_path)
    assert report.failures == {'66.7% of the pixels are ignored': ['3 ignored: 40 pixels']}


def test_blank_labels_of_the_test_split_are_as_published(tmp_path):
    write(tmp_path, 0, np.zeros(SIZE), part='test')
    assert not inspect(tmp_path, 'test').failures


def test_split_without_labels(tmp_path):
    write(tmp_path, 0, np.zeros(SIZE), part='test')
    (tmp_path / 'gtFine').rename(tmp_path / 'elsewhere')
    report = inspect(tmp_path, 'test')
    assert report.failures == {'no labels, which training and evaluation need': list(report.dataset.image_paths)}
    assert not report.dataset.unusable and report.pixels.sum() == 0


def test_masks_leave_one_of_two_classes(tmp_path):
    """0 is a class here, and 255, which the mask means as the other, is ignored."""
    rows = [{'name': 'background', 'value': 0}, {'name': 'foreground', 'value': 1}]
    (tmp_path / 'classes.json').write_text(json.dumps(rows))
    paths = str(tmp_path / 'image.png'), str(tmp_path / 'label.png')
    labels = np.zeros(SIZE, np.uint8)
    labels[0] = 255
    PIL.Image.fromarray(labels).save(paths[1])
    PIL.Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(paths[0])
    table = read_class_file(str(tmp_path / 'classes.json'), 'mine')
    report = inspect_split(SegmentationDataset('mine', 'train', table, *([path] for path in paths)))
    assert report.failures == {'labels hold only 0 and 255, as masks do, but 255 is ignored': [paths[1]]}
