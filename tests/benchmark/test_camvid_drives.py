import numpy as np
import pytest
from PIL import Image

from atonet_jax.data.camvid import load_camvid
from benchmarks.camvid_drives import split_by_drive

FRAMES = {'train': ('0001TP_1', '0006R0_1', '0016E5_1'), 'val': ('0016E5_2', '0016E5_3')}


@pytest.fixture
def root(tmp_path):
    for part, names in FRAMES.items():
        for ending, shape in (('', (4, 6, 3)), ('annot', (4, 6))):
            folder = tmp_path / 'camvid' / f'{part}{ending}'
            folder.mkdir(parents=True)
            for name in names:
                Image.fromarray(np.zeros(shape, np.uint8)).save(folder / f'{name}.png')
    return tmp_path / 'camvid'


def names(folder, part):
    return [path.split('/')[-1].removesuffix('.png') for path in load_camvid(str(folder), part).image_paths]


def test_the_drive_that_is_held_out_is_val_and_all_others_train(root, tmp_path):
    folder = tmp_path / 'drives'
    split_by_drive(root, folder, '0001TP')
    assert split_by_drive(root, folder, '0006R0') == {'train': 4, 'val': 1}  # in the place of the first
    assert names(folder, 'val') == ['0006R0_1']
    assert names(folder, 'train') == ['0001TP_1', '0016E5_1', '0016E5_2', '0016E5_3']


def test_no_such_drive_and_a_folder_with_other_files_are_refused(root, tmp_path):
    with pytest.raises(SystemExit, match='--held-out 0006R1: .* there is 0001TP, 0006R0, 0016E5'):
        split_by_drive(root, tmp_path / 'drives', '0006R1')
    assert not (tmp_path / 'drives').exists()
    with pytest.raises(SystemExit, match='is the folder of CamVid itself'):
        split_by_drive(root, root, '0006R0')
    (tmp_path / 'mine' / 'train').mkdir(parents=True)
    (tmp_path / 'mine' / 'train' / 'a.png').touch()
    with pytest.raises(SystemExit, match='is no link made by this command'):
        split_by_drive(root, tmp_path / 'mine', '0006R0')
    assert names(root, 'val') == list(FRAMES['val'])
    with pytest.raises(SystemExit, match='train: no such folder'):
        split_by_drive(tmp_path, tmp_path / 'other', '0006R0')
