"""CamVid's three shapes are told apart and give the same train ids; the usual split has the usual sizes."""

import dataclasses
import errno
import logging
import os

import numpy as np
import PIL.Image
import pytest

from atonet_jax.data.camvid import load_camvid
from atonet_jax.data.dataset import DataError
from atonet_jax.data.decode import read_example
from atonet_jax.data.labels import CAMVID, IGNORE_LABEL
from atonet_jax.data.verify import verify

SIZE = (4, 8)
RAW_IDS = np.arange(32, dtype=np.uint8).reshape(SIZE)
COLORS = np.array([label.color for label in CAMVID.raw_labels], np.uint8)
FRAMES = ['0001TP_006690', '0001TP_008550', '0006R0_f00930', '0016E5_00390', '0016E5_07959', 'Seq05VD_f00000']

# codes.txt of the index masks that are published (`labels/*_P.png`).
CODES = (
    'Animal', 'Archway', 'Bicyclist', 'Bridge', 'Building', 'Car', 'CartLuggagePram', 'Child', 'Column_Pole', 'Fence',
    'LaneMkgsDriv', 'LaneMkgsNonDriv', 'Misc_Text', 'MotorcycleScooter', 'OtherMoving', 'ParkingBlock', 'Pedestrian',
    'Road', 'RoadShoulder', 'Sidewalk', 'SignSymbol', 'Sky', 'SUVPickupTruck', 'TrafficCone', 'TrafficLight', 'Train',
    'Tree', 'Truck_Bus', 'Tunnel', 'VegetationMisc', 'Void', 'Wall',
)  # fmt: skip


def usual_frames():
    """The names of the 701 frames."""
    names = [f'0001TP_{n:06}' for n in range(6690, 10381, 30)]
    names += [f'0006R0_f{n:05}' for n in range(930, 3931, 30)]
    names += [f'0016E5_{n:05}' for n in (*range(390, 2401, 30), *range(4350, 7921, 30), *range(8190, 8641, 30))]
    names += [f'0016E5_{n:05}' for n in range(7959, 8160, 2)]
    return names + [f'Seq05VD_f{n:05}' for n in range(0, 5101, 30)]


def color_label():
    return PIL.Image.fromarray(COLORS[RAW_IDS])


def palette_label():
    """Colours as an optimiser may store them: the indices have no meaning of their own."""
    label = PIL.Image.fromarray(31 - RAW_IDS).convert('P')
    label.putpalette(COLORS[::-1].ravel().tolist())
    return label


def index_label():
    return PIL.Image.fromarray(RAW_IDS)


def write_frames(root, names, label, folders=('images', 'labels'), suffix=''):
    for folder in folders:
        (root / folder).mkdir()
    for name in names:
        PIL.Image.new('RGB', SIZE[::-1]).save(root / folders[0] / f'{name}.png')
        label.save(root / folders[1] / f'{name}{suffix}.png')


def frame_names(dataset):
    return [path.rsplit('/')[-1].removesuffix('.png') for path in dataset.image_paths]


@pytest.mark.parametrize('label', [color_label, palette_label, index_label])
@pytest.mark.parametrize(
    ('folders', 'suffix'), [(('701_StillsRaw_full', 'LabeledApproved_full'), '_L'), (('images', 'labels'), '')]
)
def test_every_coding_of_the_32_classes_gives_the_same_train_ids(tmp_path, label, folders, suffix):
    write_frames(tmp_path, FRAMES, label(), folders, suffix)
    dataset = load_camvid(str(tmp_path), 'train')
    verify(dataset)
    image, labels = read_example(dataset, 0)
    assert image.shape == (*SIZE, 3)
    by_name = {raw.name: labels.ravel()[raw.raw_id] for raw in CAMVID.raw_labels}
    assert {name: by_name[name] for name in ('Sky', 'Tunnel', 'TrafficCone', 'Road', 'SUVPickupTruck', 'Void')} == {
        'Sky': 0, 'Tunnel': 1, 'TrafficCone': 2, 'Road': 3, 'SUVPickupTruck': 8, 'Void': IGNORE_LABEL,
    }  # fmt: skip
    np.testing.assert_array_equal(labels, CAMVID.raw_to_train[RAW_IDS])


def test_raw_ids_are_those_of_the_published_index_masks():
    assert tuple((label.raw_id, label.name) for label in CAMVID.raw_labels) == tuple(enumerate(CODES))


