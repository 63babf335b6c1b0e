"""What label files hold is decided over all of them, says why, and does not depend on their order."""

import dataclasses
import itertools

import numpy as np
import PIL.Image
import pytest

from atonet_jax.data.camvid import load_camvid
from atonet_jax.data.dataset import DataError, SegmentationDataset
from atonet_jax.data.label_files import KINDS, read_labels
from atonet_jax.data.label_reading import decide_reading, different_reading_text
from atonet_jax.data.labels import CAMVID, IGNORE_LABEL, ClassTable, RawLabel

SIZE = (4, 6)
TRAIN_IDS = np.array([[0, 0, 0, 1, 1, 2]] * 4, np.uint8)
BLACK, RED, GREEN, BORDER = (0, 0, 0), (255, 0, 0), (0, 255, 0), (224, 224, 192)


def table(*rows):
    """Classes a, b, c of (number, colour)."""
    names = 'abc'[: len(rows)]
    raw = (RawLabel(name, number, color, i) for i, (name, (number, color)) in enumerate(zip(names, rows)))
    return ClassTable('tiny', tuple(names), tuple(color or BLACK for _, color in rows), tuple(raw))


COLORED = table((0, BLACK), (1, RED), (2, GREEN))
PLAIN = table((0, None), (1, None), (2, None))


def palette_file(values, palette, length=256):
    label = PIL.Image.fromarray(np.asarray(values, np.uint8))
    entries = np.zeros((length, 3), np.uint8)
    for index, color in palette.items():
        entries[index] = color
    label.putpalette(entries.ravel().tolist())
    return label


def decide(tmp_path, labels, classes, label_values='auto', in_any_order=True):
    """The data set of these label images; checks that their order does not matter."""
    paths = []
    for i, label in enumerate(labels):
        paths.append(str(tmp_path / f'{i}.png'))
        label.save(paths[-1])
    orders = itertools.permutations(paths) if in_any_order else [paths]
    found = [
        decide_reading(SegmentationDataset('tiny', 'train', classes, tuple(order), tuple(order)), label_values)
        for order in orders
    ]
    assert len({(one.by_color, one.by_level, bool(one.doubt)) for one in (dataset.reading for dataset in found)}) == 1
    return found[0]


def labels_of(dataset, i=0):
    return read_labels(dataset, i, SIZE)


@pytest.mark.parametrize('plain_files', [0, 2])
def test_a_palette_of_moved_colours_with_a_void_border(tmp_path, plain_files):
    """Index 255 is no class's colour, and the first files show the first class alone."""
    palette = {0: BLACK, 1: GREEN, 2: RED, 255: BORDER}
    indices = np.array([0, 2, 1])[TRAIN_IDS]
    bordered = np.where(np.arange(6) == 2, 255, indices)
    plain = [palette_file(np.zeros(SIZE), palette)] * plain_files
    dataset = decide(tmp_path, [*plain, palette_file(bordered, palette)], COLORED)
    expected = np.where(np.arange(6) == 2, IGNORE_LABEL, TRAIN_IDS)
    np.testing.assert_array_equal(labels_of(dataset, plain_files), expected)
    assert 'has the class colour #00ff00 at 1' in dataset.reading.text and 'label_values=index' in dataset.reading.doubt
    by_index = decide(tmp_path, [palette_file(bordered, palette)], COLORED, 'index')
    np.testing.assert_array_equal(labels_of(by_index), np.where(np.arange(6) == 2, IGNORE_LABEL, indices))


