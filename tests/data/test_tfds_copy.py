"""A TFDS copy decodes to the pixels of its source, is an ordinary TFDS data set, and says what is wrong with it."""

import concurrent.futures
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle
from tensorflow_datasets.core.utils import shard_utils

from atonet_jax.config import default_config
from atonet_jax.data import tfds_builders, tfds_copy, tfds_records
from atonet_jax.data.augmentation import Augmentation
from atonet_jax.data.camvid import load_camvid
from atonet_jax.data.cityscapes import load_cityscapes
from atonet_jax.data.dataset import DataError, LabelReading, LocalFiles, SegmentationDataset
from atonet_jax.data.decode import read_example
from atonet_jax.data.examples import Examples
from atonet_jax.data.label_files import KINDS
from atonet_jax.data.labels import CAMVID, CITYSCAPES, IGNORE_LABEL, ClassTable, RawLabel
from atonet_jax.data.sources import prepare_copy
from atonet_jax.data.tfds_builders import prepare
from atonet_jax.data.tfds_copy import load_tfds, read_class_table
from atonet_jax.data.verify import verify

SIZE = (6, 10)
COUNTS = {'train': 7, 'val': 3, 'test': 2}
OWN_TABLE = ClassTable(
    name='folder',
    class_names=('grass', 'Öl'),
    class_colors=((0, 128, 0), (9, 9, 9)),
    raw_labels=(RawLabel('grass', 3, (0, 128, 0), 0), RawLabel('Öl', 200, (9, 9, 9), 1)),
)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path)
    return str(path)


def write_cityscapes(root):
    """Random content, so that no two files are alike."""
    rng = np.random.default_rng(0)
    for part, count in COUNTS.items():
        for i in range(count):
            city = 'aachen' if i < 2 else 'Bad Kösen'
            stem = f'{part}/{city}/{city}_{i:06}_000019'
            write(root / f'leftImg8bit/{stem}_leftImg8bit.png', rng.integers(0, 256, (*SIZE, 3), np.uint8))
            if part != 'test':
                write(root / f'gtFine/{stem}_gtFine_labelIds.png', rng.integers(0, 34, SIZE, np.uint8))
    return root


def cityscapes_splits(root, parts=('train', 'val')):
    return {part: load_cityscapes(str(root), part) for part in parts}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return write_cityscapes(tmp_path_factory.mktemp('unpacked') / 'Städte & more #1')


@pytest.fixture(scope='module')
def tfds_dir(root, tmp_path_factory):
    """A copy in several shards, in whose making TFDS took examples out of memory."""
    folder = tmp_path_factory.mktemp('copies') / 'Kopien #2'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_utils.ShardConfig, 'min_shard_size', 1)
        patch.setattr(shuffle, 'MAX_MEM_BUFFER_SIZE', 1)
        patch.setattr(tfds_builders, '_RUNS', 3)
        prepare(cityscapes_splits(root), str(folder))
    return folder


@pytest.fixture
def own_copy(tfds_dir, tmp_path):
    """A copy of the copy, to change."""
    shutil.copytree(tfds_dir, tmp_path / 'tfds')
    return tmp_path / 'tfds'


def stored(dataset, path):
    with dataset.storage.open(path) as file:
        return file.read()


def encoded(dataset):
    return [
        tuple(stored(dataset, paths[i]) for paths in (dataset.image_paths, dataset.label_paths))
        for i in range(len(dataset))
    ]


def assert_decodes_equally(actual, expected):
    assert len(actual) == len(expected)
    for i in range(len(expected)):
        for one, other in zip(read_example(actual, i), read_example(expected, i)):
            np.testing.assert_array_equal(one, other)


def read_by_tfds_alone(directory, split):
    examples = tfds.as_numpy(tfds.builder_from_directory(directory).as_dataset(split=split))
    return [(example['id'].decode(), example['image'], example['label']) for example in examples]


def error_line(function, *args):
    with pytest.raises(DataError) as error:
        function(*args)
    assert '\n' not in str(error.value)
    return str(error.value)


def shards(folder, part='train'):
    return sorted(folder.glob(f'**/*-{part}.*-of-*'))


