"""`--mode=predict` from files to files."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import tempfile
import types
import zipfile

import numpy as np
import PIL.Image
import pytest
from cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling import args as official_options
from cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling import getPrediction

from atonet_jax.data import visualize
from atonet_jax.data.labels import CITYSCAPES
from atonet_jax.errors import InputError
from atonet_jax.inference.segmenter import Segmenter
from atonet_jax.inference.views import Views, predict_labels
from atonet_jax.predict import predict, submission
from atonet_jax.predict.outputs import Drawing
from atonet_jax.predict.video import VideoFile
from atonet_jax.process.devices import create_mesh
from atonet_jax.runs.network import trained_network
from atonet_jax.runs.workdir import load_class_table
from tests.commands import main_command

SIZE = (64, 128)


def picture(seed, size=SIZE):
    """[H, W, 3] uint8 in patches of colour."""
    patches = np.random.default_rng(seed).integers(0, 256, (size[0] // 16, size[1] // 16, 3), np.uint8)
    return patches.repeat(16, 0).repeat(16, 1)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path)


def load(path):
    return np.asarray(PIL.Image.open(path))


def files_below(folder):
    return sorted(
        os.path.relpath(os.path.join(parent, name), folder) for parent, _, names in os.walk(folder) for name in names
    )


@pytest.fixture
def config(tiny_config, tmp_path):
    """Of a call that reads `photos` and writes `out`."""
    config = tiny_config.copy_and_resolve_references()
    config.predict.update(input=str(tmp_path / 'photos'), output=str(tmp_path / 'out'))
    return config


def no_labels(images):
    return np.zeros(images.shape[:3], np.uint8)


@pytest.fixture(scope='module')
def segment(finished):
    return Segmenter.from_workdir(finished)


def test_a_folder_with_a_bad_file_gives_all_the_others(config, finished, segment, tmp_path, capsys):
    """Of several sizes, in batches that are not all full."""
    config.predict.batch_size = 2
    pixels = {name: picture(i) for i, name in enumerate(('a', 'trip/b', 'trip/c'))} | {'d': picture(9, (48, 64))}
    for name, of_one in pixels.items():
        save(tmp_path / 'photos' / f'{name}.png', of_one)
    (tmp_path / 'photos' / 'bad.png').write_bytes(b'nothing')
    assert predict(config, finished) is False
    kinds = config.predict.pictures
    assert files_below(tmp_path / 'out') == sorted(f'{name}_{kind}.png' for name in pixels for kind in kinds)
    table = load_class_table(finished)
    for name, image in pixels.items():
        labels = np.asarray(segment(image[None]))[0]
        np.testing.assert_array_equal(load(tmp_path / 'out' / f'{name}_labels.png'), labels)
        np.testing.assert_array_equal(load(tmp_path / 'out' / f'{name}_color.png'), table.palette[labels])
        overlay = load(tmp_path / 'out' / f'{name}_overlay.png')
        factor = overlay.shape[1] // image.shape[1]
        expected = visualize.overlay(image, labels, table.palette).repeat(factor, 0).repeat(factor, 1)
        np.testing.assert_array_equal(overlay[: len(expected)], expected)
        assert len(overlay) > len(expected), 'a legend is below'
    output = capsys.readouterr().out
    assert '4 images in ' in output
    assert f'not done: {tmp_path}/photos/bad.png: no image that can be read' in output


def test_pictures_of_many_sizes_share_programs_and_have_the_labels_of_their_own(
    config, finished, segment, tmp_path, monkeypatch
):
    compiled, compile_ = [], Segmenter._compile
    monkeypatch.setattr(Segmenter, '_compile', lambda self, key: compiled.append(key) or compile_(self, key))
    config.predict.update(batch_size=2, pictures=('labels',))
    pixels = {str(i): picture(i, (70 + 10 * i, 128 - 9 * i)) for i in range(5)}
    for name, of_one in pixels.items():
        save(tmp_path / 'photos' / f'{name}.png', of_one)
    assert predict(config, finished) is True
    shapes = [shape for _, shape, _ in compiled]
    assert shapes == [(2, 128, 128, 3)]
    for name, image in pixels.items():
        labels = load(tmp_path / 'out' / f'{name}_labels.png')
        assert labels.shape == image.shape[:2]
        assert np.mean(labels == np.asarray(segment(image[None]))[0]) >= 0.999


def test_pictures_of_many_sizes_are_told_of_before_a_program_is_compiled_for_each(
    config, finished, tmp_path, monkeypatch, caplog
):
    """With windows, which take one program for all, nothing is said."""

    monkeypatch.setattr('atonet_jax.predict.labeling._label_function', lambda *_: no_labels)
    config.predict.pictures = ('labels',)
    config.eval.flip = True  # mirrored images share no programs
    told = []
    for i in range(4):
        save(tmp_path / 'photos' / f'{i}.png', picture(i, (64, 64 + 64 * i)))
        save(tmp_path / 'photos' / f'{i}_again.png', picture(i, (64, 64 + 64 * i)))
        caplog.clear()
        with caplog.at_level('INFO', 'atonet_jax.predict'):
            assert predict(config, finished) is True
        told.append([record.getMessage() for record in caplog.records])
    assert told[:3] == [[]] * 3
    assert len(told[3]) == 1 and told[3][0].startswith('8 pictures have 4 sizes: 4 programs are compiled')
    config.eval.window = (64, 64)
    caplog.clear()
    with caplog.at_level('INFO', 'atonet_jax.predict'):
        assert predict(config, finished) is True
    assert not caplog.records


def test_few_pictures_take_programs_that_compile_fast(config, finished, tmp_path, monkeypatch):
    """Without Winograd's algorithm, unless the pictures of a size have pixels enough."""
    asked = []

    def label_function(config, trained, views, winograd):
        asked.append(winograd)
        return no_labels

    monkeypatch.setattr('atonet_jax.predict.labeling._label_function', label_function)
    config.predict.pictures = ('labels',)
    for i in range(2):
        save(tmp_path / 'photos' / f'{i}.png', picture(i))
    for least in (2 * SIZE[0] * SIZE[1] + 1, 2 * SIZE[0] * SIZE[1]):
        monkeypatch.setattr('atonet_jax.inference.views._WORTH_WINOGRAD', least)
        assert predict(config, finished) is True
    assert asked == [False, True]