def test_repack(tmp_path):
    train_ids = (np.arange(32) % 12).reshape(SIZE).astype(np.uint8)
    label = PIL.Image.fromarray(train_ids)
    for part in ('train', 'val', 'test'):
        write_frames(tmp_path, [f'{part}_{i}' for i in range(2)], label, (part, f'{part}annot'))
    dataset = load_camvid(str(tmp_path), 'train+val')
    verify(dataset)
    assert frame_names(dataset) == ['train_0', 'train_1', 'val_0', 'val_1']
    expected = np.where(train_ids == 11, IGNORE_LABEL, train_ids)
    np.testing.assert_array_equal(read_example(dataset, 0)[1], expected)

    PIL.Image.fromarray(train_ids + 1).save(dataset.label_paths[0])
    with pytest.raises(DataError, match=r'label value 12 \(2 pixels\), but known are 0..11, 255'):
        verify(dataset)


@pytest.mark.parametrize('void', [11, 255])
def test_the_numbers_of_11_classes_are_not_taken_for_those_of_32(tmp_path, caplog, void):
    train_ids = (np.arange(32) % 12).reshape(SIZE).astype(np.uint8)
    write_frames(tmp_path, FRAMES, PIL.Image.fromarray(np.where(train_ids == 11, np.uint8(void), train_ids)))
    dataset = load_camvid(str(tmp_path), 'train')
    with pytest.raises(DataError, match='nothing above 11 but 255, as those of the 11 classes do, but are') as raised:
        verify(dataset)
    assert 'for 11 classes name the folders train and trainannot' in str(raised.value)
    assert 'trust_labels=True goes on with them' in str(raised.value) and '\n' not in str(raised.value)
    assert 'look like train ids' not in caplog.text
    verify(dataset, trust_labels=True)
    assert 'are read as the 32 classes in alphabetical order' in caplog.text


def test_repack_of_colours(tmp_path):
    for part in ('train', 'val', 'test'):
        write_frames(tmp_path, [f'{part}_{i}' for i in range(2)], color_label(), (part, f'{part}_labels'), '_L')
    dataset = load_camvid(str(tmp_path), 'val')
    verify(dataset)
    np.testing.assert_array_equal(read_example(dataset, 1)[1], CAMVID.raw_to_train[RAW_IDS])


def test_what_was_found_is_said(tmp_path, caplog):
    write_frames(tmp_path, FRAMES, color_label())
    with caplog.at_level(logging.INFO):
        verify(load_camvid(str(tmp_path), 'train'))
    assert 'CamVid train, 3 frames' in caplog.text
    assert 'camvid train: label files in RGB (3) are read by colour, because 0001TP_006690.png shows ' in caplog.text


def test_hidden_files_are_passed_over(tmp_path):
    write_frames(tmp_path, FRAMES, color_label(), suffix='_L')
    for path in list(tmp_path.glob('*/*.png')):
        path.with_name(f'._{path.name}').write_bytes(b'\0\5\x16\7')
    assert len(verify(load_camvid(str(tmp_path), 'train'))) == 3


def test_two_label_files_of_a_frame_are_refused(tmp_path):
    write_frames(tmp_path, FRAMES, color_label(), suffix='_L')
    index_label().save(tmp_path / 'labels' / f'{FRAMES[0]}_P.png')
    assert f'{FRAMES[0]}_P.png: is of the same frame as' in load_error(tmp_path)


def test_usual_split_has_the_published_sizes(tmp_path):
    write_frames(tmp_path, usual_frames(), index_label())
    splits = {split: frame_names(load_camvid(str(tmp_path), split)) for split in ('train', 'val', 'test', 'train+val')}
    assert {split: len(names) for split, names in splits.items()} == {
        'train': 367, 'val': 101, 'test': 233, 'train+val': 468,
    }  # fmt: skip
    assert {'0001TP_008520', '0006R0_f00930', '0016E5_07920', '0016E5_08190'} <= set(splits['train'])
    assert {'0016E5_07959', '0016E5_08159'} <= set(splits['val'])
    assert {'0001TP_008550', 'Seq05VD_f05100'} <= set(splits['test'])


def test_split_files_come_before_the_usual_split(tmp_path):
    write_frames(tmp_path, FRAMES, index_label())
    (tmp_path / 'train.txt').write_bytes(b'\xef\xbb\xbfSeq05VD_f00000\r\n0016E5_00390.png\r\n\r\n')
    (tmp_path / 'val.txt').write_text('/CamVid/val/0001TP_006690.png /CamVid/valannot/0001TP_006690.png\n')
    assert frame_names(load_camvid(str(tmp_path), 'train')) == ['Seq05VD_f00000', '0016E5_00390']
    assert frame_names(load_camvid(str(tmp_path), 'train+val'))[2:] == ['0001TP_006690']
    with pytest.raises(DataError, match='test.txt: no such file; write all of'):
        load_camvid(str(tmp_path), 'test')


