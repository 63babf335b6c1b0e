"""Any usual picture file as RGB bytes, upright: for training, evaluation, check_data, predict and serve alike."""

import contextlib
import functools
import importlib
import logging
import numbers
import re
import struct
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageFile

from atonet_jax.errors import InputError, first_line

_log = logging.getLogger(__name__)

MAX_PIXELS = 180_000_000  # of a picture of a data set, unless config.data.max_pixels says otherwise

HEIF_SUFFIXES = ('.heic', '.heif', '.hif')  # of files that pillow-heif reads

_ORIENTATION = 0x0112  # EXIF tag
_LATE_CHUNKS = (b'eXIf', b'iTXt', b'tEXt', b'zTXt')  # of a PNG: EXIF and XMP may come after the pixels
_WIDE_MODES = ('I', 'F', 'I;16', 'I;16B', 'I;16L', 'I;16N')
_BITS = (8, 10, 12, 14, 16)  # of samples in use
_CODESTREAM = b'\xff\x4f\xff\x51'  # where JPEG 2000's own header begins
_PIXEL_BITS = re.compile(rb'pixi\0{4}[\1-\4](.)', re.DOTALL)  # the box of AVIF and HEIF that holds the bits of a sample
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SMALLEST, _LARGEST = 258, 262, 340, 341  # TIFF tags
_said = set()  # bits that were taken for the range of a picture, each said once
# What Pillow raises.
UNDECODABLE = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, TypeError, OverflowError, struct.error)

# Our own limits, which settings can raise, are checked before anything is decoded.
PIL.Image.MAX_IMAGE_PIXELS = None
# Transparency is dropped, and damaged EXIF turns nothing.
warnings.filterwarnings('ignore', '(Palette images with Transparency|Corrupt EXIF data)', UserWarning)


class TooManyPixels(InputError):
    """A picture that is larger than the limit."""


class Header(NamedTuple):
    """What a picture says before it is decoded.

    Attributes:
        size: (height, width) upright.
        orientation: EXIF, 1 to 8. From 5 on the file stores the sides the other way round.
    """

    size: tuple[int, int]
    orientation: int

    @property
    def stored_size(self) -> tuple[int, int]:
        return self.size[::-1] if self.orientation >= 5 else self.size


@functools.cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats it reads. HEIF is one with pillow-heif.

    Left out are EPS, for which Pillow would run a program, and formats that it knows and cannot decode, such as HDF5.
    """
    PIL.Image.init()
    with contextlib.suppress(ImportError):  # no requirement of ours: users add it if they have such files
        importlib.import_module('pillow_heif').register_heif_opener()
    return tuple(kind for kind, (opener, _) in PIL.Image.OPEN.items() if kind != 'EPS' and not _is_stub(opener))


def _is_stub(opener: Callable) -> bool:
    """Whether what opens a file of a format only finds out that it is one."""
    return isinstance(opener, type) and issubclass(opener, PIL.ImageFile.StubImageFile)


@functools.cache
def suffixes() -> tuple[str, ...]:
    """The endings of the files in these formats: '.png' and so on."""
    kinds = formats()
    return tuple(suffix for suffix, kind in PIL.Image.EXTENSION.items() if kind in kinds)


def read_picture(
    file: str | BinaryIO,
    name: str,
    max_pixels: int,
    limit: str,
    kinds: Sequence[str] | None = None,
    sample_range: Sequence[float] = (),
) -> np.ndarray:
    """[H, W, 3] uint8 RGB, turned as EXIF says. Of an animation, the first frame.

    Grey is repeated, alpha is dropped, palettes are looked up, CMYK is converted. Floats and integers of more than 8
    bits are scaled to 8 bits: from `sample_range`, else from the range that the file declares, else from the fewest of
    8, 10, 12, 14 and 16 bits that hold its values. Floats that lie within 0 and 1 are scaled from that range.

    Args:
        file: a path, or bytes to read.
        name: of the picture in errors.
        max_pixels: a picture with more is refused before it is decoded.
        limit: the name of the setting behind `max_pixels`.
        kinds: the formats to try, of `formats()`; None: all.
        sample_range: the samples that become 0 and 255, in pictures of more than 8 bits; (): each file's own.

    Raises:
        TooManyPixels: it has more than `max_pixels`.
        InputError: it cannot be read or decoded, or its samples have no range that is known.
    """
    with _opened(file, name, max_pixels, limit, kinds) as image:
        is_turned_by_pillow = image.format == 'TIFF'
        scaled = _scaled_by_pillow(image)
        declared = (0, scaled[0]) if scaled else _declared_range(image)
        if sample_range and scaled and scaled[0] > 255 and image.mode not in _WIDE_MODES:
            raise InputError(
                f'{name}: config.data.sample_range cannot be applied to a colour {image.format} of more than 8 bits, '
                'which is decoded to 8; convert it to PNG or TIFF of 16 bits'
            )
        tiles = list(image.tile)
        image.load()
        orientation = 1 if is_turned_by_pillow else _orientation(image)
        if image.mode in _WIDE_MODES:
            samples = np.asarray(image)
            if scaled:  # back to what the file holds
                samples = np.rint(samples * (scaled[0] / scaled[1])).astype(np.int64)
            pixels = _to_bytes(samples, sample_range or declared, name)[..., None].repeat(3, axis=2)
            if image.format == 'TIFF' and image.tag_v2.get(_PHOTOMETRIC) == 0:  # 0 is white, which Pillow leaves to us
                pixels = 255 - pixels
        else:
            pixels = np.asarray(image if image.mode == 'RGB' else image.convert('RGB'))
            known = sample_range or declared
            if _is_wide(tiles) and (known or pixels.max() < 64):  # 64: values of less than 15 bits
                low = _low_bytes(file, tiles, kinds)
                pixels = _to_bytes(pixels.astype(np.uint16) << 8 | low, known, name)
    return turn(pixels, orientation)


def read_header(file: str | BinaryIO, name: str, max_pixels: int, limit: str) -> Header:
    """Size and orientation of a picture, without decoding it. Arguments and errors are those of `read_picture`."""
    with _opened(file, name, max_pixels, limit, kinds=None) as image:
        if image.format == 'PNG' and _has_late_metadata(image.fp):
            image.load()
        orientation = _orientation(image)
        is_swapped = orientation >= 5 and image.format != 'TIFF'  # Pillow gives TIFF's size upright
        return Header((image.width, image.height) if is_swapped else (image.height, image.width), orientation)


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """`array` [H, W, ...] as stored under an EXIF orientation, upright."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def check_pixels(image: PIL.Image.Image, name: str, max_pixels: int, limit: str) -> None:
    """Raises TooManyPixels if a picture has more than `max_pixels`, which the setting `limit` gives."""
    if image.width * image.height > max_pixels:
        raise TooManyPixels(
            f'{name}: {image.width}x{image.height} are more than {max_pixels / 1e6:g} million pixels; make it smaller, '
            f'or raise the limit {limit}'
        )


