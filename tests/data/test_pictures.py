"""Any picture becomes RGB bytes, upright, or one clear line."""

import io
import re
import zlib

import numpy as np
import PIL.Image
import pytest

from atonet_jax.data.pictures import read_picture
from atonet_jax.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
MOST = 10_000


def encoded(image, kind='PNG', **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def read(file):
    return read_picture(file, 'it', MOST, 'config.limit')


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'L', 'LA', 'P', '1'])
def test_modes_of_eight_bits(mode):
    image = PIL.Image.fromarray(PIXELS).convert(mode)
    pixels = read(encoded(image))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(image.convert('RGB')))


def test_sixteen_bits_become_their_upper_eight():
    grey = np.arange(54, dtype=np.uint16).reshape(6, 9) * 1200
    expected = np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(read(encoded(PIL.Image.fromarray(grey))), expected)
    np.testing.assert_array_equal(read(encoded(PIL.Image.fromarray(grey), 'TIFF')), expected)


def test_cmyk_looks_as_it_did():
    image = PIL.Image.new('RGB', (9, 6), (200, 40, 90))
    np.testing.assert_allclose(read(encoded(image.convert('CMYK'), 'JPEG')), np.asarray(image), atol=6)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_turns_it_upright(orientation):
    transposed = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: np.rot90(PIXELS, 3),
        7: np.rot90(PIXELS, 2).transpose(1, 0, 2),
        8: np.rot90(PIXELS),
    }[orientation]
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(read(encoded(PIL.Image.fromarray(PIXELS), exif=exif)), transposed)


def test_an_animation_is_its_first_frame():
    frames = [PIL.Image.new('RGB', (9, 6), color) for color in ('red', 'blue')]
    for kind in ('GIF', 'WEBP', 'PNG'):
        file = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        np.testing.assert_allclose(read(file)[3, 3], (255, 0, 0), atol=8)


def png_header(width, height):
    """A PNG that says it is large, and holds nothing."""
    file = bytearray(encoded(PIL.Image.new('RGB', (1, 1))).getvalue())
    file[16:24] = width.to_bytes(4, 'big') + height.to_bytes(4, 'big')
    crc = zlib.crc32(file[12:29])
    file[29:33] = crc.to_bytes(4, 'big')
    return io.BytesIO(bytes(file))


@pytest.mark.parametrize(
    ('file', 'message'),
    [
        (io.BytesIO(b''), 'it: no image that can be read'),
        (io.BytesIO(b'not a picture'), 'it: no image that can be read'),
        (io.BytesIO(encoded(PIL.Image.fromarray(PIXELS)).getvalue()[:90]), 'it: cannot be decoded ('),
        (io.BytesIO(encoded(PIL.Image.fromarray(PIXELS), 'JPEG').getvalue()[:300]), 'it: cannot be decoded ('),
        (png_header(200, 100), 'it: 200x100 are more than 0.01 million pixels; make it smaller, or raise the limit co'),
        (png_header(100_000, 100_000), 'it: more than 179 million pixels'),
        ('no/such/file.png', 'it: no such file'),
        ('tests', 'it: cannot be read (Is a directory); check its permissions'),
        (io.BytesIO(encoded(PIL.Image.fromarray(PIXELS), 'EPS').getvalue()), 'it: no image that can be read'),
    ],
)
def test_what_cannot_be_read_is_said_in_a_line(file, message):
    with pytest.raises(InputError, match=re.escape(message)) as failure:
        read(file)
    assert '\n' not in str(failure.value)
