"""Videos: their true rate, what they hold, and what is missing of them."""

import itertools
import os
import struct
import time
import types

import cv2
import numpy as np
import pytest

from atonet_jax.errors import InputError
from atonet_jax.predict.containers import is_cut_off, seconds_shown
from atonet_jax.predict.inputs import Source, find_sources
from atonet_jax.predict.video import Video, VideoFile

CODECS = {'mp4': 'mp4v', 'm4v': 'mp4v', '3gp': 'mp4v', 'avi': 'MJPG', 'mkv': 'mp4v', 'ts': 'mp4v', 'webm': 'VP80'}
DEFAULT_DURATION = b'\x23\xe3\x83\x84'  # of a frame in Matroska, nanoseconds in four bytes


def film(folder, ending, frames=10, still=False):
    """A video of noise, 10 frames a second."""
    path = str(folder / f'film.{ending}')
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*CODECS[ending]), 10, (96, 64))
    for i in range(frames):
        writer.write(np.random.default_rng(0 if still else i).integers(0, 256, (64, 96, 3), np.uint8))
    writer.release()
    return path


def change(path, function):
    with open(path, 'rb') as file:
        content = function(file.read())
    with open(path, 'wb') as file:
        file.write(content)


def read(path, most=0):
    """The video, the number of its frames, and what is missing of it."""
    with Video(Source(path, 'film'), 10_000, most) as video:
        count = sum(1 for _ in video)
    return video, count, video.fault(count)


@pytest.mark.parametrize('ending', CODECS)
def test_a_whole_film_is_whole_in_every_container(tmp_path, ending):
    path = film(tmp_path, ending)
    assert Source(path, 'film').is_video
    video, count, fault = read(path)
    assert (video.frame_count, count, fault) == (10, 10, '')
    assert video.rate == pytest.approx(10)