def test_a_name_that_is_too_long_stops_nothing_else(config, finished, tmp_path, capsys):
    """The longest names that fit are written; of what does not fit nothing is."""
    config.predict.pictures = ('labels', 'side_by_side')
    longest = 255 - len('_side_by_side.png')
    names = ['a' * longest, 'b' * (longest + 1), 'c']
    for i, name in enumerate(names):
        save(tmp_path / 'photos' / f'{name}.png', picture(i))
    assert predict(config, finished) is False
    kinds, whole = config.predict.pictures, (names[0], names[2])
    assert files_below(tmp_path / 'out') == sorted(f'{name}_{kind}.png' for name in whole for kind in kinds)
    assert f'{names[1]}.png: its name is too long for its side_by_side file; rename it' in capsys.readouterr().out


@pytest.mark.parametrize('kind', ['overlay', 'side_by_side'])
def test_pixels_that_the_network_gives_to_no_class_show_the_picture(kind):
    image = picture(0, (32, 1200))  # so wide that it is not enlarged
    labels = np.full(image.shape[:2], 3, np.uint8)
    labels[:16] = CITYSCAPES.num_classes
    table = dataclasses.replace(CITYSCAPES, has_void_output=True)
    shown = Drawing(image, labels, table, range(table.num_classes)).picture(kind)[:32, -1200:]
    np.testing.assert_array_equal(shown[:16], image[:16])
    np.testing.assert_array_equal(shown[16:], visualize.overlay(image, labels, table.palette)[16:])


