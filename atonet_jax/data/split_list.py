"""Text files that list the images of a split."""

import os
import re
from collections import Counter
from collections.abc import Iterable

from atonet_jax.data.dataset import DataError
from atonet_jax.data.pictures import suffixes


def read_split_list(path: str) -> list[str]:
    """The image names in a list, one a line, with '/' between folders.

    Hidden files, as macOS leaves them, are passed over. A line may go on after the name's extension, with its label
    file as in SegNet's lists. Line endings of Windows and names with spaces are fine.

    Raises:
        DataError: the file is missing or no text, or an image is there twice.
    """
    try:
        with open(path, encoding='utf-8-sig') as file:
            lines = [line.strip().replace('\\', '/') for line in file]
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror}); write one image name a line') from error
    except UnicodeDecodeError as error:
        raise DataError(f'{path}: not UTF-8 text; save it as UTF-8') from error
    ending = f'(?:{"|".join(map(re.escape, suffixes()))})'
    names = [os.path.normpath(_without_label(line, ending)) for line in lines if line]
    names = [name for name in names if not os.path.basename(name).startswith('.')]
    refuse_repeated((re.sub(rf'(?i){ending}$', '', name) for name in names), path)
    return names


def refuse_repeated(images: Iterable[str], where: str) -> None:
    """Raises DataError if an image is named twice in `where`: a list, or a split whose parts were joined."""
    repeated = [image for image, count in Counter(images).items() if count > 1]
    if repeated:
        raise DataError(f'{where}: {min(repeated)} is there more than once; list each image once')


def _without_label(line: str, ending: str) -> str:
    """A line of a list up to where the path of another file follows the name of the image.

    ending: a pattern of the endings of images.
    """
    line = line.partition('\t')[0].rstrip()
    for match in reversed(list(re.finditer(rf'(?i){ending}(?= )', line))):
        name, rest = line[: match.end()], line[match.end() :].strip()
        stem = os.path.splitext(os.path.basename(name))[0]
        # Otherwise the name itself goes on, as in 'photo.jpg (2).jpg'.
        if '/' in rest.partition(' ')[0] or os.path.basename(rest).startswith(stem):
            line = name
    return line
