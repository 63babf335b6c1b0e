"""The scores of a run come with what was scored, whichever file they are read from."""

import json

import pytest

from atonet_jax.config import default_config
from atonet_jax.data.labels import CITYSCAPES
from atonet_jax.errors import InputError
from atonet_jax.runs.metrics import MetricsLog
from atonet_jax.runs.scores import read_scores
from atonet_jax.runs.workdir import claim

EVALUATED = {'step': 6, 'dataset': 'camvid', 'split': 'test', 'root': 'data/camvid', 'images': 233, 'options': {},
             'miou': 0.5, 'pixel_accuracy': 0.9, 'mean_accuracy': 0.6, 'frequency_weighted_iou': 0.8,
             'classes': {'road': {'iou': 0.7, 'accuracy': 0.8, 'frequency': 0.1}}}  # fmt: skip


@pytest.fixture
def workdir(tmp_path):
    """A run that was evaluated twice in training, and once since."""
    workdir, config = str(tmp_path), default_config()
    config.data.root = 'data/cityscapes'
    claim(workdir, config, CITYSCAPES)
    log = MetricsLog(workdir, 0)
    for step, miou in ((3, 0.25), (6, 0.375)):
        log.write(step, {'eval/miou': miou, 'eval/pixel_accuracy': 0.75, 'eval/iou/road': 0.125})
    log.write(7, {'train/loss': 1.0})
    log.close()
    (tmp_path / 'evaluation').mkdir()
    (tmp_path / 'evaluation' / 'scores.json').write_text(json.dumps(EVALUATED | {'seconds': 9.0}))
    return workdir


def test_those_of_evaluate_come_first(workdir):
    assert read_scores(workdir) == read_scores(workdir, 6) == EVALUATED | {'source': 'evaluation/scores.json'}


def test_of_another_step_and_without_evaluate_they_are_those_of_training(workdir, tmp_path):
    of_first = read_scores(workdir, 3)
    what = {'dataset': 'cityscapes', 'split': 'val', 'root': 'data/cityscapes', 'images': None}
    assert (what | {'step': 3, 'miou': 0.25, 'pixel_accuracy': 0.75, 'mean_accuracy': None}).items() <= of_first.items()
    assert of_first['classes'] == {'road': {'iou': 0.125}} and of_first['options']['scales'] == (1.0,)
    (tmp_path / 'evaluation' / 'scores.json').unlink()
    assert (read_scores(workdir)['step'], read_scores(workdir)['miou']) == (6, 0.375)
    assert read_scores(workdir, 7) is None


def test_a_damaged_file_is_one_line(workdir, tmp_path):
    (tmp_path / 'evaluation' / 'scores.json').write_text('{"miou": 1}')
    with pytest.raises(InputError, match=r'scores.json: damaged .*give --mode=evaluate again, or delete it'):
        read_scores(workdir)
