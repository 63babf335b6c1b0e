"""A label file gives the numbers or colours that it holds, at any depth and in any lossless format, or is refused."""

import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from atonet_jax.data.dataset import DataError, LabelReading, SegmentationDataset
from atonet_jax.data.label_files import KINDS, count_label_values, read_labels
from atonet_jax.data.labels import CAMVID, CITYSCAPES, IGNORE_LABEL, ClassTable, RawLabel

SIZE = (9, 14)
TABLE = ClassTable(
    name='tiny',
    class_names=('a', 'b', 'c'),
    class_colors=((0, 0, 0), (255, 0, 0), (85, 85, 85)),
    raw_labels=(
        RawLabel('a', 0, (0, 0, 0), 0),
        RawLabel('b', 1, (255, 0, 0), 1),
        RawLabel('c', 2, (85, 85, 85), 2),
        RawLabel('void', 3, None, IGNORE_LABEL),
    ),
)
NUMBERS = (np.arange(np.prod(SIZE)) % 4).reshape(SIZE).astype(np.uint8)
EXPECTED = np.array([0, 1, 2, IGNORE_LABEL], np.uint8)[NUMBERS]


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'label.png')


def dataset_of(path, by_color=(), table=TABLE, **options):
    reading = LabelReading(frozenset(by_color))
    return SegmentationDataset('tiny', 'train', table, (path,), (path,), reading, **options)


def error_of(path, by_color=()):
    with pytest.raises(DataError) as raised:
        read_labels(dataset_of(path, by_color), 0, SIZE)
    assert '\n' not in str(raised.value) and str(raised.value).startswith(f'{path}: ')
    return str(raised.value)


def save_png(path, samples, bits, color_type, palette=bytes(range(12))):
    """[H, W] or [H, W, channels] integers as a PNG of any depth."""
    samples = samples.reshape(len(samples), -1).astype(np.uint32)
    places = np.arange(bits - 1, -1, -1)
    rows = [b'\0' + np.packbits((row[:, None] >> places & 1).astype(np.uint8).ravel()).tobytes() for row in samples]
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color_type]
    header = struct.pack('>IIBBBBB', samples.shape[1] // channels, len(samples), bits, color_type, 0, 0, 0)
    palette = [(b'PLTE', palette)] if color_type == 3 and palette is not None else []
    with open(path, 'wb') as file:
        file.write(b'\x89PNG\r\n\x1a\n')
        for kind, content in ((b'IHDR', header), *palette, (b'IDAT', zlib.compress(b''.join(rows))), (b'IEND', b'')):
            chunk = kind + content
            file.write(struct.pack('>I', len(content)) + chunk + struct.pack('>I', zlib.crc32(chunk)))


@pytest.mark.parametrize(('bits', 'color_type'), [(2, 0), (4, 0), (8, 0), (16, 0), (2, 3), (4, 3), (8, 3)])
def test_samples_of_any_depth_are_the_numbers(path, bits, color_type):
    save_png(path, NUMBERS, bits, color_type)
    np.testing.assert_array_equal(read_labels(dataset_of(path), 0, SIZE), EXPECTED)


@pytest.mark.parametrize('palette', [None, b''])
def test_a_palette_that_is_missing_is_damage(path, palette):
    save_png(path, NUMBERS, 8, 3, palette)
    with pytest.raises(DataError, match=f'{path}: cannot be decoded .* replace the file'):
        read_labels(dataset_of(path), 0, SIZE)


@pytest.mark.parametrize('color_type', [0, 3])
def test_one_bit_is_two_classes(path, color_type):
    save_png(path, NUMBERS % 2, 1, color_type)
    np.testing.assert_array_equal(read_labels(dataset_of(path), 0, SIZE), NUMBERS % 2)


def test_numbers_beyond_8_bits_are_no_class(path):
    numbers = NUMBERS.astype(np.uint16)
    numbers[2, 3:5] = 256 + 1
    save_png(path, numbers, 16, 0)
    assert 'label value 257 (2 pixels), but known are 0..3, 255' in error_of(path)
    void = read_labels(dataset_of(path, unknown_as_void=0.1), 0, SIZE)
    assert (void[2, 3:5] == IGNORE_LABEL).all() and (void != EXPECTED).sum() <= 2


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize('compression', [None, 'tiff_lzw', 'tiff_adobe_deflate'])
def test_tiff(path, dtype, compression):
    PIL.Image.fromarray(NUMBERS.astype(dtype)).save(path, 'TIFF', compression=compression)
    np.testing.assert_array_equal(read_labels(dataset_of(path), 0, SIZE), EXPECTED)


@pytest.mark.parametrize('kind', ['BMP', 'GIF', 'TIFF'])
@pytest.mark.parametrize('palette', [False, True])
def test_other_lossless_formats(path, kind, palette):
    label = PIL.Image.fromarray(NUMBERS)
    if palette:
        label.putpalette([9, 8, 7, 1, 2, 3, 255, 0, 0, 4, 4, 4])
    label.save(path, kind)
    np.testing.assert_array_equal(read_labels(dataset_of(path), 0, SIZE), EXPECTED)


@pytest.mark.parametrize('mode', ['LA', 'RGB', 'RGBA'])
def test_three_equal_channels_and_alpha_are_numbers(path, mode):
    label = np.repeat(NUMBERS[..., None], len(mode), axis=2)
    if 'A' in mode:
        label[..., -1] = np.arange(SIZE[1])
    PIL.Image.fromarray(label, mode).save(path)
    np.testing.assert_array_equal(read_labels(dataset_of(path), 0, SIZE), EXPECTED)


def test_a_palette_may_have_transparency(path):
    label = PIL.Image.fromarray(NUMBERS)
    label.putpalette([0, 0, 0, 255, 0, 0, 85, 85, 85, 1, 1, 1])
    label.save(path, transparency=bytes([0, 255, 7, 0]))
    np.testing.assert_array_equal(read_labels(dataset_of(path), 0, SIZE), EXPECTED)
    PIL.Image.fromarray(NUMBERS % 3).save(path, transparency=0)
    np.testing.assert_array_equal(read_labels(dataset_of(path), 0, SIZE), NUMBERS % 3)


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'P'])
def test_colours(path, mode):
    colors = np.array([label.color for label in CAMVID.raw_labels], np.uint8)
    raw_ids = (np.arange(np.prod(SIZE)) % len(colors)).reshape(SIZE).astype(np.uint8)
    label = PIL.Image.fromarray(colors[raw_ids]).convert('RGB' if mode == 'P' else mode)
    if mode == 'P':
        label = PIL.Image.fromarray(31 - raw_ids)
        label.putpalette(colors[::-1].ravel().tolist())
    label.save(path)
    dataset = dataset_of(path, KINDS, CAMVID)
    np.testing.assert_array_equal(read_labels(dataset, 0, SIZE), CAMVID.raw_to_train[raw_ids])
    assert count_label_values(dataset, 0).known['#804080'] == (raw_ids == 17).sum()


