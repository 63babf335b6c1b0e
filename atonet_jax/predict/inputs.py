"""The input of `--mode=predict`: pictures, a folder, a pattern, a video, a camera."""

import glob
import os
import pathlib
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import PIL.Image

from atonet_jax.data.pictures import formats
from atonet_jax.errors import InputError

VIDEO_SUFFIXES = ('.mp4', '.mov', '.avi', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv')


class Source(NamedTuple):
    """One input.

    Attributes:
        path: of the file, or the number of a camera.
        name: of its output files, without an ending: the path within the input folder.
    """

    path: str | int
    name: str

    @property
    def is_video(self) -> bool:
        return isinstance(self.path, int) or self.path.lower().endswith(VIDEO_SUFFIXES)


def find_sources(given: str, output: str) -> list[Source]:
    """The pictures and videos that `given` means, by name.

    Args:
        given: a file, a folder (with all below it), a pattern with * ? [ or **, or 'camera:0'.
        output: the output folder. Files in it are not input.

    Raises:
        InputError: there is no input, or an output would replace an input.
    """
    if not given:
        raise InputError('config.predict.input: empty; give a picture, a folder, a pattern, a video or camera:0')
    if given.startswith('camera:'):
        number = given.removeprefix('camera:')
        if not number.isdecimal():
            raise InputError(f'config.predict.input={given}: a camera is given by its number, as in camera:0')
        return [Source(int(number), f'camera{number}')]
    if os.path.isdir(given):
        base, paths = given, _without(output, _files_below(given, output), given)
    elif os.path.exists(given):
        base, paths = os.path.dirname(given), [given]
        if not given.lower().endswith(_suffixes()):
            raise InputError(
                f'config.predict.input={given}: the ending is not that of a known picture or video format'
            )
    elif glob.has_magic(given):
        base = _fixed_part(given)
        paths = [path for path in glob.glob(given, recursive=True) if os.path.isfile(path)]
        paths = _without(output, paths, given)
    else:
        raise InputError(f'config.predict.input={given}: no such file or folder')
    paths = sorted(path for path in paths if path.lower().endswith(_suffixes()) or os.path.isdir(path))
    if not paths:
        raise InputError(f'config.predict.input={given}: holds no pictures or videos (.png, .jpg, .mp4 and the like)')
    return _named(paths, base)


def _suffixes() -> tuple[str, ...]:
    kinds = formats()
    return (*VIDEO_SUFFIXES, *(suffix for suffix, kind in PIL.Image.EXTENSION.items() if kind in kinds))


def _files_below(folder: str, output: str) -> list[str]:
    """All files except hidden ones. Folders that cannot be opened are included, so that reading gives the error."""
    if os.path.realpath(folder) == os.path.realpath(output):
        raise InputError(
            f'config.predict.output={output}: is the input folder itself; give another one, such as {output}_labels'
        )
    paths = []
    for parent, folders, names in os.walk(folder, onerror=lambda error: paths.append(error.filename)):
        folders[:] = [name for name in folders if not name.startswith('.')]
        paths += [os.path.join(parent, name) for name in names if not name.startswith('.')]
    return paths


def _without(output: str, paths: list[str], given: str) -> list[str]:
    folder = pathlib.Path(os.path.realpath(output))
    outside = [path for path in paths if folder not in pathlib.Path(os.path.realpath(path)).parents]
    if paths and not outside:
        raise InputError(
            f'config.predict.input={given}: everything in it is in the output folder {output}; give another '
            '--config.predict.output'
        )
    return outside


def _fixed_part(pattern: str) -> str:
    """The part of a pattern before the first folder with a wildcard."""
    parts = pathlib.PurePath(pattern).parts
    count = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return os.path.join('', *parts[:count])


def _named(paths: Iterable[str], base: str) -> list[Source]:
    """Names have no ending, unless two would be equal or a video would have the name of a folder.

    Raises:
        InputError: two names are equal even with their endings.
    """
    names = [os.path.relpath(path, base or '.') for path in paths]
    stems = [os.path.splitext(name)[0] for name in names]
    folders = {os.path.dirname(name) for name in names}
    counts = Counter(stems)
    sources, path_of_name = [], {}
    for path, name, stem in zip(paths, names, stems, strict=True):
        is_folder = Source(path, stem).is_video and stem in folders  # its frames go into a folder
        source = Source(path, name if counts[stem] > 1 or is_folder else stem)
        other = path_of_name.setdefault(source.name, path)
        if other != path:
            raise InputError(f'{path}: its output would replace that of {other}; rename one of them')
        sources.append(source)
    return sources