@contextlib.contextmanager
def _opened(
    file: str | BinaryIO, name: str, max_pixels: int, limit: str, kinds: Sequence[str] | None
) -> Iterator[PIL.Image.Image]:
    """The picture, of which only the header is read yet. Errors within become InputErrors."""
    try:
        with PIL.Image.open(file, formats=kinds or formats()) as image:
            check_pixels(image, name, max_pixels, limit)
            yield image
    except InputError:  # a ValueError, as some of _UNDECODABLE
        raise
    except FileNotFoundError as error:
        raise InputError(f'{name}: no such file') from error
    except (PermissionError, IsADirectoryError) as error:
        raise InputError(f'{name}: cannot be read ({error.strerror}); check its permissions') from error
    except PIL.UnidentifiedImageError as error:
        needs_package = name.lower().endswith(HEIF_SUFFIXES) and 'HEIF' not in formats()
        way_on = '`pip install pillow-heif`' if needs_package else 'give PNG, JPEG or another usual format'
        raise InputError(f'{name}: no image that can be read; {way_on}') from error
    except MemoryError as error:
        raise InputError(f'{name}: too large for the memory; make it smaller') from error
    except UNDECODABLE as error:
        raise InputError(f'{name}: cannot be decoded ({first_line(error)}); replace the file') from error


def _orientation(image: PIL.Image.Image) -> int:
    """EXIF orientation, 1 to 8, as far as the file has been read. 1 if EXIF is missing or damaged."""
    try:
        # Not the method of PngImageFile, which decodes the picture.
        orientation = PIL.Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # Pillow raises many kinds for damaged EXIF; the pixels may be whole
        return 1
    return orientation if orientation in range(1, 9) else 1


def _has_late_metadata(file: BinaryIO) -> bool:
    """Whether a PNG has texts or EXIF after its pixels. Reads the heads of its chunks."""
    position = file.tell()
    file.seek(8)
    after_pixels = False
    try:
        while len(head := file.read(8)) == 8:
            if after_pixels and head[4:] in _LATE_CHUNKS:
                return True
            after_pixels |= head[4:] == b'IDAT'
            file.seek(int.from_bytes(head[:4], 'big') + 4, 1)
        return False
    finally:
        file.seek(position)


def _is_wide(tiles: list) -> bool:
    """Whether Pillow decodes 16 bits a channel, of which it keeps the upper eight."""
    return bool(tiles) and _raw_mode(tiles[0]).startswith(('RGB;16', 'RGBA;16', 'RGBX;16', 'LA;16'))


def _raw_mode(tile) -> str:
    return tile.args if isinstance(tile.args, str) else str(tile.args[0]) if tile.args else ''