def test_raw_ids_and_several_views_are_as_the_settings_say(config, finished, tmp_path):
    config.predict.update(ids='raw', pictures=('labels',))
    config.eval.flip = True
    save(tmp_path / 'photos' / 'a.png', picture(0))
    assert predict(config, finished) is True
    network = trained_network(config, finished, create_mesh())
    labels = np.asarray(predict_labels(network.model, network.variables, picture(0)[None], Views(flip=True)))[0]
    expected = network.class_table.train_to_raw[labels]
    written = load(tmp_path / 'out' / 'a_labels.png')
    assert np.mean(written == expected) > 0.999  # ties, where compiled otherwise
    assert set(np.unique(written)) <= set(network.class_table.train_to_raw[:19])


def test_samples_of_more_than_8_bits_are_scaled_as_the_run_scales_them(config, finished, segment, tmp_path):
    config.predict.pictures = ('labels',)
    config.data.sample_range = (0, 510)  # each picture's own would be of 10 bits
    grey = picture(0)[..., :1]
    save(tmp_path / 'photos' / 'a.png', 2 * grey[..., 0].astype(np.uint16))
    assert predict(config, finished) is True
    labels, darker = (np.asarray(segment(image[None].repeat(3, -1)))[0] for image in (grey, grey // 2))
    np.testing.assert_array_equal(load(tmp_path / 'out' / 'a_labels.png'), labels)
    assert np.mean(labels != darker) > 0.05


def test_with_windows_pictures_are_looked_at_one_by_one(config, finished, tmp_path, monkeypatch):
    """The batch is one of windows, and no batch of pictures is filled up with copies."""
    config.predict.update(pictures=('labels',), batch_size=4)
    config.eval.window = (48, 64)
    seen = []

    def label(variables, images):
        seen.append(images)
        return np.full(images.shape[:3], 3, np.uint8)

    def windows(model, mesh, views, batch_size):
        assert (views.window, batch_size) == ((48, 64), 4)
        return label

    monkeypatch.setattr('atonet_jax.predict.labeling.SlidingWindows', windows)
    pixels = {name: picture(seed) for seed, name in enumerate('ab')}
    for name, of_one in pixels.items():
        save(tmp_path / 'photos' / f'{name}.png', of_one)
    assert predict(config, finished) is True
    np.testing.assert_array_equal(seen, [of_one[None] for of_one in pixels.values()])
    assert (load(tmp_path / 'out' / 'b_labels.png') == 3).all()


@pytest.fixture
def film(tmp_path):
    """A video of 5 frames of a colour each."""
    import cv2

    path = str(tmp_path / 'photos' / 'film.mp4')
    os.makedirs(os.path.dirname(path))
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*'mp4v'), 10, SIZE[::-1])
    for i in range(5):
        writer.write(np.full((*SIZE, 3), 50 * i, np.uint8))
    writer.release()
    return path


def frames_of(path, rate=10.0):
    import cv2

    capture, frames = cv2.VideoCapture(str(path)), []
    while (frame := capture.read())[0]:
        frames.append(frame[1])
    assert rate is None or capture.get(cv2.CAP_PROP_FPS) == pytest.approx(rate, rel=0.01)
    return frames


def test_a_video_becomes_videos_and_a_label_file_a_frame(config, finished, segment, film, tmp_path):
    config.predict.update(batch_size=2, pictures=('labels', 'overlay'))
    assert predict(config, finished) is True
    labels = [f'film/{i:06d}_labels.png' for i in range(5)]
    assert files_below(tmp_path / 'out') == sorted([*labels, 'film_overlay.mp4'])
    images = np.stack(frames_of(film))[..., ::-1]  # OpenCV has BGR; compression has changed the colours a little
    expected = np.asarray(segment(images))
    for name, frame in zip(labels, expected, strict=True):
        assert np.mean(load(tmp_path / 'out' / name) == frame) > 0.999, name
    assert len(frames_of(tmp_path / 'out' / 'film_overlay.mp4')) == 5


@pytest.mark.parametrize('count', [1, 2])
def test_a_video_is_followed_up_to_a_number_of_frames(config, finished, film, tmp_path, count):
    config.predict.update(max_frames=count, pictures=('color',))
    assert predict(config, finished) is True
    assert len(frames_of(tmp_path / 'out' / 'film_color.mp4')) == count