@pytest.mark.parametrize('bits', [2, 4, 8])
def test_grey_colours(path, bits):
    save_png(path, np.where(NUMBERS % 2, 85 * (2**bits - 1) // 255, 0), bits, 0)
    np.testing.assert_array_equal(read_labels(dataset_of(path, KINDS), 0, SIZE), NUMBERS % 2 * 2)


@pytest.mark.parametrize('duplicate', [False, True])
def test_index_255_of_a_palette_is_void_unless_a_class_has_its_colour_there_alone(path, duplicate):
    label = PIL.Image.fromarray(np.where(NUMBERS == 3, 255, 0).astype(np.uint8))
    palette = np.zeros((256, 3), np.uint8)
    palette[[0, 255]] = (0, 0, 0) if duplicate else (9, 9, 9), (0, 0, 0)
    palette[0] = 0
    palette[255] = (0, 0, 0) if duplicate else (255, 0, 0)
    label.putpalette(palette.ravel().tolist())
    label.save(path)
    labels = read_labels(dataset_of(path, KINDS), 0, SIZE)
    assert (labels[NUMBERS == 3] == (IGNORE_LABEL if duplicate else 1)).all() and (labels[NUMBERS != 3] == 0).all()


def jpeg(path):
    PIL.Image.fromarray(NUMBERS).save(path, 'JPEG')


def webp(path):
    PIL.Image.fromarray(NUMBERS).convert('RGB').save(path, 'WEBP')


def jpeg_in_tiff(path):
    PIL.Image.fromarray(NUMBERS).save(path, 'TIFF', compression='jpeg')


def pages(path):
    PIL.Image.fromarray(NUMBERS).save(path, 'TIFF', save_all=True, append_images=[PIL.Image.fromarray(NUMBERS)])


def white_as_zero(path):
    PIL.Image.fromarray(NUMBERS).save(path, 'TIFF', tiffinfo={262: 0})


def fractions(path):
    PIL.Image.fromarray(NUMBERS + np.float32(0.5)).save(path, 'TIFF')


def no_numbers(path):
    PIL.Image.fromarray(np.where(NUMBERS, 1, np.nan).astype(np.float32)).save(path, 'TIFF')


def cmyk(path):
    PIL.Image.new('CMYK', SIZE[::-1]).save(path, 'TIFF')


def deep_colors(path):
    save_png(path, np.repeat(NUMBERS[..., None], 3, 2), 16, 2)


def deep_alpha(path):
    save_png(path, np.repeat(NUMBERS[..., None], 2, 2), 16, 4)


def bmp_of_four_bits(path):
    palette = b''.join(bytes((level, level, level, 0)) for level in range(16))
    rows = bytes(8 * SIZE[0])
    with open(path, 'wb') as file:
        file.write(b'BM' + struct.pack('<IHHI', 54 + len(palette + rows), 0, 0, 54 + len(palette)))
        file.write(struct.pack('<IiiHHIIiiII', 40, SIZE[1], SIZE[0], 1, 4, 0, len(rows), 0, 0, 16, 0) + palette + rows)


def animation(path):
    other = PIL.Image.fromarray(3 - NUMBERS)
    PIL.Image.fromarray(NUMBERS).save(path, save_all=True, append_images=[other])


@pytest.mark.parametrize(
    ('write', 'fault'),
    [
        (bmp_of_four_bits, 'is a BMP of 4 bits with a grey palette, which cannot be read'),
        (animation, 'holds 2 pictures; save the labels alone'),
        (jpeg, 'is a JPEG file, whose compression may change class ids; save the original labels as PNG'),
        (webp, 'is a WEBP file'),
        (jpeg_in_tiff, 'has jpeg compression'),
        (pages, 'holds 2 pictures; save the labels alone'),
        (white_as_zero, 'counts white as 0'),
        (fractions, 'holds fractions'),
        (no_numbers, 'holds fractions'),
        (cmyk, 'is of mode CMYK'),
        (deep_colors, 'has several channels of 16 bits'),
        (deep_alpha, 'has several channels of 16 bits'),
    ],
)
@pytest.mark.parametrize('by_color', [(), KINDS])
def test_what_is_lossy_or_ambiguous_is_refused(path, write, fault, by_color):
    write(path)
    assert f'label file {fault}' in error_of(path, by_color)


def test_colours_where_numbers_belong_and_the_reverse(path):
    PIL.Image.new('RGB', SIZE[::-1], (1, 2, 3)).save(path)
    assert 'holds colours such as (1, 2, 3), but class ids are expected' in error_of(path)
    save_png(path, NUMBERS, 16, 0)
    assert 'holds 16-bit numbers, but class colours are expected' in error_of(path, KINDS)


def test_smaller_copies_in_a_tiff_are_no_pages(path):
    small = PIL.Image.fromarray(NUMBERS[::2, ::2].copy())
    small.encoderinfo = {'tiffinfo': {254: 1}}
    PIL.Image.fromarray(NUMBERS).save(path, 'TIFF', save_all=True, append_images=[small])
    np.testing.assert_array_equal(read_labels(dataset_of(path), 0, SIZE), EXPECTED)


def test_counts(path):
    numbers = NUMBERS.copy()
    numbers[0, :2] = 77
    save_png(path, numbers, 8, 0)
    counts = count_label_values(dataset_of(path, unknown_as_void=0.02), 0, SIZE)
    assert counts.known == {f'{k}': int((numbers == k).sum()) for k in range(4)} and counts.unknown == 2
    assert sum(counts.known.values()) == numbers.size - 2


def test_raw_ids_and_void_of_cityscapes(path):
    PIL.Image.fromarray(np.where(NUMBERS, 26, 0).astype(np.uint8)).save(path)
    labels = read_labels(dataset_of(path, table=CITYSCAPES), 0, SIZE)
    np.testing.assert_array_equal(labels, np.where(NUMBERS, 13, IGNORE_LABEL))


def test_unlabelled_split_is_ignored(path):
    blind = SegmentationDataset('tiny', 'test', CITYSCAPES, (path,), None)
    assert (read_labels(blind, 0, SIZE) == IGNORE_LABEL).all()
