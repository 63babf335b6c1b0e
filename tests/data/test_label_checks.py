"""What makes labels unfit stops training and check_data alike; what is only odd stops neither."""

import json
import logging

import numpy as np
import PIL.Image
import pytest

from atonet_jax.check_data.inspection import inspect_split
from atonet_jax.config import default_config
from atonet_jax.data.dataset import DataError
from atonet_jax.data.sources import load_dataset, load_examples

SIZE = (4, 10)
ABC = [{'name': name, 'value': value} for value, name in enumerate('abc')]
BACKGROUND = [{'name': 'bg', 'value': 0}, {'name': 'fg', 'value': 1}]
MASKS = 'labels hold only 0 and 255, as masks do, but 255 is ignored'


def pixels(*rows):
    """A label file of columns with these values."""
    return np.array([rows] * SIZE[0], np.uint8)


MASK, EMPTY, FULL = pixels(*[0] * 7, 255, 255, 255), pixels(*[0] * 10), pixels(*[255] * 10)
SOUND = pixels(0, 0, 0, 1, 1, 1, 2, 2, 2, 255)


def judged(root, labels, rows=ABC, split='train', **settings):
    """(failures, warnings) of check_data; after a look that training says the same."""
    for folder in ('images', 'labels'):
        (root / folder / split).mkdir(parents=True)
    for i, label in enumerate(labels):
        PIL.Image.new('RGB', SIZE[::-1], (i, 0, 0)).save(root / f'images/{split}/{i}.png')
        PIL.Image.fromarray(label).save(root / f'labels/{split}/{i}.png')
    (root / 'classes.json').write_text(json.dumps(rows))
    data = default_config().data
    data.update(name='folder', root=str(root), cache='none', **settings)
    report = inspect_split(load_dataset(data, split), for_training=split == 'train', trust_labels=data.trust_labels)
    logger, log = logging.getLogger('atonet_jax'), []
    handler = logging.Handler()
    handler.emit = lambda record: log.append(record.getMessage())
    logger.addHandler(handler)
    try:
        load_examples(data, split, str(root / 'workdir'))
        assert not report.failures
    except DataError as error:
        assert report.failures and all(failure in str(error) for failure in report.failures)
        assert str(error).startswith(f'folder {split}: ') and '\n' not in str(error)
    finally:
        logger.removeHandler(handler)
    assert all(f'folder {split}: {warning}' in log for warning in report.warnings)
    return list(report.failures), report.warnings


def test_sound_labels(tmp_path):
    assert judged(tmp_path, [SOUND, EMPTY]) == ([], [])


@pytest.mark.parametrize(
    'labels', [[MASK, MASK], [EMPTY, EMPTY, MASK], [MASK, MASK, pixels(*[0, 1] * 5)], [EMPTY, FULL]]
)
def test_masks_of_0_and_255(tmp_path, labels):
    failures, _ = judged(tmp_path, labels, BACKGROUND)
    assert failures == [MASKS]


def test_masks_may_be_trusted(tmp_path):
    failures, warnings = judged(tmp_path, [MASK], BACKGROUND, trust_labels=True)
    assert not failures and MASKS in warnings


def test_masks_by_colour(tmp_path):
    rows = [{'name': 'bg', 'color': '#000000'}, {'name': 'fg', 'color': '#ffffff'}]
    assert judged(tmp_path, [MASK], rows, label_values='color') == ([], [])


def test_a_few_masks_among_others_are_odd(tmp_path):
    failures, warnings = judged(tmp_path, [MASK, SOUND, SOUND])
    assert not failures and warnings[0].startswith('1 of 3 label files hold only 0 and 255, as masks do')


def test_one_class_is_nothing_to_learn(tmp_path):
    failures, _ = judged(tmp_path / 'train', [EMPTY])
    assert failures == ['all pixels that have a class are a, so there is nothing to learn']
    assert judged(tmp_path / 'val', [EMPTY], split='val') == ([], ['no pixel of the classes: b, c'])
    assert judged(tmp_path / 'trusted', [EMPTY], trust_labels=True)[0] == []


def test_mostly_ignored(tmp_path):
    failures, _ = judged(tmp_path, [pixels(0, 1, 2, *[255] * 7)])
    assert failures == ['70.0% of the pixels are ignored']


@pytest.mark.parametrize('trust', [False, True])
def test_all_ignored_cannot_be_trusted(tmp_path, trust):
    failures, _ = judged(tmp_path, [pixels(*[255] * 10)], trust_labels=trust)
    assert failures == ['all pixels of all 1 label files are ignored; check that these are the label files']


def test_blank_labels_of_a_published_test_split(tmp_path):
    failures, warnings = judged(tmp_path, [pixels(*[255] * 10)], split='test')
    assert not failures and len(warnings) == 1
    assert warnings[0].startswith('all pixels are ignored: nothing can be scored; --mode=predict makes')


@pytest.mark.parametrize('void', [4, 9, 200])
def test_a_declared_void_above_the_number_of_classes(tmp_path, void):
    rows = [*ABC, {'name': 'unknown', 'value': void, 'ignore': True}]
    assert judged(tmp_path, [np.where(SOUND == 255, void, SOUND).astype(np.uint8)], rows) == ([], [])


def test_a_declared_value_that_a_split_does_not_show(tmp_path):
    rows = [{'name': name, 'value': value} for name, value in (('a', 0), ('b', 1), ('c', 2), ('d', 30))]
    assert judged(tmp_path, [SOUND % 255], rows) == ([], ['no pixel of the classes: d'])


def test_train_ids_are_a_guess_that_can_be_overruled(tmp_path):
    rows = [{'name': name, 'value': value} for name, value in (('v', 0), ('a', 1), ('b', 2), ('c', 30))]
    _, warnings = judged(tmp_path / 'doubted', [SOUND], rows)
    assert warnings[0].startswith('1 of 1 label files hold nothing above 3 but 255: they look like train ids')
    assert judged(tmp_path / 'trusted', [SOUND], rows, trust_labels=True) == ([], ['no pixel of the classes: c'])


def test_values_of_no_class_are_said_and_counted(tmp_path):
    label = SOUND.copy()
    label[0, :2] = 77
    failures, warnings = judged(tmp_path, [SOUND, label], unknown_as_void=0.05)
    assert not failures and warnings[0].startswith(
        '2 pixels in 1 of 2 label files have values of no class and count as'
    )


def test_the_way_of_reading_is_fixed_where_the_files_allow_one(tiny_config):
    data = tiny_config.data.copy_and_resolve_references()
    data.label_values = 'color'
    with pytest.raises(DataError, match='config.data.label_values=color: but the labels of synthetic train are index'):
        load_dataset(data, 'train')