def test_a_video_that_ends_early_gives_what_it_has_and_says_so(config, finished, film, tmp_path, monkeypatch, capsys):
    from atonet_jax.predict import video

    frames = video.Video.__iter__
    monkeypatch.setattr(video.Video, '__iter__', lambda self: (frame for _, frame in zip(range(3), frames(self))))
    assert predict(config, finished) is False
    assert f'not done: {film}: ends after 3 of 5 frames; those are done' in capsys.readouterr().out
    assert len(frames_of(tmp_path / 'out' / 'film_overlay.mp4')) == 3


@pytest.mark.parametrize('stopped', [False, True])
def test_a_second_call_that_ends_early_leaves_the_whole_video_of_the_first(
    config, finished, film, tmp_path, monkeypatch, capsys, stopped
):
    from atonet_jax.predict import video

    def three_frames(self):
        for _, frame in zip(range(3), frames(self)):
            yield frame
        if stopped:
            os.kill(os.getpid(), signal.SIGINT)
            yield frame  # which is not asked for any more

    config.predict.update(batch_size=1, pictures=('labels', 'color'))
    assert predict(config, finished) is True
    before = files_below(tmp_path / 'out')
    capsys.readouterr()
    frames = video.Video.__iter__
    monkeypatch.setattr(video.Video, '__iter__', three_frames)
    assert predict(config, finished) is False
    path = tmp_path / 'out' / 'film_color.mp4'
    assert files_below(tmp_path / 'out') == before and len(frames_of(path)) == 5
    output = capsys.readouterr().out
    assert f'not done: {path}: stays as an earlier call wrote it; remove it to have the new one' in output
    assert ('stopped before all was done' in output) is stopped


def test_what_comes_from_an_address_replaces_what_came_before(config, finished, film, tmp_path, monkeypatch, served):
    from atonet_jax.predict import video

    def three_frames(self):
        for _, frame in zip(range(3), frames(self)):
            yield frame
        os.kill(os.getpid(), signal.SIGINT)
        yield frame

    config.predict.update(input=f'{served}/photos/film.mp4', batch_size=1, pictures=('labels', 'color'))
    assert predict(config, finished) is True
    frames = video.Video.__iter__
    monkeypatch.setattr(video.Video, '__iter__', three_frames)
    assert predict(config, finished) is False
    assert len(frames_of(tmp_path / 'out' / 'film_color.mp4')) == 3
    assert files_below(tmp_path / 'out' / 'film') == [f'{i:06d}_labels.png' for i in range(3)]


class Camera:
    """Of so many frames of one colour each; `coming` is called with the number of each before it comes."""

    def __init__(self, frames, coming=lambda number: None):
        self._frames, self._coming, self._came = frames, coming, 0

    def isOpened(self):
        return True

    def get(self, key):
        return 0.0

    def read(self):
        self._came += 1
        self._coming(self._came)
        return self._came <= self._frames, np.full((*SIZE, 3), self._came, np.uint8)

    def release(self):
        pass


@pytest.fixture
def camera(config, monkeypatch):
    """(of `Camera`): connects the camera that `config` predicts; labels take no time."""
    import cv2

    of_file = cv2.VideoCapture

    def connect(*args):
        monkeypatch.setattr(cv2, 'VideoCapture', lambda path: Camera(*args) if path == 0 else of_file(path))

    config.predict.update(input='camera:0', pictures=('color',), batch_size=1)
    monkeypatch.setattr('atonet_jax.predict.labeling._label_function', lambda *_: no_labels)
    return connect


@pytest.mark.parametrize(('max_frames', 'undone'), [(0, False), (250, True)])
def test_ctrl_c_is_how_a_camera_ends_and_no_failure(config, finished, camera, tmp_path, capsys, max_frames, undone):
    def coming(number):
        if number == 5:
            os.kill(os.getpid(), signal.SIGINT)

    config.predict.max_frames = max_frames
    camera(100, coming)
    assert predict(config, finished) is not undone
    assert ('not done: stopped before all was done' in capsys.readouterr().out) is undone
    assert len(frames_of(tmp_path / 'out' / 'camera0_color.mp4', rate=None)) == 3


