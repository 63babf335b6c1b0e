"""Files of every kind decode to RGB bytes and train ids, or are refused by name."""

import dataclasses
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from atonet_jax.data.dataset import DataError, SegmentationDataset
from atonet_jax.data.decode import read_example
from atonet_jax.data.image_files import check_image_end, read_image, read_image_size
from atonet_jax.data.label_files import read_labels
from atonet_jax.data.labels import CITYSCAPES
from atonet_jax.data.pictures import read_picture

SIZE = (9, 14)


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


@pytest.fixture
def dataset(tmp_path, rgb):
    """One example: random pixels, all road."""
    paths = str(tmp_path / 'image.png'), str(tmp_path / 'label.png')
    PIL.Image.fromarray(rgb).save(paths[0])
    PIL.Image.fromarray(np.full(SIZE, 7, np.uint8)).save(paths[1])
    return SegmentationDataset('tiny', 'train', CITYSCAPES, paths[:1], paths[1:])


def save_png(path, array, bit_depth, color_type):
    """[H, W, channels] as a PNG that Pillow cannot write."""
    rows = array.astype(f'>u{bit_depth // 8}')
    data = b''.join(b'\0' + row.tobytes() for row in rows)
    header = struct.pack('>IIBBBBB', array.shape[1], array.shape[0], bit_depth, color_type, 0, 0, 0)
    with open(path, 'wb') as file:
        file.write(b'\x89PNG\r\n\x1a\n')
        for kind, content in ((b'IHDR', header), (b'IDAT', zlib.compress(data)), (b'IEND', b'')):
            chunk = kind + content
            file.write(struct.pack('>I', len(content)) + chunk + struct.pack('>I', zlib.crc32(chunk)))


def test_rgb(dataset, rgb):
    image, labels = read_example(dataset, 0)
    np.testing.assert_array_equal(image, rgb)
    assert (labels == 0).all() and image.dtype == labels.dtype == np.uint8


def test_alpha_is_dropped(dataset, rgb):
    alpha = np.arange(SIZE[0] * SIZE[1], dtype=np.uint8).reshape(*SIZE, 1)
    PIL.Image.fromarray(np.concatenate([rgb, alpha], axis=2)).save(dataset.image_paths[0])
    np.testing.assert_array_equal(read_image(dataset, 0), rgb)


def test_grey_is_repeated_and_a_palette_looked_up(dataset, rgb):
    grey = rgb[..., 0]
    PIL.Image.fromarray(grey).save(dataset.image_paths[0])
    np.testing.assert_array_equal(read_image(dataset, 0), np.repeat(grey[..., None], 3, axis=2))

    image = PIL.Image.fromarray(grey).convert('P')
    palette = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    image.putpalette(palette.ravel().tolist())
    image.save(dataset.image_paths[0])
    np.testing.assert_array_equal(read_image(dataset, 0), palette[np.asarray(image)])


def test_colours_of_16_bits_keep_their_high_byte(dataset, rgb):
    save_png(dataset.image_paths[0], rgb.astype(np.uint16) * 256 + 77, 16, color_type=2)
    np.testing.assert_array_equal(read_image(dataset, 0), rgb)


@pytest.mark.parametrize(
    ('kind', 'mode'),
    [('PNG', 'I;16'), ('JPEG', 'CMYK'), ('PNG', '1'), ('MPO', 'RGB'), ('WEBP', 'RGB'), ('TIFF', 'F'), ('BMP', 'P')],
)
def test_training_reads_what_predict_reads(dataset, rgb, kind, mode):
    grey = PIL.Image.fromarray(rgb[..., 0])
    image = PIL.Image.fromarray(rgb).convert(mode) if mode in ('RGB', 'CMYK') else grey.convert(mode)
    path, exif = dataset.image_paths[0], PIL.Image.Exif()
    exif[0x112] = 6
    more = {'save_all': True, 'append_images': [image]} if kind == 'MPO' else {}
    image.save(path, kind, exif=exif, **more)
    size = SIZE if kind == 'BMP' else SIZE[::-1]  # BMP has no EXIF
    PIL.Image.fromarray(np.full(size, 7, np.uint8)).save(dataset.label_paths[0])
    image, labels = read_example(dataset, 0)
    np.testing.assert_array_equal(image, read_picture(path, path, 1000, 'limit'))
    assert labels.shape == image.shape[:2] == read_image_size(dataset, 0)


