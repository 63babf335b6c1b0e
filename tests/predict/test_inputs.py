"""What counts as input, how it is named, and what is refused before anything is computed."""

import base64
import os
import re

import PIL.Image
import pytest

from atonet_jax.data.pictures import read_picture
from atonet_jax.errors import InputError
from atonet_jax.predict.inputs import Source, fetched, find_sources


@pytest.fixture
def photos(tmp_path):
    """A folder with folders, a video, files that are no input, and two pictures of one name."""
    folder = tmp_path / 'photos'
    for name in (
        'a.png',
        'b.jpg',
        'b.png',
        'trip/Straße 1.JPG',
        'trip/film.mp4',
        'notes.txt',
        '.hidden/x.png',
        '@eaDir/x.png',
        '.y.png',
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(sources):
    return [source.name for source in sources]


def test_a_folder_is_all_below_it_and_keeps_its_tree(photos, tmp_path):
    sources = find_sources(str(photos), str(tmp_path / 'out'))
    assert names(sources) == ['a', 'b.jpg', 'b.png', 'trip/Straße 1', 'trip/film']
    assert [source.is_video for source in sources] == [False, False, False, False, True]
    assert sources[0].path == str(photos / 'a.png')


@pytest.mark.parametrize(
    ('pattern', 'expected'),
    [('*.png', ['a', 'b']), ('**/*.JPG', ['trip/Straße 1']), ('t*/*', ['trip/Straße 1', 'trip/film'])],
)
def test_a_pattern_is_named_from_its_fixed_part_on(photos, tmp_path, pattern, expected):
    assert names(find_sources(str(photos / pattern), str(tmp_path / 'out'))) == expected


def test_one_file(photos, tmp_path, monkeypatch):
    assert names(find_sources(str(photos / 'trip/film.mp4'), str(tmp_path))) == ['film']
    monkeypatch.chdir(photos)
    assert find_sources('a.png', 'out') == [Source('a.png', 'a')]


def test_a_name_with_wildcards_of_a_file_that_is_there_is_that_file(tmp_path):
    (tmp_path / 'what[1]?.png').touch()
    assert names(find_sources(str(tmp_path / 'what[1]?.png'), str(tmp_path / 'out'))) == ['what[1]?']


def test_a_camera_is_its_number():
    assert find_sources('camera:2', 'out') == [Source(2, 'camera2')]
    assert Source(2, 'camera2').is_video


def test_what_lies_in_the_output_folder_is_no_input(photos):
    """Else a second call would label the pictures of the first."""
    output = photos / 'trip'
    assert names(find_sources(str(photos), str(output))) == ['a', 'b.jpg', 'b.png']
    assert names(find_sources(str(photos / '**/*.JPG'), str(photos / 'out'))) == ['trip/Straße 1']
    link = photos.parent / 'link'
    link.symlink_to(photos)
    assert names(find_sources(str(link), str(output))) == ['a', 'b.jpg', 'b.png']


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ('', 'config.predict.input: empty; give a picture, a folder'),
        ('photos', 'config.predict.output=photos: is the input folder itself'),
        ('empty', 'config.predict.input=empty: holds no pictures or videos'),
        ('photos/*.tiff', 'config.predict.input=photos/*.tiff: holds no pictures or videos'),
        ('photos/missing.png', 'config.predict.input=photos/missing.png: no such file or folder'),
        ('photos/notes.txt', 'config.predict.input=photos/notes.txt: the ending is not that of a known picture'),
        ('camera:front', 'config.predict.input=camera:front: a camera is given by its number'),
        ('s3://b/a.png', 'config.predict.input=s3://b/a.png: addresses of s3 cannot be read, only those of http'),
        ('file:///no/such.png', 'config.predict.input=/no/such.png: no such file or folder'),
        ('texts', 'config.predict.input=texts: holds no pictures or videos (.png, .jpg, .mp4 and the like), only 1'),
        ('photos/a.cr2', 'config.predict.input=photos/a.cr2: the ending is not that of a known picture or'),
        ('http://[camera/x.jpg', 'config.predict.input=http://[camera/x.jpg: no address that can be read; write it'),
        ('rtsp://me:se[cret@cam/x', 'config.predict.input=rtsp://cam/x: no address that can be read; write it'),
        ('http://me:p#ss@cam/x.jpg', 'config.predict.input=http://cam/x.jpg: no address that can be read; write it'),
        ('file://[a/x.png', 'config.predict.input=file://[a/x.png: no address that can be read; write it'),
        ('ftp://me:p@ss@cam/x.png', 'config.predict.input=ftp://cam/x.png: addresses of ftp cannot be read'),
        ('http://me:se/cr@et@cam/x', 'config.predict.input=http://cam/x: no address that can be read; write it'),
    ],
)
def test_what_cannot_be_input_is_said_in_a_line(photos, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'texts').mkdir()
    (tmp_path / 'texts' / 'a.txt').touch()
    (photos / 'a.cr2').touch()
    with pytest.raises(InputError, match=re.escape(message)) as failure:
        find_sources(given, 'photos')
    assert '\n' not in str(failure.value)


