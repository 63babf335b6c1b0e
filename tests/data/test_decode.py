"""Files of every kind decode to RGB bytes and train ids, or are refused by name."""

import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from atonet_jax.data.dataset import DataError, SegmentationDataset
from atonet_jax.data.decode import read_example, read_image, read_image_size
from atonet_jax.data.labels import CITYSCAPES

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


@pytest.mark.parametrize('mode', ['I;16', 'CMYK', '1'])
def test_other_kinds_of_image_are_refused(dataset, mode, tmp_path):
    image = PIL.Image.new(mode, SIZE[::-1])
    image.save(dataset.image_paths[0], format='JPEG' if mode == 'CMYK' else 'PNG')
    with pytest.raises(DataError, match=f'image.png: image is .* of mode {mode}; convert it to an 8-bit RGB'):
        read_image(dataset, 0)


def test_jpeg_decodes_as_pillow_does(dataset, rgb):
    PIL.Image.fromarray(rgb).save(dataset.image_paths[0], format='JPEG')
    with PIL.Image.open(dataset.image_paths[0]) as expected:
        np.testing.assert_array_equal(read_image(dataset, 0), np.asarray(expected))


def test_size_is_that_of_the_header(dataset):
    assert read_image_size(dataset, 0) == SIZE


@pytest.mark.parametrize('content', [b'', b'\x89PNG\r\n\x1a\n', b'text'])
@pytest.mark.parametrize('kind', ['image', 'label'])
def test_what_is_no_image_is_refused(dataset, kind, content):
    path = (dataset.image_paths if kind == 'image' else dataset.label_paths)[0]
    with open(path, 'wb') as file:
        file.write(content)
    with pytest.raises(DataError, match=rf'{kind}.png: cannot be decoded \(.*\); replace the file') as raised:
        read_example(dataset, 0)
    assert '\n' not in str(raised.value) and 'BytesIO' not in str(raised.value)
