"""Batches: order, augmentation and shards are a pure function of seed and step, and files decode as they should."""

import dataclasses
import itertools

import jax
import numpy as np
import PIL.Image
import pytest

from atonet_jax.data import pipeline
from atonet_jax.data.augmentation import Augmentation, Geometry
from atonet_jax.data.dataset import DataError, LabelReading, SegmentationDataset
from atonet_jax.data.decode import read_example
from atonet_jax.data.examples import Examples
from atonet_jax.data.label_files import KINDS
from atonet_jax.data.labels import CAMVID, CITYSCAPES, IGNORE_LABEL
from atonet_jax.data.verify import verify
from atonet_jax.training.augment import augment

IMAGE_SIZE = (12, 20)
CROP_SIZE = (8, 8)


def write_dataset(folder, sizes, seed=0):
    """Random images whose first pixel's red value is their number, and random raw ids."""
    rng = np.random.default_rng(seed)
    image_paths, label_paths = [], []
    for i, size in enumerate(sizes):
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        image[:, :, 0] = i
        image_paths.append(str(folder / f'image{i}.png'))
        label_paths.append(str(folder / f'label{i}.png'))
        PIL.Image.fromarray(image).save(image_paths[-1])
        PIL.Image.fromarray(rng.integers(0, 34, size, dtype=np.uint8)).save(label_paths[-1])
    return SegmentationDataset('tiny', 'train', CITYSCAPES, tuple(image_paths), tuple(label_paths))


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp('data'), [IMAGE_SIZE] * 7)


def train_batches(dataset, examples=None, **options):
    defaults = dict(batch_size=4, seed=3, start_sample=0, num_steps=6)
    options = defaults | dict(crop_size=CROP_SIZE, scale_range=(1.0, 2.0)) | options
    fields = {field.name for field in dataclasses.fields(Augmentation)} & options.keys()
    augmentation = Augmentation(**{name: options.pop(name) for name in fields})
    return list(pipeline.train_batches(examples or Examples(dataset), augmentation=augmentation, **options))


def eval_batches(dataset, examples=None, **options):
    return list(pipeline.eval_batches(examples or Examples(dataset), **options))


def assert_batches_equal(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def image_numbers(batches):
    return [int(image[0, 0, 0]) for batch in batches for image in batch['image']]


def test_train_batch_has_static_shapes_and_byte_types(dataset):
    batch = train_batches(dataset, scale_range=(0.75, 2.0), num_steps=1)[0]
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        'image': ((4, 13, 13, 3), 'uint8'),
        'label': ((4, 13, 13), 'uint8'),
        'geometry': ((4, len(Geometry._fields)), 'int32'),
    }


def test_resuming_repeats_the_batches_of_an_uninterrupted_run(dataset):
    uninterrupted = train_batches(dataset)
    assert_batches_equal(train_batches(dataset, start_sample=16, num_steps=2), uninterrupted[4:])
    assert_batches_equal(train_batches(dataset), uninterrupted)


def test_seed_changes_order_and_augmentation(dataset):
    one, other = train_batches(dataset, num_steps=3), train_batches(dataset, num_steps=3, seed=4)
    assert image_numbers(one) != image_numbers(other)
    assert (one[0]['geometry'] != other[0]['geometry']).any()