def test_palettes_that_an_optimiser_cut_to_what_each_file_shows(tmp_path):
    """The border is a colour of no class at an index of one: it must not become that class."""
    files = [
        palette_file([[0, 0, 0, 1, 1, 2]] * 4, {0: BLACK, 1: RED, 2: GREEN}, 3),
        palette_file([[0, 0, 1, 1, 1, 1]] * 4, {0: BLACK, 1: GREEN}, 2),
        palette_file([[0, 0, 0, 0, 1, 2]] * 4, {0: BLACK, 1: RED, 2: BORDER}, 3),
    ]
    dataset = decide(tmp_path, files, COLORED)
    paths = {path: i for i, path in enumerate(dataset.label_paths)}
    np.testing.assert_array_equal(labels_of(dataset, paths[str(tmp_path / '0.png')]), TRAIN_IDS)
    assert (labels_of(dataset, paths[str(tmp_path / '1.png')])[:, 2:] == 2).all()
    with pytest.raises(DataError, match=r'colour \(224, 224, 192\)'):
        labels_of(dataset, paths[str(tmp_path / '2.png')])


def test_a_palette_in_the_order_of_the_classes_is_read_by_number(tmp_path):
    values = np.where(np.arange(6) == 2, 255, TRAIN_IDS)
    dataset = decide(tmp_path, [palette_file(values, {0: BLACK, 1: RED, 2: GREEN, 255: BORDER})], COLORED)
    np.testing.assert_array_equal(labels_of(dataset), np.where(np.arange(6) == 2, IGNORE_LABEL, TRAIN_IDS))
    assert not dataset.reading.by_color and not dataset.reading.doubt


def test_a_palette_for_other_classes_is_read_by_number(tmp_path):
    """It has a class's colour at another number by chance, which no pixel or few of them show."""
    palette = {0: BLACK, 1: (128, 0, 0), 2: (0, 128, 0), 7: RED, 9: GREEN}
    dataset = decide(tmp_path, [palette_file(TRAIN_IDS, palette)], COLORED)
    np.testing.assert_array_equal(labels_of(dataset), TRAIN_IDS)
    assert 'most of their colours are no class' in dataset.reading.text


def test_without_colours_in_the_class_file_a_palette_says_nothing(tmp_path):
    dataset = decide(tmp_path, [palette_file(TRAIN_IDS, {0: GREEN, 1: BLACK, 2: RED})], PLAIN)
    np.testing.assert_array_equal(labels_of(dataset), TRAIN_IDS)


def test_palettes_that_give_one_number_different_colours_are_a_doubt(tmp_path):
    """Drawing programs number the colours of each file anew. Nothing else tells where no class has a colour."""
    cut = palette_file(np.minimum(TRAIN_IDS, 1), {0: BLACK, 1: RED}, 2)
    whole = palette_file(TRAIN_IDS, {0: BLACK, 1: RED, 2: GREEN, 7: BORDER})
    other = palette_file(TRAIN_IDS, {0: BLACK, 1: GREEN, 2: RED})
    assert not decide(
        tmp_path, [cut, whole, palette_file(TRAIN_IDS, {0: BLACK, 1: RED, 2: GREEN})], PLAIN
    ).reading.doubt
    doubt = decide(tmp_path, [cut, whole, other], PLAIN).reading.doubt
    assert 'number 1 has the colour #ff0000 in the palette of 0.png and #00ff00 in that of 2.png' in doubt
    assert not decide(tmp_path, [cut, whole, other], PLAIN, 'index').reading.doubt


def rgb(array):
    return PIL.Image.fromarray(np.asarray(array, np.uint8))


def test_rgb_files_of_colours_among_which_some_show_black_alone(tmp_path):
    classes = table((0, RED), (1, BLACK), (2, GREEN))
    colors = np.array([RED, BLACK, GREEN])
    dataset = decide(tmp_path, [rgb(np.zeros((*SIZE, 3))), rgb(colors[TRAIN_IDS])], classes)
    assert (labels_of(dataset, 0) == 1).all()
    np.testing.assert_array_equal(labels_of(dataset, 1), TRAIN_IDS)
    assert dataset.reading.by_color == set(KINDS)


@pytest.mark.parametrize('classes', [COLORED, PLAIN])
def test_numbers_in_three_equal_channels(tmp_path, classes):
    dataset = decide(tmp_path, [rgb(np.repeat(TRAIN_IDS[..., None], 3, 2)), rgb(np.zeros((*SIZE, 3)))], classes)
    np.testing.assert_array_equal(labels_of(dataset), TRAIN_IDS)
    assert not dataset.reading.by_color and not dataset.reading.doubt


