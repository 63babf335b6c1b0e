"""CamVid comes from a git repository, here a small one on this disk, and an interrupted checkout goes on."""

import shutil
import subprocess

import pytest

from benchmarks.get_camvid import get_camvid

PARTS = 'train', 'trainannot', 'val', 'valannot', 'test', 'testannot'


def git(folder, *arguments):
    identity = '-c', 'user.name=a', '-c', 'user.email=a@b'
    subprocess.run(['git', '-C', str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture(scope='module')
def public(tmp_path_factory):
    """The address of a repository as the public one is: CamVid beside other folders."""
    folder = tmp_path_factory.mktemp('public')
    for part in (*(f'CamVid/{part}' for part in PARTS), 'Models'):
        (folder / part).mkdir(parents=True)
        (folder / part / 'a.png').write_text(part)
    git(folder, 'init', '--quiet')
    git(folder, 'config', 'uploadpack.allowFilter', 'true')
    git(folder, 'add', '.')
    git(folder, 'commit', '--quiet', '-m', 'all')
    return f'file://{folder}'


def test_one_folder_is_fetched_after_its_terms_were_said_and_then_left_alone(public, tmp_path, capfd):
    folder = tmp_path / 'public' / 'CamVid'
    get_camvid(str(folder), public)
    assert {part.name: (part / 'a.png').read_text() for part in folder.iterdir()} == {p: f'CamVid/{p}' for p in PARTS}
    assert not (tmp_path / 'public' / 'Models').exists()
    assert capfd.readouterr().out.startswith('CamVid: 701 frames of streets in Cambridge')
    get_camvid(str(folder), 'file:///nowhere')
    assert 'is taken as it is' in capfd.readouterr().out


def test_an_interrupted_checkout_goes_on(public, tmp_path, capfd):
    folder = tmp_path / 'public' / 'CamVid'
    with pytest.raises(SystemExit, match=r'git fetch failed in .*; the same command goes on from there'):
        get_camvid(str(folder), 'file:///nowhere')
    get_camvid(str(folder), public)
    shutil.rmtree(folder / 'test')
    get_camvid(str(folder), public)
    assert (folder / 'test' / 'a.png').exists()


def test_a_checkout_that_was_killed_goes_on(public, tmp_path, monkeypatch):
    """It leaves a lock, and all folders but not all files."""
    folder = tmp_path / 'public' / 'CamVid'
    run = subprocess.run

    def killed(command, **options):
        run(command, **options)
        if 'checkout' in command:
            (folder / 'val' / 'a.png').unlink()
            for name in ('index', 'config'):
                (tmp_path / 'public' / '.git' / f'{name}.lock').touch()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(subprocess, 'run', killed)
        get_camvid(str(folder), public)
    get_camvid(str(folder), public)
    assert (folder / 'val' / 'a.png').exists()


@pytest.mark.parametrize('name', ['CamVid', 'frames'])
def test_a_folder_that_holds_anything_is_left_alone(name, tmp_path, capfd):
    """Such as frames of 720x960, beside which files of one's own lie."""
    given = tmp_path / name / '701_StillsRaw_full'
    given.mkdir(parents=True)
    (tmp_path / 'README.md').write_text('mine')
    get_camvid(str(tmp_path / name), 'file:///nowhere')
    assert 'is taken as it is' in capfd.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {name, 'README.md'}
    assert [*(tmp_path / name).iterdir()] == [given]


def test_an_empty_folder_is_filled(public, tmp_path):
    (tmp_path / 'CamVid').mkdir()
    get_camvid(str(tmp_path / 'CamVid'), public)
    assert (tmp_path / 'CamVid' / 'val' / 'a.png').exists()


def test_a_clone_of_ones_own_is_left_alone(public, tmp_path):
    git(tmp_path, 'clone', public, 'mine')
    shutil.rmtree(tmp_path / 'mine' / 'CamVid' / 'test')
    (tmp_path / 'mine' / 'CamVid' / 'val' / 'a.png').write_text('mine')
    get_camvid(str(tmp_path / 'mine' / 'CamVid'), public)
    assert (tmp_path / 'mine' / 'CamVid' / 'val' / 'a.png').read_text() == 'mine'
    assert (tmp_path / 'mine' / 'Models').exists()


def test_nothing_is_fetched_under_another_name_or_beside_other_files(tmp_path):
    with pytest.raises(SystemExit, match='holds nothing; give the folder of CamVid, or one named CamVid'):
        get_camvid(str(tmp_path / 'frames'))
    (tmp_path / 'README.md').write_text('mine')
    with pytest.raises(SystemExit, match=r'holds other files; give another place: make camvid CAMVID=/path/CamVid'):
        get_camvid(str(tmp_path / 'CamVid'))
    assert [path.name for path in tmp_path.iterdir()] == ['README.md']


def test_another_repository_is_left_alone(public, tmp_path):
    git(tmp_path, 'init', '--quiet')
    (tmp_path / 'mine.txt').write_text('mine')
    git(tmp_path, 'add', '.')
    git(tmp_path, 'commit', '--quiet', '-m', 'mine')
    with pytest.raises(SystemExit, match='holds other files; give another place'):
        get_camvid(str(tmp_path / 'CamVid'), public)
    assert (tmp_path / 'mine.txt').exists()


def test_data_are_checked_with_the_settings_of_the_training_that_follows(repository):
    command = ['make', '-n', 'camvid', 'BACKEND=cpu', 'CAMVID=frames', 'BACKBONE=resnet18.npz']
    lines = subprocess.run(command, cwd=repository, check=True, capture_output=True, text=True).stdout.splitlines()
    checks, trains = (line.split() for line in lines if '--config=configs/camvid.py' in line)
    assert checks == [*trains, '--mode=check_data']
    wanted = {'--config.model.pretrained_backbone=resnet18.npz', '--config.data.scale_range=1.0,2.25'}
    assert wanted <= {*trains}