def test_every_image_once_an_epoch_across_batch_borders(dataset):
    numbers = image_numbers(train_batches(dataset, num_steps=7))  # 28 samples: 4 epochs of 7
    epochs = [numbers[start : start + 7] for start in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1


def test_batch_larger_than_the_data_set(dataset):
    numbers = image_numbers(train_batches(dataset, batch_size=14, num_steps=1))
    assert sorted(numbers) == sorted(2 * list(range(7)))


def test_train_shards_make_up_the_unsharded_batch(dataset):
    options = dict(num_steps=3, start_sample=6)  # within a batch, as where the batch size has changed
    whole = train_batches(dataset, **options)
    shards = [train_batches(dataset, **options, shard_index=s, num_shards=2) for s in range(2)]
    joined = [jax.tree.map(lambda *parts: np.concatenate(parts), *batches) for batches in zip(*shards)]
    assert_batches_equal(joined, whole)


def test_batch_that_shards_do_not_divide(dataset):
    with pytest.raises(ValueError, match='batch_size 4 .* 3 shards'):
        train_batches(dataset, num_shards=3)


def test_windows_are_cut_from_the_decoded_example_with_zeros_beyond(dataset):
    for batch in train_batches(dataset, scale_range=(0.4, 2.0)):
        for image, label, numbers in zip(batch['image'], batch['label'], batch['geometry']):
            geometry = Geometry(*numbers)
            whole_image, whole_label = read_example(dataset, int(image[0, 0, 0]))
            for window, whole in ((image, whole_image), (label, whole_label)):
                expected = whole[geometry.window_top :, geometry.window_left :][: window.shape[0], : window.shape[1]]
                height, width = expected.shape[:2]
                np.testing.assert_array_equal(window[:height, :width], expected)
                assert not window[height:].any() and not window[:, width:].any()


@pytest.mark.parametrize('num_shards', [1, 2])
def test_eval_gives_each_example_once_in_order_with_padding(dataset, num_shards):
    shards = [eval_batches(dataset, batch_size=4, shard_index=s, num_shards=num_shards) for s in range(num_shards)]
    batches = [jax.tree.map(lambda *parts: np.concatenate(parts), *batch) for batch in zip(*shards, strict=True)]
    assert [batch['index'].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, -1]]
    for batch in batches:
        for image, label, i in zip(batch['image'], batch['label'], batch['index']):
            if i >= 0:
                expected = read_example(dataset, i)
                np.testing.assert_array_equal(image, expected[0])
                np.testing.assert_array_equal(label, expected[1])
    assert not batches[1]['image'][3].any()
    assert (batches[1]['label'][3] == IGNORE_LABEL).all()


def test_eval_of_images_that_differ_in_size(tmp_path):
    dataset = write_dataset(tmp_path, [(4, 6), (4, 6), (4, 6), (5, 6), (4, 6)])
    for num_shards, expected in (
        (1, [[[0, 1], [2, -1], [3, -1], [4, -1]]]),
        (2, [[[0], [2], [3], [4]], [[1], [-1], [-1], [-1]]]),
    ):
        for s in range(num_shards):
            batches = eval_batches(dataset, batch_size=2, shard_index=s, num_shards=num_shards)
            assert [batch['index'].tolist() for batch in batches] == expected[s]
            assert [batch['image'].shape[1:3] for batch in batches] == [(4, 6), (4, 6), (5, 6), (4, 6)]


def test_split_without_labels_evaluates_as_ignored_and_does_not_train(dataset):
    blind = SegmentationDataset('tiny', 'test', CITYSCAPES, dataset.image_paths, None)
    batch = eval_batches(blind, batch_size=4)[0]
    assert batch['image'].any() and (batch['label'] == IGNORE_LABEL).all()
    with pytest.raises(DataError, match='tiny test: has no labels'):
        train_batches(blind)


def test_color_labels_reach_training_as_train_ids(tmp_path):
    dataset = write_dataset(tmp_path, [IMAGE_SIZE])
    colors = np.array([label.color for label in CAMVID.raw_labels], np.uint8)
    raw_ids = np.arange(np.prod(IMAGE_SIZE)).reshape(IMAGE_SIZE) % len(colors)
    PIL.Image.fromarray(colors[raw_ids]).save(dataset.label_paths[0])
    reading = LabelReading(frozenset(KINDS))
    dataset = SegmentationDataset('tiny', 'train', CAMVID, dataset.image_paths, dataset.label_paths, reading)
    batch = train_batches(dataset, batch_size=1, crop_size=IMAGE_SIZE, scale_range=(1.0, 1.0), num_steps=1)[0]
    labels = batch['label'][0, : IMAGE_SIZE[0], : IMAGE_SIZE[1]]
    np.testing.assert_array_equal(labels, CAMVID.raw_to_train[raw_ids])


def overwrite_with_garbage(path):
    with open(path, 'wb') as file:
        file.write(b'garbage')


def truncate(path):
    with open(path, 'rb+') as file:
        file.truncate(100)


@pytest.mark.parametrize('reader', ['train', 'eval'])
@pytest.mark.parametrize('damage', [overwrite_with_garbage, truncate])
@pytest.mark.parametrize('kind', ['image', 'label'])
def test_damaged_file_is_named(tmp_path, reader, damage, kind):
    dataset = write_dataset(tmp_path, [IMAGE_SIZE] * 3)
    path = (dataset.image_paths if kind == 'image' else dataset.label_paths)[1]
    damage(path)
    with pytest.raises(DataError, match=f'{kind}1.png') as raised:
        train_batches(dataset) if reader == 'train' else eval_batches(dataset, batch_size=2)
    assert '\n' not in str(raised.value)


