"""Files of a split are counted, and every fault is listed. data/test_label_checks.py tests how they are judged."""

import numpy as np
import PIL.Image

from atonet_jax.check_data.inspection import inspect_split
from atonet_jax.data.cityscapes import load_cityscapes

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
    assert report.sizes == {(6, 10): 3, (4, 4): 1} and not report.failures
    assert report.pixels.sum() == 3 * 60 + 16
    assert report.pixels[-1] == 30 and report.images[-1] == 3  # ignored
    road = 3 * np.count_nonzero(raw_labels() == 7) + 16
    assert report.pixels[0] == road == report.values['7'] and report.images[0] == 4
    assert report.images[10] == 3 and report.pixels[10] == report.values['23']  # sky
    assert report.to_dict()['pixels_of_value']['7 road'] == road
    assert any(warning.startswith('no pixel of the classes: wall, ') for warning in report.warnings)
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

    report = inspect(tmp_path, on_corrupt='skip')
    assert not report.failures
    assert 'config.data.on_corrupt=skip leaves out 2: missing file' in report.warnings


def test_split_without_labels(tmp_path):
    write(tmp_path, 0, np.zeros(SIZE), part='test')
    (tmp_path / 'gtFine').rename(tmp_path / 'elsewhere')
    report = inspect(tmp_path, 'test')
    assert report.failures == {'no labels, which training and evaluation need': list(report.dataset.image_paths)}
    assert not report.dataset.unusable and report.pixels.sum() == 0