def _low_bytes(file: str | BinaryIO, tiles: list, kinds: Sequence[str] | None) -> np.ndarray:
    """[H, W, 3] uint8: the lower eight bits of 16-bit colours, which Pillow itself would drop.

    Pillow takes the first byte of big-endian samples and the second of little-endian ones. So it takes the lower byte
    under the name of the other byte order.
    """
    mode = _raw_mode(tiles[0])
    is_grey = mode.startswith('LA')
    if is_grey:
        other = 'RGBA'  # the four bytes of grey and alpha
    else:
        is_little = mode[-1] == 'L' or (mode[-1] == 'N' and sys.byteorder == 'little')
        other = mode[:-1] + ('B' if is_little else 'L')
    if not isinstance(file, str):
        file.seek(0)
    with PIL.Image.open(file, formats=kinds or formats()) as image:
        image.tile = [
            tile._replace(args=other if isinstance(tile.args, str) else (other, *tile.args[1:])) for tile in tiles
        ]
        low = np.asarray(image)
    return low[..., 1:2].repeat(3, axis=2) if is_grey else low[..., :3]


def _declared_range(image: PIL.Image.Image) -> tuple[float, float] | None:
    """The lowest and highest sample that a TIFF says it may hold; None if it does not say, and of other formats."""
    if image.format == 'TIFF':
        tags = image.tag_v2
        low, high = _number(tags.get(_SMALLEST, 0)), _number(tags.get(_LARGEST))
        if None not in (low, high) and low < high:
            return float(low), float(high)
        bits = _number(tags.get(_BITS_PER_SAMPLE))
        if bits is not None and bits < 16:
            return 0, 2**bits - 1
    return None


def _scaled_by_pillow(image: PIL.Image.Image) -> tuple[int, int] | None:
    """(largest sample that the file says it may hold, what Pillow makes of it where it gives 16 bits).

    None for formats whose samples Pillow leaves as they are. Pixels are not decoded yet.
    """
    if image.format == 'PPM' and image.mode != 'F':
        args = image.tile[0].args
        return args[-1] if isinstance(args, tuple) else 2**16 - 1 if image.mode == 'I' else 255, 2**16 - 1
    if image.format == 'JPEG2000':
        content = _content(image)
        start = content.index(_CODESTREAM)
        channels = int.from_bytes(content[start + 40 : start + 42], 'big')
        bits = max(depth & 0x7F for depth in content[start + 42 :][: 3 * channels : 3]) + 1
    elif image.format in ('AVIF', 'HEIF') and (found := _PIXEL_BITS.findall(_content(image))):
        bits = max(map(ord, found))
    else:
        return None
    return 2**bits - 1, (2**bits - 1) * 2**16 // 2**bits


def _content(image: PIL.Image.Image) -> bytes:
    """The whole file."""
    position = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(position)
    return content


def _number(value):
    """The first number of a TIFF tag; None where the tag is missing or, in a damaged file, text."""
    first = value[0] if isinstance(value, tuple) else value
    return first if isinstance(first, numbers.Real) else None


def _to_bytes(values: np.ndarray, sample_range: Sequence[float] | None, name: str) -> np.ndarray:
    """uint8 of samples of any type, scaled from `sample_range` or from the range that they seem to have.

    Raises:
        InputError: no usual range holds them.
    """
    low, high = sample_range or _likely_range(values, name)
    if np.issubdtype(values.dtype, np.integer) and low == int(low) and high == int(high):
        # Of 16 bits, the upper eight.
        low, high = int(low), int(high)
        return ((values.astype(np.int64).clip(low, high) - low) * 256 // (high - low + 1)).astype(np.uint8)
    with np.errstate(invalid='ignore'):
        scaled = np.nan_to_num((values.astype(np.float64) - low) * (255 / (high - low)), nan=0, posinf=255, neginf=0)
    return scaled.clip(0, 255).round().astype(np.uint8)


def _likely_range(values: np.ndarray, name: str) -> tuple[int, int]:
    """(0, 1), or 0 to 2^n - 1 for the fewest usual bits."""
    low, high = values.min(), values.max()
    is_float = np.issubdtype(values.dtype, np.floating)
    if is_float and low >= 0 and high <= 1:
        return 0, 1
    bits = next((bits for bits in _BITS if low >= 0 and high < 2**bits), None)
    if bits is None or (is_float and high < 16):  # floats of up to 1.02 may be 0 to 1, sharpened
        what = f'samples from {low:g} to {high:g}' if np.isfinite([low, high]).all() else 'samples that are no numbers'
        raise InputError(
            f'{name}: has {what}, and does not say which are black and white; give the range of all such pictures as '
            "--config.data.sample_range='(LOW,HIGH)', or convert it to 8 bits"
        )
    if bits < 16 and bits not in _said:
        _said.add(bits)
        _log.warning(
            '%s: its samples, of at most %g, are taken to have %d bits; config.data.sample_range gives all pictures of '
            'more than 8 bits one range',
            name,
            high,
            bits,
        )
    return 0, 2**bits - 1
