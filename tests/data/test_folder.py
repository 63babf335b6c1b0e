"""Anyone's folders become pairs by name, with their own classes."""

import errno
import os
import unicodedata

import numpy as np
import PIL.Image
import pytest

from atonet_jax.check_data.inspection import inspect_split
from atonet_jax.config import default_config
from atonet_jax.data.dataset import DataError
from atonet_jax.data.decode import read_example
from atonet_jax.data.sources import class_table, load_dataset, load_examples
from atonet_jax.data.split_list import read_split_list
from atonet_jax.data.verify import verify

SIZE = (4, 6)
CLASSES = 'name,color,value\nroad,#804080,3\ncar,#00008e,9\n'


def write(root, path, array):
    path = root / path
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.asarray(array, np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    """Two examples in train, in folders of their own, and one in val; images are PNG and JPEG."""
    root = tmp_path / 'meine Bilder 写真'
    for name in ('train/a/first', 'train/b c/second'):
        write(root, f'images/{name}.jpg' if 'first' in name else f'images/{name}.PNG', np.zeros((*SIZE, 3)))
        write(root, f'labels/{name}.png', np.full(SIZE, 9))
    write(root, 'images/val/third.png', np.zeros((*SIZE, 3)))
    write(root, 'labels/val/third.png', np.full(SIZE, 3))
    (root / 'classes.csv').write_text(CLASSES)
    return root


def load(root, split='train', **options):
    data = default_config().data
    data.update(name='folder', root=str(root))
    data.folder.update({'classes': 'classes.csv'} | options)
    return load_dataset(data, split)


def load_error(root, split='train', **options):
    with pytest.raises(DataError) as raised:
        verify(load(root, split, **options))
    assert '\n' not in str(raised.value)
    return str(raised.value)


def test_pairs_by_path_below_the_folders(root):
    dataset = verify(load(root))
    names = [path.removeprefix(f'{root}/images/train/') for path in dataset.image_paths]
    assert names == ['a/first.jpg', 'b c/second.PNG']
    assert dataset.class_table.class_names == ('road', 'car')
    assert (read_example(dataset, 1)[1] == 1).all()
    assert [read_example(load(root, 'train+val'), i)[1][0, 0] for i in range(3)] == [1, 1, 0]


def test_what_is_known_of_a_split_of_many_parts_is_remembered(root, tmp_path, caplog):
    """File systems take no names of more than 255 bytes."""
    parts = [f'recorded by day {i:02}' for i in range(15)]
    for part in parts:
        write(root, f'images/{part}/{part}.png', np.zeros((*SIZE, 3)))
        write(root, f'labels/{part}/{part}.png', np.full(SIZE, 3))
    data = default_config().data
    data.update(name='folder', root=str(root), cache='none')
    data.folder.classes = 'classes.csv'
    for count in (14, 15):
        assert len(load_examples(data, '+'.join(parts[:count]), str(tmp_path / 'run'))) == count
    assert len(list((tmp_path / 'run').glob('verified_*.json'))) == 2
    assert 'cannot be written' not in caplog.text


def test_images_of_rarer_formats_are_those_that_have_labels(root, caplog):
    """Such as a scan, and not a film camera's original beside its JPEG or the overview of a folder."""
    for name in ('train/scan.tif', 'train/a/first.bmp', 'train/overview.gif'):
        write(root, f'images/{name}', np.full((*SIZE, 3), 7))
    write(root, 'labels/train/scan.png', np.full(SIZE, 3))
    dataset = verify(load(root))
    names = [path.removeprefix(f'{root}/images/train/') for path in dataset.image_paths]
    assert names == ['a/first.jpg', 'b c/second.PNG', 'scan.tif']
    assert (read_example(dataset, 2)[0] == 7).all()
    assert f'passed over 1 files without labels that are neither PNG nor JPEG, such as {root}' in caplog.text


def test_suffixes_are_no_part_of_the_name(root):
    write(root, 'flat/one_rgb.png', np.zeros((*SIZE, 3)))
    write(root, 'flat/one_mask.png', np.full(SIZE, 3))
    options = dict(images='flat', labels='flat', image_suffix='_rgb', label_suffix='_mask')
    dataset = verify(load(root, **options))
    assert len(dataset) == 1 and dataset.label_paths[0].endswith('flat/one_mask.png')


@pytest.mark.parametrize(
    ('image', 'label', 'options'),
    [
        ('flat/{}.jpg', 'flat/{}.png', {}),
        ('flat/{}.jpg', 'flat/{}_mask.png', {'label_suffix': '_mask'}),
        ('flat/{}.png', 'flat/{}_mask.png', {'label_suffix': '_mask'}),
        ('flat/{}_rgb.png', 'flat/{}.png', {'image_suffix': '_rgb'}),
        ('flat/{}.png', 'flat/masks/{}.png', {'labels': 'flat/masks', 'images': 'flat/.'}),
    ],
)
def test_images_and_labels_may_share_a_folder(root, image, label, options):
    options = {'images': 'flat', 'labels': 'flat'} | options
    for name in ('one', 'two'):
        write(root, image.format(name), np.zeros((*SIZE, 3)))
        write(root, label.format(name), np.full(SIZE, 3))
    dataset = verify(load(root, **options))
    assert dataset.image_paths == tuple(f'{root}/{image.format(name)}' for name in ('one', 'two'))
    assert dataset.label_paths == tuple(f'{root}/{label.format(name)}' for name in ('one', 'two'))
    for missing in (image, label):
        (root / missing.format('two')).rename(root / 'away')
        message = load_error(root, **options)
        assert 'two' in message and (
            'no such file; every image needs its label' in message or 'add the other' in message
        )
        (root / 'away').rename(root / missing.format('two'))


@pytest.mark.parametrize('forms', [('NFC', 'NFD'), ('NFD', 'NFC')])
def test_accents_are_one_letter_however_files_and_lists_write_them(root, forms):
    """As copies from macOS have them."""
    image, label = (unicodedata.normalize(form, 'Zürich') for form in forms)
    write(root, f'images/val/{image}/é.png', np.zeros((*SIZE, 3)))
    write(root, f'labels/val/{label}/é.png', np.full(SIZE, 3))
    assert len(verify(load(root, 'val'))) == 2
    for form in forms:
        (root / 'val.txt').write_text(unicodedata.normalize(form, 'Zürich/é.png\n'))
        dataset = verify(load(root, 'val', list='{split}.txt'))
        assert dataset.image_paths == (f'{root}/images/val/{image}/é.png',)


def test_a_list_chooses_and_orders(root):
    (root / 'my list.txt').write_bytes(b'\xef\xbb\xbfb c\\second.PNG\r\na/first.jpg\r\n\r\n')
    dataset = verify(load(root, list='my list.txt'))
    assert [path.rsplit('/')[-1] for path in dataset.image_paths] == ['second.PNG', 'first.jpg']

    (root / 'my list.txt').write_text('a/first\nc/none\n')
    named = f"{root}/my list.txt: names 'c/none', which is not below {root}/images/train; write one image name a line"
    assert load_error(root, list='my list.txt') == named
    assert list(verify(load(root, list='my list.txt'), on_corrupt='skip').unusable) == [1]
    assert inspect_split(load(root, list='my list.txt')).failures == {'missing file': [named]}
    (root / 'my list.txt').write_text('\n')
    assert 'my list.txt: names no images' in load_error(root, list='my list.txt')
    (root / 'my list.txt').write_text('a/first\na/first\n')
    assert 'a/first is there more than once' in load_error(root, list='my list.txt')
    assert 'train.txt: cannot be read (No such file or directory)' in load_error(root, list='{split}.txt')


@pytest.mark.parametrize('line', ['images/train/{}.JPG labels/train/{}.png', '{root}/images/train/{}.png', '{}.png'])
def test_a_list_may_name_images_from_the_root(root, line):
    for name in ('images/fourth', 'fifth'):
        write(root, f'images/train/{name}.png', np.zeros((*SIZE, 3)))
        write(root, f'labels/train/{name}.png', np.full(SIZE, 3))
        (root / 'train.txt').write_text(line.replace('{root}', str(root)).replace('{}', name))
        dataset = verify(load(root, list='{split}.txt'))
        assert dataset.image_paths == (f'{root}/images/train/{name}.png',)


@pytest.mark.parametrize('line', ['a/first.jpg,first.png', '# images of the first day'])
def test_a_line_of_a_list_that_is_no_image_is_named(root, line):
    (root / 'train.txt').write_text(f'{line}\nb c/second.PNG\n')
    assert f"/train.txt: names '{line}', which is not below " in load_error(root, list='{split}.txt')
    options = {'images': 'images/train', 'labels': 'images/train', 'list': '{split}.txt'}
    assert f"/train.txt: names '{line}', which is not below " in load_error(root, **options)


def test_colour_labels(root):
    for name, color in (('a/first', (128, 64, 128)), ('b c/second', (0, 0, 142))):
        write(root, f'labels/train/{name}.png', np.full((*SIZE, 3), color))
    dataset = verify(load(root))
    assert [read_example(dataset, i)[1][0, 0] for i in range(2)] == [0, 1]

    write(root, 'labels/train/a/first.png', np.full((*SIZE, 3), (1, 2, 3)))
    assert 'a/first.png: colour (1, 2, 3) (24 pixels), but known are the 2 colours of the folder' in load_error(root)


def test_colour_of_two_classes_is_refused_where_labels_are_colours(root):
    (root / 'classes.csv').write_text('name,color\nroad,#804080\nlane,#804080\n')
    load(root)
    for name in ('a/first', 'b c/second'):
        write(root, f'labels/train/{name}.png', np.full((*SIZE, 3), (128, 64, 128)))
    assert "'road' and 'lane' both have the colour (128, 64, 128)" in load_error(root)


def test_what_is_missing_is_named(root):
    assert 'images/test: no such folder; config.data.folder.images says where' in load_error(root, 'test')
    (root / 'labels/train/a/first.png').unlink()
    assert 'labels/train/a/first.png: no such file; every image needs its label' in load_error(root)
    (root / 'images/val/third.png').unlink()
    assert 'images/val: holds no images' in load_error(root, 'val')


def test_two_files_of_one_name_are_refused(root):
    write(root, 'images/train/a/first.png', np.zeros((*SIZE, 3)))
    assert 'has the same name as' in load_error(root)


def test_links_are_followed_and_do_not_lead_back(root):
    (root / 'images/train/a/back').symlink_to(root / 'images/train')
    (root / 'images/elsewhere').mkdir()
    write(root, 'images/elsewhere/fourth.png', np.zeros((*SIZE, 3)))
    write(root, 'labels/train/linked/fourth.png', np.full(SIZE, 3))
    (root / 'images/train/linked').symlink_to(root / 'images/elsewhere')
    assert len(verify(load(root))) == 3


def test_a_folder_that_two_links_lead_to_counts_under_both_names(root):
    for kind, pixels in (('images', np.zeros((*SIZE, 3))), ('labels', np.full(SIZE, 3))):
        write(root, f'{kind}/shared/fourth.png', pixels)
        for link in ('monday', 'tuesday'):
            (root / kind / 'train' / link).symlink_to(root / kind / 'shared')
    names = [path.removeprefix(f'{root}/images/train/') for path in verify(load(root)).image_paths]
    assert names == ['a/first.jpg', 'b c/second.PNG', 'monday/fourth.png', 'tuesday/fourth.png']


def test_links_through_another_folder_do_not_lead_back(root):
    (root / 'elsewhere').mkdir()
    (root / 'elsewhere/back').symlink_to(root / 'images/train')
    (root / 'images/train/away').symlink_to(root / 'elsewhere')
    assert len(verify(load(root))) == 2


@pytest.mark.parametrize('folder', ['images/train', 'images/train/a', 'labels/train/b c'])
def test_a_folder_that_cannot_be_read_is_named(root, monkeypatch, folder):
    """Who runs the tests may read everything."""
    scandir = os.scandir

    def refuse(path):
        if path == str(root / folder):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    assert load_error(root) == f'{root}/{folder}: cannot be read (Permission denied); check its permissions'


def test_class_table_is_that_of_the_file(root):
    data = default_config().data
    data.update(name='folder', root=str(root))
    with pytest.raises(DataError, match='classes.json: class file cannot be read'):
        class_table(data)
    data.folder.classes = 'classes.csv'
    assert class_table(data).num_classes == 2


@pytest.mark.parametrize('split', ['train+', '+train', '', 'train+train'])
def test_a_part_is_named_and_named_once(root, split):
    message = load_error(root, split)
    assert 'names a part twice' in message if split == 'train+train' else 'has an empty part' in message


def test_what_values_mean_is_asked_of_a_label_file_that_can_be_read(root):
    for i, name in enumerate(('a/first', 'b c/second')):
        write(root, f'labels/train/{name}.png', np.full((*SIZE, 3), (0, 0, 142)))
        if i == 0:
            (root / f'labels/train/{name}.png').write_bytes(b'')
    assert load(root).reading.by_color
    assert 'labels/train/a/first.png: cannot be decoded' in load_error(root)
    assert list(verify(load(root), on_corrupt='skip').unusable) == [0]


@pytest.mark.parametrize('void_first', [False, True])
def test_a_palette_made_for_the_classes_is_read_by_index(root, void_first):
    """As in Pascal VOC, whose void of 255 has a colour that is no class's."""
    palette = np.zeros((256, 3), np.uint8)
    palette[[3, 9, 255]] = (128, 64, 128), (0, 0, 142), (224, 224, 192)
    for name, void in (('a/first', void_first), ('b c/second', not void_first)):
        label = PIL.Image.fromarray(np.array([[3, 9], [9, 255 if void else 3]], np.uint8).repeat(2, 0).repeat(3, 1))
        label.putpalette(palette.ravel().tolist())
        label.save(root / f'labels/train/{name}.png')
    dataset = verify(load(root))
    assert not dataset.reading.by_color
    corners = [read_example(dataset, i)[1][-1, -1] for i in range(2)]
    assert corners == ([255, 0] if void_first else [0, 255])


def test_a_palette_of_the_classes_colours_in_another_order_is_read_by_colour(root):
    for name in ('a/first', 'b c/second'):
        label = PIL.Image.fromarray(np.zeros(SIZE, np.uint8))
        label.putpalette([0, 0, 142, 128, 64, 128])
        label.save(root / f'labels/train/{name}.png')
    dataset = verify(load(root))
    assert dataset.reading.by_color and (read_example(dataset, 0)[1] == 1).all()


def test_a_list_with_a_name_with_and_without_extension_names_it_twice(root):
    (root / 'train.txt').write_text('a/first\na/first.jpg\n')
    assert 'a/first is there more than once' in load_error(root, list='{split}.txt')


def test_an_image_in_the_lists_of_two_parts_is_refused(root):
    (root / 'one.txt').write_text('a/first.jpg\n')
    (root / 'two.txt').write_text('b c/second.PNG\na/first\n')
    options = {'images': 'images/train', 'labels': 'labels/train', 'list': '{split}.txt'}
    message = load_error(root, 'one+two', **options)
    assert message.startswith('split one+two: ') and 'a/first.jpg is there more than once; list each' in message
    assert len(load(root, 'two', **options)) == 2


@pytest.mark.parametrize(('ending', 'kind'), [('.bmp', 'BMP'), ('.TIF', 'TIFF'), ('.tiff', 'TIFF'), ('.gif', 'GIF')])
def test_labels_in_other_lossless_formats(root, ending, kind):
    for name in ('a/first', 'b c/second'):
        path = root / f'labels/train/{name}.png'
        PIL.Image.open(path).save(path.with_suffix(ending), kind)
        path.unlink()
    dataset = verify(load(root))
    assert [(read_example(dataset, i)[1] == 1).all() for i in range(2)] == [True, True]


def test_a_jpeg_label_is_refused_as_such_and_passed_over_beside_a_png(root):
    path = root / 'labels/train/a/first.png'
    PIL.Image.open(path).save(path.with_suffix('.jpg'))
    verify(load(root))
    path.unlink()
    assert 'a/first.jpg: label file is a JPEG file, whose compression may change class ids' in load_error(root)


def test_a_photo_of_a_phone_says_which_package_it_needs(root):
    """And not that an image is missing."""
    (root / 'images/val/phone.HEIC').write_bytes(b'\0\0\0\x18ftypheic')
    write(root, 'labels/val/phone.png', np.full(SIZE, 3))
    (root / 'val.txt').write_text('phone.HEIC\n')
    for options in ({}, {'list': '{split}.txt'}):
        error = load_error(root, 'val', **options)
        assert 'val/phone.HEIC: no image that can be read; `pip install pillow-heif`' in error


def test_hidden_files_and_folders_are_passed_over(root):
    for folder in ('images', 'labels'):
        for hidden in ('._third.png', '.ipynb_checkpoints/x.png', '__MACOSX/x.png', '@eaDir/x.png', '.DS_Store'):
            path = root / folder / 'val' / hidden
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b'\0\5\x16\7')
    (root / 'val.txt').write_text('._third.png\nthird.png\n')
    assert len(verify(load(root, 'val'))) == len(verify(load(root, 'val', list='{split}.txt'))) == 1


@pytest.mark.parametrize(
    'line',
    [
        '{}.jpg',
        '{}.jpg /elsewhere/labels/{}.png',
        '{}.jpg my labels/{}_mask.png',
        '{}.jpg {}_mask.png',
        '{}.jpg\tmask 7.png',
        '{}.jpg depth/{}.png labels/{}.png',
        '{}.jpg mask_{}.png',
        '{}.jpg 1',
    ],
)
@pytest.mark.parametrize('name', ['photo', 'photo.jpg (2)', 'a day of/photo.jpg (2) copy'])
def test_a_list_names_files_with_spaces_and_endings_in_their_names(tmp_path, line, name):
    (tmp_path / 'train.txt').write_text(f'{line.replace("{}", name)}\n')
    assert read_split_list(str(tmp_path / 'train.txt')) == [f'{name}.jpg']


def test_names_in_lists_may_end_as_labels_do(root):
    (root / 'train.txt').write_text('a/first.bmp labels/train/a/first.tif\n')
    assert len(load(root, list='{split}.txt')) == 1