def test_copy_has_the_same_bytes_in_the_same_order(root, tfds_dir):
    assert len(shards(tfds_dir)) > 1
    assert os.listdir(tfds_dir) == ['atonet_cityscapes']
    for split in ('train', 'val', 'train+val', 'val+train'):
        copy, source = load_tfds(str(tfds_dir), 'cityscapes', split), load_cityscapes(str(root), split)
        assert encoded(copy) == encoded(source)
        assert_decodes_equally(copy, source)
        assert (copy.name, copy.split, copy.class_table) == (source.name, source.split, source.class_table)
        verify(copy)


def test_tfds_alone_reads_the_same_pixels(root, tfds_dir):
    source = load_cityscapes(str(root), 'train')
    examples = read_by_tfds_alone(tfds_dir / 'atonet_cityscapes/1.0.0', 'train')
    assert [name for name, _, _ in examples] == [
        os.path.relpath(path, root / 'leftImg8bit/train') for path in source.image_paths
    ]
    for (_, image, label), image_path, label_path in zip(examples, source.image_paths, source.label_paths):
        np.testing.assert_array_equal(image, PIL.Image.open(image_path))
        np.testing.assert_array_equal(label[..., 0], PIL.Image.open(label_path))


@pytest.mark.parametrize('palette', [False, True])
def test_labels_of_colors(tmp_path, palette):
    raw_ids = np.arange(32, dtype=np.uint8).reshape(4, 8)
    colors = np.array([label.color for label in CAMVID.raw_labels], np.uint8)
    label = PIL.Image.fromarray(colors[raw_ids])
    if palette:
        label = PIL.Image.fromarray(31 - raw_ids)
        label.putpalette(colors[::-1].ravel().tolist())
    for folder in ('images', 'labels'):
        (tmp_path / folder).mkdir()
    for i in range(3):
        name = f'0001TP_00669{i}.png'
        PIL.Image.fromarray(np.full((4, 8, 3), i, np.uint8)).save(tmp_path / 'images' / name)
        label.save(tmp_path / 'labels' / name)
    source = load_camvid(str(tmp_path), 'train')
    directory = prepare({'train': source}, str(tmp_path / 'tfds'))
    copy = load_tfds(str(tmp_path / 'tfds'), 'camvid', 'train')
    assert source.reading.by_color == copy.reading.by_color == set(KINDS)
    assert encoded(copy) == encoded(source)
    assert_decodes_equally(copy, source)
    assert len(copy) == 3
    for _, _, pixels in read_by_tfds_alone(directory, 'train'):
        np.testing.assert_array_equal(pixels, colors[raw_ids])


def test_jpeg_images_and_palette_labels_of_own_classes(tmp_path):
    rng = np.random.default_rng(0)
    image_paths, label_paths, values = [], [], []
    for i in range(3):
        values.append(rng.choice(np.array([3, 200, 255], np.uint8), SIZE))
        label = PIL.Image.fromarray(values[-1]).convert('P')
        label.putpalette(rng.integers(0, 256, 768, np.uint8).tolist())
        label_paths.append(str(tmp_path / f'{i}.png'))
        label.save(label_paths[-1])
        image_paths.append(write(tmp_path / f'{i}.jpg', rng.integers(0, 256, (*SIZE, 3), np.uint8)))
    source = SegmentationDataset('folder', 'val', OWN_TABLE, tuple(image_paths), tuple(label_paths))
    directory = prepare({'val': source}, str(tmp_path / 'tfds'))
    copy = load_tfds(str(tmp_path / 'tfds'), 'folder', 'val')
    assert [image for image, _ in encoded(copy)] == [image for image, _ in encoded(source)]
    assert_decodes_equally(copy, source)
    assert copy.class_table == read_class_table(str(tmp_path / 'tfds'), 'folder') == OWN_TABLE
    for (_, image, label), path, expected in zip(read_by_tfds_alone(directory, 'val'), image_paths, values):
        np.testing.assert_array_equal(image, tf.io.decode_image(tf.io.read_file(path)))
        np.testing.assert_array_equal(label[..., 0], expected)