@pytest.mark.parametrize('ending', ['webm', 'avi', 'mkv'])
@pytest.mark.parametrize('tail', [b'', bytes(20_000)])
def test_a_film_that_is_cut_off_says_so(tmp_path, ending, tail):
    """As after a download that broke off, with and without space set aside for the rest."""
    path = film(tmp_path, ending, frames=20)
    change(path, lambda content: content[: len(content) // 2] + tail)
    _, count, fault = read(path)
    assert 0 < count < 20
    assert fault == f'the file is cut off; the {count} frames that it still holds are done'


def test_a_colon_in_a_name_is_that_of_a_time_and_not_of_a_protocol(tmp_path, monkeypatch):
    """In names without a folder, and in the folder that outputs go to."""
    os.rename(film(tmp_path, 'mp4'), tmp_path / '2024-01-01T12:00:00.mp4')
    monkeypatch.chdir(tmp_path)
    assert read('2024-01-01T12:00:00.mp4')[1:] == (10, '')
    with VideoFile('run-12:00/film.mp4', 10.0) as file:
        file.write(np.zeros((64, 96, 3), np.uint8))
    assert os.listdir('run-12:00') == ['film.mp4']


def test_boxes_that_end_beyond_the_file_are_cut_off(tmp_path):
    path = film(tmp_path, 'mp4')
    assert not is_cut_off(path)
    change(path, lambda content: content[:-1])
    assert is_cut_off(path)


@pytest.mark.parametrize('trailer', [b'TAG' + b'title'.ljust(125), b'{"camera": "front", "gps": [52.5, 13.4]}'])
def test_what_follows_the_last_box_is_no_part_of_the_film(tmp_path, trailer):
    path = film(tmp_path, 'mp4')
    change(path, lambda content: content + trailer)
    assert read(path)[1:] == (10, '')


def test_a_recording_that_ends_within_a_later_piece_is_cut_off(tmp_path):
    path = film(tmp_path, 'mp4')
    change(path, lambda content: content + struct.pack('>I4s', 999, b'moof') + bytes(99))
    assert is_cut_off(path)


def test_frames_that_do_not_decode_at_the_end_are_missed(tmp_path):
    path = film(tmp_path, 'mp4', frames=20)

    def without_data(content):
        start, end = len(content) // 2, content.index(b'moov') - 4
        return content[:start] + bytes(end - start) + content[end:]

    change(path, without_data)
    _, count, fault = read(path)
    assert fault == f'ends after {count} of 20 frames; those are done'


def test_a_decoder_that_gives_up_is_said(tmp_path):
    with Video(Source(film(tmp_path, 'mp4'), 'film'), 10_000) as video:
        next(iter(video))
        assert video.fault(1) == 'ends after 1 of 10 frames; those are done'


def test_a_variable_rate_is_its_mean_and_the_film_is_whole(tmp_path):
    """Claimed are 90000 frames a second; the last frame comes late."""
    path = film(tmp_path, 'webm', frames=5, still=True)

    def changed(content):
        place = content.index(DEFAULT_DURATION) + 4
        content = content[:place] + struct.pack('>I', 11_111) + content[place + 4 :]
        times = [b'\x81' + time.to_bytes(2, 'big') for time in (400, 1600)]
        assert content.count(times[0]) == 1
        return content.replace(*times)

    change(path, changed)
    capture = cv2.VideoCapture(path)
    assert capture.get(cv2.CAP_PROP_FPS) > 1000 and capture.get(cv2.CAP_PROP_FRAME_COUNT) > 1000
    video, count, fault = read(path)
    assert (video.frame_count, count, fault) == (5, 5, '')
    assert video.rate == pytest.approx(4 / 1.6)
    assert read(path, most=4)[0].rate == pytest.approx(10)  # the first four


def test_an_edit_list_that_shows_a_part_leaves_nothing_missing(tmp_path):
    path = film(tmp_path, 'mp4', frames=20)
    assert seconds_shown(path) == pytest.approx(2)

    def first_second(content):
        place = content.index(b'elst') + 12
        return content[:place] + struct.pack('>I', 1000) + content[place + 4 :]

    change(path, first_second)
    assert seconds_shown(path) == pytest.approx(1)
    _, count, fault = read(path)
    assert count < 20 and fault == ''


@pytest.mark.parametrize('rate', [0.05, 23.976, 30000 / 1001, 119.88, 333.3333])
def test_what_is_written_plays_at_the_rate(tmp_path, rate):
    path = str(tmp_path / 'film.mp4')
    with VideoFile(path, rate) as file:
        for _ in range(3):
            file.write(np.zeros((64, 96, 3), np.uint8))
    assert cv2.VideoCapture(path).get(cv2.CAP_PROP_FPS) == pytest.approx(rate, rel=1e-3)


def test_frames_larger_than_the_format_takes_are_reduced(tmp_path):
    path = str(tmp_path / 'film.mp4')
    with VideoFile(path, 10) as file:
        for _ in range(2):
            file.write(np.full((64, 2 * 8190, 3), 99, np.uint8))
    read = cv2.VideoCapture(path)
    frame = read.read()[1]
    assert frame.shape == (32, 8190, 3) and abs(frame.mean() - 99) < 4


def test_frames_of_two_sizes_are_no_film(tmp_path):
    path = tmp_path / 'film.mp4'
    two_sizes = pytest.raises(InputError, match='film.mp4: frames change from 64x48 to 32x48; cut the video there')
    with two_sizes, VideoFile(str(path), 10) as file:
        file.write(np.zeros((48, 64, 3), np.uint8))
        file.write(np.zeros((48, 32, 3), np.uint8))


def test_a_film_that_an_error_cuts_short_leaves_the_earlier_one(tmp_path):
    path = tmp_path / 'film.mp4'
    path.write_bytes(b'earlier')
    with pytest.raises(ZeroDivisionError), VideoFile(str(path), 10) as file:
        file.write(np.zeros((48, 64, 3), np.uint8))
        raise ZeroDivisionError
    assert path.read_bytes() == b'earlier' and os.listdir(tmp_path) == ['film.mp4']


def test_the_rate_may_be_found_out_at_the_end(tmp_path):
    path = str(tmp_path / 'film.mp4')
    for rate in (0.3, 4.7, 61.0):
        with VideoFile(path, 25.0) as file:
            for i in range(30):
                file.write(np.full((64, 96, 3), 8 * i, np.uint8))
            file.rate = rate
        video, count, fault = read(path)
        assert (count, fault) == (30, '')
        assert video.rate == pytest.approx(rate, rel=0.03) == cv2.VideoCapture(path).get(cv2.CAP_PROP_FPS)


def test_a_camera_has_the_rate_at_which_its_frames_came(monkeypatch):
    class Camera:
        def isOpened(self):
            return True

        def get(self, key):
            return {cv2.CAP_PROP_FPS: 90_000.0}.get(key, 0.0)

        def read(self):
            return True, np.zeros((4, 6, 3), np.uint8)

        def release(self):
            pass

    clock = itertools.count(step=0.5)
    monkeypatch.setattr(cv2, 'VideoCapture', lambda _: Camera())
    monkeypatch.setattr(time, 'monotonic', lambda: next(clock))
    with Video(Source(0, 'camera0'), 10_000) as video:
        assert video.rate == 25
        for _ in itertools.islice(video, 5):
            pass
    assert video.measured_rate() == 2


def test_a_name_as_long_as_names_may_be_is_written(tmp_path):
    path = tmp_path / ('f' * 251 + '.mp4')
    with VideoFile(str(path), 10.0) as file:
        file.write(np.zeros((64, 96, 3), np.uint8))
    assert list(tmp_path.iterdir()) == [path]


def test_a_film_at_an_address_is_followed_like_a_camera(tmp_path, served):
    film(tmp_path, 'webm')
    (source,) = find_sources(f'{served}/film.webm', 'out')
    assert source.name == 'film' and source.is_video and source.is_live
    with Video(source, 10_000) as video:
        assert sum(1 for _ in video) == 10
        assert (video.frame_count, video.rate, video.fault(3)) == (10, 10, '')
        assert video.measured_rate() == pytest.approx(10)


def test_a_film_at_an_address_that_breaks_off_says_so(tmp_path, served):
    path = film(tmp_path, 'webm', frames=20)
    change(path, lambda content: content[: len(content) // 2])
    with Video(Source(f'{served}/film.webm', 'film'), 10_000) as video:
        count = sum(1 for _ in video)
        assert 0 < count < video.frame_count == 20
        assert video.fault(count) == f'ends after {count} of 20 frames; those are done'


@pytest.mark.parametrize(
    ('most', 'fault'), [(0, ''), (250, 'no more frames came after 3 of 250, which are done; check its connection')]
)
def test_a_stream_that_breaks_off_says_so_where_more_was_asked_for(monkeypatch, most, fault):
    """It may end by itself otherwise: it does not say how long it is."""
    claims = {cv2.CAP_PROP_FPS: 25.0, cv2.CAP_PROP_FRAME_COUNT: -192153584101141.0}  # OpenCV's number for unknown
    stream = types.SimpleNamespace(isOpened=lambda: True, get=lambda key: claims.get(key, 0.0), release=lambda: None)
    monkeypatch.setattr(cv2, 'VideoCapture', lambda _: stream)
    with Video(Source('rtsp://camera.local/live', 'live'), 10_000, most) as video:
        assert video.frame_count is None and video.fault(3) == fault


def test_no_answer_is_said_without_the_password():
    source = Source('http://user:secret@127.0.0.1:9/film.mp4', 'film')
    with pytest.raises(InputError, match='^http://127.0.0.1:9/film.mp4: no video there, or no answer$'):
        Video(source, 10_000)