@pytest.mark.parametrize(('max_frames', 'of_all'), [(0, ''), (250, ' of 250')])
def test_a_camera_that_is_lost_is_named_and_its_film_stays(
    config, finished, camera, tmp_path, capsys, max_frames, of_all
):
    config.predict.max_frames = max_frames
    camera(4)
    assert predict(config, finished) is False
    lost = f'not done: camera 0: no more frames came after 3{of_all}, which are done'
    assert lost in capsys.readouterr().out
    assert len(frames_of(tmp_path / 'out' / 'camera0_color.mp4', rate=None)) == 3


def test_the_film_of_a_camera_plays_as_it_came_however_long_compiling_takes(
    config, finished, camera, tmp_path, monkeypatch
):
    """20 frames a second; the first batch is compiled for eight seconds."""
    clock, shapes = [0.0], []

    def coming(number):
        clock[0] += 0.05

    def label(images):
        clock[0] += 8.0 * (not shapes)
        shapes.append(images.shape)
        return np.zeros(images.shape[:3], np.uint8)

    config.predict.update(max_frames=10, batch_size=2)
    camera(100, coming)
    monkeypatch.setattr('atonet_jax.predict.labeling._label_function', lambda *_: label)
    monkeypatch.setattr('atonet_jax.predict.video.time', types.SimpleNamespace(monotonic=lambda: clock[0]))
    assert predict(config, finished) is True
    assert len(frames_of(tmp_path / 'out' / 'camera0_color.mp4', rate=20)) == 10
    assert set(shapes) == {(2, *SIZE, 3)}


def test_a_camera_that_gave_all_that_was_asked_for_is_done(config, finished, camera):
    config.predict.max_frames = 3
    camera(4)  # the first one is compiled for
    assert predict(config, finished) is True


def test_a_signal_after_the_last_picture_leaves_nothing_undone(config, finished, tmp_path, monkeypatch, capsys):
    def label(images):
        os.kill(os.getpid(), signal.SIGINT)
        return np.zeros(images.shape[:3], np.uint8)

    config.predict.update(batch_size=4, pictures=('labels',))
    monkeypatch.setattr('atonet_jax.predict.labeling._label_function', lambda *_: label)
    save(tmp_path / 'photos' / 'a.png', picture(0))
    assert predict(config, finished) is True
    assert 'not done' not in capsys.readouterr().out


def test_a_video_whose_frames_change_size_stops_there_and_nothing_else(
    config, finished, film, tmp_path, monkeypatch, capsys
):
    from atonet_jax.predict import video

    config.predict.pictures = ('labels', 'color')
    frames = video.Video.__iter__
    monkeypatch.setattr(
        video.Video, '__iter__', lambda self: (frame[: 48 if i == 3 else None] for i, frame in enumerate(frames(self)))
    )
    shutil.copy(film, tmp_path / 'photos' / 'later.mp4')
    assert predict(config, finished) is False
    changes = 'frames change from 128x64 to 128x48 after 3, which are done; cut the video there'
    assert capsys.readouterr().out.count(changes) == 2
    assert all(len(frames_of(tmp_path / 'out' / f'{name}_color.mp4')) == 3 for name in ('film', 'later'))


def test_labels_of_an_earlier_longer_video_do_not_stay(config, finished, film, tmp_path):
    config.predict.pictures = ('labels',)
    for count in (4, 2):
        config.predict.max_frames = count
        assert predict(config, finished) is True
        assert files_below(tmp_path / 'out') == [f'film/{i:06d}_labels.png' for i in range(count)]


