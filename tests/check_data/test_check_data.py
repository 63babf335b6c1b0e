"""`--mode=check_data`: a whole look at the data, an exit code, and pictures."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest

from atonet_jax.check_data.check_data import check_data
from atonet_jax.data.dataset import DataError
from atonet_jax.data.labels import CITYSCAPES
from atonet_jax.data.sources import load_dataset, load_examples
from atonet_jax.errors import InputError
from tests.disks import full_disk


@pytest.fixture
def config(tiny_config, tmp_path):
    """The tiny scenes as a Cityscapes folder that a test may spoil, with all augmentation on."""
    load_dataset(tiny_config.data, 'train')  # written where nobody has yet
    config = tiny_config.copy_and_resolve_references()
    config.data.name = 'cityscapes'
    config.data.root = str(tmp_path / 'scenes')
    shutil.copytree(tiny_config.data.root, config.data.root)
    config.data.augmentation.update(rotation=10.0, brightness=0.4, blur=0.5, erasing=0.5, class_aware_crops=0.5)
    return config


def label_files(config, part='train'):
    import pathlib

    return sorted(pathlib.Path(config.data.root, 'gtFine', part).glob('*/*_labelIds.png'))


def report_in(workdir):
    return json.loads((workdir / 'check_data' / 'report.json').read_text())


def test_sound_data_is_fit_to_train_on(config, tmp_path, capsys):
    workdir = tmp_path / 'workdir'
    assert check_data(config, str(workdir))
    printed = capsys.readouterr().out
    assert 'cityscapes train: 12 examples, 0 of them cannot be used' in printed
    assert '12 images of 64x128' in printed and 'fit to train on' in printed
    row = next(line for line in printed.splitlines() if line.startswith('road '))
    report = report_in(workdir)
    pixels = report['splits']['train']['pixels_of_class']
    assert row.split()[1] == f'{100 * pixels["road"] / (12 * 64 * 128):.3f}%'
    assert row.split()[2] == str(report['splits']['train']['images_of_class']['road'])
    assert not report['failures']
    samples = np.asarray(PIL.Image.open(workdir / 'check_data' / 'samples.png').convert('RGB'))
    assert len(np.unique(samples.reshape(-1, 3), axis=0)) > 1000
    with PIL.Image.open(workdir / 'check_data' / 'classes.png') as picture:
        assert picture.width > 500
    assert not (workdir / 'config.json').exists()  # it is no run


def test_names_of_classes_are_drawn_as_they_are(config, tmp_path, recwarn):
    """Matplotlib would read what stands between dollars as a formula, and warn of each letter that it cannot draw."""
    root, names = tmp_path / 'folder', ['$\\frac$', '道路']
    for part in ('train', 'val'):
        for kind, shape in (('images', (64, 64, 3)), ('labels', (64, 64))):
            (root / kind / part).mkdir(parents=True)
            array = np.arange(np.prod(shape)).reshape(shape) % 2
            PIL.Image.fromarray(array.astype(np.uint8)).save(root / kind / part / 'a.png')
    (root / 'classes.json').write_text(json.dumps([{'name': name} for name in names]))
    config.data.update(name='folder', root=str(root))
    assert check_data(config, str(tmp_path / 'workdir'))
    assert not [warning for warning in recwarn if 'Glyph' in str(warning.message)]


def test_unfit_data_is_told_with_all_problems(config, tmp_path, capsys):
    for path in label_files(config)[:7]:
        path.unlink()
    assert not check_data(config, str(tmp_path / 'workdir'))
    printed = capsys.readouterr().out
    assert 'FAILS missing file (7):' in printed and 'and 2 more' in printed
    assert printed.splitlines()[-1] == 'NOT fit to train on: train: missing file'
    assert len(report_in(tmp_path / 'workdir')['splits']['train']['failures']['missing file']) == 7

    config.data.on_corrupt = 'skip'
    assert check_data(config, str(tmp_path / 'workdir'))
    assert 'warning: config.data.on_corrupt=skip leaves out 7: missing file' in capsys.readouterr().out


def test_train_ids_where_raw_ids_belong_are_a_guess(config, tmp_path, capsys):
    for path in label_files(config) + label_files(config, 'val'):
        PIL.Image.fromarray(CITYSCAPES.raw_to_train[np.asarray(PIL.Image.open(path))]).save(path)
    check_data(config, str(tmp_path / 'workdir'))
    assert '12 of 12 label files hold nothing above 18 but 255: they look like train ids' in capsys.readouterr().out
    config.data.trust_labels = True
    check_data(config, str(tmp_path / 'workdir'))
    assert 'look like' not in capsys.readouterr().out


def test_split_that_cannot_be_loaded_does_not_hide_the_other(config, tmp_path, capsys):
    shutil.rmtree(tmp_path / 'scenes' / 'gtFine' / 'train')
    assert not check_data(config, str(tmp_path / 'workdir'))
    printed = capsys.readouterr().out
    assert 'cityscapes train: cannot be loaded' in printed and 'gtFine/train: no such folder' in printed
    assert 'cityscapes val: 5 examples' in printed


def test_images_too_long_to_be_scaled_are_unfit(tiny_config, tmp_path, capsys):
    config = tiny_config.copy_and_resolve_references()
    config.data.scale_range = (1.0, 7e4)
    assert not check_data(config, str(tmp_path / 'workdir'))
    assert 'NOT fit to train on: train: an image of 64x128 is too long' in capsys.readouterr().out


def test_odd_things_are_warned_of(config, tmp_path, capsys):
    config.train.batch_size = 16
    image = next((tmp_path / 'scenes' / 'leftImg8bit' / 'val').glob('*/*.png'))
    shutil.copy(next((tmp_path / 'scenes' / 'leftImg8bit' / 'train').glob('*/*.png')), image)
    assert check_data(config, str(tmp_path / 'workdir'))
    printed = capsys.readouterr().out
    assert 'train has 12 examples, fewer than config.train.batch_size=16' in printed
    assert '1 image is both in train and in val' in printed


def test_a_split_without_labels_is_unfit_and_refused_before_it_is_read(config, tmp_path, capsys):
    shutil.rmtree(tmp_path / 'scenes' / 'gtFine' / 'val')
    for kind in ('leftImg8bit', 'gtFine'):
        if (tmp_path / 'scenes' / kind / 'val').exists():
            (tmp_path / 'scenes' / kind / 'val').rename(tmp_path / 'scenes' / kind / 'test')
    config.data.eval_split = 'test'
    assert not check_data(config, str(tmp_path / 'workdir'))
    assert capsys.readouterr().out.splitlines()[-1] == (
        'NOT fit to train on: test: no labels, which training and evaluation need'
    )
    with pytest.raises(DataError, match='cityscapes test: has no labels, which training'):
        load_examples(config.data, 'test', str(tmp_path / 'workdir'))
    assert not list((tmp_path / 'workdir').glob('verified*'))


def test_a_workdir_that_cannot_be_written(config, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='choose another --workdir'):
        check_data(config, str(tmp_path / 'file'))


def test_the_share_of_padding_is_said_and_which_crop_would_fit(config, tmp_path, capsys):
    config.data.crop_size = (128, 128)
    config.data.augmentation.rotation = 0.0
    assert check_data(config, str(tmp_path / 'workdir'))
    line = (
        'crops of 128x128 (height x width): 53% is padding on average, as most images have 64x128 and are scaled by '
        '0.75 to 1.25; with config.data.crop_size="(48,96)" it would be 0%'
    )
    assert f'warning: {line}' in capsys.readouterr().out
    assert line in json.loads((tmp_path / 'workdir' / 'check_data' / 'report.json').read_text())['warnings']


@pytest.mark.parametrize('room', [100, 8_000])
def test_a_full_disk_is_a_line_and_leaves_nothing_half_written(config, tmp_path, room, capsys):
    folder = tmp_path / 'workdir' / 'check_data'
    message = r'check_data: cannot be written \(File too large\); free space'
    with full_disk(room), pytest.raises(InputError, match=message):
        check_data(config, str(tmp_path / 'workdir'))
    assert [path.name for path in folder.iterdir()] == (['report.json'] if room > 100 else [])


def test_nothing_is_called_skipped_where_it_is_an_error(config, tmp_path, caplog):
    label_files(config)[3].write_bytes(b'')
    assert not check_data(config, str(tmp_path / 'workdir'))
    assert 'skipped' not in caplog.text
    assert (tmp_path / 'workdir' / 'check_data' / 'samples.png').exists()
