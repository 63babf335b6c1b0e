"""Any picture becomes RGB bytes, upright, or one clear line."""

import io
import re
import struct
import sys
import types
import zlib

import numpy as np
import PIL.Image
import pytest

from atonet_jax.data import pictures
from atonet_jax.data.pictures import read_header, read_picture, turn
from atonet_jax.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
MOST = 10_000


def encoded(image, kind='PNG', **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def read(file, **options):
    return read_picture(file, 'it', MOST, 'config.limit', **options)


def chunk(kind, content):
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def wide_png(values):
    """[H, W, channels] uint16 as a PNG of 16 bits, which Pillow does not write in colour."""
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]]
    header = struct.pack('>IIBBBBB', values.shape[1], values.shape[0], 16, color_type, 0, 0, 0)
    rows = b''.join(b'\0' + row.tobytes() for row in values.astype('>u2'))
    parts = chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')
    return io.BytesIO(b'\x89PNG\r\n\x1a\n' + parts)


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'L', 'LA', 'P', '1'])
def test_modes_of_eight_bits(mode):
    image = PIL.Image.fromarray(PIXELS).convert(mode)
    pixels = read(encoded(image))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(image.convert('RGB')))


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
@pytest.mark.parametrize('bits', [8, 10, 12, 14, 16])
def test_samples_of_fewer_bits_than_their_file_has_are_not_black(channels, bits):
    """As many cameras write 12 bits: unscaled in a PNG of 16. Alpha is dropped."""
    values = np.random.default_rng(bits).integers(0, 2**bits, (6, 9, channels), np.uint16)
    values[0, 0] = 2**bits - 1
    expected = values[..., :3] if channels > 2 else values[..., :1].repeat(3, axis=2)
    np.testing.assert_array_equal(read(wide_png(values)), expected >> (bits - 8))
    scaled = (expected.clip(0, 1023) // 4).astype(np.uint8)
    np.testing.assert_array_equal(read(wide_png(values), sample_range=(0, 1023)), scaled)


def test_how_many_bits_are_taken_is_said_once(caplog, monkeypatch):
    monkeypatch.setattr(pictures, '_said', set())
    for top in (4095, 3000, 900):
        read(wide_png(np.full((6, 9, 1), top, np.uint16)))
    assert [record.getMessage().partition(';')[0] for record in caplog.records] == [
        'it: its samples, of at most 4095, are taken to have 12 bits',
        'it: its samples, of at most 900, are taken to have 10 bits',
    ]
    assert 'config.data.sample_range' in caplog.text


def test_a_tiff_may_declare_its_range():
    """341 is SMaxSampleValue."""
    image = PIL.Image.fromarray(np.full((6, 9), 1000, np.uint16))
    file = encoded(image, 'TIFF', tiffinfo={341: 2047})
    assert (read(file) == 1000 >> 3).all()
    assert (read(encoded(image, 'TIFF')) == 1000 >> 2).all()


def wide_tiff(values, top):
    """[H, W, 3] uint16 as a TIFF of 16 bits that declares the largest sample. Pillow writes none in colour."""
    height, width, _ = values.shape
    data = values.astype('<u2').tobytes()
    after = 8 + len(data)  # where the numbers of entries lie that hold three
    numbers = struct.pack('<6H', 16, 16, 16, top, top, top)
    entries = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, after), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 8),
        (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(data)), (341, 3, 3, after + 6),
    ]  # fmt: skip
    directory = struct.pack('<H', len(entries)) + b''.join(struct.pack('<HHII', *entry) for entry in entries) + bytes(4)
    return io.BytesIO(b'II*\0' + struct.pack('<I', after + len(numbers)) + data + numbers + directory)


@pytest.mark.parametrize('brightest', [900, 16_000, 32_767])
def test_a_tiff_in_colour_has_one_scale_however_bright_it_is(brightest):
    values = np.random.default_rng(0).integers(0, brightest, (6, 9, 3), np.uint16)
    values[0, 0] = brightest
    np.testing.assert_array_equal(read(wide_tiff(values, 2**15 - 1)), values >> 7)
    np.testing.assert_array_equal(read(wide_tiff(values, 2**16 - 1)), values >> 8)


def retyped(file, tag, kind):
    """A TIFF whose entry for a tag says that its values are of another kind."""
    content = file.getvalue()
    (entry,) = re.findall(re.escape(struct.pack('<H', tag)) + rb'[\x03\x04\x0c]\x00\x01\x00\x00\x00', content)
    return io.BytesIO(content.replace(entry, struct.pack('<HHI', tag, kind, 1)))