def test_what_is_too_small_for_the_network_stops_nothing_else(config, finished, tmp_path, monkeypatch, capsys):
    def check(views, model, size):
        if min(size) < 33:
            raise InputError('images of 16x16: Net takes heights and widths from 33 pixels on')

    monkeypatch.setattr(Views, 'check_size', check)
    save(tmp_path / 'photos' / 'a.png', picture(0))
    save(tmp_path / 'photos' / 'icon.png', picture(1, (16, 16)))
    assert predict(config, finished) is False
    assert 'photos/icon.png: images of 16x16: Net takes' in capsys.readouterr().out
    assert (tmp_path / 'out' / 'a_labels.png').exists()


def test_a_broken_video_and_a_missing_camera_stop_nothing_else(config, finished, tmp_path, capsys):
    save(tmp_path / 'photos' / 'a.png', picture(0))
    (tmp_path / 'photos' / 'film.mp4').write_bytes(b'nothing')
    assert predict(config, finished) is False
    assert 'film.mp4: no video that can be read' in capsys.readouterr().out
    assert (tmp_path / 'out' / 'a_labels.png').exists()
    config.predict.input = 'camera:77'
    assert predict(config, finished) is False
    assert 'camera 77: there is none, or another program has it' in capsys.readouterr().out


def test_an_output_that_cannot_be_written_is_refused(config, finished, tmp_path):
    save(tmp_path / 'photos' / 'a.png', picture(0))
    (tmp_path / 'file').touch()
    config.predict.output = str(tmp_path / 'file' / 'out')
    with pytest.raises(InputError, match=r'out: cannot be written \(Not a directory\); choose another'):
        predict(config, finished)


def test_an_output_without_write_permission_is_refused(config, finished, tmp_path, monkeypatch):
    save(tmp_path / 'photos' / 'a.png', picture(0))
    denied = PermissionError(13, 'Permission denied')  # who runs the tests may be allowed everything
    monkeypatch.setattr(tempfile, 'TemporaryFile', lambda **_: (_ for _ in ()).throw(denied))
    with pytest.raises(InputError, match=r'out: cannot be written \(Permission denied\); choose another'):
        predict(config, finished)


def test_a_full_disk_ends_it_with_a_line(config, finished, tmp_path, monkeypatch):
    save(tmp_path / 'photos' / 'a.png', picture(0))
    full = OSError(28, 'No space left on device')
    monkeypatch.setattr(PIL.Image.Image, 'save', lambda *_, **__: (_ for _ in ()).throw(full))
    with pytest.raises(InputError, match=r'a_labels.png: cannot be written \(No space left on device\)'):
        predict(config, finished)


def test_what_failed_before_the_disk_was_full_is_said_too(config, finished, tmp_path, monkeypatch, capsys):
    config.predict.batch_size = 1
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'a.png').write_bytes(b'')
    save(tmp_path / 'photos' / 'b.png', picture(0))
    full = OSError(28, 'No space left on device')
    monkeypatch.setattr(PIL.Image.Image, 'save', lambda *_, **__: (_ for _ in ()).throw(full))
    with pytest.raises(InputError, match='No space left'):
        predict(config, finished)
    assert 'a.png: no image that can be read' in capsys.readouterr().out


def test_a_video_that_the_disk_does_not_take_whole_is_an_error_and_leaves_nothing(tmp_path):
    """OpenCV says nothing of it: what came to lie on the disk is looked at."""
    path = tmp_path / 'film.mp4'
    with (
        pytest.raises(InputError, match='film.mp4: cannot be written .the disk may be full.; free space'),
        VideoFile(str(path), 10.0) as file,
    ):
        for i in range(5):
            file.write(picture(i))
        (temporary,) = tmp_path.iterdir()
        temporary.unlink()  # a disk that is full leaves no film that can be read
    assert list(tmp_path.iterdir()) == []
    with VideoFile(str(path), 10.0) as file:
        for i in range(5):
            file.write(picture(i))
    assert list(tmp_path.iterdir()) == [path] and len(frames_of(path)) == 5


def city(config, tmp_path, count):
    config.predict.format = 'cityscapes_submission'
    names = [f'berlin_{i:06d}_000019' for i in range(count)]
    for i, name in enumerate(names):
        save(tmp_path / 'photos' / 'berlin' / f'{name}_leftImg8bit.png', picture(i))
    return names


