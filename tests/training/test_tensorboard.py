"""TensorBoard's file holds figures, pictures and settings; a disk without room ends the writing call."""

import glob
import io
import os

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from tensorflow.core.util.event_pb2 import Event, SessionLog

from atonet_jax.data.labels import CITYSCAPES
from atonet_jax.errors import TrainingError
from atonet_jax.evaluation.report.charts import confusion_picture
from atonet_jax.runs.metrics import read_metrics
from atonet_jax.training.recorder import Recorder
from atonet_jax.training.tensorboard import EventFile
from atonet_jax.training.timeline import Timeline
from tests.disks import full_disk


def events_of(folder):
    """All events of a folder's files, in TensorFlow's own form; it checks their checksums."""
    for path in sorted(glob.glob(os.path.join(folder, '*'))):
        for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
            yield Event.FromString(record)


def values_of(folder):
    """(step, tag, value) of them."""
    return [(event.step, value.tag, value) for event in events_of(folder) for value in event.summary.value]


@pytest.fixture(scope='module')
def events(finished):
    return values_of(os.path.join(finished, 'tensorboard'))


def test_figures_are_those_of_the_metrics_file(finished, events):
    scalars = {(step, tag): value.simple_value for step, tag, value in events if value.HasField('simple_value')}
    written = {
        (line['step'], name.replace(' ', '_')): value
        for line in read_metrics(finished)
        for name, value in line.items()
        if name != 'step'
    }
    assert set(scalars) == set(written)
    for key, value in written.items():
        assert scalars[key] == pytest.approx(value, rel=1e-6), key
    assert {step for step, tag in scalars if tag == 'train/loss'} == set(range(1, 7))
    present = [name for name in CITYSCAPES.class_names if (6, f'eval/iou/{name}') in scalars]
    assert {'road', 'building', 'sky'} <= set(present)


def test_a_file_says_its_version_and_from_which_step_on_it_replaces_earlier_files(tmp_path):
    board = EventFile(str(tmp_path), 300)
    board.scalar('loss', 0.25, 70_000)
    board.close()
    version, start, figure = events_of(tmp_path)
    assert version.file_version == 'brain.Event:2' and version.wall_time > 1.7e9
    assert (start.step, start.session_log.status) == (300, SessionLog.START)
    assert (figure.step, figure.summary.value[0].tag, figure.summary.value[0].simple_value) == (70_000, 'loss', 0.25)


def test_pictures_of_examples_and_confusion_come_with_each_evaluation(events, tiny_config):
    images = {(step, tag): value.image for step, tag, value in events if value.HasField('image')}
    tags = ['confusion', *(f'example/{i}' for i in range(tiny_config.eval.pictures))]
    assert set(images) == {(step, tag) for step in (3, 6) for tag in tags}
    height, width = tiny_config.data.synthetic.height, tiny_config.data.synthetic.width
    for (_, tag), image in images.items():
        with PIL.Image.open(io.BytesIO(image.encoded_image_string)) as picture:
            picture.load()
            assert picture.size == (image.width, image.height)
            if tag != 'confusion':
                assert picture.size == (2 * width + 4, 2 * height + 4)


def test_the_settings_are_there_once(events, tiny_config):
    ((step, text),) = [(step, value.tensor.string_val[0]) for step, tag, value in events if tag.startswith('config')]
    assert step == 0
    (metadata,) = [value.metadata for _, tag, value in events if tag.startswith('config')]
    assert metadata.plugin_data.plugin_name == 'text'  # or TensorBoard shows no text
    lines = text.decode().splitlines()
    assert '    train.batch_size = 4' in lines and f'    data.root = {tiny_config.data.root!r}' in lines


def test_the_confusion_picture_is_darkest_where_the_pixels_are():
    confusion = np.diag([10, 0, 30])
    picture = confusion_picture(confusion, ('road', 'car', 'a class with a rather long name'))
    rows, columns = np.nonzero((picture.astype(int) @ [1, 1, -1]) < -20)  # dark blue, not the black of letters
    assert picture.dtype == np.uint8 and picture.ndim == 3
    # The diagonal runs from the upper left to the lower right.
    assert np.corrcoef(rows, columns)[0, 1] > 0.8


@pytest.mark.filterwarnings('error')
def test_any_names_and_any_number_of_classes_make_a_confusion_picture():
    names = ('$\\frac{$', '道路', 'car')
    assert confusion_picture(np.eye(3, dtype=int), names).shape[2] == 3
    assert max(confusion_picture(np.eye(200, dtype=int), [f'class {i}' for i in range(200)]).shape) < 1600


def test_a_full_disk_raises_in_the_call_that_writes(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    board = EventFile(str(tmp_path), 0)
    with full_disk(10_000), pytest.raises(OSError, match='File too large'):
        board.image('noise', noise, 1)
        board.flush()
    board.close()


def test_a_full_disk_ends_training_with_a_line(tmp_path, tiny_config):
    recorder = Recorder(str(tmp_path), tiny_config, CITYSCAPES, Timeline(4, 12, 2.0))
    message = r'the figures of step \d+ cannot be written \(File too large\)'
    with full_disk(2_000), pytest.raises(TrainingError, match=message) as failure:
        for step in range(100):
            recorder.write(step, {f'figure {i}': 0.5 for i in range(100)})
    assert '\n' not in str(failure.value)
    with full_disk(2_000):
        recorder.close()
    for file in (recorder._metrics._file, recorder._board._file):
        assert file.closed


def test_a_disk_that_is_full_at_the_start_ends_training_with_a_line(tmp_path, tiny_config):
    message = r'the figures of step 0 cannot be written \(File too large\)'
    with full_disk(10), pytest.raises(TrainingError, match=message):
        Recorder(str(tmp_path), tiny_config, CITYSCAPES, Timeline(4, 12, 2.0))
    assert list(tmp_path.iterdir()) == [], 'nothing half-written'