def test_label_files_of_many_kinds_become_pngs_of_numbers(tmp_path):
    """TensorFlow would read the first four otherwise, or not at all."""
    numbers = np.random.default_rng(0).choice(np.array([3, 200, 255]), SIZE)
    colors = np.zeros((256, 3), np.uint8)
    colors[[3, 200, 255]] = (0, 128, 0), (9, 9, 9), (9, 9, 9)
    colored = np.where((numbers == 255)[..., None], (0, 128, 0), colors[numbers])
    labels = [numbers.astype(np.uint16), numbers.astype(np.uint8), numbers.astype(np.uint8), colored.astype(np.uint8)]
    image = write(tmp_path / 'image.png', np.zeros((*SIZE, 3), np.uint8))
    label_paths = [write(tmp_path / f'{i}{end}', labels[i]) for i, end in enumerate(('.png', '.bmp', '.tif', 'c.png'))]
    source = SegmentationDataset(
        'folder', 'val', OWN_TABLE, (image,) * 4, tuple(label_paths), LabelReading(frozenset({'rgb'}))
    )
    directory = prepare({'val': source}, str(tmp_path / 'tfds'))
    copy = load_tfds(str(tmp_path / 'tfds'), 'folder', 'val')
    assert_decodes_equally(copy, source)
    assert not copy.reading.by_color and (read_example(copy, 0)[1] == IGNORE_LABEL).any()
    for (_, _, pixels), expected in zip(read_by_tfds_alone(directory, 'val'), [numbers] * 3 + [colored[..., 1]]):
        expected = np.where(expected == 128, 3, np.where(expected == 9, 200, expected))
        np.testing.assert_array_equal(pixels[..., 0], expected)


def test_a_split_of_colors_beside_one_of_numbers_becomes_numbers(tmp_path):
    image = write(tmp_path / 'image.png', np.zeros((*SIZE, 3), np.uint8))
    of_table = [(label.raw_id, label.color) for label in OWN_TABLE.raw_labels]
    places = np.indices(SIZE).sum(0) % 2
    numbers, colors = (np.array(values, np.uint8)[places] for values in zip(*of_table))
    splits = {}
    for part, pixels, kinds in (('train', numbers, frozenset()), ('val', colors, frozenset(KINDS))):
        label = write(tmp_path / f'{part}.png', pixels)
        splits[part] = SegmentationDataset('folder', part, OWN_TABLE, (image,), (label,), LabelReading(kinds))
    prepare(splits, str(tmp_path / 'tfds'))
    for part, source in splits.items():
        assert_decodes_equally(load_tfds(str(tmp_path / 'tfds'), 'folder', part), source)


def test_a_bmp_of_colors_becomes_a_png(tmp_path):
    colors = np.array([label.color for label in OWN_TABLE.raw_labels], np.uint8)
    path = write(tmp_path / '0.bmp', colors[np.indices(SIZE).sum(0) % 2])
    image = write(tmp_path / 'image.png', np.zeros((*SIZE, 3), np.uint8))
    source = SegmentationDataset('folder', 'val', OWN_TABLE, (image,), (path,), LabelReading(frozenset(KINDS)))
    prepare({'val': source}, str(tmp_path / 'tfds'))
    copy = load_tfds(str(tmp_path / 'tfds'), 'folder', 'val')
    assert encoded(copy)[0][1].startswith(b'\x89PNG')
    assert_decodes_equally(copy, source)


def test_splits_whose_label_values_differ_are_kept_apart(tmp_path):
    write_cityscapes(tmp_path)
    for path in (tmp_path / 'gtFine/val').glob('*/*'):
        write(path.with_name(path.name.replace('labelIds', 'labelTrainIds')), np.full(SIZE, 18, np.uint8))
        path.unlink()
    splits = cityscapes_splits(tmp_path)
    prepare(splits, str(tmp_path / 'tfds'))
    for part, source in splits.items():
        assert_decodes_equally(load_tfds(str(tmp_path / 'tfds'), 'cityscapes', part), source)
    assert 'mean different things' in error_line(load_tfds, str(tmp_path / 'tfds'), 'cityscapes', 'train+val')


def test_class_table_is_read_without_tensorflow(tfds_dir):
    code = (
        'import sys; from atonet_jax.data.tfds_copy import read_class_table; '
        "print(read_class_table(sys.argv[1], 'cityscapes').num_classes, 'tensorflow' in sys.modules)"
    )
    repository = pathlib.Path(tfds_copy.__file__).parents[2]
    command = [sys.executable, '-c', code, str(tfds_dir)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout == '19 False\n'


class StockCityscapes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes what TFDS's own Cityscapes builder does, of small images."""

    name = 'cityscapes'
    code_path = None
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, version='1.0.0')
        for name in ('semantic_segmentation', 'semantic_segmentation_extra')
    ]

    def __init__(self, splits, **options):
        self._splits = splits
        super().__init__(**options)

    def _info(self):
        features = {
            'image_id': tfds.features.Text(),
            'image_left': tfds.features.Image(shape=(*SIZE, 3), encoding_format='png'),
            'segmentation_label': tfds.features.Image(shape=(*SIZE, 1), encoding_format='png', use_colormap=True),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(dataset) for split, dataset in self._splits.items()}

    def _generate_examples(self, dataset):
        for image, label in zip(dataset.image_paths, dataset.label_paths):
            name = os.path.basename(image).removesuffix('_leftImg8bit.png')
            yield name, {'image_id': name, 'image_left': image, 'segmentation_label': label}