def test_a_submission_is_what_the_official_script_finds(config, finished, segment, tmp_path, monkeypatch, capsys):
    names = city(config, tmp_path, 3)
    monkeypatch.setattr(submission, 'TEST_IMAGES', 3)
    monkeypatch.setattr(submission, 'SIZE', SIZE)
    assert predict(config, finished) is True
    path = tmp_path / 'out' / 'submission.zip'
    assert f'to submit: {path}' in capsys.readouterr().out
    with zipfile.ZipFile(path) as file:
        file.extractall(tmp_path / 'server')
    assert files_below(tmp_path / 'server') == [f'{name}_labelIds.png' for name in names]
    monkeypatch.setattr(official_options, 'predictionPath', str(tmp_path / 'server'))
    monkeypatch.setattr(official_options, 'predictionWalk', None)
    for i, name in enumerate(names):
        found = getPrediction(official_options, f'{name}_gtFine_labelIds.png')
        labels = np.asarray(segment(picture(i)[None]))[0]
        np.testing.assert_array_equal(load(found), CITYSCAPES.train_to_raw[labels])


def test_no_zip_is_written_that_the_server_would_not_take(config, finished, tmp_path, capsys):
    city(config, tmp_path, 2)
    assert predict(config, finished) is False
    output = capsys.readouterr().out
    assert 'no zip, because the test server would refuse it: 2 label files where the test split has 1525' in output
    assert 'where (1024, 2048) uint8 is asked' in output
    assert not (tmp_path / 'out' / 'submission.zip').exists()


@pytest.mark.parametrize(('raw_id', 'says'), [(0, []), (7, []), (5, ['holds ids that are no class'])])
def test_the_server_takes_classes_and_pixels_of_none(tmp_path, monkeypatch, raw_id, says):
    """0 is what a network with an output for void has written for it."""
    monkeypatch.setattr(submission, 'TEST_IMAGES', 1)
    monkeypatch.setattr(submission, 'SIZE', SIZE)
    path = tmp_path / 'berlin_000000_000019_labelIds.png'
    save(path, np.full(SIZE, raw_id, np.uint8))
    assert submission.problems([str(path)]) == [f'{path}: {text}' for text in says]


def test_a_zip_of_an_earlier_call_is_called_so(config, finished, tmp_path, capsys):
    city(config, tmp_path, 1)
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'submission.zip').write_bytes(b'earlier')
    (tmp_path / 'photos' / 'berlin' / 'berlin_000000_000019_leftImg8bit.png').write_bytes(b'')
    assert predict(config, finished) is False
    path = tmp_path / 'out' / 'submission.zip'
    assert f'not all was done; {path} is from an earlier call' in capsys.readouterr().out
    assert path.read_bytes() == b'earlier'


def test_a_submission_of_other_pictures_or_classes_is_refused(config, finished, tmp_path, monkeypatch):
    city(config, tmp_path, 1)
    save(tmp_path / 'photos' / 'dog.png', picture(0))
    with pytest.raises(InputError, match=re.escape('dog.png: no Cityscapes image')):
        predict(config, finished)
    other = CITYSCAPES.__class__('camvid', ('sky',), ((0, 0, 0),), ())
    with pytest.raises(InputError, match='the classes of camvid, not those of Cityscapes'):
        submission.check_sources([], other)


def test_the_command_says_by_its_exit_code_that_something_is_undone(finished, repository, tmp_path, tiny_config):
    workdir = str(tmp_path / 'run')
    shutil.copytree(finished, workdir)
    save(tmp_path / 'photos' / 'a.png', picture(0))
    (tmp_path / 'photos' / 'b.png').touch()
    command = main_command(tiny_config, workdir, '--mode=predict', f'--config.predict.input={tmp_path / "photos"}')
    process = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=300)
    assert process.returncode == 1, process.stderr
    assert 'tensorflow' not in process.stderr.lower()
    assert files_below(f'{workdir}/predictions') == sorted(f'a_{kind}.png' for kind in tiny_config.predict.pictures)
