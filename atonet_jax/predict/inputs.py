"""The input of `--mode=predict`: pictures, a folder, a pattern, a video, a camera, an address."""

import base64
import glob
import http.client
import io
import logging
import os
import pathlib
import re
import string
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterable
from typing import BinaryIO, NamedTuple

from atonet_jax.data.pictures import HEIF_SUFFIXES, suffixes
from atonet_jax.errors import InputError
from atonet_jax.process.files import walk

_log = logging.getLogger(__name__)

VIDEO_SUFFIXES = (
    '.mp4', '.mov', '.m4v', '.3gp', '.3g2', '.avi', '.mkv', '.webm', '.mpg', '.mpeg', '.vob', '.ts', '.mts', '.m2ts',
    '.wmv', '.asf', '.flv', '.f4v', '.ogv', '.mxf', '.dv', '.y4m', '.mjpeg', '.mjpg', '.h264', '.264', '.h265', '.hevc',
)  # fmt: skip
_STREAMS = ('http', 'https', 'rtsp', 'rtsps', 'rtmp', 'rtp', 'udp')  # schemes that OpenCV's FFmpeg opens
_WHY_NOT = dict.fromkeys(HEIF_SUFFIXES, '`pip install pillow-heif` lets them be read')
_SECONDS = 30  # without an answer
_MOST_BYTES = 1_000_000_000  # of a picture at an address
_MOST_KINDS = 8  # of files passed over that are named


class Source(NamedTuple):
    """One input.

    Attributes:
        path: of the file, an address, or the number of a camera.
        name: of its output files, without an ending: the path within the input folder.
    """

    path: str | int
    name: str

    @property
    def is_video(self) -> bool:
        if isinstance(self.path, int):
            return True
        if self.is_address:
            return not self._ending_path.endswith(_picture_suffixes())
        return self.path.lower().endswith(VIDEO_SUFFIXES)

    @property
    def is_address(self) -> bool:
        return isinstance(self.path, str) and bool(_scheme(self.path))

    @property
    def is_live(self) -> bool:
        """Whether nothing is known of its end before it comes."""
        return isinstance(self.path, int) or self.is_address

    @property
    def label(self) -> str:
        """For messages: without the password of an address."""
        if isinstance(self.path, int):
            return f'camera {self.path}'
        return _without_password(self.path) if self.is_address else self.path

    @property
    def _ending_path(self) -> str:
        return _split(self.path).path.lower()


def find_sources(given: str, output: str) -> list[Source]:
    """The pictures and videos that `given` means, by name.

    Args:
        given: a file, a folder (with all below it), a pattern with * ? [ or **, 'camera:0', or an address: of a picture
            or video (http, https), of a stream (rtsp and others), or of a file (file).
        output: the output folder. Files in it are not input.

    Raises:
        InputError: there is no input, or an output would replace an input.
    """
    if not given:
        raise InputError(
            'config.predict.input: empty; give a picture, a folder, a pattern, a video, camera:0 or an address'
        )
    if given.startswith('camera:'):
        number = given.removeprefix('camera:')
        if not number.isdecimal():
            raise InputError(f'config.predict.input={given}: a camera is given by its number, as in camera:0')
        return [Source(int(number), f'camera{number}')]
    scheme = _scheme(given)
    if scheme == 'file':
        given = urllib.request.url2pathname(_split(given).path)
    elif scheme in _STREAMS:
        return [_address(given)]
    elif scheme and not os.path.exists(given):
        raise InputError(
            f'config.predict.input={_without_password(given)}: addresses of {scheme} cannot be read, only those of '
            f'{", ".join((*_STREAMS, "file"))}; copy it to this machine'
        )
    if os.path.isdir(given):
        base, paths = given, _without(output, _files_below(given, output), given)
    elif os.path.exists(given):
        base, paths = os.path.dirname(given), [given]
        if not given.lower().endswith(_suffixes()):
            raise InputError(
                f'config.predict.input={given}: the ending is not that of a known picture or video format'
                f'{_because(os.path.splitext(given)[1])}'
            )
        if os.path.realpath(base or '.') == os.path.realpath(output):
            raise InputError(f'config.predict.output={output}: holds the input, and outputs could replace its files')
    elif glob.has_magic(given):
        base = _fixed_part(given)
        paths = [path for path in glob.glob(given, recursive=True) if os.path.isfile(path)]
        paths = _without(output, paths, given)
    else:
        raise InputError(f'config.predict.input={given}: no such file or folder')
    wanted = sorted(path for path in paths if path.lower().endswith(_suffixes()) or os.path.isdir(path))
    passed_over = _passed_over_text(set(paths) - set(wanted))
    if not wanted:
        raise InputError(
            f'config.predict.input={given}: holds no pictures or videos (.png, .jpg, .mp4 and the like)'
            f'{passed_over and f", only {passed_over}"}'
        )
    if passed_over:
        _log.warning('%s: passed over %s', given, passed_over)
    return _named(wanted, base)