def write_stock(folder, config, splits, file_format):
    builder = StockCityscapes(splits, data_dir=str(folder), config=config, file_format=file_format)
    builder.download_and_prepare(
        download_dir=str(folder / 'downloads'), download_config=tfds.download.DownloadConfig(num_shards=2)
    )
    return builder.data_dir


@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
def test_stock_cityscapes(root, tmp_path, file_format):
    source = cityscapes_splits(root)
    directory = write_stock(
        tmp_path, 'semantic_segmentation', {'train': source['train'], 'validation': source['val']}, file_format
    )
    write_stock(tmp_path, 'semantic_segmentation_extra', {'train_extra': source['val']}, file_format)
    assert len(shards(tmp_path)) == 2
    for split, expected in (
        ('train', encoded(source['train'])),
        ('val', encoded(source['val'])),
        ('train+val', encoded(source['train']) + encoded(source['val'])),
        ('val+train_extra', encoded(source['val']) * 2),
    ):
        copy = load_tfds(str(tmp_path), 'cityscapes', split)
        assert sorted(encoded(copy)) == sorted(expected)  # TFDS shuffles when it prepares
        verify(copy)
    assert len(load_tfds(directory, 'cityscapes', 'train')) == COUNTS['train']
    assert read_class_table(str(tmp_path), 'cityscapes') == CITYSCAPES
    known = error_line(load_tfds, str(tmp_path), 'cityscapes', 'test')
    assert "unknown split 'test'; known are train, val, train_extra" in known

    shard = shards(tmp_path)[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    assert str(shard) in error_line(load_tfds, str(tmp_path), 'cityscapes', 'train')


def test_examples_are_read_from_many_threads(root, tfds_dir):
    source, copy = load_cityscapes(str(root), 'train'), load_tfds(str(tfds_dir), 'cityscapes', 'train')
    expected = [read_example(source, i) for i in range(len(source))]
    order = np.random.default_rng(0).integers(0, len(source), 400)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for i, example in zip(order, pool.map(lambda i: read_example(copy, i), order)):
            for one, other in zip(example, expected[i]):
                np.testing.assert_array_equal(one, other)


def test_a_record_is_read_once_for_image_and_label_whatever_other_threads_read(tfds_dir, monkeypatch):
    copy = load_tfds(str(tfds_dir), 'cityscapes', 'train')
    read, reads = tfds_records._TFRecordShard.read, []
    monkeypatch.setattr(tfds_records._TFRecordShard, 'read', lambda self, i: reads.append(i) or read(self, i))
    with concurrent.futures.ThreadPoolExecutor(1) as one, concurrent.futures.ThreadPoolExecutor(1) as other:
        for paths in (copy.image_paths, copy.label_paths):
            for i, thread in enumerate((one, other)):
                thread.submit(copy.storage.open, paths[i]).result()
    assert len(reads) == 2


def test_fingerprint_changes_with_the_file(own_copy):
    first, again = (load_tfds(str(own_copy), 'cityscapes', 'train') for _ in range(2))
    assert first.fingerprint(0) == again.fingerprint(0) != first.fingerprint(1)
    os.utime(shards(own_copy)[0], (1, 1))
    assert load_tfds(str(own_copy), 'cityscapes', 'train').fingerprint(0) != first.fingerprint(0)


def cut_off(shard):
    shard.write_bytes(shard.read_bytes()[:-1])


def cut_at_header(shard):
    shard.write_bytes(shard.read_bytes() + b'12345')


def damage_length(shard):
    shard.write_bytes(b'\1' + shard.read_bytes()[1:])


def drop_a_record(shard):
    content = shard.read_bytes()
    shard.write_bytes(content[int.from_bytes(content[:8], 'little') + 16 :])


@pytest.mark.parametrize('damage', [cut_off, cut_at_header, damage_length, drop_a_record, os.remove])
def test_damaged_shard_is_named_before_anything_is_read(own_copy, damage):
    shard = shards(own_copy)[1]
    damage(shard)
    line = error_line(load_tfds, str(own_copy), 'cityscapes', 'train')
    assert line.startswith(str(shard)) and line.endswith('copy or prepare it anew')
    load_tfds(str(own_copy), 'cityscapes', 'val')


def test_shard_that_is_damaged_later_is_named(own_copy):
    dataset = load_tfds(str(own_copy), 'cityscapes', 'train')
    shard = shards(own_copy)[0]
    shard.write_bytes(bytes([255]) * shard.stat().st_size)
    assert error_line(read_example, dataset, 0).startswith(f'{shard}#0: cannot be read')
    assert 'no such record' in error_line(dataset.storage.open, str(shard))
    assert 'no such record' in error_line(dataset.storage.open, f'{shard}#99/image')


def test_missing_copy_says_how_to_make_it(tmp_path):
    line = error_line(load_tfds, str(tmp_path / 'no'), 'camvid', 'train')
    assert 'atonet_camvid/<version>' in line
    assert f'--mode=prepare --config.data.tfds_dir={tmp_path / "no"}' in line
    assert 'cityscapes/semantic_segmentation/<version>' in error_line(read_class_table, str(tmp_path), 'cityscapes')


def test_version_directory_itself_and_the_highest_of_several(own_copy):
    versions = own_copy / 'atonet_cityscapes'
    for version in ('1.9.0', '1.10.0'):
        shutil.copytree(versions / '1.0.0', versions / version)
    (versions / '2.0.0').mkdir()
    (versions / 'incomplete.ABC_3.0.0').mkdir()
    assert '/1.10.0/' in load_tfds(str(own_copy), 'cityscapes', 'train').image_paths[0]
    assert '/1.9.0/' in load_tfds(str(versions / '1.9.0'), 'cityscapes', 'train').image_paths[0]
    assert 'no TFDS copy of camvid' in error_line(load_tfds, str(versions / '1.9.0'), 'camvid', 'train')
    (versions / '1.9.0/metadata.json').unlink()
    assert 'neither' in error_line(load_tfds, str(versions / '1.9.0'), 'cityscapes', 'train')
    (versions / '1.10.0/dataset_info.json').write_text('no')
    assert 'cannot be read' in error_line(load_tfds, str(own_copy), 'cityscapes', 'train')


@pytest.mark.parametrize('split', ['test', 'trainval', 'train+', 'train+train'])
def test_split_that_is_not_there(tfds_dir, split):
    assert error_line(load_tfds, str(tfds_dir), 'cityscapes', split).startswith(f'{tfds_dir}: ')


def test_preparing_again_changes_nothing(root, own_copy, capfd):
    def state():
        return {path: path.stat().st_mtime_ns for path in own_copy.rglob('*')}

    before = state()
    for parts in (('train', 'val', 'test'), ('val',)):
        directory = prepare(cityscapes_splits(root, parts), str(own_copy))
        assert directory == str(own_copy / 'atonet_cityscapes/1.0.0')
    assert state() == before
    assert capfd.readouterr() == ('', '')


def change_label(splits, root):
    path = pathlib.Path(splits['val'].label_paths[2])
    content = bytearray(path.read_bytes())
    content[-20] ^= 1  # of the same size
    path.write_bytes(content)
    return splits


def swap_examples(splits, root):
    train = splits['train']
    swapped = {name: getattr(train, name)[::-1] for name in ('image_paths', 'label_paths')}
    return splits | {'train': dataclasses.replace(train, **swapped)}


def add_split(splits, root):
    return splits | {'train_extra': splits['val']}


def change_classes(splits, root):
    table = dataclasses.replace(CITYSCAPES, class_names=('street', *CITYSCAPES.class_names[1:]))
    return {part: dataclasses.replace(dataset, class_table=table) for part, dataset in splits.items()}


@pytest.mark.parametrize(
    ('change', 'what'),
    [
        (change_label, "other examples in split 'val'"),
        (swap_examples, "other examples in split 'train'"),
        (add_split, "no split 'train_extra'"),
        (change_classes, 'other classes'),
    ],
)
def test_copy_of_other_data_is_not_replaced(root, own_copy, tmp_path, change, what):
    changed = shutil.copytree(root, tmp_path / 'changed')
    splits = cityscapes_splits(changed)
    prepare(splits, str(own_copy))  # the same examples in another folder
    line = error_line(prepare, change(splits, changed), str(own_copy))
    assert what in line and line.endswith('delete it or choose another config.data.tfds_dir')


class Interrupted(LocalFiles):
    def __init__(self, path, error):
        self._path, self._error = path, error

    def open(self, path):
        if path == self._path:
            raise self._error
        return super().open(path)


@pytest.mark.parametrize('error', [DataError('label.png: no such file'), KeyboardInterrupt()])
def test_interrupted_preparation_leaves_no_copy(root, tmp_path, error, capfd):
    splits = cityscapes_splits(root)
    broken = dataclasses.replace(splits['val'], storage=Interrupted(splits['val'].label_paths[1], error))
    with pytest.raises(type(error)) as raised:
        prepare(splits | {'val': broken}, str(tmp_path))
    assert raised.value is error
    assert 'holds no TFDS copy' in error_line(load_tfds, str(tmp_path), 'cityscapes', 'train')
    prepare(splits, str(tmp_path))
    assert_decodes_equally(load_tfds(str(tmp_path), 'cityscapes', 'val'), splits['val'])
    assert capfd.readouterr() == ('', '')


def test_what_cannot_be_prepared(root, tmp_path, caplog):
    splits = cityscapes_splits(root, ('val', 'test'))
    assert 'none of the splits test has labels' in error_line(prepare, {'test': splits['test']}, str(tmp_path))
    assert 'cityscapes test: has no labels and is left out' in caplog.text
    other = dataclasses.replace(splits['val'], class_table=OWN_TABLE)
    assert 'prepare them in different folders' in error_line(prepare, splits | {'train': other}, str(tmp_path))
    other = {'val': dataclasses.replace(splits['val'], name='mine')}
    assert "'mine': only cityscapes, camvid" in error_line(prepare, other, str(tmp_path))
    (tmp_path / 'file').write_text('')
    assert 'cannot be written' in error_line(prepare, {'val': splits['val']}, str(tmp_path / 'file'))


def test_unusable_examples_are_left_out(root, tmp_path):
    source = load_cityscapes(str(root), 'val')
    source = dataclasses.replace(source, unusable={1: DataError('bad')})
    prepare({'val': source}, str(tmp_path))
    expected = encoded(source)
    assert encoded(load_tfds(str(tmp_path), 'cityscapes', 'val')) == [expected[0], expected[2]]
    prepare({'val': source}, str(tmp_path))


def test_training_batches_from_a_copy_are_those_from_the_folder(root, tfds_dir):
    from atonet_jax.data.pipeline import train_batches

    datasets = load_cityscapes(str(root), 'train'), load_tfds(str(tfds_dir), 'cityscapes', 'train')
    options = dict(batch_size=4, augmentation=Augmentation((8, 8), (0.8, 1.5)), seed=0, start_sample=4, num_steps=3)
    for batch, expected in zip(*(train_batches(Examples(dataset), **options) for dataset in datasets), strict=True):
        for name in expected:
            np.testing.assert_array_equal(batch[name], expected[name])


def test_a_part_that_tfds_cannot_name(root, tmp_path):
    message = error_line(prepare, {'all': load_cityscapes(str(root), 'val')}, str(tmp_path / 'copy'))
    assert message.startswith("'all': TFDS keeps this name")


def test_preparing_finds_damage_and_may_leave_it_out(root, tmp_path):
    data = default_config().data
    data.update(name='cityscapes', root=str(tmp_path / 'data'), train_split='train', eval_split='val')
    data.tfds_dir = str(tmp_path / 'copy')
    shutil.copytree(root, data.root)
    damaged = load_cityscapes(data.root, 'train').image_paths[0]
    content = bytearray(pathlib.Path(damaged).read_bytes())
    content[len(content) // 2] ^= 0xFF
    pathlib.Path(damaged).write_bytes(content)
    assert f'{damaged}: cannot be decoded' in error_line(prepare_copy, data)
    data.on_corrupt = 'skip'
    prepare_copy(data)
    assert len(load_tfds(data.tfds_dir, 'cityscapes', 'train')) == len(load_cityscapes(data.root, 'train')) - 1
