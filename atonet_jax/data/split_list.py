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
    # What follows a name is its label, unless it begins with a bracket, as in 'photo.jpg (2).jpg'.
    label = re.compile(rf'(?i)({ending})(?:\t| (?!\()).*')
    names = [os.path.normpath(label.sub(r'\1', line)) for line in lines if line]
    names = [name for name in names if not os.path.basename(name).startswith('.')]
    refuse_repeated((re.sub(rf'(?i){ending}$', '', name) for name in names), path)
    return names


def refuse_repeated(images: Iterable[str], where: str) -> None:
    """Raises DataError if an image is named twice in `where`: a list, or a split whose parts were joined."""
    repeated = [image for image, count in Counter(images).items() if count > 1]
    if repeated:
        raise DataError(f'{where}: {min(repeated)} is there more than once; list each image once')