def test_every_kind_of_picture_that_pillow_reads_is_one(tmp_path):
    for suffix in ('png', 'jpg', 'webp', 'tif', 'bmp', 'gif', 'ppm'):
        PIL.Image.new('RGB', (8, 8)).save(tmp_path / f'{suffix}.{suffix}')
    for suffix in ('h5', 'hdf', 'grib', 'bufr', 'wmf', 'emf', 'eps'):  # which it knows, and does not decode
        (tmp_path / f'data.{suffix}').touch()
    assert len(find_sources(str(tmp_path), 'out')) == 7


def test_what_is_passed_over_is_said_once_and_why(photos, caplog, monkeypatch):
    monkeypatch.setattr('atonet_jax.predict.inputs.suffixes', lambda: ('.png', '.jpg'))  # as without pillow-heif
    for name in ('x.heic', 'trip/y.HEIC', 'README'):
        (photos / name).touch()
    find_sources(str(photos), 'out')
    (record,) = caplog.records
    assert record.getMessage() == (
        f'{photos}: passed over 2 .heic (`pip install pillow-heif` lets them be read), 1 without an ending, 1 .txt'
    )
    caplog.clear()
    find_sources(str(photos / 'trip' / '*.JPG'), 'out')
    assert not caplog.records


@pytest.mark.parametrize('ending', ['ts', '3gp', 'm4v', 'MTS', 'flv'])
def test_more_videos_are_videos(tmp_path, ending):
    (tmp_path / f'film.{ending}').touch()
    (source,) = find_sources(str(tmp_path), 'out')
    assert source.is_video


@pytest.mark.parametrize(
    ('given', 'name', 'is_video', 'label'),
    [
        ('rtsp://me:secret@cam.lan:554/live/1?a=b', 'cam.lan_live_1', True, 'rtsp://cam.lan:554/live/1?a=b'),
        ('rtsp://admin:p@ss@10.0.0.64/live', '10.0.0.64_live', True, 'rtsp://10.0.0.64/live'),
        ('https://a.org/b/My%20film.MP4?x=1', 'My_film', True, 'https://a.org/b/My%20film.MP4?x=1'),
        ('http://a.org/pic.JPG', 'pic', False, 'http://a.org/pic.JPG'),
        ('http://a.org/me@home.jpg', 'me_home', False, 'http://a.org/me@home.jpg'),
        ('http://me:1/secret@a.org/b.jpg', 'b', False, 'http://a.org/b.jpg'),
        ('udp://239.0.0.1:1234', '239.0.0.1', True, 'udp://239.0.0.1:1234'),
        (f'http://a.org/{"x" * 300}', 'x' * 100, True, f'http://a.org/{"x" * 300}'),
    ],
)
def test_an_address_is_a_picture_or_a_stream(given, name, is_video, label):
    (source,) = find_sources(given, 'out')
    assert (source.path, source.name, source.is_video, source.label) == (given, name, is_video, label)
    assert source.is_live


def test_a_file_address_is_its_file(photos):
    (photos / 'a b.png').touch()
    address = (photos / 'a b.png').as_uri()
    assert '%20' in address and find_sources(address, 'out') == [Source(str(photos / 'a b.png'), 'a b')]
    assert len(find_sources(photos.as_uri(), 'out')) == 6