@pytest.mark.parametrize('kind', [1, 2], ids=['bytes', 'text'])
def test_a_tiff_whose_range_is_no_number_declares_none(kind):
    file = encoded(PIL.Image.fromarray(np.full((6, 9), 1000, np.uint16)), 'TIFF', tiffinfo={341: 2047})
    assert (read(retyped(file, 341, kind)) == 1000 >> 2).all()


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_a_tiff_whose_zero_is_white(dtype):
    image = PIL.Image.fromarray(np.full((6, 9), np.iinfo(dtype).max // 2, dtype))
    tag = b'\x06\1\3\0\1\0\0\0'  # PhotometricInterpretation, one number of 16 bits
    content = encoded(image, 'TIFF').getvalue()
    assert content.count(tag + b'\1') == 1
    assert (read(io.BytesIO(content.replace(tag + b'\1', tag + b'\0'))) == 255 - 127).all()


@pytest.mark.parametrize('compression', [1, 5])
def test_colours_of_twelve_bits_in_a_tiff(compression):
    import cv2  # Pillow writes no TIFF of 16-bit colours

    values = np.random.default_rng(0).integers(0, 4096, (6, 9, 3), np.uint16)
    _, content = cv2.imencode('.tif', values, [cv2.IMWRITE_TIFF_COMPRESSION, compression])
    np.testing.assert_array_equal(read(io.BytesIO(content.tobytes())), values[..., ::-1] >> 4)


def test_a_pgm_declares_its_range():
    values = np.full((6, 9), 1000, '>u2')
    assert (read(io.BytesIO(b'P5 9 6 4095\n' + values.tobytes())) == 1000 >> 4).all()


def pgm(values):
    return io.BytesIO(b'P5 9 6 4095\n' + values.astype('>u2').tobytes())


def plain_pgm(values):
    return io.BytesIO(b'P2 9 6 4095\n' + ' '.join(map(str, values.ravel())).encode())


def jpeg2000(values):
    """Of 12 bits. Pillow writes 16, whose middle is subtracted before coding; the depth is in byte 42."""
    file = encoded(PIL.Image.fromarray((values + 2**15 - 2**11).astype(np.uint16)), 'JPEG2000', no_jp2=True)
    content = bytearray(file.getvalue())
    content[42] = 11
    return io.BytesIO(bytes(content))


@pytest.mark.parametrize('write', [pgm, plain_pgm, jpeg2000])
def test_the_range_that_is_given_is_that_of_the_file_and_not_of_what_pillow_makes_of_it(write):
    values = np.random.default_rng(0).integers(0, 4096, (6, 9))
    for sample_range in ((), (0, 4095)):
        assert (read(write(values), sample_range=sample_range)[..., 0] == values >> 4).all()
    assert (read(write(values), sample_range=(0, 1023))[..., 2] == values.clip(0, 1023) >> 2).all()


@pytest.mark.parametrize('kind', ['PPM', 'JPEG2000', 'AVIF'])
def test_the_range_is_refused_for_colours_that_pillow_makes_8_bits(kind):
    file = io.BytesIO(b'P6 9 6 4095\n' + np.full((6, 9, 3), 1000, '>u2').tobytes())
    if kind == 'AVIF':
        import cv2  # Pillow writes no AVIF of 12 bits

        _, content = cv2.imencode('.avif', np.full((6, 9, 3), 1000, np.uint16), [cv2.IMWRITE_AVIF_DEPTH, 12])
        file = io.BytesIO(content.tobytes())
    if kind == 'JPEG2000':
        content = bytearray(encoded(PIL.Image.fromarray(PIXELS), kind, no_jp2=True).getvalue())
        content[42:49:3] = [11] * 3
        file = io.BytesIO(bytes(content))
    assert read(file).shape == PIXELS.shape
    with pytest.raises(InputError, match=f'it: config.data.sample_range cannot be applied to a colour {kind} of mo'):
        read(file, sample_range=(0, 4095))
    for image in (encoded(PIL.Image.fromarray(PIXELS), kind), encoded(PIL.Image.fromarray(PIXELS[..., 0]), kind)):
        assert read(image, sample_range=(0, 4095)).shape == PIXELS.shape


@pytest.mark.parametrize(
    ('low', 'high', 'expected'),
    [(0, 1, (0, 255)), (0, 0.5, (0, 128)), (0, 255, (0, 255)), (100, 4095, (6, 255)), (0, 65535, (0, 255))],
)
def test_floats_are_scaled_from_the_range_they_lie_in(low, high, expected):
    values = np.linspace(low, high, 54, dtype=np.float32).reshape(6, 9)
    pixels = read(encoded(PIL.Image.fromarray(values), 'TIFF'))
    assert (pixels[0, 0, 0], pixels[-1, -1, 0]) == expected
    assert (np.diff(pixels[..., 0].ravel().astype(int)) >= 0).all()


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ((-3.5, 40), 'it: has samples from -3.5 to 40, and does not say which are black and white; give the range'),
        ((0, 1.5), 'it: has samples from 0 to 1.5'),
        ((0, 1e6), 'it: has samples from 0 to 1e+06'),
        ((0, np.nan), 'it: has samples that are no numbers'),
    ],
)
def test_floats_of_no_usual_range_need_the_setting(values, message):
    file = encoded(PIL.Image.fromarray(np.tile(np.float32(values), (6, 1))), 'TIFF')
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read(file)
    assert "--config.data.sample_range='(LOW,HIGH)'" in str(error.value)
    file.seek(0)
    pixels = read(file, sample_range=(-10.0, 10.0))
    low, high = np.nan_to_num((np.float64(values) + 10) * 255 / 20).clip(0, 255).round()
    assert (pixels[:, 0] == low).all() and (pixels[:, 1] == high).all()


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
    np.testing.assert_array_equal(turn(PIXELS, orientation), transposed)
    image = PIL.Image.fromarray(PIXELS)
    for kind in ('PNG', 'TIFF', 'JPEG', 'WEBP', 'AVIF', 'MPO'):
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        more = {'save_all': True, 'append_images': [image]} if kind == 'MPO' else {}
        file = encoded(image, kind, exif=exif, **more)
        header = read_header(file, 'it', MOST, 'limit')
        assert header == (transposed.shape[:2], orientation) and header.stored_size == (6, 9), kind
        pixels = read(file)
        assert pixels.shape == transposed.shape, kind
        if kind in ('PNG', 'TIFF'):
            np.testing.assert_array_equal(pixels, transposed)
        else:  # lossy: nearer to this than to the mirror image of this
            distance = np.abs(pixels.astype(int) - transposed).mean()
            assert distance < np.abs(pixels.astype(int) - transposed[:, ::-1]).mean(), kind