def test_a_frame_in_the_lists_of_two_parts_is_refused(tmp_path):
    write_frames(tmp_path, FRAMES, index_label())
    for part, line in (('train', FRAMES[0]), ('val', f'val/{FRAMES[0]}.png'), ('test', FRAMES[1])):
        (tmp_path / f'{part}.txt').write_text(f'{line}\n')
    message = load_error(tmp_path, 'train+val')
    assert message.startswith('split train+val: ') and f'{FRAMES[0]}.png is there more than once' in message
    assert len(load_camvid(str(tmp_path), 'train+test')) == 2


def load_error(root, split='train'):
    with pytest.raises(DataError) as raised:
        load_camvid(str(root), split)
    assert '\n' not in str(raised.value)
    return str(raised.value)


def test_frame_of_unknown_sequence_asks_for_split_files(tmp_path):
    write_frames(tmp_path, [*FRAMES, 'holiday'], index_label())
    assert "frame 'holiday' is not one of CamVid's 701" in (message := load_error(tmp_path))
    assert 'write train.txt, val.txt and test.txt there' in message


def test_unknown_split_lists_the_known(tmp_path):
    write_frames(tmp_path, FRAMES, index_label())
    assert 'known are train, val, test, and several' in load_error(tmp_path, 'training')


def test_missing_folders_are_told_with_the_layout(tmp_path):
    assert '701_StillsRaw_full or images' in load_error(tmp_path)
    write_frames(tmp_path, FRAMES, index_label())
    (tmp_path / 'labels').rename(tmp_path / 'annotations')
    assert 'has neither of the folders LabeledApproved_full, labels' in load_error(tmp_path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)

    write_frames(tmp_path, FRAMES, index_label())
    monkeypatch.setattr(os, 'listdir', refuse)
    assert 'images: cannot be read (Permission denied); check its permissions' in load_error(tmp_path)


@pytest.mark.parametrize('folder', ['images', 'labels'])
def test_frame_without_partner_is_named(tmp_path, folder):
    write_frames(tmp_path, FRAMES, index_label())
    (tmp_path / folder / '0006R0_f00930.png').unlink()
    with pytest.raises(DataError, match=rf'{folder}/0006R0_f00930(_L)?.png: no such file; every image needs its label'):
        verify(load_camvid(str(tmp_path), 'train'))


def test_empty_split_is_told(tmp_path):
    write_frames(tmp_path, ['Seq05VD_f00000'], index_label())
    assert 'no frames in CamVid split train' in load_error(tmp_path)


def test_unknown_colors_are_named_and_count_as_void_where_that_is_asked_for(tmp_path, caplog):
    label = COLORS[RAW_IDS].repeat(8, 0).repeat(8, 1)
    label[0, :3], label[9, 4] = (1, 2, 3), (3, 2, 1)
    write_frames(tmp_path, FRAMES, PIL.Image.fromarray(label))
    for path in (tmp_path / 'images').iterdir():
        PIL.Image.new('RGB', label.shape[1::-1]).save(path)
    dataset = load_camvid(str(tmp_path), 'val')
    with pytest.raises(DataError, match=r'colour \(1, 2, 3\) \(3 pixels\) and 1 other unknown values') as raised:
        verify(dataset)
    assert 'but known are the 32 colours' in str(raised.value)
    assert '--config.data.unknown_as_void=0.002' in str(raised.value)

    verify(dataset := dataclasses.replace(dataset, unknown_as_void=0.002))
    assert '4 pixels in 1 of 1 label files have values of no class and count as void (0.2% of all)' in caplog.text
    labels = read_example(dataset, 0)[1]
    expected = CAMVID.raw_to_train[RAW_IDS].repeat(8, 0).repeat(8, 1)
    expected[0, :3] = expected[9, 4] = IGNORE_LABEL
    np.testing.assert_array_equal(labels, expected)
    with pytest.raises(DataError, match=r'colour \(1, 2, 3\)'):
        verify(dataclasses.replace(dataset, unknown_as_void=0.0019))


def test_empty_lists_are_named(tmp_path):
    write_frames(tmp_path, FRAMES, index_label())
    for part in ('train', 'val', 'test'):
        (tmp_path / f'{part}.txt').write_text('\n')
    assert f'{tmp_path}/val.txt: names no frames; write one a line' in load_error(tmp_path, 'val')