def test_black_and_white_in_rgb_are_the_colours_of_classes(tmp_path):
    classes = table((0, BLACK), (1, (255, 255, 255)))
    mask = TRAIN_IDS > 0
    dataset = decide(tmp_path, [rgb(np.repeat(mask[..., None] * 255, 3, 2))], classes)
    np.testing.assert_array_equal(labels_of(dataset), mask)
    one_channel = decide(tmp_path, [rgb(mask * 255)], classes, 'color')
    np.testing.assert_array_equal(labels_of(one_channel), mask)


def test_kinds_of_file_that_differ_are_each_read_in_their_way(tmp_path):
    colors = np.array([BLACK, RED, GREEN])
    files = [rgb(colors[TRAIN_IDS]), rgb(TRAIN_IDS), palette_file(2 - TRAIN_IDS, {0: GREEN, 1: RED, 2: BLACK}, 3)]
    dataset = decide(tmp_path, files, COLORED)
    for i in range(3):
        np.testing.assert_array_equal(labels_of(dataset, i), TRAIN_IDS)
    assert dataset.reading.text.count(' (1) are read by ') == 3


def test_splits_are_told_of_only_where_a_kind_of_file_is_read_in_two_ways(tmp_path):
    greys = palette_file(TRAIN_IDS, {1: (2,) * 3, 2: (1,) * 3}, 3)
    numbers = PIL.Image.fromarray(TRAIN_IDS)
    datasets = {}
    for name, files, setting in (('a', [greys, numbers], 'auto'), ('b', [numbers], 'auto'), ('c', [greys], 'index')):
        (tmp_path / name).mkdir()
        datasets[name] = decide(tmp_path / name, files, PLAIN, setting)
    assert different_reading_text(datasets['a'], datasets['b']) == ''
    text = different_reading_text(datasets['a'], datasets['c'])
    assert 'with a palette of greys are read by grey level in train and by number in' in text and 'label_values' in text


def test_a_grey_file_among_colours_that_could_be_both_is_refused(tmp_path):
    classes = table((0, RED), (1, BLACK), (2, GREEN))
    files = [rgb(np.array([RED, BLACK, GREEN])[TRAIN_IDS]), rgb(np.zeros(SIZE))]
    with pytest.raises(DataError, match='1.png: label file of one channel .* say which: config.data.label_values='):
        decide(tmp_path, files, classes)
    assert (labels_of(decide(tmp_path, files, classes, 'color', in_any_order=False), 1) == 1).all()


@pytest.mark.parametrize('length', [4, 256])
def test_greys_of_a_palette_that_are_class_numbers_are_these(tmp_path, length):
    """As optimisers, and Pillow's GIFs, write files of one channel."""
    classes = table((0, None), (2, None), (9, None))
    numbers = np.where(np.arange(6) == 2, 255, np.array([0, 2, 9])[TRAIN_IDS])
    indices = np.where(np.arange(6) == 2, 3, TRAIN_IDS)
    greys = {0: (0, 0, 0), 1: (2, 2, 2), 2: (9, 9, 9), 3: (255, 255, 255)}
    only_void = palette_file(np.zeros(SIZE), {0: (255, 255, 255)}, 1)
    dataset = decide(tmp_path, [palette_file(indices, greys, length), only_void, rgb(numbers)], classes)
    expected = np.where(np.arange(6) == 2, IGNORE_LABEL, TRAIN_IDS)
    np.testing.assert_array_equal(labels_of(dataset, 0), expected)
    np.testing.assert_array_equal(labels_of(dataset, 2), expected)
    assert (labels_of(dataset, 1) == IGNORE_LABEL).all() and 'by grey level' in dataset.reading.text