@pytest.fixture
def damaged(tmp_path):
    """Seven examples, the third of which has a truncated image, and the same without damage."""
    datasets = []
    for name in ('sound', 'damaged'):
        (tmp_path / name).mkdir()
        datasets.append(write_dataset(tmp_path / name, [IMAGE_SIZE] * 7))
    truncate(datasets[1].image_paths[2])
    return datasets


def test_skipping_changes_no_other_sample(damaged, caplog):
    whole = train_batches(damaged[0], num_steps=7)
    examples = Examples(damaged[1], on_corrupt='skip')
    batches = train_batches(damaged[1], examples, num_steps=7)
    skipped = np.array(image_numbers(whole)).reshape(7, 4) == 2
    assert skipped.sum() == 4
    for batch, expected, blank in zip(batches, whole, skipped):
        for name in batch:
            np.testing.assert_array_equal(batch[name][~blank], expected[name][~blank])
        assert (batch['label'][blank] == IGNORE_LABEL).all()
        images, labels = jax.jit(augment, static_argnums=1)(batch, Augmentation(CROP_SIZE, (1.0, 2.0)), None)
        assert not np.asarray(images)[blank].any() and (np.asarray(labels)[blank] == IGNORE_LABEL).all()
    assert list(examples.skipped) == [2]
    assert caplog.text.count('image2.png') == 1  # told once, however often it is met


def test_skipping_leaves_an_example_out_of_the_evaluation(damaged):
    examples = Examples(damaged[1], on_corrupt='skip')
    batches = eval_batches(damaged[1], examples, batch_size=4)
    assert [batch['index'].tolist() for batch in batches] == [[0, 1, -1, 3], [4, 5, 6, -1]]
    assert (batches[0]['label'][2] == IGNORE_LABEL).all() and list(examples.skipped) == [2]

    # One that the check found before leaves no gap.
    examples = Examples(verify(damaged[1], on_corrupt='skip'), on_corrupt='skip')
    batches = eval_batches(damaged[1], examples, batch_size=4)
    assert [batch['index'].tolist() for batch in batches] == [[0, 1, 3, 4], [5, 6, -1, -1]]


def test_start_at_a_late_step_reads_no_more_than_at_an_early_one(dataset):
    def reads(start_sample):
        examples, seen = Examples(dataset), []
        read = examples.read
        examples.read = lambda i: seen.append(i) or read(i)
        train_batches(dataset, examples, start_sample=start_sample, num_steps=3)
        return len(seen)

    assert reads(10_000) == reads(10) == 12


@pytest.mark.parametrize('cache', ['memory', 'disk'])
def test_cached_batches_equal_those_read_anew(dataset, tmp_path, cache):
    examples = Examples(verify(dataset), cache=cache, cache_dir=str(tmp_path))
    expected = train_batches(dataset)
    for _ in range(2):
        assert_batches_equal(train_batches(dataset, examples), expected)


def test_class_aware_crops_reach_the_batches(tmp_path):
    dataset = write_dataset(tmp_path, [IMAGE_SIZE])
    labels = np.full(IMAGE_SIZE, 7, np.uint8)
    labels[0, 0] = 33
    PIL.Image.fromarray(labels).save(dataset.label_paths[0])
    batches = train_batches(dataset, num_steps=20, class_aware_crops=1.0, scale_range=(1.0, 1.0))
    shown = np.concatenate([(batch['label'] == 18).any((1, 2)) for batch in batches])
    assert 0.35 < shown.mean() < 0.75  # half of the crops by choice, few by chance


def test_prefetch_keeps_order_and_runs_ahead(dataset):
    taken = []

    def source():
        for i in range(5):
            taken.append(i)
            yield {'index': np.full(1, i, np.int32)}

    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    batches = pipeline.prefetch_to_device(source(), device, size=2)
    first = next(batches)
    assert taken == [0, 1, 2]
    assert isinstance(first['index'], jax.Array)
    assert [int(batch['index'][0]) for batch in itertools.chain([first], batches)] == list(range(5))