def test_a_picture_at_an_address_is_fetched(tmp_path, served):
    PIL.Image.new('RGB', (8, 4), 'red').save(tmp_path / 'a.png')
    (source,) = find_sources(f'{served}/a.png', 'out')
    assert read_picture(fetched(source), source.label, 100, 'limit').shape == (4, 8, 3)
    (source,) = find_sources(f'{served}/b.png', 'out')
    with pytest.raises(InputError, match=r'/b.png: cannot be fetched \(HTTP Error 404: File not found\); try it'):
        fetched(source)


@pytest.mark.parametrize('name', ['Straße 1.png?größe=1', 'Stra%C3%9Fe%201.png'])
def test_a_picture_whose_address_has_letters_beyond_ascii_is_fetched(tmp_path, served, name):
    PIL.Image.new('RGB', (8, 4), 'red').save(tmp_path / 'Straße 1.png')
    (source,) = find_sources(f'{served}/{name}', 'out')
    assert read_picture(fetched(source), source.label, 100, 'limit').shape == (4, 8, 3)


def test_the_password_of_an_address_is_sent_and_not_shown(monkeypatch):
    def refuse(request, timeout):
        seen.append((request.full_url, request.get_header('Authorization')))
        raise OSError('refused')

    seen = []
    monkeypatch.setattr('urllib.request.urlopen', refuse)
    (source,) = find_sources('http://me:secret%21@a.org:80/pic.png', 'out')
    with pytest.raises(InputError, match=r'^http://a.org:80/pic.png: cannot be fetched \(refused\)'):
        fetched(source)
    assert seen == [('http://a.org:80/pic.png', f'Basic {base64.b64encode(b"me:secret!").decode()}')]


def test_a_file_in_the_output_folder_is_refused_as_its_outputs_could_replace_others(photos):
    with pytest.raises(InputError, match='config.predict.output=.*photos: holds the input'):
        find_sources(str(photos / 'a.png'), str(photos))


def test_names_of_what_is_written_are_all_different(tmp_path):
    """Frames of a video go into a folder of its name."""
    for name in ('b.jpg', 'b.png', 'film.avi', 'film/000000.png', 'c.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert names(find_sources(str(tmp_path), 'out')) == ['b.jpg', 'b.png', 'c', 'film.avi', 'film/000000']
    (tmp_path / 'b.jpg.png').touch()
    with pytest.raises(InputError, match=r'b.jpg.png: its output would replace that of .*b.jpg; rename'):
        find_sources(str(tmp_path), 'out')


def test_names_that_differ_in_case_alone_keep_their_endings(tmp_path):
    """A file system that ignores case, where the outputs may lie, would take them for one."""
    for name in ('Street.png', 'street.jpg', 'Film.mp4', 'film/a.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert names(find_sources(str(tmp_path), 'out')) == ['Film.mp4', 'Street.png', 'film/a', 'street.jpg']


def test_linked_folders_are_followed_and_a_link_that_leads_back_is_not(tmp_path):
    for name in ('photos/a.png', 'elsewhere/b.png', 'elsewhere/trip/c.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / 'photos' / 'one').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'photos' / 'two').symlink_to(tmp_path / 'elsewhere' / 'trip')
    (tmp_path / 'elsewhere' / 'trip' / 'back').symlink_to(tmp_path / 'photos')
    (tmp_path / 'elsewhere' / 'trip' / 'same').symlink_to('.')
    assert names(find_sources(f'{tmp_path}/photos/', 'out')) == ['a', 'one/b', 'one/trip/c', 'two/c']


def test_a_folder_that_cannot_be_looked_into_is_for_the_reader_to_report(tmp_path, monkeypatch):
    """Who runs the tests may be allowed everything."""
    PIL.Image.new('RGB', (8, 8)).save(tmp_path / 'open.png')
    (tmp_path / 'closed').mkdir()
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == 'closed':
            raise PermissionError(13, 'Permission denied', path)
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    closed, seen = find_sources(str(tmp_path), 'out')
    assert (closed.path, seen.name) == (str(tmp_path / 'closed'), 'open')
    with pytest.raises(InputError, match='closed: cannot be read'):
        read_picture(closed.path, closed.path, 100, 'limit')


def test_an_input_within_the_output_is_called_so(photos):
    with pytest.raises(InputError, match='trip: everything in it is in the output folder'):
        find_sources(str(photos / 'trip'), str(photos))