def test_a_stray_grey_does_not_turn_the_labels_of_all_other_files(tmp_path):
    classes = ClassTable(
        'tiny', tuple('abcdefgh'), (BLACK,) * 8, tuple(RawLabel(c, i, None, i) for i, c in enumerate('abcdefgh'))
    )
    greys = np.array([1, 2, 4, 7, 99])
    shown = np.array([[0, 1, 2, 3, 3, 3]] * 4)
    stray = shown.copy()
    stray[0, 0] = 4
    files = [palette_file(shown, {i: (grey,) * 3 for i, grey in enumerate(greys[:4])}, 4)] * 5
    files.append(palette_file(stray, {i: (grey,) * 3 for i, grey in enumerate(greys)}, 5))
    dataset = decide(tmp_path, files, classes, in_any_order=False)
    np.testing.assert_array_equal(labels_of(dataset), greys[shown])
    assert 'label_values=index' in dataset.reading.doubt
    with pytest.raises(DataError, match=r'5.png: label value 99 \(1 pixels\)'):
        labels_of(dataset, 5)
    void = labels_of(dataclasses.replace(dataset, unknown_as_void=0.1), 5)
    np.testing.assert_array_equal(void, np.where(stray == 4, IGNORE_LABEL, greys[stray]))


@pytest.mark.parametrize('greys', [(0, 255, 255), (0, 127, 255), (0, 0, 0)])
def test_greys_of_a_palette_that_only_show_the_numbers(tmp_path, greys):
    palette = {i: (grey,) * 3 for i, grey in enumerate(greys)}
    values = np.minimum(TRAIN_IDS, 1) if greys[1] == 255 else TRAIN_IDS
    dataset = decide(tmp_path, [palette_file(values, palette, 3)], PLAIN)
    np.testing.assert_array_equal(labels_of(dataset), values)


def test_colours_that_two_classes_share_are_refused_only_where_they_are_read(tmp_path):
    classes = table((0, RED), (1, RED), (2, GREEN))
    decide(tmp_path, [rgb(TRAIN_IDS)], classes)
    with pytest.raises(DataError, match=r"'a' and 'b' both have the colour \(255, 0, 0\)"):
        decide(tmp_path, [rgb(np.array([RED, RED, GREEN])[TRAIN_IDS])], classes)


def test_camvid_takes_the_setting_too(tmp_path):
    for folder in ('images', 'labels'):
        (tmp_path / folder).mkdir()
    PIL.Image.new('RGB', SIZE[::-1]).save(tmp_path / 'images/0001TP_006690.png')
    palette = {i: label.color for i, label in enumerate(CAMVID.raw_labels[::-1])}
    palette_file(np.full(SIZE, 17), palette).save(tmp_path / 'labels/0001TP_006690.png')
    found = {way: load_camvid(str(tmp_path), 'train', way) for way in ('auto', 'index', 'color')}
    road, car = 3, 8
    assert {way: labels_of(dataset)[0, 0] for way, dataset in found.items()} == {
        'auto': car, 'index': road, 'color': car,
    }  # fmt: skip


def test_grey_colours_in_one_channel_lead_to_the_setting_and_throw_no_class_away(tmp_path):
    """The files alone could as well hold a wrong number."""
    greys = np.array([0, 128, 255], np.uint8)
    classes = table(*((i, (int(grey),) * 3) for i, grey in enumerate(greys)))
    files = [rgb(greys[TRAIN_IDS])]
    with pytest.raises(
        DataError, match=r'\(128, 128, 128\) is the colour of b: --config.data.label_values=color'
    ) as error:
        labels_of(decide(tmp_path, files, classes))
    assert 'unknown_as_void' not in str(error.value)
    np.testing.assert_array_equal(labels_of(decide(tmp_path, files, classes, 'color')), TRAIN_IDS)


def test_reading_by_colour_needs_colours(tmp_path):
    with pytest.raises(DataError, match='config.data.label_values=color: no class has a colour; give the classes'):
        decide(tmp_path, [rgb(TRAIN_IDS)], PLAIN, 'color')