def fetched(source: Source) -> BinaryIO:
    """The picture at an address.

    Raises:
        InputError: it does not come, or is too large for a picture.
    """
    parts = _split(source.path)
    identity, _, host = parts.netloc.rpartition('@')
    # Letters beyond ASCII and spaces are quoted; what is quoted already stays.
    path, query = (urllib.parse.quote(part, safe=string.punctuation) for part in (parts.path, parts.query))
    request = urllib.request.Request(parts._replace(netloc=host, path=path, query=query).geturl())
    if identity:
        coded = base64.b64encode(urllib.parse.unquote(identity).encode()).decode()
        request.add_unredirected_header('Authorization', f'Basic {coded}')
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            content = answer.read(_MOST_BYTES + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InputError(f'{source.label}: cannot be fetched ({error}); try it in a browser') from error
    if len(content) > _MOST_BYTES:
        raise InputError(f'{source.label}: has more than {_MOST_BYTES / 1e6:.0f} MB; fetch it yourself')
    return io.BytesIO(content)


def _scheme(text: str) -> str:
    """'http' of 'http://...'; '' if it is no address."""
    match = re.match(r'([a-zA-Z][a-zA-Z0-9+.-]+)://?', text)
    return match[1].lower() if match and (match[0].endswith('//') or match[1].lower() == 'file') else ''


def _split(address: str) -> urllib.parse.SplitResult:
    """Its parts. Raises InputError if it has no host or port that can be told from the rest."""
    try:
        parts = urllib.parse.urlsplit(address)
        _ = parts.port  # raises where it is no number
    except ValueError as error:  # whose text may hold the password
        raise InputError(
            f'config.predict.input={_without_password(address)}: no address that can be read; write it as in '
            'http://host:80/a.jpg, with [] only around an IPv6 host and other signs of a password as %XX'
        ) from error
    return parts


def _without_password(address: str) -> str:
    # A password that should be quoted may hold any sign, '/' and '@' too.
    return re.sub(r'//([^/]*:.*|[^/]*)@', '//', address)


def _address(given: str) -> Source:
    """Its name is that of the file, or of host and stream."""
    parts = _split(given)
    path = urllib.parse.unquote(parts.path).strip('/')
    if parts.scheme.lower() in ('http', 'https') and path:
        name = os.path.splitext(os.path.basename(path))[0]
    else:
        name = f'{parts.hostname or ""}_{path}'
    name = re.sub(r'[^\w.-]+', '_', name).strip('._')
    return Source(given, name[:100] or 'stream')


def _passed_over_text(paths: Iterable[str]) -> str:
    """Such as '2 .heic (`pip install pillow-heif` lets them be read), 1 .txt'; '' for none."""
    counts = Counter(os.path.splitext(path)[1].lower() for path in paths)
    by_number = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kinds = [f'{count} {ending or "without an ending"}{_because(ending)}' for ending, count in by_number]
    others = len(kinds) - _MOST_KINDS
    return ', '.join(kinds[:_MOST_KINDS] + ([f'files of {others} other endings'] if others > 0 else []))


def _because(ending: str) -> str:
    reason = _WHY_NOT.get(ending.lower())
    return f' ({reason})' if reason else ''


def _suffixes() -> tuple[str, ...]:
    return (*VIDEO_SUFFIXES, *suffixes())


def _picture_suffixes() -> tuple[str, ...]:
    return tuple(suffix for suffix in suffixes() if suffix not in VIDEO_SUFFIXES)


def _files_below(folder: str, output: str) -> list[str]:
    """All files except hidden ones, also in folders that are linked.

    Folders that cannot be opened are included, so that reading gives the error.
    """
    if os.path.realpath(folder) == os.path.realpath(output):
        raise InputError(
            f'config.predict.output={output}: is the input folder itself; give another one, such as {output}_labels'
        )
    paths = []
    for parent, names in walk(folder, lambda error: paths.append(error.filename)):
        paths += [os.path.join(parent, name) for name in names]
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

    Names that differ in case alone count as equal here: the outputs may lie on a file system that ignores case.

    Raises:
        InputError: two names are equal even with their endings.
    """
    names = [os.path.relpath(path, base or '.') for path in paths]
    stems = [os.path.splitext(name)[0] for name in names]
    folders = {os.path.dirname(name).casefold() for name in names}
    counts = Counter(stem.casefold() for stem in stems)
    sources, path_of_name = [], {}
    for path, name, stem in zip(paths, names, stems, strict=True):
        is_folder = Source(path, stem).is_video and stem.casefold() in folders  # its frames go into a folder
        source = Source(path, name if counts[stem.casefold()] > 1 or is_folder else stem)
        other = path_of_name.setdefault(source.name, path)
        if other != path:
            raise InputError(f'{path}: its output would replace that of {other}; rename one of them')
        sources.append(source)
    return sources