@pytest.mark.parametrize('kind', [b'eXIf', b'iTXt', b'zTXt'])
def test_orientation_after_the_pixels_of_a_png_counts(kind):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    content = {
        b'eXIf': exif.tobytes()[6:],
        b'iTXt': b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>',
        b'zTXt': b'Raw profile type exif\0\0'
        + zlib.compress(b'\nexif\n%8d\n%s\n' % (len(exif.tobytes()), exif.tobytes().hex().encode())),
    }[kind]
    file = encoded(PIL.Image.fromarray(PIXELS)).getvalue()
    file = io.BytesIO(file[:-12] + chunk(kind, content) + file[-12:])
    assert read_header(file, 'it', MOST, 'limit') == ((9, 6), 6)
    np.testing.assert_array_equal(read(file), turn(PIXELS, 6))


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')  # the program itself ignores it
@pytest.mark.parametrize('content', [b'', b'II*\0', b'MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\x63\0\0'])
def test_damaged_exif_turns_nothing(content):
    """The last says orientation 99."""
    for kind in ('PNG', 'JPEG'):
        file = encoded(PIL.Image.fromarray(PIXELS), kind, exif=b'Exif\0\0' + content)
        assert read(file).shape == PIXELS.shape
        assert read_header(file, 'it', MOST, 'limit') == ((6, 9), 1)


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
        (png_header(100_000, 100_000), 'it: 100000x100000 are more than 0.01 million pixels'),
        ('no/such/file.png', 'it: no such file'),
        ('tests', 'it: cannot be read (Is a directory); check its permissions'),
        (io.BytesIO(encoded(PIL.Image.fromarray(PIXELS), 'EPS').getvalue()), 'it: no image that can be read'),
        # Where the pixels lie (tag 273): text, a ratio, bytes, a float, too large a number.
        *(
            (retyped(encoded(PIL.Image.fromarray(PIXELS), 'TIFF'), 273, kind), 'it: cannot be decoded (')
            for kind in (2, 5, 7, 11, 16)
        ),
    ],
)
def test_what_cannot_be_read_is_said_in_a_line(file, message):
    with pytest.raises(InputError, match=re.escape(message)) as failure:
        read(file)
    assert '\n' not in str(failure.value)


def test_heif_is_read_where_its_plugin_is(monkeypatch):
    """The plugin stands for pillow-heif, which is no requirement."""
    plugin = types.ModuleType('pillow_heif')
    plugin.register_heif_opener = lambda: PIL.Image.OPEN.setdefault('HEIF', PIL.Image.OPEN['PNG'])
    monkeypatch.setitem(sys.modules, 'pillow_heif', plugin)
    monkeypatch.setattr(PIL.Image, 'OPEN', dict(PIL.Image.OPEN))
    assert 'HEIF' in pictures.formats.__wrapped__()
