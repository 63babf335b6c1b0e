"""Any usual picture file as RGB bytes. Training is stricter: data/decode.py."""

import warnings
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import PIL.Image
import PIL.ImageOps

from atonet_jax.errors import InputError

MOST_PIXELS = 2 * PIL.Image.MAX_IMAGE_PIXELS  # Pillow refuses more, whatever limit is given
_SIXTEEN_BITS = ('I', 'I;16', 'I;16B', 'I;16L')
_UNDECODABLE = (OSError, SyntaxError, ValueError, EOFError, RuntimeError)  # what Pillow raises for bad files

# Our own limit is checked before anything is decoded, and its error is one line.
warnings.simplefilter('ignore', PIL.Image.DecompressionBombWarning)


class TooManyPixels(InputError):
    """A picture that is larger than the limit."""


def formats() -> list[str]:
    """Pillow's names of the formats it reads, except EPS, for which it would run a program."""
    PIL.Image.init()
    return [kind for kind in PIL.Image.OPEN if kind != 'EPS']


def read_picture(
    file: str | BinaryIO, name: str, max_pixels: int, limit: str, kinds: Sequence[str] | None = None
) -> np.ndarray:
    """[H, W, 3] uint8 RGB, turned as EXIF says. Of an animation, the first frame.

    Grey is repeated, alpha is dropped, palettes are looked up, CMYK is converted, 16 bits a channel become 8.

    Args:
        file: a path, or bytes to read.
        name: of the picture in errors.
        max_pixels: a picture with more is refused before it is decoded.
        limit: the name of the setting behind `max_pixels`.
        kinds: the formats to try, of `formats()`; None: all.

    Raises:
        TooManyPixels: it has more than `max_pixels`.
        InputError: it cannot be read or decoded.
    """
    try:
        with PIL.Image.open(file, formats=kinds or formats()) as image:
            if image.width * image.height > max_pixels:
                raise TooManyPixels(
                    f'{name}: {image.width}x{image.height} are more than {max_pixels / 1e6:g} million pixels; make it '
                    f'smaller, or raise the limit {limit}'
                )
            image = PIL.ImageOps.exif_transpose(image)
            if image.mode in _SIXTEEN_BITS:
                return np.repeat((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
            return np.asarray(image.convert('RGB'))
    except TooManyPixels:  # a ValueError, as some of _UNDECODABLE
        raise
    except FileNotFoundError as error:
        raise InputError(f'{name}: no such file') from error
    except (PermissionError, IsADirectoryError) as error:
        raise InputError(f'{name}: cannot be read ({error.strerror}); check its permissions') from error
    except PIL.UnidentifiedImageError as error:
        raise InputError(f'{name}: no image that can be read; give PNG, JPEG or another usual format') from error
    except PIL.Image.DecompressionBombError as error:
        raise TooManyPixels(f'{name}: more than {MOST_PIXELS / 1e6:.0f} million pixels; make it smaller') from error
    except _UNDECODABLE as error:
        raise InputError(f'{name}: cannot be decoded ({str(error) or type(error).__name__}); replace it') from error