def test_samples_are_scaled_as_the_setting_says(dataset, rgb):
    save_png(dataset.image_paths[0], rgb.astype(np.uint16) * 4, 16, color_type=2)
    np.testing.assert_array_equal(read_image(dataset, 0), rgb)
    dataset = dataclasses.replace(dataset, sample_range=(0, 2**11 - 1))
    np.testing.assert_array_equal(read_image(dataset, 0), rgb // 2)


def test_a_large_image_names_the_setting(dataset):
    small = dataclasses.replace(dataset, max_pixels=100)
    for read in (read_image, read_image_size):
        with pytest.raises(DataError, match='image.png: 14x9 are more than .* raise the limit config.data.max_pixels'):
            read(small, 0)
    PIL.Image.new('RGB', (5, 5)).save(dataset.image_paths[0])
    with pytest.raises(DataError, match='label.png: 14x9 are more than .* or raise the limit config.data.max_pixels'):
        read_labels(small, 0, (5, 5))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_labels_lie_as_their_image_does(dataset, rgb, orientation):
    raw = rgb[..., 0] % 2 + 7  # road and sidewalk
    exif = PIL.Image.Exif()
    exif[0x112] = orientation
    PIL.Image.fromarray(raw).save(dataset.image_paths[0], exif=exif)
    PIL.Image.fromarray(raw).save(dataset.label_paths[0])
    image, labels = read_example(dataclasses.replace(dataset, label_orientation='stored'), 0)
    np.testing.assert_array_equal(image[..., 0] - 7, labels)

    PIL.Image.fromarray(image[..., 0]).save(dataset.label_paths[0])
    image, labels = read_example(dataset, 0)
    np.testing.assert_array_equal(image[..., 0] - 7, labels)


def test_labels_that_fit_the_image_otherwise_turned_name_the_setting(dataset, rgb):
    exif = PIL.Image.Exif()
    exif[0x112] = 8
    PIL.Image.fromarray(rgb).save(dataset.image_paths[0], exif=exif)
    with pytest.raises(
        DataError,
        match=r'label.png: label is 9x14 \(height x width\) but its image .*image.png is 14x9 \(height x width\) as '
        'its EXIF orientation 8 turns it; the label fits only the image as stored: .*label_orientation=stored',
    ) as error:
        read_example(dataset, 0)
    assert error.value.kind == 'label fits only the image without its EXIF orientation'
    PIL.Image.new('L', SIZE).save(dataset.label_paths[0])
    with pytest.raises(DataError, match='orientation 8 turns it: .* leave --config.data.label_orientation=upright'):
        read_example(dataclasses.replace(dataset, label_orientation='stored'), 0)
    PIL.Image.new('L', (3, 3)).save(dataset.label_paths[0])
    for orientation in ('upright', 'stored'):
        with pytest.raises(DataError, match='they must be equal'):
            read_example(dataclasses.replace(dataset, label_orientation=orientation), 0)


def test_jpeg_decodes_as_pillow_does(dataset, rgb):
    PIL.Image.fromarray(rgb).save(dataset.image_paths[0], format='JPEG')
    with PIL.Image.open(dataset.image_paths[0]) as expected:
        np.testing.assert_array_equal(read_image(dataset, 0), np.asarray(expected))


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'TIFF', 'WEBP'])
def test_a_truncated_image_is_found_by_its_end(dataset, rgb, kind):
    path = dataset.image_paths[0]
    PIL.Image.fromarray(rgb).save(path, kind)
    check_image_end(dataset, 0)
    with open(path, 'r+b') as file:
        file.truncate(file.seek(0, 2) * 2 // 3)
    with pytest.raises(DataError, match='image.png: cannot be decoded'):
        check_image_end(dataset, 0)


def test_size_is_that_of_the_header(dataset):
    assert read_image_size(dataset, 0) == SIZE


@pytest.mark.parametrize('content', [b'', b'\x89PNG\r\n\x1a\n', b'text'])
@pytest.mark.parametrize('kind', ['image', 'label'])
def test_what_is_no_image_is_refused(dataset, kind, content):
    path = (dataset.image_paths if kind == 'image' else dataset.label_paths)[0]
    with open(path, 'wb') as file:
        file.write(content)
    message = 'no image that can be read' if kind == 'image' else r'cannot be decoded \(.*\); replace the file'
    with pytest.raises(DataError, match=rf'{kind}.png: {message}') as raised:
        read_example(dataset, 0)
    assert '\n' not in str(raised.value) and 'BytesIO' not in str(raised.value)
